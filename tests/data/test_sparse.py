"""Labels derived from masks, against a flood fill."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrm.datasets.sparse import boxes, derive, scribbles
from rrm.errors import RRMError


def objects(mask: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Label and pixels of each connected piece, by flood fill."""
    left, found = {tuple(place) for place in np.argwhere(mask != 255)}, []
    while left:
        start = left.pop()
        queue, piece = deque([start]), [start]
        while queue:
            y, x = queue.popleft()
            for place in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if place in left and mask[place] == mask[start]:
                    left.remove(place)
                    queue.append(place)
                    piece.append(place)
        found.append((int(mask[start]), np.array(piece)))
    return found


masks = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1)).map(
    lambda args: np.random.default_rng(args[2]).choice(np.array([0, 0, 1, 2, 20, 255], np.uint8), args[:2])
)


@settings(max_examples=150, deadline=None)
@given(masks)
def test_a_stroke_goes_through_each_object(mask: np.ndarray) -> None:
    drawn = scribbles(mask)
    assert (drawn[drawn != 255] == mask[drawn != 255]).all()
    for _, pixels in objects(mask):
        rows = np.unique(pixels[:, 0])
        margin = int(0.1 * len(rows))
        for row in rows[margin : len(rows) - margin]:
            columns = pixels[pixels[:, 0] == row, 1]
            stroke = np.count_nonzero(drawn[row, columns] != 255)
            assert 1 <= stroke <= 3


@settings(max_examples=150, deadline=None)
@given(masks)
def test_boxes_hold_their_objects_and_small_ones_lie_above(mask: np.ndarray) -> None:
    expected, found = np.zeros_like(mask), []
    for label, pixels in objects(mask):
        (top, left), (bottom, right) = pixels.min(0), pixels.max(0) + 1
        if label:
            found.append(((bottom - top) * (right - left), slice(top, bottom), slice(left, right), label))
    filled = boxes(mask)
    for size, rows, columns, label in found:
        smaller = [each for each in found if each[0] < size]
        free = np.ones(mask.shape, bool)
        for _, other_rows, other_columns, _ in smaller:
            free[other_rows, other_columns] = False
        equal = {each[3] for each in found if each[0] == size}
        inside = filled[rows, columns][free[rows, columns]]
        assert set(inside.tolist()) <= equal | {label}
        expected[rows, columns] = 1
    assert ((filled != 0) == (expected != 0)).all()


def test_derived_labels_of_a_large_photo_are_few() -> None:
    rows, columns = np.mgrid[:375, :500]
    mask = ((rows - 180) ** 2 + (columns - 250) ** 2 < 100**2).astype(np.uint8) * 15
    assert 0.001 < (scribbles(mask) != 255).mean() < 0.03
    assert (boxes(mask) == 15).sum() == 199 * 199


def test_wrong_input_is_refused() -> None:
    with pytest.raises(RRMError, match="expected one of scribbles, boxes"):
        derive(np.zeros((2, 2), np.uint8), "points")
    with pytest.raises(RRMError, match="uint8"):
        derive(np.zeros((2, 2)), "boxes")
