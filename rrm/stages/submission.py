"""Stage `submission`: a model's predictions on photos without public masks, as an archive for the evaluation server."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rrm.crf import DenseCRF
from rrm.datasets.loading import split_ids
from rrm.datasets.packing import SUBMISSION_SPLIT
from rrm.datasets.voc import encode_mask
from rrm.inference import labels_at, refined
from rrm.parallel import WorkerPool
from rrm.progress import tracked
from rrm.stages.call import Call
from rrm.store import Store, atomic_path
from rrm.submission import check_archive, write_archive


def original_sizes(photos: Store) -> dict[str, tuple[int, int]]:
    """(H, W) before packing of each photo of the split "submission", in the order of its list.

    Raises:
        RRMError: the store has no such split.
    """
    sizes = {name: photos.read(name, "size") for name in split_ids(photos, SUBMISSION_SPLIT)}
    return {name: (int(size[0]), int(size[1])) for name, size in sizes.items()}


@dataclass(frozen=True)
class _Photo:
    """One photo: its id, its size, and the stores that hold it, each with this one record."""

    name: str
    size: tuple[int, int]
    photos: Store
    probabilities: Store


@dataclass(frozen=True)
class _Encoder:
    """Makes the PNG file of one photo, which it reads in the process that calls it."""

    crf: DenseCRF | None

    def __call__(self, photo: _Photo) -> bytes:
        scores = photo.probabilities.read(photo.name, "probabilities").astype(np.float32)
        if self.crf is not None:
            scores = refined(self.crf, photo.photos.read(photo.name, "image"), scores, photo.size)
        return encode_mask(labels_at(scores, photo.size))


def run(call: Call) -> None:
    """Write the archive; one that the check refuses never gets its name."""
    photos = Store(call.input("photos"), "photos")
    probabilities = Store(call.input("probabilities"), "probabilities")
    sizes, options = original_sizes(photos), call.options["crf"]
    ids = sorted(sizes)
    encoder = _Encoder(DenseCRF(**options) if options else None)
    each = (_Photo(name, sizes[name], photos.only(name), probabilities.only(name)) for name in ids)
    with WorkerPool(call.runtime["crf_workers"]) as pool, atomic_path(call.output) as temporary:
        files = pool.map(encoder, each)
        named = tracked(zip(ids, files, strict=True), "submission", len(ids), call.runtime["log_seconds"])
        write_archive(temporary, named)
        check_archive(temporary, ids, sizes, len(photos.attrs["classes"]))
