"""Stage `classifier`: the classification branch trained on image-level labels, the start of one-step training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rrm.datasets.loading import split_ids
from rrm.distributed import is_first
from rrm.logistic import logistic_regression, pooled_features, set_classifier
from rrm.progress import tracked
from rrm.stages.call import Call
from rrm.stages.train import new_network, train
from rrm.stages.trained import save_trained
from rrm.store import Store
from rrm.tasks import ClassificationTask
from rrm.training import take_device


def _fit_branch(call: Call, photos: Store, network: Any, linear: Mapping[str, Any]) -> None:
    """Solve the branch on the frozen backbone's features, in place."""
    device = take_device(call.runtime)
    network.to(device).eval()
    ids = split_ids(photos, "train")
    images = tracked(
        (photos.read(name, "image") for name in ids), "classifier: features", len(ids), call.runtime["log_seconds"]
    )
    features = list(pooled_features(network, images, linear["scales"], linear["flip"], device))
    labels = torch.stack([torch.from_numpy(photos.read(name, "present")).double() for name in ids])
    weight, bias = logistic_regression(
        torch.cat(features),
        labels.repeat_interleave(len(features[0]), dim=0),
        bias=network.fc8.bias is not None,
        weight_decay=linear["weight_decay"],
        iterations=linear["iterations"],
        loss=call.options["classifier"]["loss"],
    )
    set_classifier(network.fc8, weight, bias)


def run(call: Call) -> None:
    """Write the weights of an `RRMNet` whose classification branch is trained."""
    options = call.options
    photos = Store(call.input("photos"), "photos")
    network = new_network("rrm", photos, options["network"], options["seed"])
    if options["classifier"]["linear"] is None:
        task = ClassificationTask(network, options["classifier"]["loss"])
        train(call, photos, "rrm", task, options["network"], options["classifier"]["train"])
        return
    if not is_first():  # no loop: one process does it
        return
    _fit_branch(call, photos, network, options["classifier"]["linear"])
    save_trained(call.output, network, "rrm", photos.attrs["classes"], options["network"], call.identity())
