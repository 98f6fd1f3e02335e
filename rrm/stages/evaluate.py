"""Stage `evaluate`: confusion matrices of every photo of a split, without and with CRF."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rrm.crf import DenseCRF
from rrm.datasets.packing import open_masks
from rrm.inference import labels_at, refined
from rrm.metrics import confusion_matrix
from rrm.parallel import WorkerPool
from rrm.progress import tracked
from rrm.shards import own_share
from rrm.stages.call import Call
from rrm.store import Store, StoreWriter


@dataclass(frozen=True)
class _Photo:
    """One photo: its id and the stores that hold it, each with this one record, which a process reads by itself."""

    name: str
    photos: Store
    masks: Store
    probabilities: Store


@dataclass(frozen=True)
class _Scorer:
    """Scores one photo."""

    crf: DenseCRF
    num_classes: int

    def __call__(self, photo: _Photo) -> dict[str, npt.NDArray[np.int64]]:
        image = photo.photos.read(photo.name, "image")
        target = photo.masks.read(photo.name, "mask")
        scores = photo.probabilities.read(photo.name, "probabilities").astype(np.float32)
        size = (int(target.shape[0]), int(target.shape[1]))
        by_kind = {"plain": scores, "crf": refined(self.crf, image, scores, size)}
        return {
            kind: confusion_matrix(labels_at(each, size), target, self.num_classes) for kind, each in by_kind.items()
        }


def run(call: Call) -> None:
    """Write a store of kind "confusion": per photo `plain` and `crf`, (C+1, C+1) int64, rows true classes."""
    split = call.options["split"]
    photos = Store(call.input("photos"), "photos")
    masks = open_masks(call.input("masks"), split, supervision="evaluation")
    probabilities = Store(call.input("probabilities"), "probabilities")
    ids, attrs = own_share(call.runtime, masks.ids, _facts(photos, probabilities, split))
    scorer = _Scorer(DenseCRF(**call.options["crf"]), len(photos.attrs["classes"]))
    with (
        WorkerPool(call.runtime["crf_workers"]) as pool,
        StoreWriter(call.output, "confusion", call.options, call.code, attrs) as writer,
    ):
        each = (_Photo(name, photos.only(name), masks.only(name), probabilities.only(name)) for name in ids)
        scored = zip(ids, pool.map(scorer, each), strict=True)
        for name, matrices in tracked(scored, f"evaluate {split}", len(ids), call.runtime["log_seconds"]):
            writer.add(name, matrices)


def _facts(photos: Store, probabilities: Store, split: str) -> Mapping[str, Any]:
    """What the tables check before they trust a matrix."""
    trained = probabilities.attrs["trained"]
    return {"split": split, "classes": photos.attrs["classes"], "trained_options": trained["options"]}
