"""Stage `evaluate`: confusion matrices of every photo of a split, without and with CRF.

On a GPU, CRF, resizing and counting are done there, for photos of one size at a time; on the CPU in several processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rrm.crf import DenseCRF
from rrm.datasets.packing import open_masks
from rrm.inference import PASS_PIXELS, labels_at, refined
from rrm.metrics import confusion_matrices
from rrm.parallel import WorkerPool, map_alike
from rrm.progress import tracked
from rrm.shards import in_whole_windows, own_share
from rrm.stages.call import Call
from rrm.store import Store, StoreWriter
from rrm.training import take_device

Matrices = Mapping[str, npt.NDArray[np.int64]]


@dataclass(frozen=True)
class _Example:
    """One photo as it was packed, with its mask at the original size and its probabilities, as stored."""

    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]
    probabilities: npt.NDArray[np.float16]


@dataclass(frozen=True)
class Stores:
    """What photos, masks and probabilities are read from, in the process that reads."""

    photos: Store
    masks: Store
    probabilities: Store

    def read(self, name: str) -> _Example:
        """What is known of a photo."""
        image, mask = self.photos.read(name, "image"), self.masks.read(name, "mask")
        return _Example(image, mask, self.probabilities.read(name, "probabilities"))

    def only(self, name: str) -> Stores:
        """The same with one photo, which is quickly sent to another process."""
        return Stores(self.photos.only(name), self.masks.only(name), self.probabilities.only(name))


@dataclass(frozen=True)
class Scorer:
    """Scores photos."""

    crf: DenseCRF
    num_classes: int
    device: str

    def one(self, photo: tuple[str, Stores]) -> Matrices:
        """Read and score a photo."""
        name, stores = photo
        (matrices,) = self.batch([stores.read(name)])
        return matrices

    def batch(self, examples: Sequence[_Example]) -> list[Matrices]:
        """Score photos of one size with masks of one size, on the device.

        Returns:
            `plain` and `crf` of each photo, (C+1, C+1) int64, rows true classes.
        """
        images, masks, stored = (self._stacked(examples, name) for name in ("image", "mask", "probabilities"))
        size, scores = (int(masks.shape[1]), int(masks.shape[2])), stored.float()
        by_kind = {"plain": scores, "crf": refined(self.crf, images, scores, size)}
        found = {
            kind: confusion_matrices(labels_at(each, size), masks, self.num_classes).cpu().numpy()
            for kind, each in by_kind.items()
        }
        return [{kind: each[place] for kind, each in found.items()} for place in range(len(examples))]

    def _stacked(self, examples: Sequence[_Example], name: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([getattr(each, name) for each in examples])).to(self.device)

    def batched(self, stores: Stores, names: Sequence[str]) -> Iterator[Matrices]:
        """Matrices of photos in order, alike ones together; reading goes on meanwhile."""
        return map_alike(
            self.batch,
            map(stores.read, names),
            kind=lambda each: (each.image.shape, each.mask.shape),
            size=lambda each: max(each.mask.size, each.image[..., 0].size),
            most=PASS_PIXELS[self.device],
        )

    def scored(
        self, pool: WorkerPool, stores: Stores, ids: Sequence[str], share: Sequence[str]
    ) -> Iterator[tuple[str, Matrices]]:
        """The photos of a share with their matrices: on the CPU one a process, on a GPU in batches."""
        if self.device == "cpu":
            return zip(share, pool.map(self.one, ((name, stores.only(name)) for name in share)), strict=True)
        return in_whole_windows(partial(self.batched, stores), ids, share)


def run(call: Call) -> None:
    """Write a store of kind "confusion": per photo `plain` and `crf`, (C+1, C+1) int64, rows true classes."""
    split, device = call.options["split"], take_device(call.runtime)
    photos = Store(call.input("photos"), "photos")
    masks = open_masks(call.input("masks"), split, supervision="evaluation")
    probabilities = Store(call.input("probabilities"), "probabilities")
    share, attrs = own_share(call.runtime, masks.ids, _facts(photos, probabilities, split))
    scorer = Scorer(DenseCRF(**call.options["crf"]), len(photos.attrs["classes"]), device)
    with (
        WorkerPool(call.runtime["crf_workers"]) as pool,
        StoreWriter(call.output, "confusion", call.options, call.code, attrs) as writer,
    ):
        scored = scorer.scored(pool, Stores(photos, masks, probabilities), masks.ids, share)
        for name, matrices in tracked(scored, f"evaluate {split}", len(share), call.runtime["log_seconds"]):
            writer.add(name, matrices)


def _facts(photos: Store, probabilities: Store, split: str) -> Mapping[str, Any]:
    """What the tables check before they trust a matrix."""
    trained = probabilities.attrs["trained"]
    return {"split": split, "classes": photos.attrs["classes"], "trained_options": trained["options"]}
