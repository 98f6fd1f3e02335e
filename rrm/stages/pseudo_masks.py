"""Stage `pseudo-masks`: masks of the training photos from the one-step network or the classifier, for step two."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from rrm.affinity import pair_affinities, random_walk
from rrm.cam import resize
from rrm.crf import DenseCRF
from rrm.datasets.loading import split_ids
from rrm.inference import (
    Photo,
    Scores,
    activation_scores,
    as_batch,
    crf_on_present,
    keep_image_labels,
    segmentation_probabilities,
    summing_to_one,
)
from rrm.labels import IGNORE
from rrm.parallel import WorkerPool
from rrm.progress import tracked
from rrm.shards import own_share
from rrm.stages.call import Call
from rrm.stages.trained import load_trained
from rrm.store import Store, StoreWriter
from rrm.training import pick_device


@dataclass(frozen=True)
class Scored:
    """One photo on its way: scores of the branches that the source needs, None for the other."""

    image: Photo
    present: npt.NDArray[np.uint8]
    segmentation: Scores | None
    cam: Scores | None
    shrink: float


def one_hot(scores: Scores) -> Scores:
    """1 at the class with the highest score, 0 elsewhere; (K,H,W)."""
    return np.asarray(np.arange(len(scores))[:, None, None] == scores.argmax(0)[None], np.float32)


@dataclass(frozen=True)
class MaskMaker:
    """Turns the scores of one photo into its pseudo mask, by the options of the config section `pseudo_masks`."""

    options: Mapping[str, Any]

    def __call__(self, scored: Scored) -> npt.NDArray[np.uint8]:
        """The mask (H,W): the most probable class, 255 where its probability is below `confidence`."""
        probabilities = self._probabilities(scored)
        labels = probabilities.argmax(0).astype(np.uint8)
        return np.where(probabilities.max(0) < self.options["confidence"], np.uint8(IGNORE), labels)

    def _probabilities(self, scored: Scored) -> Scores:
        source = self.options["source"]
        if source != "average":
            scores = scored.cam if source == "cam" else scored.segmentation
            assert scores is not None
            return self._refined(scored, scores)
        assert scored.cam is not None
        assert scored.segmentation is not None
        mean = np.asarray((one_hot(self._refined(scored, scored.cam)) + scored.segmentation) / 2, np.float32)
        return self._refined(scored, mean) if self.options["crf_after_average"] else mean

    def _refined(self, scored: Scored, scores: Scores) -> Scores:
        if self.options["crf"] is None:
            return scores
        crf = DenseCRF(**self.options["crf"]).scaled(scored.shrink)
        every = np.ones(len(scores) - 1, np.uint8)
        return crf_on_present(crf, scored.image, scores, scored.present if self.options["use_image_labels"] else every)


@torch.inference_mode()
def walked(network: Any, image: Photo, scores: Scores, walk: Mapping[str, Any], device: str = "cpu") -> Scores:
    """Scores of one photo after AffinityNet's random walk, at the size of the network's map and back.

    Args:
        network: an `AffinityNet`, in evaluation mode.
        image: (H,W,3) uint8 RGB.
        scores: (K,H,W) float32 >= 0, background first.
        walk: `radius`, `beta` and `steps` of `rrm.affinity.random_walk`.
        device: of the network.

    Returns:
        (K,H,W) float32 >= 0; a class without scores has none.
    """
    features = network(network.normalize(as_batch(image, device))).float()
    (affinities,) = pair_affinities(features, walk["radius"])
    shown = np.flatnonzero(scores.any(axis=(1, 2)))
    given = torch.from_numpy(np.ascontiguousarray(scores[shown])).to(device)
    on_map = F.adaptive_avg_pool2d(given, (int(features.shape[2]), int(features.shape[3])))
    spread = resize(random_walk(affinities, on_map, **walk)[None], (image.shape[0], image.shape[1]))[0]
    result: Scores = np.zeros_like(scores)
    result[shown] = spread.cpu().numpy()
    return result


def _cam_of(call: Call, network: Any, device: str) -> Callable[[Photo, npt.NDArray[np.uint8]], Scores]:
    """How the CAM's scores of a photo are made, after the random walk where there is one; they sum to one."""
    options = call.options["pseudo_masks"]
    walk = options["random_walk"]
    affinity = load_trained(call.input("affinity"), device).network if walk else None

    def cam_of(image: Photo, present: npt.NDArray[np.uint8]) -> Scores:
        how = (options["cam_scales"], "image", options["cam_exponent"], device)
        scores = activation_scores(network, image, present, *how)
        return summing_to_one(walked(affinity, image, scores, walk, device) if walk else scores)

    return cam_of


def _scored_photos(call: Call, photos: Store, ids: Sequence[str]) -> Iterator[Scored]:
    options = call.options["pseudo_masks"]
    device = pick_device(call.runtime["device"])
    network = load_trained(call.input("model"), device).network
    cam_of = _cam_of(call, network, device)
    for name in ids:
        record = photos[name]
        image, present = record["image"], record["present"]
        segmentation = cam = None
        if options["source"] != "cam":
            segmentation = segmentation_probabilities(network, image, options["views"], device)
            if options["use_image_labels"]:
                segmentation = keep_image_labels(segmentation, present)
        if options["source"] != "segmentation":
            cam = cam_of(image, present)
        yield Scored(image, present, segmentation, cam, max(image.shape[:2]) / int(record["size"].max()))


def run(call: Call) -> None:
    """Write a store of kind "pseudo_masks": per training photo `mask` (H,W) uint8."""
    photos = Store(call.input("photos"), "photos")
    maker = MaskMaker(call.options["pseudo_masks"])
    facts = {"split": "train", "classes": photos.attrs["classes"]}
    ids, attrs = own_share(call.runtime, split_ids(photos, "train"), facts)
    with (
        WorkerPool(call.runtime["crf_workers"]) as pool,
        StoreWriter(call.output, "pseudo_masks", call.options, call.code, attrs) as writer,
    ):
        masks = pool.map(maker, _scored_photos(call, photos, ids))
        for name, mask in tracked(zip(ids, masks, strict=True), "pseudo masks", len(ids), call.runtime["log_seconds"]):
            writer.add(name, {"mask": mask})
