"""Stage `classifier`: the classification branch trained on image-level labels, the start of one-step training."""

from __future__ import annotations

from rrm.stages.call import Call
from rrm.stages.train import new_network, train
from rrm.store import Store
from rrm.tasks import ClassificationTask


def run(call: Call) -> None:
    """Write the weights of an `RRMNet` whose classification branch is trained."""
    options = call.options
    photos = Store(call.input("photos"), "photos")
    network = new_network("rrm", photos, options["network"], options["seed"])
    if options["classifier"]["freeze_backbone"]:
        network.freeze_backbone()
    task = ClassificationTask(network, options["classifier"]["loss"])
    train(call, photos, "rrm", task, options["network"], options["classifier"]["train"])
