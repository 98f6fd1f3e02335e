"""The permutohedral lattice on the CPU, and mean field on it: compiled loops, shared by threads.

Results do not depend on the number of threads: each sum is made by one thread, in the order of the points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from rrm.gaussian import kernels
from rrm.gaussian.lattice import SIMD_WIDTH, check_key_bits, check_reach, gain
from rrm.parallel import map_in_threads, run_ranges

FloatArray = npt.NDArray[Any]
Result = TypeVar("Result")

_SMALLEST = 4  # lanes of the shortest vector
_ROWS = 4096  # least rows a thread is worth


def lane_count(channels: int) -> int:
    """Give the lanes that a distribution over `channels` classes takes up.

    Example:
        >>> [lane_count(channels) for channels in (1, 4, 5, 21, 25)]
        [4, 4, 8, 24, 32]
    """
    return _SMALLEST if channels <= _SMALLEST else math.ceil(channels / 8) * 8


class PointLattice:
    """Lattice of N points: built once, applied to rows of lanes.

    Args:
        features: (N,d) float, in standard deviations.
        threads: that share the work.
        normalize: make the filter D^-1/2 W D^-1/2 with D = diag(W 1), the symmetric normalisation of the dense CRF.

    Raises:
        RRMError: the keys do not fit 63 bits.

    Example:
        >>> lattice = PointLattice(np.zeros((1, 2), np.float32))
        >>> bool((lattice.filter(np.ones((1, 4), np.float32)) > 0).all())
        True
    """

    def __init__(self, features: FloatArray, threads: int = 1, normalize: bool = False) -> None:
        self.count, dimensions = features.shape
        padding = 1 if self.count % SIMD_WIDTH else 0
        padded = np.zeros((dimensions, self.count + padding), np.float32)
        padded[:, : self.count] = features.T
        corners, weights, self._blurs = _build(padded, threads)
        self._corners = corners[: self.count]
        self._weights: FloatArray = weights[: self.count] * np.float32(math.sqrt(gain(dimensions)))  # splat and slice
        self._vertices = len(self._blurs[0])
        if normalize:
            sums = self.filter(np.ones((self.count, _SMALLEST), np.float32), threads=threads)[:, :1]
            self._weights = self._weights / np.sqrt(sums + np.float32(1e-20))

    def filter(self, values: FloatArray, transpose: bool = False, threads: int = 1) -> FloatArray:
        """Filter rows of lanes.

        Args:
            values: (N,L) C-contiguous float32 or float64, L from `lane_count`.
            transpose: filter with the transposed kernel.
            threads: that share the work.

        Returns:
            (N,L), the dtype of `values`.
        """
        out = np.zeros_like(values)
        self.filter_add(values, out, 1.0, out, self.workspace(values.shape[1], values.dtype), transpose, threads)
        return out

    def filter_add(
        self,
        values: FloatArray,
        start: FloatArray,
        factor: float,
        out: FloatArray,
        workspace: list[FloatArray],
        transpose: bool = False,
        threads: int = 1,
    ) -> None:
        """Write `start` plus `factor` times the filtered `values` to `out`, which may be `start`; all (N,L)."""
        lanes, row = _vector(values.shape[1]), (0,) * values.shape[1]
        lattice, other = workspace
        self._splat(lanes, row, values, workspace, threads)
        for neighbours in reversed(self._blurs) if transpose else self._blurs:
            _run(partial(kernels.blur, lanes, row, lattice, other, neighbours), self._vertices, threads)
            lattice, other = other, lattice
        terms = (start, lattice, self._corners, self._weights, np.float32(factor))
        _run(partial(kernels.slice_add, lanes, row, *terms, out), self.count, threads)

    def workspace(self, lanes: int, dtype: Any = np.float32) -> list[FloatArray]:
        """Give memory for `filter_add`, for one call at a time."""
        return [np.empty((self._vertices + 1, lanes), dtype) for _ in range(2)]

    def _splat(
        self,
        lanes: tuple[int, ...],
        row: tuple[int, ...],
        values: FloatArray,
        workspace: list[FloatArray],
        threads: int,
    ) -> None:
        """Splat both halves of the points apart and add them up, whatever the number of threads."""
        halves = (0, self.count // 2, self.count)

        def splat(start: int, stop: int) -> None:
            for half in range(start, stop):
                edges = halves[half : half + 2]
                kernels.splat(lanes, row, values, self._corners, self._weights, workspace[half], *edges)

        run_ranges(splat, 2, min(threads, 2, self.count // _ROWS))
        _run(partial(kernels.merge, lanes, *workspace), self._vertices, threads)
        workspace[1][-1] = 0


class CompiledLattice:
    """Lattices of B sets of N points; threads share the sets, or the points of a single one.

    Args:
        features: (B,N,d) float on the CPU.
    """

    def __init__(self, features: torch.Tensor) -> None:
        self._outer, self._inner = thread_plan(len(features))
        self._lattices = map_in_threads(
            partial(PointLattice, threads=self._inner), list(features.float().numpy()), self._outer
        )

    def filter(self, values: torch.Tensor, transpose: bool) -> torch.Tensor:
        """Filter (B,N,K) float32 or float64."""
        result = torch.empty_like(values)  # in the memory layout of the values
        given, filtered = values.numpy(), result.numpy()

        def apply(item: int) -> None:
            rows = np.zeros((values.shape[1], lane_count(values.shape[2])), given.dtype)
            _run(partial(kernels.copy_channels, given[item], rows), len(rows), self._inner)
            rows = self._lattices[item].filter(rows, transpose, self._inner)
            _run(partial(kernels.copy_channels, rows, filtered[item]), len(rows), self._inner)

        map_in_threads(apply, range(len(given)), self._outer)
        return result


def thread_plan(items: int) -> tuple[int, int]:
    """How many items to work on at a time, and with how many threads each.

    Example:
        >>> outer, inner = thread_plan(1)
        >>> outer, inner == torch.get_num_threads()
        (1, True)
    """
    threads = torch.get_num_threads()
    outer = max(1, min(threads, items))
    return outer, threads // outer


def mean_field(
    lattices: Sequence[PointLattice],
    factors: Sequence[float],
    logits: FloatArray,
    group: int,
    iterations: int,
    tolerance: float = 0.0,
    threads: int = 1,
) -> FloatArray:
    """Mean field of a dense CRF, Q <- softmax(logits + sum_m factor_m W_m Q).

    Args:
        lattices: one a kernel, normalised.
        factors: Potts weight of each.
        logits: (N,L) float32, the negative unary energy, -inf in lanes without a class.
        group: lanes of one distribution (`lane_count`), a row may hold several.
        iterations: >= 0.
        tolerance: stops when no probability changed by more; 0 makes all iterations.
        threads: that share the work.

    Returns:
        (N,L) float32, 0 in lanes without a class.
    """
    points, lanes = logits.shape
    q, updated = np.zeros_like(logits), np.empty_like(logits)
    softmax = partial(kernels.softmax, _vector(group), (0,) * group)
    _run(partial(softmax, logits, q), points, threads)
    terms = [(lattice, factor, lattice.workspace(lanes)) for lattice, factor in zip(lattices, factors, strict=True)]
    for _ in range(iterations if lattices else 0):
        start = logits
        for lattice, factor, workspace in terms:
            lattice.filter_add(q, start, factor, updated, workspace, threads=threads)
            start = updated
        if max(_run(partial(softmax, updated, q), points, threads)) < tolerance:
            break
    return q


def _vector(lanes: int) -> tuple[int, ...]:
    """Tuple whose length is the width of the vectors that rows of so many lanes are made of."""
    return (0,) * (_SMALLEST if lanes % 8 else 8 if lanes % 16 else 16)


def _build(features: FloatArray, threads: int) -> tuple[FloatArray, FloatArray, list[FloatArray]]:
    """Vertices (P,d+1) and weights (P,d+1) of each point, and per axis the neighbours (M,2) of each vertex."""
    dimensions, points = features.shape
    scales, low, shifts = _key_layout(features)
    keys, orders = np.empty(points, np.int64), np.empty(points, np.int32)
    weights = np.empty((points, dimensions + 1), np.float32)
    simplices = partial(kernels.enclosing_simplices, features, scales, shifts, low, keys, orders, weights)
    _run(simplices, points, threads)
    corners, units = np.empty((points, dimensions + 1), np.int32), 1 << shifts
    table, vertices = kernels.number_vertices(keys, orders, units, corners)
    diagonal = int(units.sum())
    steps = [(dimensions + 1) * int(unit) - diagonal for unit in units] + [-diagonal]
    blurs = [np.empty((len(vertices), 2), np.int32) for _ in steps]

    def find(start: int, stop: int) -> None:
        for axis in range(start, stop):
            kernels.find_neighbours(table, vertices, steps[axis], blurs[axis])

    run_ranges(find, len(steps), min(threads, len(vertices) // _ROWS))
    return corners, weights, blurs


def _key_layout(features: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Scales of the elevation, and the smallest value and the place (bits) of each coordinate of a packed key.

    Bounds of the coordinates follow from those of the features; a margin of one step keeps fields apart.
    """
    dimensions = len(features)
    deviation = np.float32(math.sqrt(2.0 / 3.0) * (dimensions + 1))
    axes = range(1, dimensions + 1)
    scales = np.array([1.0 / math.sqrt((axis + 1) * axis) * float(deviation) for axis in axes], np.float32)
    bounds = np.stack([features.min(axis=1), features.max(axis=1)]) * scales
    low, high = np.zeros(dimensions + 1), np.zeros(dimensions + 1)
    for axis in range(dimensions, 0, -1):
        low[axis] = bounds[0, axis:].sum() - bounds[1, axis - 1] * axis
        high[axis] = bounds[1, axis:].sum() - bounds[0, axis - 1] * axis
    low[0], high[0] = bounds[0].sum(), bounds[1].sum()
    check_reach(max(-low.min(), high.max()))
    margin = 3 * (dimensions + 1)
    smallest = np.floor(low[:dimensions]).astype(np.int64) - margin
    bits = [int(span).bit_length() for span in np.ceil(high[:dimensions]).astype(np.int64) + margin - smallest]
    check_key_bits(bits)
    shifts = np.array([sum(bits[axis + 1 :]) for axis in range(dimensions)], np.int64)
    return scales, smallest, shifts


def _run(work: Callable[[int, int], Result], rows: int, threads: int) -> list[Result]:
    return run_ranges(work, rows, min(threads, rows // _ROWS))
