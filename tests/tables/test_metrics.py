"""Metrics against recorded results and an independent pixel-by-pixel count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrm.errors import RRMError
from rrm.metrics import SegmentationMetrics, confusion_matrix, scores_of


def test_parity_with_recorded_miou(goldens: Path) -> None:
    recorded = np.load(goldens / "miou.npz")
    metrics = SegmentationMetrics(num_classes=20)
    for prediction, target in zip(recorded["pred"], recorded["gt"], strict=True):
        metrics.update(prediction, target)
    scores = metrics.compute()
    np.testing.assert_array_equal(metrics.confusion, recorded["hist_rows_gt_cols_pred"])
    np.testing.assert_allclose(scores.iou, recorded["iou"], equal_nan=True)
    assert scores.mean_iou == pytest.approx(float(recorded["miou_nanmean"]), abs=1e-12)
    assert scores.pixel_accuracy == pytest.approx(float(recorded["pixel_accuracy"]), abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_counts_equal_a_plain_loop(seed: int, num_classes: int) -> None:
    generator = np.random.default_rng(seed)
    prediction = generator.integers(0, num_classes + 1, (5, 6))
    target = generator.choice([*range(num_classes + 1), 255], (5, 6))
    counted = np.zeros((num_classes + 1, num_classes + 1), int)
    for p, t in zip(prediction.ravel(), target.ravel(), strict=True):
        if t != 255:
            counted[t, p] += 1
    matrix = confusion_matrix(prediction, target, num_classes)
    np.testing.assert_array_equal(matrix, counted)
    iou = scores_of(matrix).iou
    for k in range(num_classes + 1):
        kept = target != 255
        union = (((prediction == k) | (target == k)) & kept).sum()
        both = (((prediction == k) & (target == k)) & kept).sum()
        assert np.isnan(iou[k]) if union == 0 else iou[k] == pytest.approx(both / union)


def test_merge_in_any_split_is_the_whole() -> None:
    generator = np.random.default_rng(0)
    prediction, target = generator.integers(0, 4, (6, 8, 8)), generator.integers(0, 4, (6, 8, 8))
    whole, parts = SegmentationMetrics(3), SegmentationMetrics(3)
    whole.update(prediction, target)
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        part = SegmentationMetrics(3)
        part.update(prediction[rows], target[rows])
        parts.merge(part)
    np.testing.assert_array_equal(whole.confusion, parts.confusion)


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (np.zeros((2, 2)), np.zeros((2, 3)), "prediction: expected the target's shape"),
        (np.full((1, 1), 9), np.zeros((1, 1)), r"prediction: expected labels 0\.\.2, got 9\.\.9"),
        (np.zeros((1, 1)), np.full((1, 1), -1), "target: expected labels"),
    ],
)
def test_bad_input_is_named(prediction: np.ndarray, target: np.ndarray, message: str) -> None:
    with pytest.raises(RRMError, match=message):
        confusion_matrix(prediction, target, 2)


def test_nothing_to_score_is_nan() -> None:
    scores = SegmentationMetrics(2).compute()
    assert np.isnan(scores.iou).all() and np.isnan(scores.mean_iou)
