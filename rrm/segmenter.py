"""A trained network as a thing to segment photos with: `rrm.load(path).predict(photo)`.

Nothing is computed here that the pipeline computes too: probabilities, image labels, CRF and labels are those of
`rrm.inference`, so a photo gets the labels that the stages `predict` and `evaluate` give it with the same views.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

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
Kind = TypeVar("Kind", bound=Hashable)
CRF_PRESET = "rrm-inference"
TILE = 1024
_MOST_CLASSES = 254
_ROWS = 1024  # of an overlay that are mixed at once


@dataclass(frozen=True)
class Views:
    """How photos are segmented: the options of `Segmenter.predict` that change its result.

    Attributes:
        crf, scales, flip, merge, long_side, tile: as there.

    Raises:
        RRMError: a value out of range.

    Example:
        >>> Views(scales=(0,))
        Traceback (most recent call last):
        ...
        rrm.errors.RRMError: scales: expected at least one number, all > 0, got [0]: use [1.0]
    """

    crf: bool | DenseCRF = True
    scales: Sequence[float] = (1.0,)
    flip: bool = False
    merge: str = "mean"
    long_side: int | None = None
    tile: int | None = TILE

    def __post_init__(self) -> None:
        check_tile(self.tile)
        if self.long_side is not None and self.long_side < 1:
            raise RRMError(f"long_side: expected at least 1 pixel, got {self.long_side}: use 500")
        values = list(self.scales)
        if not values or not all(0 < scale < float("inf") for scale in values):
            raise RRMError(f"scales: expected at least one number, all > 0, got {values}: use [1.0]")
        check_choice("merge", self.merge, ("mean", "max"))

    def of_network(self) -> dict[str, Any]:
        """As `rrm.inference.segmentation_probabilities` takes them."""
        return {"scales": list(self.scales), "flip": self.flip, "merge": self.merge, "precision": "float32"}


@dataclass(frozen=True)
class _Shown:
    """A photo, (H,W,3), as it is shown to network and CRF, and what is known of it."""

    photo: Photo
    seen: Photo
    present: Labels | None
    crf: DenseCRF | None

    @classmethod
    def of(cls, photo: Photo, present: Labels | None, views: Views) -> _Shown:
        seen = reduce_photo(photo, views.long_side)
        if views.crf is False:
            return cls(photo, seen, present, None)
        crf = views.crf if isinstance(views.crf, DenseCRF) else DenseCRF.preset(CRF_PRESET)
        return cls(photo, seen, present, crf.scaled(max(seen.shape[:2]) / max(photo.shape[:2])))

    @property
    def size(self) -> tuple[int, int]:
        """Of the photo."""
        return self.photo.shape[0], self.photo.shape[1]

    def part(self, rows: slice, columns: slice) -> _Shown:
        """A tile of it."""
        return replace(self, seen=np.array(self.seen[rows, columns], order="C"))


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
        views = Views(crf, scales, flip, merge, long_side, tile)
        labels = None if image_labels is None else [image_labels]
        (seen,) = self.predict_batch([image], labels, views, probabilities=probabilities, max_pixels=max_pixels)
        return seen

    def predict_batch(
        self,
        images: Sequence[ImageLike],
        image_labels: Sequence[Sequence[str] | None] | None = None,
        views: Views | None = None,
        *,
        probabilities: bool = True,
        max_pixels: int = MAX_PIXELS,
    ) -> list[Prediction]:
        """Segment several photos at once, which is faster: those of one size go through the network together, and on
        the CPU each thread has a CRF of its own.

        Args:
            images: as for `predict`, of any sizes. All are held and worked on at a time, so give few: on a CPU about
                half a million pixels are enough.
            image_labels: for each photo as for `predict`. None: any class may be in any of them.
            views: the other options of `predict`. None: as they are there by default.
            probabilities: keep them.
            max_pixels: most pixels of a photo.

        Returns:
            A prediction a photo, in order; what `predict` gives but for the last bits of probabilities.

        Raises:
            RRMError: as `predict`, or other image-level labels than photos.

        Example:
            >>> from rrm.networks import build_network
            >>> network = build_network("rrm", num_classes=2, width=1 / 16, units=(1, 1, 1, 1)).eval()
            >>> photos = [np.zeros((16, 24, 3), np.uint8), np.zeros((20, 16, 3), np.uint8)]
            >>> [seen.labels.shape for seen in Segmenter(network, ["cat", "dog"]).predict_batch(photos)]
            [(16, 24), (20, 16)]
        """
        named = [None] * len(images) if image_labels is None else list(image_labels)
        if len(named) != len(images):
            raise RRMError(f"image_labels: expected those of {len(images)} photos, got {len(named)}: give one a photo")
        views, present = views or Views(), [self.present(names) for names in named]
        shown = [_Shown.of(read_photo(i, max_pixels), p, views) for i, p in zip(images, present, strict=True)]
        at_once = [each for each in shown if views.tile is None or max(each.seen.shape) <= views.tile]
        found = iter(self._probabilities(at_once, views))
        held = {id(each) for each in at_once}
        return [
            self._prediction(each, next(found), probabilities)
            if id(each) in held
            else self._in_tiles(each, views, probabilities)
            for each in shown
        ]

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

    def _probabilities(self, shown: Sequence[_Shown], views: Views) -> list[Scores]:
        """Probabilities of photos, or of tiles, rounded as the stage `predict` stores them, then refined."""
        scores = self._seen_by_network([each.seen for each in shown], views)
        scores = [
            found if each.present is None else keep_image_labels(found, each.present)
            for found, each in zip(scores, shown, strict=True)
        ]
        for crf, places in _alike([each.crf for each in shown]).items():
            if crf is not None:
                photos, rough = [shown[place].seen for place in places], [scores[place] for place in places]
                fine = crf_on_present(crf, photos, rough, [shown[place].present for place in places])
                for place, each in zip(places, fine, strict=True):
                    scores[place] = each
        return [np.asarray(each.cpu().numpy(), np.float32) for each in scores]

    def _seen_by_network(self, photos: Sequence[Photo], views: Views) -> list[torch.Tensor]:
        """Probabilities (K,H,W) float32 of each photo, those of one size in the same passes; on the device."""
        found: dict[int, torch.Tensor] = {}
        for places in _alike([photo.shape for photo in photos]).values():
            batch = [photos[place] for place in places]
            scores = segmentation_probabilities(self.network, batch, views.of_network(), self.device)
            found.update(zip(places, for_storage(scores).float(), strict=True))
        return [found[place] for place in range(len(photos))]

    def _prediction(self, shown: _Shown, scores: Scores, keep: bool) -> Prediction:
        if scores.shape[1:] != shown.size:
            scores = np.asarray(resize(torch.from_numpy(scores)[None], shown.size)[0].numpy())
        return Prediction(labels_at(scores, shown.size), self.classes, scores if keep else None)

    def _in_tiles(self, shown: _Shown, views: Views, keep: bool) -> Prediction:
        def of_tile(rows: slice, columns: slice) -> Scores:
            return self._probabilities([shown.part(rows, columns)], views)[0]

        bands = blended_bands(of_tile, (shown.seen.shape[0], shown.seen.shape[1]), views.tile)
        if shown.seen.shape != shown.photo.shape:
            return self._prediction(shown, np.concatenate([band for _, band in bands], axis=1), keep)
        labels = np.empty(shown.size, np.uint8)
        scores: Scores | None = np.empty((len(self.classes) + 1, *shown.size), np.float32) if keep else None
        for row, band in bands:
            rows = slice(row, row + band.shape[1])
            labels[rows] = labels_at(band, (band.shape[1], band.shape[2]))
            if scores is not None:
                scores[:, rows] = band
            del band  # before the next one is made
        return Prediction(labels, self.classes, scores)


def _alike(kinds: Sequence[Kind]) -> dict[Kind, list[int]]:
    """The places of each kind."""
    places: dict[Kind, list[int]] = {}
    for place, kind in enumerate(kinds):
        places.setdefault(kind, []).append(place)
    return places


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
