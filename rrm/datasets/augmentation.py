"""Augmentation of training images: random scale, horizontal flip and random crop with padding.

The source of the settings is the paper's scale ratio 0.7 to 1.3 and the authors' padding of crops by the mean
colour. The result tells photo from padding (`valid`), because the energy loss (Eq. 10 to 14) must not see
padding.

The scaled image is never made as a whole: only the part that falls in the crop is resampled from its box in
the photo, with Pillow's bilinear filter (which averages when it shrinks, so no aliasing). Masks are sampled
at the nearest pixel centre.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rrm.errors import RRMError
from rrm.labels import IGNORE

IMAGENET_MEAN = (124, 116, 104)


@dataclass(frozen=True)
class TrainTransform:
    """Random scale, flip and crop of an image and, if given, its mask.

    Args:
        crop: side of the square crop in pixels.
        scale: smallest and largest factor of the size, drawn uniformly; (1, 1) for none.
        flip: mirror left to right with probability 1/2.
        pad_color: RGB, 0..255, of the padding; the ImageNet mean, which the networks normalise to about 0.
        scale_per: "batch" if the loader draws one scale for all images of a batch (the authors' way), "image"
            for one each.

    Raises:
        RRMError: a value out of range.

    Example:
        >>> transform = TrainTransform(crop=4, scale=(1.0, 1.0), flip=False)
        >>> item = transform(np.zeros((2, 9, 3), np.uint8), np.random.default_rng(0))
        >>> item["image"].shape, int(item["valid"].sum())
        ((4, 4, 3), 8)
    """

    crop: int
    scale: tuple[float, float] = (0.7, 1.3)
    flip: bool = True
    pad_color: tuple[int, int, int] = IMAGENET_MEAN
    scale_per: Literal["batch", "image"] = "batch"

    def __post_init__(self) -> None:
        if self.crop < 1:
            raise RRMError(f"crop: expected at least 1 pixel, got {self.crop}: correct it")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise RRMError(f"scale: expected 0 < smallest <= largest, got {self.scale}: correct it")
        if self.scale_per not in ("batch", "image"):
            raise RRMError(f"scale_per: expected 'batch' or 'image', got {self.scale_per!r}: choose one")
        if len(self.pad_color) != 3 or not all(0 <= value <= 255 for value in self.pad_color):
            raise RRMError(f"pad_color: expected three values of 0..255, got {self.pad_color}: correct it")

    def draw_scale(self, generator: np.random.Generator) -> float:
        """A factor of the image size, uniform in `scale`."""
        return float(generator.uniform(*self.scale))

    def __call__(
        self,
        image: NDArray[np.uint8],
        generator: np.random.Generator,
        mask: NDArray[np.uint8] | None = None,
        scale: float | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Augment one image; the result depends on the arguments only.

        Args:
            image: (H, W, 3) uint8 RGB.
            generator: source of the random numbers.
            mask: (Hm, Wm) uint8 labels of the same scene, of any size (photos may have been stored reduced);
                or None.
            scale: factor of the size; None draws one.

        Returns:
            `image` (crop, crop, 3) uint8; `valid` (crop, crop) bool, False on padding; with a mask also
            `labels` (crop, crop) uint8, 255 on padding.
        """
        factor = self.draw_scale(generator) if scale is None else scale
        flip = self.flip and bool(generator.integers(2))
        height, width = (max(1, round(side * factor)) for side in image.shape[:2])
        rows = _place(height, self.crop, generator)
        columns = _place(width, self.crop, generator)
        target = (
            slice(rows.target, rows.target + rows.length),
            slice(columns.target, columns.target + columns.length),
        )
        out = np.empty((self.crop, self.crop, 3), dtype=np.uint8)
        if rows.length < self.crop or columns.length < self.crop:
            out[:] = self.pad_color
        out[target] = _resample(image, (height, width), rows, columns, flip)
        valid = np.zeros((self.crop, self.crop), dtype=bool)
        valid[target] = True
        if mask is None:
            return {"image": out, "valid": valid}
        labels = np.full((self.crop, self.crop), IGNORE, dtype=np.uint8)
        labels[target] = _nearest(mask, (height, width), rows, columns, flip)
        return {"image": out, "valid": valid, "labels": labels}


@dataclass(frozen=True)
class _Span:
    """One axis of a crop: `length` pixels from `source` in the scaled image go to `target` in the crop."""

    source: int
    target: int
    length: int


def _place(side: int, crop: int, generator: np.random.Generator) -> _Span:
    """A random window of an image larger than the crop, or a random place in the crop for a smaller one."""
    offset = int(generator.integers(abs(side - crop) + 1))
    return _Span(offset, 0, crop) if side >= crop else _Span(0, offset, side)


def _resample(
    image: NDArray[np.uint8], size: tuple[int, int], rows: _Span, columns: _Span, flip: bool
) -> NDArray[np.uint8]:
    """The window of the image that is scaled to `size` (H', W') and, with `flip`, mirrored."""
    height, width = size
    left = width - columns.source - columns.length if flip else columns.source
    y, x = image.shape[0] / height, image.shape[1] / width
    box = (left * x, rows.source * y, (left + columns.length) * x, (rows.source + rows.length) * y)
    box = (box[0], box[1], min(box[2], image.shape[1]), min(box[3], image.shape[0]))
    window = Image.fromarray(image).resize((columns.length, rows.length), Image.Resampling.BILINEAR, box=box)
    return np.asarray(window.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else window)


def _nearest(
    mask: NDArray[np.uint8], size: tuple[int, int], rows: _Span, columns: _Span, flip: bool
) -> NDArray[np.uint8]:
    """The same window of a mask, sampled at the pixel whose centre is nearest."""
    y = np.arange(rows.source, rows.source + rows.length)
    x = np.arange(columns.source, columns.source + columns.length)
    if flip:
        x = size[1] - 1 - x
    y = ((2 * y + 1) * mask.shape[0]) // (2 * size[0])
    x = ((2 * x + 1) * mask.shape[1]) // (2 * size[1])
    return mask[np.ix_(y, x)]
