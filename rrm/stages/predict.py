"""Stage `predict`: class probabilities of every photo of a split, at the size it was packed at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rrm.datasets.loading import split_ids
from rrm.inference import (
    Photo,
    activation_scores,
    for_storage,
    in_batches,
    predicted_labels,
    segmentation_probabilities,
    summing_to_one,
)
from rrm.progress import tracked
from rrm.shards import in_whole_windows, own_share
from rrm.stages.call import Call
from rrm.stages.trained import load_trained
from rrm.store import Store, StoreWriter
from rrm.training import take_device

Probabilities = npt.NDArray[np.float16]


@dataclass(frozen=True)
class _Seen:
    """One photo: its pixels, and its image-level labels where they are given."""

    image: Photo
    present: npt.NDArray[np.uint8] | None


def _predictor(call: Call, network: Any, device: str) -> Callable[[Sequence[_Seen]], Probabilities]:
    """What gives the probabilities (N,C+1,H,W) of photos of one size, ready to be stored."""
    options = call.options

    def segmented(photos: Sequence[_Seen]) -> Probabilities:
        images = [photo.image for photo in photos]
        stored = for_storage(segmentation_probabilities(network, images, options["views"], device))
        return np.asarray(stored.cpu().numpy(), np.float16)

    def by_cam(photos: Sequence[_Seen]) -> Probabilities:
        images, how = [photo.image for photo in photos], (device, options["precision"])
        given = [photo.present for photo in photos if photo.present is not None]
        present = np.stack(given) if given else predicted_labels(network, images, *how)
        scores = activation_scores(network, images, present, options["cam"], *how)
        return np.asarray(for_storage(summing_to_one(scores)).cpu().numpy(), np.float16)

    return by_cam if "cam" in options else segmented


def predictions(call: Call, photos: Store, network: Any, device: str, names: Sequence[str]) -> Iterator[Probabilities]:
    """Probabilities (C+1,H,W) of each of the named photos, in order; photos are read and written meanwhile."""
    given = call.options.get("image_labels") == "given"
    seen = (_Seen(photos.read(n, "image"), photos.read(n, "present") if given else None) for n in names)
    predict = _predictor(call, network, device)
    return in_batches(predict, seen, device)


def run(call: Call) -> None:
    """Write a store of kind "probabilities": per photo `probabilities` (C+1,H,W) float16."""
    photos = Store(call.input("photos"), "photos")
    device = take_device(call.runtime)
    trained = load_trained(call.input("model"), device)
    split, ids = call.options["split"], split_ids(photos, call.options["split"])
    share, attrs = own_share(call.runtime, ids, {"split": split, "trained": trained.facts})
    found = in_whole_windows(partial(predictions, call, photos, trained.network, device), ids, share)
    threads = torch.get_num_threads()
    with StoreWriter(call.output, "probabilities", call.options, call.code, attrs, threads=threads) as writer:
        for name, each in tracked(found, f"predict {split}", len(share), call.runtime["log_seconds"]):
            writer.add(name, {"probabilities": each})
