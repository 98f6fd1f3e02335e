"""Stage `step-two`: a segmentation network retrained on the pseudo masks of the one-step network."""

from __future__ import annotations

from rrm.networks import load_weights
from rrm.stages.call import Call
from rrm.stages.train import new_network, train
from rrm.store import Store
from rrm.tasks import SegmentationTask


def train_segmentation(call: Call, masks: Store) -> None:
    """Train the network of the options on given masks and write its weights."""
    options = call.options["step_two"]
    photos = Store(call.input("photos"), "photos")
    network = new_network("segmentation", photos, options["network"], call.options["seed"])
    if options["warm_start"]:
        load_weights(network, call.input("start"))
    task = SegmentationTask(network, options["cross_entropy"], options["loss_scales"], options["energy"])
    train(call, photos, "segmentation", task, options["network"], options["train"], masks)


def run(call: Call) -> None:
    """Write the weights of a network trained on pseudo masks; a store of true masks is refused."""
    train_segmentation(call, Store(call.input("masks"), "pseudo_masks"))
