"""Stage `pseudo-masks`: masks of the training photos from the one-step network, for step two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rrm.crf import DenseCRF
from rrm.datasets.loading import split_ids
from rrm.inference import Photo, Scores, cam_scores, crf_on_present, keep_image_labels, segmentation_probabilities
from rrm.labels import IGNORE
from rrm.parallel import WorkerPool
from rrm.progress import tracked
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


def _scored_photos(call: Call, photos: Store, ids: Sequence[str]) -> Iterator[Scored]:
    options = call.options["pseudo_masks"]
    device = pick_device(call.runtime["device"])
    network = load_trained(call.input("model"), device).network
    for name in ids:
        record = photos[name]
        image, present = record["image"], record["present"]
        segmentation = cam = None
        if options["source"] != "cam":
            segmentation = segmentation_probabilities(network, image, options["views"], device)
            if options["use_image_labels"]:
                segmentation = keep_image_labels(segmentation, present)
        if options["source"] != "segmentation":
            cam = cam_scores(network, image, present, options["cam_scales"], "image", options["cam_exponent"], device)
        yield Scored(image, present, segmentation, cam, max(image.shape[:2]) / int(record["size"].max()))


def run(call: Call) -> None:
    """Write a store of kind "pseudo_masks": per training photo `mask` (H,W) uint8."""
    photos = Store(call.input("photos"), "photos")
    ids = split_ids(photos, "train")
    maker = MaskMaker(call.options["pseudo_masks"])
    facts = {"split": "train", "classes": photos.attrs["classes"]}
    with (
        WorkerPool(call.runtime["crf_workers"]) as pool,
        StoreWriter(call.output, "pseudo_masks", call.options, call.code, attrs=facts) as writer,
    ):
        masks = pool.map(maker, _scored_photos(call, photos, ids))
        for name, mask in tracked(zip(ids, masks, strict=True), "pseudo masks", len(ids), call.runtime["log_seconds"]):
            writer.add(name, {"mask": mask})
