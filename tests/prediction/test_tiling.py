"""Tiles: where they lie, what they weigh, and that no seam is seen."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import rrm
from rrm.errors import RRMError
from rrm.tiling import GRID, blended_bands, tiles
from tests.prediction.conftest import made_photo


class SmallView:
    """A network of stride 8 that sees a few pixels around each."""

    def __init__(self, channels: int = 3) -> None:
        kernel = torch.tensor([[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -1.0]])
        self.kernel = kernel.repeat(1, 3, 1, 1) * torch.linspace(-3, 3, channels)[:, None, None, None]

    def normalize(self, images: Tensor) -> Tensor:
        return images / 255

    def forward_segmentation(self, images: Tensor) -> Tensor:
        return functional.avg_pool2d(functional.conv2d(images, self.kernel, padding=1), 8, ceil_mode=True)


@pytest.fixture
def small_view() -> rrm.Segmenter:
    return rrm.Segmenter(SmallView(), ["up", "down"])


def _noise(height: int, width: int) -> Any:
    noise = np.random.default_rng(0).integers(0, 100, (height, width, 3))
    return (noise + made_photo(height, width) // 2).astype(np.uint8)


@pytest.mark.parametrize("tile", [64, 96, 128, 1024])
def test_tiles_cover_an_axis_and_weigh_one_together(tile: int) -> None:
    for length in (*range(1, 400, 7), 1024, 1025, 1056, 4000):
        found = tiles(length, tile)
        total = np.zeros(length)
        for each in found:
            assert each.start % GRID == 0 and each.stop - each.start <= tile
            total[each.start : each.stop] += each.weights
        np.testing.assert_allclose(total, 1, atol=1e-6)
        assert found[0].start == 0 and found[-1].stop == length
        assert all(after.start + GRID <= before.stop for before, after in pairwise(found))
        assert len(found) == 1 or length > tile


@pytest.mark.parametrize("tile", [0, 32, 100, -64])
def test_sides_that_are_refused(tile: int, small_view: rrm.Segmenter) -> None:
    with pytest.raises(RRMError, match="tile: expected a multiple of 32 pixels from 64 on"):
        small_view.predict(_noise(8, 8), tile=tile)


def test_a_photo_in_tiles_is_the_photo_as_a_whole(small_view: rrm.Segmenter) -> None:
    photo = _noise(328, 456)
    whole = small_view.predict(photo, crf=False, tile=None)
    assert len(np.unique(whole.labels)) > 1
    tiled = small_view.predict(photo, crf=False, tile=256)  # of an overlap of 64 pixels, the outer 16 are left out
    np.testing.assert_allclose(tiled.probabilities, whole.probabilities, atol=1e-6)
    np.testing.assert_array_equal(tiled.labels, whole.labels)
    narrow = small_view.predict(photo, crf=False, tile=64)  # 8 pixels: less than the network sees
    np.testing.assert_allclose(narrow.probabilities, whole.probabilities, atol=0.03)


def test_a_photo_of_one_tile_is_not_touched(segmenter: rrm.Segmenter) -> None:
    photo = made_photo(64, 50)
    whole, one = (segmenter.predict(photo, crf=False, tile=tile) for tile in (None, 64))
    np.testing.assert_array_equal(one.probabilities, whole.probabilities)


def test_odd_sizes_and_the_crf(segmenter: rrm.Segmenter) -> None:
    seen = segmenter.predict(made_photo(71, 133), tile=64)
    assert seen.labels.shape == (71, 133)
    np.testing.assert_allclose(seen.probabilities.sum(0), 1, atol=1e-3)
    np.testing.assert_array_equal(seen.probabilities.argmax(0), seen.labels)


def test_memory_grows_with_the_width_and_not_with_the_height() -> None:
    classes = [f"class {number}" for number in range(20)]
    segmenter = rrm.Segmenter(SmallView(21), classes)
    photo = made_photo(1024, 768)
    strip = 6 * 21 * 64 * 768  # of float32, and the half of it that overlaps the next one

    def peak(**options: Any) -> int:
        tracemalloc.start()
        segmenter.predict(photo, crf=False, tile=64, **options)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    everything = 21 * photo.shape[0] * photo.shape[1] * 4
    assert peak(probabilities=False) < strip + photo.size // 3 + 1_500_000 < everything / 4
    assert peak(probabilities=True) > everything


def test_bands_follow_one_another() -> None:
    bands = list(blended_bands(_constant, (200, 150), 64))
    assert [row for row, _ in bands] == list(np.cumsum([0, *(band.shape[1] for _, band in bands[:-1])]))
    joined = np.concatenate([band for _, band in bands], axis=1)
    np.testing.assert_allclose(joined, np.full((2, 200, 150), 0.5), atol=1e-6)


def _constant(rows: slice, columns: slice) -> Any:
    return np.full((2, rows.stop - rows.start, columns.stop - columns.start), 0.5, np.float32)
