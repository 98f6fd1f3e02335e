"""Stage `pseudo-masks`: masks of the training photos from the one-step network or the classifier, for step two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    in_batches,
    keep_image_labels,
    segmentation_probabilities,
    summing_to_one,
)
from rrm.labels import IGNORE
from rrm.parallel import WorkerPool
from rrm.progress import tracked
from rrm.shards import in_whole_windows, own_share
from rrm.stages.call import Call
from rrm.stages.trained import load_trained
from rrm.store import Store, StoreWriter
from rrm.training import take_device


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
        present = scored.present if self.options["use_image_labels"] else None
        (fine,) = crf_on_present(crf, [scored.image], [scores], [present])
        return fine


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
    features = network(network.normalize(as_batch([image], device))).float()
    (affinities,) = pair_affinities(features, walk["radius"])
    shown = np.flatnonzero(scores.any(axis=(1, 2)))
    given = torch.from_numpy(np.ascontiguousarray(scores[shown])).to(device)
    on_map = F.adaptive_avg_pool2d(given, (int(features.shape[2]), int(features.shape[3])))
    spread = resize(random_walk(affinities, on_map, **walk)[None], (image.shape[0], image.shape[1]))[0]
    result: Scores = np.zeros_like(scores)
    result[shown] = spread.cpu().numpy()
    return result


@dataclass(frozen=True)
class PackedPhoto:
    """One photo as it was packed: pixels, image-level labels and how much it was reduced."""

    image: Photo
    present: npt.NDArray[np.uint8]
    shrink: float


def _read(photos: Store, name: str) -> PackedPhoto:
    return packed_photo(photos, name, photos.read(name, "present"))


def packed_photo(photos: Store, name: str, present: npt.NDArray[np.uint8]) -> PackedPhoto:
    """A photo of a store with these image-level labels."""
    image, size = photos.read(name, "image"), photos.read(name, "size")
    return PackedPhoto(image, present, max(image.shape[:2]) / int(size.max()))


@dataclass(frozen=True)
class Scorer:
    """Scores photos of one size by the branches that the source needs."""

    options: Mapping[str, Any]
    network: Any
    affinity: Any
    device: str

    def __call__(self, photos: Sequence[PackedPhoto]) -> list[Scored]:
        """Scores of each photo."""
        source, nothing = self.options["source"], [None] * len(photos)
        segmentation = nothing if source == "cam" else self._segmentation(photos)
        cams = nothing if source == "segmentation" else self._cams(photos)
        scored = zip(photos, segmentation, cams, strict=True)
        return [Scored(photo.image, photo.present, seen, cam, photo.shrink) for photo, seen, cam in scored]

    def _segmentation(self, photos: Sequence[PackedPhoto]) -> Sequence[Scores]:
        images = [photo.image for photo in photos]
        found: Scores = (
            segmentation_probabilities(self.network, images, self.options["views"], self.device).cpu().numpy()
        )
        if not self.options["use_image_labels"]:
            return list(found)
        return [keep_image_labels(each, photo.present) for each, photo in zip(found, photos, strict=True)]

    def _cams(self, photos: Sequence[PackedPhoto]) -> Sequence[Scores]:
        """The CAM's scores, after the random walk where there is one; they sum to one."""
        options, images = self.options, [photo.image for photo in photos]
        present = np.stack([photo.present for photo in photos])
        cam = {"scales": options["cam_scales"], "average": "image", "exponent": options["cam_exponent"]}
        precision = options["views"]["precision"]
        found: Scores = activation_scores(self.network, images, present, cam, self.device, precision).cpu().numpy()
        if options["random_walk"]:
            walk = (options["random_walk"], self.device)
            found = np.stack(
                [walked(self.affinity, image, each, *walk) for image, each in zip(images, found, strict=True)]
            )
        return list(summing_to_one(found))


def open_scorer(call: Call, options: Mapping[str, Any], device: str, model: str = "model") -> Scorer:
    """The networks of a set of pseudo masks with these options, from the inputs `model` and `affinity`."""
    network = load_trained(call.input(model), device).network
    affinity = load_trained(call.input("affinity"), device).network if options["random_walk"] else None
    return Scorer(options, network, affinity, device)


def _scored_photos(call: Call, photos: Store, ids: Sequence[str], share: Sequence[str]) -> Iterator[Scored]:
    device = take_device(call.runtime)
    scorer = open_scorer(call, call.options["pseudo_masks"], device)

    def score(names: Sequence[str]) -> Iterator[Scored]:
        return in_batches(scorer, (_read(photos, name) for name in names), device)

    return (scored for _, scored in in_whole_windows(score, ids, share))


def run(call: Call) -> None:
    """Write a store of kind "pseudo_masks": per training photo `mask` (H,W) uint8."""
    photos = Store(call.input("photos"), "photos")
    maker = MaskMaker(call.options["pseudo_masks"])
    facts = {"split": "train", "classes": photos.attrs["classes"]}
    ids = split_ids(photos, "train")
    share, attrs = own_share(call.runtime, ids, facts)
    with (
        WorkerPool(call.runtime["crf_workers"]) as pool,
        StoreWriter(call.output, "pseudo_masks", call.options, call.code, attrs) as writer,
    ):
        masks = zip(share, pool.map(maker, _scored_photos(call, photos, ids, share)), strict=True)
        for name, mask in tracked(masks, "pseudo masks", len(share), call.runtime["log_seconds"]):
            writer.add(name, {"mask": mask})
