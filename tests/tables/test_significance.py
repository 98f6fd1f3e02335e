"""The paired bootstrap: against a loop, and its calibration."""

from __future__ import annotations

import numpy as np
import pytest

from rrm.errors import RRMError
from rrm.metrics import scores_of
from rrm.significance import mean_ious, paired_difference


def made(rng: np.random.Generator, photos: int, right: float) -> np.ndarray:
    """Matrices of three classes."""
    return (rng.integers(0, 40, (photos, 3, 3)) + np.eye(3) * rng.normal(right, 20, (photos, 1, 1)).clip(0)).astype(int)


def test_means_equal_those_of_single_matrices() -> None:
    matrices = made(np.random.default_rng(0), 7, 50)
    matrices[3, 1], matrices[3, :, 1] = 0, 0  # a class without pixels
    np.testing.assert_allclose(mean_ious(matrices), [scores_of(each).mean_iou for each in matrices])
    assert np.isnan(mean_ious(np.zeros((2, 2))))


def test_resamples_equal_a_loop() -> None:
    rng = np.random.default_rng(1)
    better, worse = [made(rng, 9, 60) for _ in range(2)], [made(rng, 9, 50)]
    found = paired_difference(better, worse, resamples=200, seed=3)
    times = np.random.default_rng(3).multinomial(9, np.full(9, 1 / 9), size=200)
    differences = []
    for draw in times:
        sides = [
            np.mean([scores_of(sum(n * m for n, m in zip(draw, each, strict=True))).mean_iou for each in side])
            for side in (better, worse)
        ]
        differences.append(sides[0] - sides[1])
    assert found.p == pytest.approx((1 + np.sum(np.array(differences) <= 0)) / 201)
    np.testing.assert_allclose([found.low, found.high], np.percentile(differences, [2.5, 97.5]))


def test_equal_models_are_rarely_told_apart() -> None:
    rng = np.random.default_rng(2)
    found = [paired_difference([made(rng, 60, 50)], [made(rng, 60, 50)], 300).p for _ in range(60)]
    assert 0.2 < np.mean(found) < 0.8
    assert np.mean(np.array(found) < 0.05) < 0.2


def test_different_photos_are_refused() -> None:
    with pytest.raises(RRMError, match="number of photos"):
        paired_difference([np.ones((3, 2, 2), int)], [np.ones((4, 2, 2), int)])
    with pytest.raises(RRMError, match="number of photos"):
        paired_difference([np.ones((0, 2, 2), int)], [np.ones((0, 2, 2), int)])
