"""Weaker labels derived from masks: a stroke through each object, or its bounding box filled.

They stand in for the scribbles and boxes that people draw, so that methods with such supervision can be measured on a
data set which has masks alone. An object is a connected piece of a class; void (255) is no class.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from rrm.errors import RRMError
from rrm.labels import IGNORE

Mask = NDArray[np.uint8]
Runs = NDArray[np.int64]
_ENDS = 0.1  # share of an object's height, above and below, that its stroke leaves out
KINDS = ("scribbles", "boxes")


def derive(mask: Mask, kind: str) -> Mask:
    """Derive weaker labels from a mask.

    Args:
        mask: (H,W) uint8, 0 background, 255 void.
        kind: "scribbles" (`scribbles`) or "boxes" (`boxes`).

    Returns:
        (H,W) uint8, 255 where there is no label.

    Raises:
        RRMError: unknown kind, or no mask.

    Example:
        >>> derive(np.array([[0, 0, 0], [0, 1, 0]], np.uint8), "boxes").tolist()
        [[0, 0, 0], [0, 1, 0]]
    """
    if kind not in KINDS:
        raise RRMError(f"labels: expected one of {', '.join(KINDS)}, got {kind!r}: choose one")
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise RRMError(f"mask: expected uint8 (H,W), got {mask.dtype} {mask.shape}: read it as a palette image")
    return scribbles(mask) if kind == "scribbles" else boxes(mask)


def scribbles(mask: Mask) -> Mask:
    """A stroke of three pixels through each object, background too: the middle of its longest run in each row.

    A tenth of the object's height is left out at both ends. All other pixels are 255.

    Example:
        >>> scribbles(np.ones((1, 5), np.uint8)).tolist()
        [[255, 1, 1, 1, 255]]
    """
    drawn = np.full_like(mask, IGNORE)
    for label, runs in _objects(mask):
        top, bottom = runs[0, 0], runs[-1, 0] + 1
        margin = int(_ENDS * (bottom - top))
        for row, start, stop in _longest(runs).tolist():
            if top + margin <= row < bottom - margin:
                middle = (start + stop - 1) // 2
                drawn[row, max(start, middle - 1) : min(stop, middle + 2)] = label
    return drawn


def _longest(runs: Runs) -> Runs:
    """The longest run of each row, the first among equals."""
    order = np.lexsort((runs[:, 1] - runs[:, 2], runs[:, 0]))
    ordered = runs[order]
    return ordered[np.unique(ordered[:, 0], return_index=True)[1]]


def boxes(mask: Mask) -> Mask:
    """The bounding box of each object of the foreground filled with its class, small boxes over large ones.

    Pixels outside all boxes are background; none is without a label.

    Example:
        >>> boxes(np.array([[0, 7, 0], [7, 7, 0]], np.uint8)).tolist()
        [[7, 7, 0], [7, 7, 0]]
    """
    filled = np.zeros_like(mask)
    found = []
    for label, runs in _objects(mask):
        if label:
            left, right = int(runs[:, 1].min()), int(runs[:, 2].max())
            found.append((int(runs[0, 0]), int(runs[-1, 0]) + 1, left, right, label))
    for top, bottom, left, right, label in sorted(found, key=lambda box: (box[0] - box[1]) * (box[3] - box[2])):
        filled[top:bottom, left:right] = label
    return filled


def _objects(mask: Mask) -> Iterator[tuple[int, Runs]]:
    """Label and runs (row, start, stop) of each object, rows ascending."""
    for label in np.unique(mask[mask != IGNORE]).tolist():
        runs = _runs(mask == label)
        roots = _connected(runs)
        for root in np.unique(roots):
            yield label, runs[roots == root]


def _runs(region: NDArray[np.bool_]) -> Runs:
    """Runs of True in each row, (R,3): row, first column, column behind the last one."""
    edges = np.diff(np.pad(region.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    starts, stops = np.argwhere(edges == 1), np.argwhere(edges == -1)
    return np.column_stack([starts, stops[:, 1]]).astype(np.int64)


def _connected(runs: Runs) -> NDArray[np.int64]:
    """Number of the first run that each run is connected with, over shared columns in neighbouring rows."""
    parents = list(range(len(runs)))

    def root(run: int) -> int:
        while parents[run] != run:
            parents[run] = parents[parents[run]]
            run = parents[run]
        return run

    rows = runs[:, 0]
    for number, (row, start, stop) in enumerate(runs.tolist()):
        first, last = np.searchsorted(rows, [row - 1, row])
        for above in range(first, last):
            if runs[above, 1] < stop and start < runs[above, 2]:
                low, high = sorted((root(above), root(number)))
                parents[high] = low
    return np.array([root(number) for number in range(len(runs))], np.int64)
