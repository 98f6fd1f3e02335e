"""Segmentation metrics from confusion matrices: additive state, so that images and shards merge in any order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

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
    predicted, true = (torch.from_numpy(np.asarray(labels).astype(np.int64)) for labels in (prediction, target))
    return np.asarray(confusion_matrices(predicted[None], true[None], num_classes)[0].numpy())


def confusion_matrices(predictions: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """The same for each image of a batch, on the device that holds it.

    Args:
        predictions: (N,...) integer labels 0..num_classes.
        targets: (N,...) integer labels 0..num_classes or 255 (ignored), on the same device.
        num_classes: number of foreground classes.

    Returns:
        (N, num_classes + 1, num_classes + 1) int64, rows are true classes, columns predicted ones.

    Raises:
        RRMError: shapes differ or a label is out of range.

    Example:
        >>> labels = torch.tensor([[0, 1], [1, 1]])
        >>> confusion_matrices(labels, labels, num_classes=1).tolist()
        [[[1, 0], [0, 1]], [[0, 0], [0, 2]]]
    """
    if predictions.shape != targets.shape:
        raise RRMError(
            f"prediction: expected the target's shape {tuple(targets.shape[1:])}, got {tuple(predictions.shape[1:])}: "
            "resize it first"
        )
    count, size = len(targets), num_classes + 1
    kept = targets != IGNORE
    predicted, true = (torch.where(kept, labels, 0).int() for labels in (predictions, targets))
    for name, labels in (("prediction", predicted), ("target", true)):
        _check_labels(name, labels, num_classes)
    rows = torch.where(kept, true, size).view(count, -1)  # one more row than classes, for what is ignored
    rows = rows + (size + 1) * torch.arange(count, dtype=torch.int32, device=rows.device)[:, None]
    counts = torch.bincount((size * rows + predicted.view(count, -1)).flatten(), minlength=count * (size + 1) * size)
    return counts.view(count, size + 1, size)[:, :size]


def _check_labels(name: str, labels: Tensor, num_classes: int) -> None:
    lowest, highest = (int(bound) for bound in labels.aminmax()) if labels.numel() else (0, 0)
    if lowest < 0 or highest > num_classes:
        raise RRMError(f"{name}: expected labels 0..{num_classes}, got {lowest}..{highest}: check num_classes")


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
