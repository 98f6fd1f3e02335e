"""Large photos in overlapping tiles: where the tiles lie, and how their probabilities are blended.

In the direction of each axis a tile's weight is 0 in the outer quarter of its overlap with the next tile, where the
border of the tile changed what the network saw, rises to 1 over the half that follows, and stays there. The weights of
all tiles are divided by their sum. Tiles start at multiples of 32 pixels, so that the cells of the network's map lie as
they do in the whole photo.

The result comes in bands of rows, so memory grows with a photo's width and not with its height.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rrm.errors import RRMError

Scores = npt.NDArray[np.float32]
GRID = 32
"""Pixels; a multiple of the stride of every network here."""


@dataclass(frozen=True)
class Tile:
    """The part `start`..`stop` of an axis, with the share of each of its pixels in the blend.

    Attributes:
        start, stop: pixels.
        weights: (stop - start,) float32 in 0..1; those of all tiles at a pixel sum to one.
    """

    start: int
    stop: int
    weights: npt.NDArray[np.float32]

    @property
    def slice(self) -> slice:
        """Its place in an array."""
        return slice(self.start, self.stop)


def check_tile(tile: int | None) -> None:
    """Refuse sides of tiles that are not multiples of 32, or below 64; None means no tiles.

    Example:
        >>> check_tile(100)
        Traceback (most recent call last):
        ...
        rrm.errors.RRMError: tile: expected a multiple of 32 pixels from 64 on, got 100: use 1024
    """
    if tile is not None and (tile < 2 * GRID or tile % GRID):
        raise RRMError(f"tile: expected a multiple of {GRID} pixels from {2 * GRID} on, got {tile}: use 1024")


def tiles(length: int, tile: int | None) -> list[Tile]:
    """The tiles of one axis; one where the axis is not longer than a tile.

    Neighbours overlap by a quarter of a tile, rounded down to a multiple of 32 pixels, at least by 32 pixels. The last
    one ends with the axis.

    Args:
        length: of the axis, pixels, >= 1.
        tile: side of a tile, pixels; None: a single tile.

    Raises:
        RRMError: a side that is not a multiple of 32, or below 64.

    Example:
        >>> [(each.start, each.stop) for each in tiles(200, 128)]
        [(0, 128), (96, 200)]
        >>> tiles(5, 128)[0].weights.tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    check_tile(tile)
    if tile is None or length <= tile:
        return [Tile(0, length, np.ones(length, np.float32))]
    overlap = max(GRID, tile // 4 // GRID * GRID)
    starts = [*range(0, length - tile, tile - overlap)]
    starts.append(min(starts[-1] + tile - overlap, -(-(length - tile) // GRID) * GRID))
    spans = [(start, min(start + tile, length)) for start in starts]
    raw = [_ramps(start, stop, length, overlap) for start, stop in spans]
    total = np.zeros(length)
    for (start, stop), weights in zip(spans, raw, strict=True):
        total[start:stop] += weights
    return [
        Tile(start, stop, np.asarray(weights / total[start:stop], np.float32))
        for (start, stop), weights in zip(spans, raw, strict=True)
    ]


def _ramps(start: int, stop: int, length: int, overlap: int) -> npt.NDArray[np.float64]:
    """Weights of one tile before they are divided by the sum; 1 up to the ends of the axis."""
    margin = overlap / 4
    rising = np.clip((np.arange(stop - start) + 0.5 - margin) / (overlap - 2 * margin), 0, 1)
    weights = rising if start > 0 else np.ones(stop - start)
    return np.minimum(weights, rising[::-1]) if stop < length else weights


def blended_bands(
    probabilities: Callable[[slice, slice], Scores], size: tuple[int, int], tile: int | None
) -> Iterator[tuple[int, Scores]]:
    """Probabilities of a whole photo from those of its tiles, band of rows by band.

    Args:
        probabilities: called with rows and columns of a tile; gives (K,h,w) float32.
        size: (H,W) of the photo, pixels.
        tile: side of a tile; None: the photo is one tile.

    Yields:
        First row, and (K,rows,W) float32. The bands follow one another from row 0 to H.

    Raises:
        RRMError: see `tiles`.

    Example:
        >>> bands = blended_bands(lambda rows, columns: np.ones((2, 64, 10), np.float32), (64, 10), None)
        >>> [(row, band.shape) for row, band in bands]
        [(0, (2, 64, 10))]
    """
    rows, columns = tiles(size[0], tile), tiles(size[1], tile)
    carried: Scores | None = None
    for number, row in enumerate(rows):
        strip = _strip(probabilities, row, columns, size[1])
        if carried is not None:
            strip[:, : carried.shape[1]] += carried
            carried = None  # before the next one is copied
        done = (rows[number + 1].start if number + 1 < len(rows) else size[0]) - row.start
        carried = strip[:, done:].copy()
        yield row.start, strip[:, :done]
        del strip  # before the next one is made


def _strip(probabilities: Callable[[slice, slice], Scores], row: Tile, columns: list[Tile], width: int) -> Scores:
    """Weighted sum of the tiles of one row of tiles."""
    strip: Scores | None = None
    for column in columns:
        part = probabilities(row.slice, column.slice)
        if strip is None:
            strip = np.zeros((part.shape[0], part.shape[1], width), np.float32)
        strip[:, :, column.slice] += part * (row.weights[:, None] * column.weights[None])
    assert strip is not None
    return strip
