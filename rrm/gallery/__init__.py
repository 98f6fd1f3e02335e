"""A page to look at a run: `index.html` with its style, script, data and pictures beside it, opened from disk.

Nothing is read here: all functions take arrays and plain values. The page needs neither a server nor the network. What
it shows is one value, `window.data` in `data.js`; the script puts texts of it on the page as text, never as HTML.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from rrm.datasets.packing import reduce_photo
from rrm.datasets.voc import voc_palette
from rrm.errors import RRMError
from rrm.figures import Labels, Picture, resize_labels
from rrm.labels import IGNORE
from rrm.store import atomic_path

LONG_SIDE = 480
"""Longest side of a picture of the page, pixels."""
ASSETS = ("style.css", "gallery.js")
_BEFORE, _AFTER = "window.data = ", ";\n"
_QUALITY = 85  # of JPEG files
_OURS = re.compile(r"\d{4}-[a-z0-9-]+\.(jpg|png)")


def photo_file(picture: Picture) -> bytes:
    """A photo or heat map (H,W,3) uint8 as a JPEG file; a large one is reduced to `LONG_SIDE`.

    Example:
        >>> Image.open(io.BytesIO(photo_file(np.zeros((20, 960, 3), np.uint8)))).size
        (480, 10)
    """
    buffer = io.BytesIO()
    Image.fromarray(reduce_photo(picture, LONG_SIDE)).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def label_file(labels: Labels, size: tuple[int, int]) -> bytes:
    """A label map (H,W) uint8 as a PNG file in VOC's colours; pixels without a label (255) are transparent.

    Args:
        labels: the labels.
        size: (height, width) of the photo that they belong to; the file has the size that `photo_file` gives it.

    Example:
        >>> image = Image.open(io.BytesIO(label_file(np.array([[1, 255]], np.uint8), (2, 4))))
        >>> image.size, image.convert("RGBA").getpixel((0, 0)), image.convert("RGBA").getpixel((3, 0))[3]
        ((4, 2), (128, 0, 0, 255), 0)
    """
    ratio = min(1, LONG_SIDE / max(size))
    shown = resize_labels(labels, (max(1, round(size[0] * ratio)), max(1, round(size[1] * ratio))))
    image, buffer = Image.fromarray(shown), io.BytesIO()
    image.putpalette(voc_palette().tobytes())
    image.save(buffer, "PNG", transparency=IGNORE)
    return buffer.getvalue()


class Pictures:
    """The pictures beside a page, in the folder `images`, named after the numbers of the photos.

    Names of photos are the user's and make no file names: they may hold anything.

    Args:
        page: the page's path.
    """

    def __init__(self, page: Path) -> None:
        self._folder = page.parent / "images"
        self._written: set[str] = set()

    def add(self, number: int, layer: str, content: bytes) -> str:
        """Write one file; gives its path as the page names it."""
        kind = "png" if content.startswith(b"\x89PNG") else "jpg"
        name = f"{number:04d}-{re.sub('[^a-z0-9]+', '-', layer.lower()).strip('-')}.{kind}"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.joinpath(name).write_bytes(content)
        self._written.add(name)
        return f"images/{name}"

    def remove_others(self) -> None:
        """Remove what an earlier page showed and this one does not."""
        for path in self._folder.glob("*"):
            if _OURS.fullmatch(path.name) and path.name not in self._written:
                path.unlink()


def as_script(data: Mapping[str, Any]) -> str:
    r"""The data as a script for the page: JSON in which no character can end a script or a line of it.

    Example:
        >>> as_script({"name": "</script>\u2028", "iou": [float("nan"), 0.123456]})
        'window.data = {"name":"\\u003c/script\\u003e\\u2028","iou":[null,0.1235]};\n'
    """
    text = json.dumps(_plain(data), allow_nan=False, separators=(",", ":"))  # ASCII only
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return f"{_BEFORE}{text}{_AFTER}"


def _plain(value: Any) -> Any:
    """The value in JSON's types: NaN is null, and four digits of a number are enough to be looked at."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(each) for each in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value


def hex_colours(count: int) -> list[str]:
    """VOC's colours of the first labels as CSS writes them.

    Example:
        >>> hex_colours(2)
        ['#000000', '#800000']
    """
    palette: npt.NDArray[np.uint8] = voc_palette()[:count]
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in palette]


def in_one_file(page: Path) -> str:
    """A page of `write_page` with its style, scripts and pictures inside it, as HTML.

    Raises:
        RRMError: something of it is missing.
    """

    def beside(name: str) -> bytes:
        try:
            return (page.parent / name).read_bytes()
        except OSError as error:
            raise RRMError(f"{page}: expected {name} beside it, got {error}: make the page again") from error

    data = json.loads(beside("data.js").decode().removeprefix(_BEFORE).removesuffix(_AFTER))
    for photo in data["photos"]:
        photo["images"] = {layer: _embedded(name, beside(name)) for layer, name in photo["images"].items()}
    text = beside(page.name).decode()
    text = text.replace('<link rel="stylesheet" href="style.css">', f"<style>\n{beside('style.css').decode()}</style>")
    for name, script in {"data.js": as_script(data), "gallery.js": beside("gallery.js").decode()}.items():
        text = text.replace(f'<script src="{name}"></script>', f"<script>\n{script}</script>")
    return text


def _embedded(name: str, content: bytes) -> str:
    kind = {".png": "png", ".jpg": "jpeg"}[Path(name).suffix]
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def write_page(page: Path, data: Mapping[str, Any]) -> None:
    """Write the page and what it reads beside its pictures; the page itself comes last, atomically."""
    ours = files("rrm.gallery")
    texts = {name: ours.joinpath(name).read_text(encoding="utf-8") for name in ASSETS} | {"data.js": as_script(data)}
    for name, text in [*texts.items(), (page.name, ours.joinpath("index.html").read_text(encoding="utf-8"))]:
        with atomic_path(page.parent / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
