"""A trained network as a thing to segment photos with: `rrm.load(path).predict(photo)`.

Nothing is computed here that the pipeline computes too: probabilities, image labels, CRF and labels are those of
`rrm.inference`, so a photo gets the labels that the stages `predict` and `evaluate` give it with the same views.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from rrm.annotations import foreground
from rrm.cam import resize
from rrm.crf import DenseCRF
from rrm.datasets.packing import reduce_photo
from rrm.datasets.voc import encode_mask, voc_palette
from rrm.errors import RRMError
from rrm.inference import (
    Scores,
    crf_on_present,
    for_storage,
    keep_image_labels,
    labels_at,
    segmentation_probabilities,
)
from rrm.networks import build_network, load_reference_weights
from rrm.networks.base import check_choice
from rrm.photos import MAX_PIXELS, ImageLike, Photo, read_photo
from rrm.stages.trained import load_trained
from rrm.store import atomic_path
from rrm.tiling import blended_bands, check_tile
from rrm.training import pick_device

Labels = npt.NDArray[np.uint8]
CRF_PRESET = "rrm-inference"
TILE = 1024
_MOST_CLASSES = 254
_ROWS = 1024  # of an overlay that are mixed at once


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """What a network sees in a photo.

    Attributes:
        labels: (H,W) uint8, 0 = background, k = `classes[k - 1]`; the size is that of the upright photo.
        classes: names of the foreground classes, in the order of their labels.
        scores: what `probabilities` gives, or None where they were not kept.

    Example:
        >>> seen = Prediction(np.array([[0, 2]], np.uint8), ("cat", "dog"))
        >>> seen, seen.classes_found
        (Prediction(1 x 2: dog), ('dog',))
        >>> seen.overlay(np.zeros((1, 2, 3), np.uint8)).tolist()
        [[[0, 0, 0], [0, 64, 0]]]
    """

    labels: Labels
    classes: tuple[str, ...]
    scores: Scores | None = None

    def __repr__(self) -> str:
        found = ", ".join(self.classes_found) or "background alone"
        return f"Prediction({self.labels.shape[0]} x {self.labels.shape[1]}: {found})"

    @property
    def probabilities(self) -> Scores:
        """(C+1,H,W) float32 in 0..1, background first; after the CRF where there was one.

        They sum to one over classes up to 1e-3, for they have the precision in which the pipeline stores them.

        Raises:
            RRMError: they were not kept.
        """
        if self.scores is None:
            raise RRMError("probabilities: expected them to be kept, they were not: predict(..., probabilities=True)")
        return self.scores

    @property
    def classes_found(self) -> tuple[str, ...]:
        """Names of the classes that have a pixel, in the order of their labels."""
        return tuple(self.classes[label - 1] for label in foreground(self.labels))

    def overlay(self, image: ImageLike, opacity: float = 0.5) -> Photo:
        """The photo with the classes in VOC's colours laid over it; background stays as it is.

        Args:
            image: the photo that was segmented, in any form that `predict` takes.
            opacity: of the colours, 0..1.

        Returns:
            (H,W,3) uint8 RGB.

        Raises:
            RRMError: the photo has another size, or cannot be read.
        """
        photo = read_photo(image, max_pixels=max(MAX_PIXELS, self.labels.size))
        if photo.shape[:2] != self.labels.shape:
            raise RRMError(
                f"overlay: expected the photo of these {self.labels.shape} labels, got one of {photo.shape[:2]}: give "
                "the photo that was segmented"
            )
        result = np.empty_like(photo)
        for first in range(0, len(photo), _ROWS):
            rows = slice(first, first + _ROWS)
            result[rows] = _laid_over(photo[rows], self.labels[rows], opacity)
        return result

    def save_mask(self, path: str | os.PathLike[str]) -> None:
        """Write the labels as a palette PNG of 8 bits in VOC's colours, atomically.

        Raises:
            RRMError: the name does not end in .png.
        """
        if Path(path).suffix.lower() != ".png":
            raise RRMError(f"{path}: expected a name that ends in .png, for masks are PNG files: rename it")
        with atomic_path(path) as temporary:
            temporary.write_bytes(encode_mask(self.labels))


def _laid_over(photo: Photo, labels: Labels, opacity: float) -> Photo:
    below = Image.fromarray(photo)
    mixed = Image.blend(below, Image.fromarray(voc_palette()[labels]), opacity)
    return np.asarray(Image.composite(mixed, below, Image.fromarray(labels > 0)))


class Segmenter:
    """A trained network, ready for photos. `rrm.load` makes one from a file.

    Args:
        network: with `normalize` and `forward_segmentation`, in evaluation mode, on `device`.
        classes: names of the foreground classes, in the order of the network's channels.
        device: "cpu" or "cuda".
        facts: what is known of the training, as stored with the weights.

    Raises:
        RRMError: no classes, too many or one of them twice.

    Example:
        >>> from rrm.networks import build_network
        >>> network = build_network("rrm", num_classes=2, width=1 / 16, units=(1, 1, 1, 1)).eval()
        >>> seen = Segmenter(network, ["cat", "dog"]).predict(np.zeros((16, 24, 3), np.uint8))
        >>> seen.labels.shape, seen.probabilities.shape
        ((16, 24), (3, 16, 24))
    """

    def __init__(
        self, network: Any, classes: Sequence[str], device: str = "cpu", facts: Mapping[str, Any] | None = None
    ) -> None:
        self.network, self.device, self.facts = network, device, dict(facts or {})
        self.classes = tuple(classes)
        if isinstance(classes, str) or not 1 <= len(set(self.classes)) == len(self.classes) <= _MOST_CLASSES:
            raise RRMError(
                f"classes: expected 1 to {_MOST_CLASSES} different names in a list, got {classes!r}: correct it"
            )

    def __repr__(self) -> str:
        return f"Segmenter({type(self.network).__name__}, {len(self.classes)} classes, {self.device!r})"

    def predict(
        self,
        image: ImageLike,
        *,
        image_labels: Sequence[str] | None = None,
        crf: bool | DenseCRF = True,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        merge: str = "mean",
        long_side: int | None = None,
        tile: int | None = TILE,
        probabilities: bool = True,
        max_pixels: int = MAX_PIXELS,
    ) -> Prediction:
        """Segment one photo.

        Args:
            image: path, Pillow image or (H,W,3) uint8 RGB array; see `rrm.photos.read_photo`. The EXIF orientation of
                files and Pillow images is applied.
            image_labels: names of the classes that are in the photo, where that is known: the others become
                impossible. An empty one leaves background alone. None: any class may be there.
            crf: True for the paper's CRF at test time (`DenseCRF.preset("rrm-inference")`), False for none, or a
                `DenseCRF` for photos of the original size.
            scales: factors > 0 on the size at which the network sees the photo; results are merged.
            flip: the mirrored photo too.
            merge: "mean" of probabilities, or "max" of logits.
            long_side: a photo with a longer side, in pixels, is reduced to it before network and CRF see it, as
                `dataset.long_side` reduces photos, and the probabilities are enlarged to its size. None: never.
            tile: longest side, in pixels, of what goes through network and CRF at once: a photo with a longer side is
                done in overlapping tiles (`rrm.tiling`). A multiple of 32 from 64 on; None: never.
            probabilities: keep them, 4 (C + 1) bytes a pixel. Without them, and without reducing, a photo takes 4 bytes
                a pixel, and beside that 5 (C + 1) bytes times its width times `tile`, and what the network and the
                CRF need for one tile.
            max_pixels: most pixels of the photo.

        Returns:
            Labels, classes found and probabilities, of the size of the upright photo.

        Raises:
            RRMError: a photo that cannot be read or is too large, an unknown class name, a value out of range.
        """
        check_tile(tile)
        check_long_side(long_side)
        views, present = checked_views(scales, flip, merge), self.present(image_labels)
        photo = read_photo(image, max_pixels)
        seen = reduce_photo(photo, long_side)
        solver = _solver(crf, max(seen.shape[:2]) / max(photo.shape[:2]))

        def of_tile(rows: slice, columns: slice) -> Scores:
            return self._probabilities(np.array(seen[rows, columns], order="C"), views, present, solver)

        bands = blended_bands(of_tile, (seen.shape[0], seen.shape[1]), tile)
        collect = self._collected if seen.shape == photo.shape else self._enlarged
        return collect(bands, (photo.shape[0], photo.shape[1]), probabilities)

    def present(self, image_labels: Sequence[str] | None) -> Labels | None:
        """Names of classes as (C,) uint8, 1 = named; None stays None.

        Raises:
            RRMError: a name that is no class of the network, or one text in place of a list of names.
        """
        if image_labels is None:
            return None
        unknown = [image_labels] if isinstance(image_labels, str) else sorted(set(image_labels) - set(self.classes))
        if unknown:
            raise RRMError(
                f"image_labels: expected a list of names among {', '.join(self.classes)}, got {unknown}: correct it"
            )
        return np.array([name in image_labels for name in self.classes], np.uint8)

    def _probabilities(
        self, photo: Photo, views: Mapping[str, Any], present: Labels | None, crf: DenseCRF | None
    ) -> Scores:
        """Probabilities of a photo, or of a tile, rounded as the stage `predict` stores them, then refined."""
        stored = for_storage(segmentation_probabilities(self.network, [photo], views, self.device)[0])
        scores = np.asarray(stored.float().cpu().numpy(), np.float32)
        if present is not None:
            scores = keep_image_labels(scores, present)
        if crf is None:
            return scores
        return crf_on_present(crf, photo, scores, np.ones(len(self.classes), np.uint8) if present is None else present)

    def _enlarged(self, bands: Iterator[tuple[int, Scores]], size: tuple[int, int], keep: bool) -> Prediction:
        small = torch.from_numpy(np.concatenate([band for _, band in bands], axis=1))
        scores = np.asarray(resize(small[None], size)[0].numpy())
        return Prediction(labels_at(scores, size), self.classes, scores if keep else None)

    def _collected(self, bands: Iterator[tuple[int, Scores]], size: tuple[int, int], keep: bool) -> Prediction:
        labels = np.empty(size, np.uint8)
        scores: Scores | None = np.empty((len(self.classes) + 1, *size), np.float32) if keep else None
        for row, band in bands:
            rows = slice(row, row + band.shape[1])
            labels[rows] = labels_at(band, (band.shape[1], band.shape[2]))
            if scores is not None:
                scores[:, rows] = band
            del band  # before the next one is made
        return Prediction(labels, self.classes, scores)


def load(
    path: str | os.PathLike[str],
    device: str = "auto",
    *,
    classes: Sequence[str] | None = None,
    network: Mapping[str, Any] | None = None,
) -> Segmenter:
    """Open trained weights for prediction.

    Args:
        path: `weights.pth` of a stage that trains a segmentation network; with `classes`, a published file of the
            authors' network on ResNet-38.
        device: "auto" (the GPU where there is one), "cpu" or "cuda".
        classes: names of the foreground classes of a file that does not hold them, in the order of its channels
            (`rrm.datasets.voc.VOC_CLASSES`). Leave it out for weights that this package wrote.
        network: options of `rrm.networks.RRMNet` for such a file, where they are not the published ones.

    Raises:
        RRMError: missing, damaged or foreign file; a network without a trained segmentation branch; a file that does
            not fit the classes.

    Example:
        >>> load("none.pth")
        Traceback (most recent call last):
        ...
        rrm.errors.RRMError: model: expected a file of weights, got none at none.pth: check the path
    """
    check_choice("device", device, ("auto", "cpu", "cuda"))
    path, device = Path(path), pick_device(device)
    if not path.is_file():
        raise RRMError(f"model: expected a file of weights, got none at {path}: check the path")
    if classes is not None:
        return Segmenter(_published(path, classes, network or {}).to(device).eval(), classes, device)
    if network is not None:
        raise RRMError("network: expected no options without classes, for our weights hold their own: give classes too")
    trained = load_trained(path, device)
    stage = trained.facts["stage"]
    if stage == "classifier" or not hasattr(trained.network, "forward_segmentation"):
        raise RRMError(
            f"{path}: expected a network with a trained segmentation branch, got one of stage {stage!r}: give the "
            "weights of one_step, method, step_two or bound"
        )
    return Segmenter(trained.network, trained.classes, device, trained.facts)


def _published(path: Path, classes: Sequence[str], options: Mapping[str, Any]) -> Any:
    try:
        network = build_network("rrm", num_classes=len(classes), **{"backbone": "resnet38", **options})
    except (TypeError, ValueError) as error:
        raise RRMError(
            f"network: expected options of RRMNet by name, got {options!r} ({error}): correct them"
        ) from None
    report = load_reference_weights(network, path)
    wrong = [name for name in (*report.missing, *report.shape_mismatch) if name.startswith("head.")]
    if wrong:
        raise RRMError(
            f"{path}: expected the segmentation branch of {len(classes)} classes, got none that fits ({wrong[:3]}): "
            "give a file of the trained network, and its classes"
        )
    return network


def checked_views(scales: Sequence[float], flip: bool, merge: str) -> dict[str, Any]:
    """Views as `rrm.inference.segmentation_probabilities` takes them.

    Raises:
        RRMError: no scales, or one that is not > 0 and finite; an unknown way to merge.

    Example:
        >>> checked_views([0], False, "mean")
        Traceback (most recent call last):
        ...
        rrm.errors.RRMError: scales: expected at least one number, all > 0, got [0]: use [1.0]
    """
    values = list(scales)
    if not values or not all(0 < scale < float("inf") for scale in values):
        raise RRMError(f"scales: expected at least one number, all > 0, got {values}: use [1.0]")
    check_choice("merge", merge, ("mean", "max"))
    return {"scales": values, "flip": flip, "merge": merge, "precision": "float32"}


def check_long_side(long_side: int | None) -> None:
    """Refuse sides below a pixel; None means that no photo is reduced.

    Example:
        >>> check_long_side(0)
        Traceback (most recent call last):
        ...
        rrm.errors.RRMError: long_side: expected at least 1 pixel, got 0: use 500
    """
    if long_side is not None and long_side < 1:
        raise RRMError(f"long_side: expected at least 1 pixel, got {long_side}: use 500")


def _solver(crf: bool | DenseCRF, shrink: float) -> DenseCRF | None:
    """The CRF for a photo that was reduced to `shrink` times its size."""
    if isinstance(crf, DenseCRF):
        return crf.scaled(shrink)
    return DenseCRF.preset(CRF_PRESET).scaled(shrink) if crf else None
