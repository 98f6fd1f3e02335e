"""The dense energy of one image on the compiled lattice: value and gradient in two passes over its points (Eq. 10-14).

With s the masked probabilities, m the mask, g the gate and W the filter, the value is -sum_i g_i s_i . (W s)_i or, with
the constant of Eq. 12, sum_i g_i (m_i (W m)_i - s_i . (W s)_i). The mask is filtered beside the probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from rrm.gaussian import kernels
from rrm.gaussian.lattice_cpu import PointLattice, lane_count, run_parts, run_points, split_points

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class EnergyOptions:
    """Which energy, and which of its derivatives.

    Args:
        constant: whether the constant of Eq. 12 is part of the value.
        normalize: "none", "row" or "mean", of `rrm.losses.DenseEnergyLoss`.
        exact: the derivative, instead of the authors' -2 g (W s).
        differentiate_gate: whether the gate's own derivative is part of that.
    """

    constant: bool = False
    normalize: str = "none"
    exact: bool = False
    differentiate_gate: bool = True


def dense_energy(
    lattice: PointLattice,
    scores: Array,
    mask: Array,
    labelled: Array,
    options: EnergyOptions,
    slope: Array | None = None,
    threads: int = 1,
) -> float:
    """Give the energy of one image, and write its gradient.

    Args:
        lattice: of the pixels' features, N points.
        scores: (K,N) float32 or float64.
        mask: (N,), the dtype of `scores`; 0 is padding.
        labelled: (N,) bool.
        options: what is computed.
        slope: (K,N), the dtype of `scores`: the gradient is written there; None: it is not wanted.
        threads: that share the work.

    Example:
        >>> lattice = PointLattice(np.zeros((2, 1), np.float32))
        >>> scores, one = np.full((2, 1), 0.5, np.float32), np.ones(1, np.float32)
        >>> dense_energy(lattice, scores, one, one > 1, EnergyOptions()) < 0
        True
    """
    pass_ = _Pass(lattice, scores, options.normalize != "none" or options.constant, threads)
    wanted = scores[:0] if slope is None else slope
    gate = np.empty_like(mask)
    pass_.spread(kernels.energy_spread, mask, labelled, gate)
    sums, pairs = np.empty_like(mask), np.empty_like(mask)
    factor = mask.dtype.type(-1 if options.exact else -2)
    how = (options.normalize == "row", options.constant, factor)
    pass_.gather(kernels.energy_gather, False, (scores, mask, gate, *how), (sums, pairs, wanted))
    if options.exact and slope is not None:
        weight = _row_weights(sums, options.normalize)
        pass_.spread(kernels.splat_scaled, mask * gate * weight)
        pass_.gather(kernels.slice_scaled, True, (), (-mask, slope))
        if options.differentiate_gate:
            live = np.flatnonzero(labelled & (gate > 0))
            slope[scores[:, live].argmax(axis=0), live] -= pairs[live]
    scale = _mean_weight(sums, mask) if options.normalize == "mean" else 1.0
    if slope is not None and scale != 1:
        slope *= slope.dtype.type(scale)
    return scale * float(np.multiply(gate, pairs).sum(dtype=np.float64))


class _Pass:
    """Spreads something over the lattice and gathers what comes back."""

    def __init__(self, lattice: PointLattice, scores: Array, filter_mask: bool, threads: int) -> None:
        self._lattice, self._scores, self._threads = lattice, scores, threads
        self._row = (0,) * lane_count(len(scores) + filter_mask)
        self._parts = split_points(lattice.points, lattice.vertices)
        self._memory = lattice.workspace(len(self._row), len(self._parts), scores.dtype)

    def spread(self, kernel: Any, *terms: Any) -> None:
        tables = (self._lattice.corners, self._lattice.weights)

        def work(part: int) -> None:
            target = self._memory.parts[part]
            kernel(self._row, self._lattice.count, self._scores, *terms, *tables, target, *self._parts[part])

        run_parts(work, self._parts, self._threads)

    def gather(self, kernel: Any, transpose: bool, terms: tuple[Any, ...], out: tuple[Any, ...]) -> None:
        lattice = self._lattice.blurred(self._memory, transpose, self._threads)
        tables = (lattice, self._lattice.corners, self._lattice.weights)
        work = partial(kernel, self._row, self._lattice.count, *terms, *tables, *out)
        run_points(work, self._lattice.points, self._threads)


def _row_weights(sums: Array, normalize: str) -> Array:
    if normalize != "row":
        return np.ones_like(sums)
    return np.divide(1, sums, out=np.zeros_like(sums), where=sums > 0)


def _mean_weight(sums: Array, mask: Array) -> float:
    mean = float((sums * mask).sum()) / max(float(mask.sum()), 1.0)
    return 1 / mean if mean > 0 else 0.0
