"""What is worth a look among photos before anything is trained on them: tiny, dark, flat and doubled ones.

Photos are alike if few bits of their difference hashes differ: of a photo of 9 x 8 grey pixels, whether each is
brighter than the next one to the right. Scaling, compression and changes of brightness hardly change them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps

from rrm.errors import RRMError
from rrm.photos import Photo, read_photo

SMALL = 100
"""Pixels of the shorter side below which a photo is called very small."""
DARK = 25.0
"""Mean grey level, 0..255, below which a photo is called very dark."""
FLAT = 2.0
"""Deviation of the grey levels below which a photo is called of one colour."""
ALIKE = 4
"""Bits of 64 in which the hashes of alike photos differ at most."""
_TILE, _COLUMNS, _TEXT, _LINES = 170, 6, 12, 2
_LARGEST_SHEET = 120  # tiles; more are told, not shown


@dataclass(frozen=True, eq=False)
class PhotoFacts:
    """What is known of a photo once it was read.

    Attributes:
        size: (H,W) of the upright photo, pixels.
        brightness: mean grey level, 0..255.
        contrast: standard deviation of the grey levels.
        hash: (64,) bool, the difference hash.
    """

    size: tuple[int, int]
    brightness: float
    contrast: float
    hash: npt.NDArray[np.bool_]

    @property
    def flat(self) -> bool:
        """Whether there is nothing to see."""
        return self.contrast < FLAT

    def notes(self) -> list[str]:
        """What is odd about the photo alone, in words.

        Example:
            >>> inspect(np.full((50, 200, 3), 4, np.uint8)).notes()
            ['very small', 'very dark', 'of one colour']
        """
        odd = {"very small": min(self.size) < SMALL, "very dark": self.brightness < DARK, "of one colour": self.flat}
        return [note for note, true in odd.items() if true]


def inspect(photo: Photo) -> PhotoFacts:
    """Facts of a photo (H,W,3) uint8 RGB."""
    grey = Image.fromarray(photo).convert("L")
    small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), np.int16)
    values = np.asarray(ImageOps.contain(grey, (256, 256)), np.float64)
    bits = (small[:, 1:] > small[:, :-1]).ravel()
    return PhotoFacts((photo.shape[0], photo.shape[1]), float(values.mean()), float(values.std()), bits)


def alike(photos: Mapping[str, PhotoFacts]) -> list[list[str]]:
    """Groups of photos that look alike, those of one colour left out: their hashes say nothing.

    Returns:
        Groups of two names or more, in the order of `photos`; who is like one of a group belongs to it.

    Example:
        >>> steps = np.tile(np.arange(0, 180, 2, dtype=np.uint8)[:, None], (80, 1, 3))
        >>> facts = {"a": inspect(steps), "b": inspect(steps // 2), "c": inspect(steps[:, ::-1].copy())}
        >>> alike(facts)
        [['a', 'b']]
    """
    names = [name for name, facts in photos.items() if not facts.flat]
    groups: dict[str, list[str]] = {name: [name] for name in names}
    if names:
        signs = np.stack([photos[name].hash for name in names]).astype(np.float32) * 2 - 1
        for row, name in enumerate(names):
            near = np.flatnonzero(signs[:row] @ signs[row] >= 64 - 2 * ALIKE)  # the rest differ in more bits
            for other in near:
                _join(groups, names[other], name)
    found = {id(group): group for group in groups.values() if len(group) > 1}
    order = {name: place for place, name in enumerate(names)}
    return [sorted(group, key=order.__getitem__) for group in found.values()]


def _join(groups: dict[str, list[str]], first: str, second: str) -> None:
    ours, theirs = groups[first], groups[second]
    if ours is not theirs:
        ours += theirs
        groups.update(dict.fromkeys(theirs, ours))


def contact_sheet(rows: Mapping[str, Sequence[tuple[str, Path]]]) -> Image.Image:
    """Small pictures of photos under headings; a file that cannot be read is a grey tile.

    Args:
        rows: heading to captions and files, at least one photo in all.

    Returns:
        An RGB image, as many tiles wide as the longest row up to six.
    """
    shown = {heading: list(photos)[:_LARGEST_SHEET] for heading, photos in rows.items() if photos}
    step = _TILE + (_LINES + 1) * (_TEXT + 2)
    heights = [2 * _TEXT + 8 + step * -(-len(photos) // _COLUMNS) for photos in shown.values()]
    columns = max(2, min(_COLUMNS, max(map(len, shown.values()))))
    sheet = Image.new("RGB", (columns * (_TILE + 8) + 8, sum(heights) + 8), "white")
    draw, top = ImageDraw.Draw(sheet), 8
    for (heading, photos), height in zip(shown.items(), heights, strict=True):
        more = len(rows[heading]) - len(photos)
        draw.text((8, top), heading + (f" ({more} more)" if more else ""), "black", _font(_TEXT + 4))
        for number, (caption, path) in enumerate(photos):
            corner = (8 + number % columns * (_TILE + 8), top + 2 * _TEXT + number // columns * step)
            sheet.paste(_tile(path), corner)
            draw.text((corner[0], corner[1] + _TILE + 2), _wrapped(caption), "black", _font(_TEXT))
        top += height
    return sheet


def _tile(path: Path) -> Image.Image:
    try:
        photo = Image.fromarray(read_photo(path))
    except RRMError:
        return Image.new("RGB", (_TILE, _TILE), "lightgrey")
    small = ImageOps.contain(photo, (_TILE, _TILE))
    tile = Image.new("RGB", (_TILE, _TILE), "gainsboro")
    tile.paste(small, ((_TILE - small.width) // 2, (_TILE - small.height) // 2))
    return tile


def _wrapped(text: str) -> str:
    """A caption in lines that fit below a tile; a long one loses its middle."""
    letters = _TILE // 7
    most = letters * _LINES
    text = text if len(text) <= most else f"{text[: most // 2 - 2]}...{text[-most // 2 + 2 :]}"
    return "\n".join(text[start : start + letters] for start in range(0, len(text), letters))


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib's font: it has more alphabets than Pillow's."""
    from matplotlib.font_manager import findfont

    return ImageFont.truetype(findfont("DejaVu Sans"), size)
