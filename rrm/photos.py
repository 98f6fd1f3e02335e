"""Photos as users have them: files, Pillow images and arrays, upright and as RGB of 8 bits.

Unlike the reader of data sets in VOC layout, whose masks match the pixels as they are stored, this one turns a photo
as its EXIF orientation says, for people look at upright photos and expect masks that lie over them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from rrm.datasets.voc import opened_image
from rrm.errors import RRMError

Photo = npt.NDArray[np.uint8]
ImageLike = str | os.PathLike[str] | Image.Image | Photo

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
"""Names of files that are taken for photos in a folder, in small or capital letters."""
FORMAT_NAMES = "JPEG, PNG, BMP, TIFF, WebP, GIF or PPM"
UNREAD_SUFFIXES = (
    ".heic",
    ".heif",
    ".avif",
    ".jxl",
    ".jp2",
    ".dng",
    ".cr2",
    ".cr3",
    ".nef",
    ".arw",
    ".raf",
    ".orf",
    ".rw2",
)
"""Names of files that are photos too, of formats that are not read: such files are named, not passed over."""
MAX_PIXELS = 100_000_000
_LARGEST_16_BIT = 65535
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What EXIF's orientations ask for. Pillow's own function writes EXIF anew, which fails on odd tags of cameras."""


def read_photo(image: ImageLike, max_pixels: int = MAX_PIXELS) -> Photo:
    """A photo, upright, as RGB of 8 bits.

    Grey, palette, CMYK and other modes become RGB. Transparent pixels are shown on white. Grey values of 16 bits are
    taken for 0..65535; their upper 8 bits are used. Of several frames or pages the first is used.

    Args:
        image: path of a file (JPEG, PNG, BMP, TIFF, WebP, GIF, PPM), a Pillow image, or an array (H,W,3) uint8, which
            is taken as it is.
        max_pixels: most pixels; a larger file is refused before it is decoded.

    Returns:
        (H,W,3) uint8 RGB. The size is that of the upright photo.

    Raises:
        RRMError: missing, foreign, damaged or too large; a mode without an obvious range (32 bits a pixel); an array
            of another shape or dtype.

    Example:
        >>> read_photo(Image.new("LA", (4, 3), (0, 0)))[0, 0].tolist()
        [255, 255, 255]
        >>> read_photo(np.zeros((3, 4), np.uint8))
        Traceback (most recent call last):
        ...
        rrm.errors.RRMError: image: expected (H, W, 3) uint8, RGB, got (3, 4) uint8: convert it
    """
    if isinstance(image, np.ndarray):
        return _checked(image, max_pixels)
    if isinstance(image, Image.Image):
        _check_size("image", image.height, image.width, max_pixels)
        with _decoding():
            return _as_rgb(image, "image")
    if not isinstance(image, (str, os.PathLike)):
        raise RRMError(
            f"image: expected a path, a Pillow image or an array, got {type(image).__name__}: convert it to one of them"
        )
    path = Path(image)
    with opened_image(path, FORMATS, max_pixels) as opened:
        return _as_rgb(opened, str(path))


@contextmanager
def _decoding() -> Iterator[None]:
    try:
        yield
    except RRMError:
        raise
    except Exception as error:  # of a lazily opened file: whatever Pillow's readers of formats happen to meet
        kind = f"{type(error).__name__} ({' '.join(str(error).split())[:120]})"
        raise RRMError(f"image: expected a photo that can be decoded, got {kind}: save it again") from error


def _checked(array: Photo, max_pixels: int) -> Photo:
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise RRMError(f"image: expected (H, W, 3) uint8, RGB, got {array.shape} {array.dtype}: convert it")
    _check_size("image", array.shape[0], array.shape[1], max_pixels)
    return array


def _check_size(name: str, height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise RRMError(
            f"{name}: expected at most {max_pixels} pixels, got {width} x {height}: make it smaller or raise max_pixels"
        )


def _as_rgb(image: Image.Image, name: str) -> Photo:
    upright = _upright(image)
    if upright.mode.startswith(("I", "F")):
        return _from_deep_grey(upright, name)
    if upright.has_transparency_data:
        colours = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
    return np.array(upright if upright.mode == "RGB" else upright.convert("RGB"), dtype=np.uint8)


def _upright(image: Image.Image) -> Image.Image:
    turn = _TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1, as it is stored, where there is none or EXIF is damaged, as viewers show it.

    Example:
        >>> orientation(Image.new("L", (4, 3)))
        1
    """
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return int(value) if value in _TURNS else 1
    except Exception:  # Pillow raises whatever it meets on odd tags
        return 1


def _from_deep_grey(image: Image.Image, name: str) -> Photo:
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > _LARGEST_16_BIT:
        raise RRMError(
            f"{name}: expected at most 16 bits a channel, got mode {image.mode} with values {values.min():g} to "
            f"{values.max():g}: convert it to 8 bits"
        )
    grey = (values >> 8).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)
