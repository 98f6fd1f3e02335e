"""Whether one model is above another: a paired bootstrap over photos of the difference of their mean IoU.

Each resample draws photos with replacement, the same ones for both models and all seeds, adds up their confusion
matrices and takes the mean IoU of each seed's sum; the statistic is the difference of the means over seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rrm.errors import RRMError

Matrices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Difference:
    """Mean IoU of a model less that of another, 0..1, with its 95 % interval and one-sided p-value."""

    value: float
    low: float
    high: float
    p: float
    """Share of resamples in which the difference is not above 0; never 0 (one is added to both counts)."""


def mean_ious(matrices: Any) -> npt.NDArray[np.float64]:
    """Mean IoU of each confusion matrix (...,C,C); classes without pixels are left out, NaN where there are none.

    Example:
        >>> mean_ious(np.array([[[8, 0], [2, 0]]])).round(3).tolist()
        [0.4]
    """
    counts = np.asarray(matrices, np.float64)
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    union = counts.sum(-1) + counts.sum(-2) - right
    known = union > 0
    iou = np.divide(right, union, out=np.zeros_like(right), where=known)
    total = known.sum(-1)
    return np.asarray(np.divide(iou.sum(-1), total, out=np.full(total.shape, np.nan), where=total > 0))


def paired_difference(
    better: Sequence[Matrices], worse: Sequence[Matrices], resamples: int = 10_000, seed: int = 0
) -> Difference:
    """Compare two models on the same photos.

    Args:
        better, worse: for each seed of a model (N,C,C) confusion matrices, one a photo, the same photos in the same
            order everywhere. The models may have different numbers of seeds.
        resamples: >= 1.
        seed: of the resamples.

    Raises:
        RRMError: different numbers of photos, or none.

    Example:
        >>> good, bad = np.array([[[9, 0], [0, 9]]] * 20), np.array([[[5, 4], [4, 5]]] * 20)
        >>> paired_difference([good], [bad]).p < 0.001
        True
    """
    counts = {len(each) for each in (*better, *worse)}
    if len(counts) != 1 or 0 in counts:
        raise RRMError(f"bootstrap: expected one number of photos >= 1 for all, got {sorted(counts)}: evaluate again")
    (photos,) = counts
    times = np.random.default_rng(seed).multinomial(photos, np.full(photos, 1 / photos), size=resamples)
    drawn = np.concatenate([np.ones((1, photos)), times])
    means = [np.mean([_resampled(drawn, each) for each in side], axis=0) for side in (better, worse)]
    difference = means[0] - means[1]
    low, high = np.percentile(difference[1:], [2.5, 97.5])
    p = (1 + int((difference[1:] <= 0).sum())) / (1 + resamples)
    return Difference(float(difference[0]), float(low), float(high), p)


def _resampled(drawn: npt.NDArray[np.float64], matrices: Matrices) -> npt.NDArray[np.float64]:
    size = matrices.shape[-1]
    flat = matrices.reshape(len(matrices), -1).astype(np.float64)
    return mean_ious((drawn @ flat).reshape(-1, size, size))
