"""Segmentation metrics from confusion matrices: additive state, so that images and shards merge in any order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rrm.errors import RRMError
from rrm.labels import IGNORE


def confusion_matrix(prediction: Any, target: Any, num_classes: int) -> npt.NDArray[np.int64]:
    """Counts of (true class, predicted class) over all pixels whose target is not 255.

    Args:
        prediction: integer labels 0..num_classes, any shape; NumPy array or torch tensor.
        target: integer labels 0..num_classes or 255 (ignored), same shape.
        num_classes: number of foreground classes; background is class 0.

    Returns:
        (num_classes + 1, num_classes + 1) int64, rows are true classes, columns predicted ones.

    Raises:
        RRMError: shapes differ or a label is out of range.

    Example:
        >>> confusion_matrix(np.array([0, 1, 1]), np.array([0, 1, 255]), num_classes=1).tolist()
        [[1, 0], [0, 1]]
    """
    predicted, true = np.asarray(prediction), np.asarray(target)
    if predicted.shape != true.shape:
        raise RRMError(f"prediction: expected the target's shape {true.shape}, got {predicted.shape}: resize it first")
    kept = true != IGNORE
    predicted, true = predicted[kept].astype(np.int64), true[kept].astype(np.int64)
    size = num_classes + 1
    for name, labels in (("prediction", predicted), ("target", true)):
        if labels.size and (labels.min() < 0 or labels.max() >= size):
            raise RRMError(
                f"{name}: expected labels 0..{num_classes}, got {labels.min()}..{labels.max()}: check num_classes"
            )
    return np.bincount(true * size + predicted, minlength=size * size).reshape(size, size)


@dataclass(frozen=True)
class SegmentationScores:
    """Scores of a confusion matrix; classes absent from prediction and target are NaN and left out of means."""

    iou: npt.NDArray[np.float64]
    """(num_classes + 1,) intersection over union, 0..1 or NaN."""
    mean_iou: float
    """Mean of the IoUs that are not NaN."""
    pixel_accuracy: float
    """Share of pixels that are right; NaN without pixels."""
    mean_accuracy: float
    """Mean over classes in the target of the share of their pixels that are right."""


def scores_of(confusion: npt.NDArray[np.int64]) -> SegmentationScores:
    """Scores of one confusion matrix (rows true, columns predicted).

    Example:
        >>> float(scores_of(np.array([[8, 0], [2, 0]])).mean_iou)
        0.4
    """
    matrix = confusion.astype(np.float64)
    right, true, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = right / (true + predicted - right)
        recall = right / true
        accuracy = right.sum() / matrix.sum()
    return SegmentationScores(iou, _mean(iou), float(accuracy), _mean(recall))


def _mean(values: npt.NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


class SegmentationMetrics:
    """Accumulates a confusion matrix; 255 in the target is ignored.

    Args:
        num_classes: number of foreground classes (VOC: 20); background is added.

    Example:
        >>> metrics = SegmentationMetrics(num_classes=1)
        >>> metrics.update(np.array([[0, 1]]), np.array([[0, 1]]))
        >>> metrics.compute().mean_iou
        1.0
    """

    def __init__(self, num_classes: int) -> None:
        if num_classes < 1:
            raise RRMError(f"num_classes: expected 1 or more foreground classes, got {num_classes}")
        self.num_classes = num_classes
        self.confusion = np.zeros((num_classes + 1, num_classes + 1), np.int64)

    def update(self, prediction: Any, target: Any) -> None:
        """Add one image or batch: integer labels of one shape, 255 ignored in the target."""
        self.confusion += confusion_matrix(prediction, target, self.num_classes)

    def merge(self, other: SegmentationMetrics) -> None:
        """Add another accumulator's counts.

        Raises:
            RRMError: the numbers of classes differ.
        """
        if other.num_classes != self.num_classes:
            raise RRMError(f"merge: expected {self.num_classes} classes, got {other.num_classes}")
        self.confusion += other.confusion

    def compute(self) -> SegmentationScores:
        """Scores of everything added so far."""
        return scores_of(self.confusion)
