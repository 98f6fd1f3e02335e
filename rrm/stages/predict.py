"""Stage `predict`: class probabilities of every photo of a split, at the size it was packed at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from rrm.datasets.loading import split_ids
from rrm.inference import activation_scores, for_storage, predicted_labels, segmentation_probabilities, summing_to_one
from rrm.progress import tracked
from rrm.shards import own_share
from rrm.stages.call import Call
from rrm.stages.trained import load_trained
from rrm.store import Store, StoreWriter
from rrm.training import pick_device

Predict = Callable[[str], npt.NDArray[np.float32]]


def _predictor(call: Call, photos: Store, network: Any, device: str) -> Predict:
    options = call.options
    if "cam" not in options:
        return lambda name: segmentation_probabilities(network, photos.read(name, "image"), options["views"], device)

    def cam_of(name: str) -> npt.NDArray[np.float32]:
        cam, image = options["cam"], photos.read(name, "image")
        given = options["image_labels"] == "given"
        present = photos.read(name, "present") if given else predicted_labels(network, image, device)
        how = (cam["scales"], cam["average"], cam["exponent"], device)
        return summing_to_one(activation_scores(network, image, present, *how))

    return cam_of


def run(call: Call) -> None:
    """Write a store of kind "probabilities": per photo `probabilities` (C+1,H,W) float16."""
    photos = Store(call.input("photos"), "photos")
    device = pick_device(call.runtime["device"])
    trained = load_trained(call.input("model"), device)
    predict = _predictor(call, photos, trained.network, device)
    facts = {"split": call.options["split"], "trained": trained.facts}
    ids, attrs = own_share(call.runtime, split_ids(photos, call.options["split"]), facts)
    with StoreWriter(call.output, "probabilities", call.options, call.code, attrs) as writer:
        for name in tracked(ids, f"predict {call.options['split']}", len(ids), call.runtime["log_seconds"]):
            writer.add(name, {"probabilities": for_storage(predict(name))})
