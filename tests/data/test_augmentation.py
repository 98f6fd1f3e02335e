"""Training augmentation: geometry of image, mask and valid map; determinism; distribution of draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from rrm.datasets import TrainTransform
from rrm.errors import RRMError


def photo(height: int, width: int) -> np.ndarray:
    """A smooth image whose red rises to the right and whose green rises downwards."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 200 // width, y * 200 // height, np.full_like(x, 77)], axis=-1).astype(np.uint8)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_without_scale_and_flip_it_is_a_plain_crop() -> None:
    image = generator().integers(0, 256, (40, 50, 3), dtype=np.uint8)
    mask = generator().integers(0, 21, (40, 50), dtype=np.uint8)
    item = TrainTransform(16, scale=(1, 1), flip=False)(image, generator(3), mask)
    windows = [
        (y, x) for y in range(25) for x in range(35) if np.array_equal(image[y : y + 16, x : x + 16], item["image"])
    ]
    assert len(windows) == 1
    y, x = windows[0]
    np.testing.assert_array_equal(item["labels"], mask[y : y + 16, x : x + 16])
    assert item["valid"].all() and item["valid"].dtype == bool


def test_flip_mirrors_image_and_mask() -> None:
    image, mask = photo(16, 16), np.arange(256, dtype=np.uint8).reshape(16, 16)
    transform = TrainTransform(16, scale=(1, 1))
    items = [transform(image, generator(seed), mask) for seed in range(40)]
    flipped = [np.array_equal(item["image"], image[:, ::-1]) for item in items]
    plain = [np.array_equal(item["image"], image) for item in items]
    assert all(a != b for a, b in zip(flipped, plain, strict=True)) and 8 < sum(flipped) < 32
    for item, mirrored in zip(items, flipped, strict=True):
        np.testing.assert_array_equal(item["labels"], mask[:, ::-1] if mirrored else mask)


def test_padding_has_the_colour_the_ignore_label_and_is_not_valid() -> None:
    image, mask = np.full((10, 20, 3), 9, np.uint8), np.full((10, 20), 5, np.uint8)
    item = TrainTransform(32, scale=(1, 1), pad_color=(1, 2, 3))(image, generator(1), mask)
    valid = item["valid"]
    rows, columns = np.flatnonzero(valid.any(1)), np.flatnonzero(valid.any(0))
    assert valid.sum() == 200 and len(rows) == 10 and len(columns) == 20
    assert (np.diff(rows) == 1).all() and (np.diff(columns) == 1).all()
    assert (item["image"][valid] == 9).all() and (item["image"][~valid] == (1, 2, 3)).all()
    assert (item["labels"][valid] == 5).all() and (item["labels"][~valid] == 255).all()


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("flip", [False, True])
def test_window_equals_the_same_window_of_the_whole_scaled_image(scale: float, flip: bool) -> None:
    """The box trick agrees with scaling everything first (by the antialiased bilinear filter of torch)."""
    image = photo(60, 80)
    item = TrainTransform(200, scale=(scale, scale), flip=flip)(image, generator(5))
    inside = item["image"][item["valid"]].reshape(round(60 * scale), round(80 * scale), 3)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    whole = interpolate(tensor, inside.shape[:2], mode="bilinear", antialias=True, align_corners=False)
    expected = whole[0].permute(1, 2, 0).numpy()
    error = min(np.abs(inside - expected).max(), np.abs(inside - expected[:, ::-1]).max() if flip else np.inf)
    assert error <= 1.0
    small = TrainTransform(24, scale=(scale, scale), flip=False)(image, generator(5))["image"].astype(int)
    column, row = small[0, 0, 0] * 80 * scale / 200, small[0, 0, 1] * 60 * scale / 200
    window = expected[round(row) :, round(column) :][:24, :24]
    assert np.abs(small[: window.shape[0], : window.shape[1]] - window).max() < 8


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 64), st.floats(0.3, 2.0), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_image_and_mask_stay_aligned(height: int, width: int, crop: int, scale: float, seed: int) -> None:
    """Any sizes: the mask value (the column it came from) agrees with the image's red (the same ramp)."""
    ramp = np.tile(np.arange(width, dtype=np.uint8) * 2, (height, 1))
    image = np.repeat(ramp[..., None], 3, axis=-1)
    item = TrainTransform(crop)(image, generator(seed), ramp, scale=scale)
    assert item["image"].shape == (crop, crop, 3) and item["labels"].shape == (crop, crop)
    valid = item["valid"]
    assert valid.any() and (item["labels"][~valid] == 255).all()
    expected = [min(crop, max(1, round(side * scale))) for side in (height, width)]
    assert [int(valid.any(1).sum()), int(valid.any(0).sum())] == expected
    difference = np.abs(item["image"][valid][:, 0].astype(int) - item["labels"][valid])
    assert difference.max() <= 2 * max(1, 1 / scale) + 1


def test_mask_of_the_original_size_meets_a_reduced_photo() -> None:
    mask = np.zeros((400, 600), np.uint8)
    mask[:, 300:] = 7
    image = photo(100, 150)
    item = TrainTransform(64, flip=False)(image, generator(2), mask, scale=1.0)
    right = item["image"][..., 0] >= 100  # red of the photo's right half
    assert np.array_equal(item["labels"] == 7, right) and 0 < right.sum() < right.size


def test_only_the_arguments_matter() -> None:
    image, mask = photo(50, 70), np.zeros((50, 70), np.uint8)

    def run(seed: int, **options: Any) -> dict[str, np.ndarray]:
        return TrainTransform(32, **options)(image, generator(seed), mask)

    first, again, other = run(1), run(1), run(2)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["image"], other["image"])
    assert image.flags.writeable and np.array_equal(image, photo(50, 70))


def test_scales_are_uniform() -> None:
    transform, source = TrainTransform(8, scale=(0.7, 1.3)), generator(0)
    drawn = np.array([transform.draw_scale(source) for _ in range(2000)])
    assert 0.7 <= drawn.min() < 0.71 and 1.29 < drawn.max() <= 1.3 and abs(drawn.mean() - 1) < 0.02


def test_every_window_and_place_occurs() -> None:
    transform = TrainTransform(4, scale=(1, 1), flip=False)
    corners = {tuple(transform(photo(6, 6), generator(k))["image"][0, 0, :2].tolist()) for k in range(200)}
    assert len(corners) == 9
    places = {tuple(np.argwhere(transform(photo(2, 2), generator(k))["valid"])[0]) for k in range(200)}
    assert len(places) == 9


@pytest.mark.parametrize(
    "options",
    [
        {"crop": 0},
        {"scale": (0.0, 1.0)},
        {"scale": (1.3, 0.7)},
        {"scale_per": "epoch"},
        {"pad_color": (1, 2)},
        {"pad_color": (0, 0, 256)},
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(RRMError, match=r"expected .* got "):
        TrainTransform(**{"crop": 8, **options})
