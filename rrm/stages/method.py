"""Stage `method`: another weakly supervised method, trained from image-level labels on the parts that RRM uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rrm.crf import DenseCRF
from rrm.method_tasks import DSRGTask, EMAdaptTask, SECTask
from rrm.networks import load_weights
from rrm.stages.call import Call
from rrm.stages.train import new_network, train
from rrm.store import Store
from rrm.training import Task


def _task(network: Any, options: Mapping[str, Any]) -> Task:
    """What the method minimises; `options` is an entry of the config section `methods`."""
    own = {name: value for name, value in options.items() if name not in ("kind", "network", "train")}
    if options["kind"] == "em_adapt":
        return EMAdaptTask(network, own)
    seeds, crf = own.pop("seeds"), DenseCRF(**own.pop("crf"))
    return {"sec": SECTask, "dsrg": DSRGTask}[options["kind"]](network, seeds, crf, own)


def run(call: Call) -> None:
    """Write the weights of a trained `RRMNet`. No mask is among the inputs."""
    options = call.options["method"]
    photos = Store(call.input("photos"), "photos")
    network = new_network("rrm", photos, options["network"], call.options["seed"])
    if "start" in call.inputs:
        load_weights(network, call.input("start"))
    train(call, photos, "rrm", _task(network, options), options["network"], options["train"])
