"""Stage `affinity`: the affinities of a random walk, learned from the reliable labels of a trained network's CAMs."""

from __future__ import annotations

from rrm.method_tasks import AffinityTask
from rrm.networks import affinity_options, load_weights
from rrm.regions import RegionRule
from rrm.stages.call import Call
from rrm.stages.train import new_network, train
from rrm.stages.trained import load_trained
from rrm.store import Store
from rrm.training import take_device


def run(call: Call) -> None:
    """Write the weights of an `AffinityNet` on the backbone of the network that labels. No mask is among the inputs."""
    walk, given = call.options["random_walk"], call.options["network"]
    photos = Store(call.input("photos"), "photos")
    options = {**given, "weights": None, "options": affinity_options(given["backbone"], given["options"])}
    network = new_network("affinity", photos, options, call.options["seed"])
    load_weights(network, call.input("model"))
    labeller = load_trained(call.input("model"), take_device(call.runtime)).network
    mining = RegionRule.from_options(walk["mining"])
    task = AffinityTask(network, labeller, mining, call.options["cam_scales"], walk["radius"])
    train(call, photos, "affinity", task, options, walk["train"])
