"""Stage `one-step`: RRM training from image-level labels alone (Algorithm 1)."""

from __future__ import annotations

from rrm.networks import load_weights
from rrm.regions import RegionRule
from rrm.stages.call import Call
from rrm.stages.train import new_network, train
from rrm.store import Store
from rrm.tasks import OneStepTask


def run(call: Call) -> None:
    """Write the weights of a trained `RRMNet`. No mask is among the inputs."""
    options = call.options["one_step"]
    photos = Store(call.input("photos"), "photos")
    network = new_network("rrm", photos, options["network"], call.options["seed"])
    if "start" in call.inputs:
        load_weights(network, call.input("start"))
    mining = RegionRule.from_options(options["mining"])
    task = OneStepTask(network, mining, options["cam"], options["losses"], options["energy"])
    train(call, photos, "rrm", task, options["network"], options["train"])
