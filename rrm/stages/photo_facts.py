"""Stage `photo-facts`: what is known of photos without masks, by the one-step network of the first seed.

Which classes it predicts, how sure it is of them, and how many pixels get reliable labels (Eq. 5-7) with the photo's
image-level labels. Predictions are those before the CRF, and know nothing of the labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from rrm.datasets.loading import split_ids
from rrm.labels import IGNORE
from rrm.progress import tracked
from rrm.stages.call import Call
from rrm.stages.figure3 import mined
from rrm.stages.trained import load_trained
from rrm.store import Store, StoreWriter
from rrm.training import take_device

SPLITS = ("train", "val")


def seen_classes(probabilities: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    """Pixels whose most probable class is each one, and the sum of that probability over them.

    Args:
        probabilities: (C+1,H,W) float.

    Returns:
        `pixels` (C+1,) int64 and `confidence` (C+1,) float64.

    Example:
        >>> {name: values.tolist() for name, values in seen_classes(np.array([[[0.75, 0.25]], [[0.25, 0.75]]])).items()}
        {'pixels': [1, 1], 'confidence': [0.75, 0.75]}
    """
    labels, best = probabilities.argmax(0).ravel(), probabilities.max(0).ravel().astype(np.float64)
    count = len(probabilities)
    return {"pixels": np.bincount(labels, minlength=count), "confidence": np.bincount(labels, best, count)}


def run(call: Call) -> None:
    """Write a store of kind "photo_facts": per photo `present` (C,), `pixels`, `confidence` and `mined`, (C+1,)."""
    device = take_device(call.runtime)
    photos, network = Store(call.input("photos"), "photos"), load_trained(call.input("model"), device).network
    splits = {split: list(split_ids(photos, split)) for split in SPLITS}
    attrs = {"classes": photos.attrs["classes"], "splits": splits}
    stores = {split: Store(call.input(split), "probabilities") for split in SPLITS}
    names = [(split, name) for split, ids in splits.items() for name in ids]
    with StoreWriter(call.output, "photo_facts", call.options, call.code, attrs) as writer:
        for split, name in tracked(names, "photo facts", len(names), call.runtime["log_seconds"]):
            facts = seen_classes(stores[split].read(name, "probabilities"))
            writer.add(name, facts | _labelled(photos, name, network, call.options["one_step"], device))


def _labelled(
    photos: Store, name: str, network: Any, one_step: Mapping[str, Any], device: str
) -> dict[str, npt.NDArray[Any]]:
    """Image-level labels and pixels with a reliable label of each class; nothing of a photo without labels."""
    if "present" not in photos.names(name):
        return {}
    present = photos.read(name, "present")
    labels = mined(photos.read(name, "image"), present, network, one_step, device)[-1][0].cpu().numpy()
    counts = np.bincount(labels[labels != IGNORE].ravel(), minlength=len(present) + 1)
    return {"present": present, "mined": counts.astype(np.int64)}
