"""The permutohedral lattice on the CPU, and mean field on it: compiled loops, shared by threads.

Results do not depend on the number of threads: each sum is made by one thread, in the order of the points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from rrm.gaussian import kernels
from rrm.gaussian.lattice import SIMD_WIDTH, gain, key_layout
from rrm.parallel import map_in_threads, run_ranges

FloatArray = npt.NDArray[Any]
Result = TypeVar("Result")

_SMALLEST = 4  # lanes of the shortest vector
_ROWS = 4096  # least rows a thread is worth
_MOST_PARTS = 8
_CACHE_LINE = 64  # bytes
_BLOCK = 1 << 14  # points whose unary energies are made at a time


def lane_count(channels: int) -> int:
    """Give the lanes that a distribution over `channels` classes takes up.

    Example:
        >>> [lane_count(channels) for channels in (1, 4, 5, 21, 25)]
        [4, 4, 8, 24, 32]
    """
    return _SMALLEST if channels <= _SMALLEST else math.ceil(channels / 8) * 8


def pixel_features(image: npt.NDArray[Any], sigma_xy: float | tuple[float, float], sigma_rgb: float) -> FloatArray:
    """Give what `position_colour_features` does for one photo, by a single thread.

    Args:
        image: (H,W,3).
        sigma_xy: pixels; a number, or (sigma_x, sigma_y).
        sigma_rgb: levels of the image.

    Returns:
        (5, H*W) float32.

    Example:
        >>> pixel_features(np.full((1, 2, 3), 30, np.uint8), 2.0, 15.0)[:, 1].tolist()
        [0.5, 0.0, 2.0, 2.0, 2.0]
    """
    height, width = image.shape[:2]
    features = np.empty((5, height, width), np.float32)
    sigma_x, sigma_y = sigma_xy if isinstance(sigma_xy, tuple) else (sigma_xy, sigma_xy)
    features[0] = np.arange(width, dtype=np.float32) / np.float32(sigma_x)
    features[1] = np.arange(height, dtype=np.float32)[:, None] / np.float32(sigma_y)
    np.divide(image.transpose(2, 0, 1), np.float32(sigma_rgb), out=features[2:], dtype=np.float32)
    return features.reshape(5, -1)


class Workspace(NamedTuple):
    """Lattices that the parts of the points are spread over (parts,M+1,L), and a pair to blur between (2,M+1,L)."""

    parts: FloatArray
    pair: FloatArray


class PointLattice:
    """Lattice of N points: built once, applied to any number of values.

    Args:
        features: (d,N) float, in standard deviations.
        threads: that share the work.
        normalize: make the filter D^-1/2 W D^-1/2 with D = diag(W 1), the symmetric normalisation of the dense CRF.

    Raises:
        RRMError: the keys do not fit 63 bits.

    Example:
        >>> lattice = PointLattice(np.zeros((2, 1), np.float32))
        >>> bool((lattice.filter(np.ones((1, 3), np.float32)) > 0).all())
        True
    """

    def __init__(self, features: FloatArray, threads: int = 1, normalize: bool = False) -> None:
        dimensions, self.points = features.shape
        padding = 1 if self.points % SIMD_WIDTH else 0
        padded = np.zeros((dimensions, self.points + padding), np.float32)
        padded[:, : self.points] = features
        corners, weights, self._blurs = _build(padded, threads)
        self.corners = corners[: self.points]
        self.weights: FloatArray = weights[: self.points] * np.float32(math.sqrt(gain(dimensions)))  # splat and slice
        self.vertices = len(self._blurs[0])
        if normalize:
            sums = self.filter(np.ones((self.points, 1), np.float32), threads=threads)
            self.weights = self.weights / np.sqrt(sums + np.float32(1e-20))

    @property
    def count(self) -> tuple[int, ...]:
        """Tuple of as many elements as a point has corners."""
        return (0,) * int(self.corners.shape[1])

    def filter(self, values: FloatArray, transpose: bool = False, threads: int = 1) -> FloatArray:
        """Filter values.

        Args:
            values: (N,K) float32 or float64, of any memory layout.
            transpose: filter with the transposed kernel.
            threads: that share the work.

        Returns:
            (N,K), dtype and memory layout of `values`.
        """
        row, parts = (0,) * lane_count(values.shape[1]), split_points(self.points, self.vertices)
        workspace = self.workspace(len(row), len(parts), values.dtype)

        def splat(part: int) -> None:
            terms = (self.corners, self.weights, workspace.parts[part])
            kernels.splat(row, self.count, values, *terms, *parts[part])

        run_parts(splat, parts, threads)
        lattice = self.blurred(workspace, transpose, threads)
        out = np.empty_like(values)
        run_points(
            partial(kernels.slice_, row, self.count, lattice, self.corners, self.weights, out), self.points, threads
        )
        return out

    def workspace(self, lanes: int, parts: int, dtype: Any = np.float32) -> Workspace:
        """Give memory for the lattices of one call at a time."""
        rows = (self.vertices + 1, lanes)
        pair = _aligned((2, *rows), dtype)
        pair[:, -1] = 0  # stands for missing neighbours
        return Workspace(_aligned((parts, *rows), dtype), pair)

    def blurred(self, workspace: Workspace, transpose: bool = False, threads: int = 1) -> FloatArray:
        """Add up the parts' lattices and blur the sum along all axes; gives one of the workspace's."""
        lattice: FloatArray = workspace.pair[0]
        other = workspace.pair[1]
        row = (0,) * lattice.shape[1]
        run_points(partial(kernels.merge, workspace.parts, lattice), self.vertices, threads)
        for neighbours in reversed(self._blurs) if transpose else self._blurs:
            run_points(partial(kernels.blur, row, lattice, other, neighbours), self.vertices, threads)
            lattice, other = other, lattice
        return lattice


def _aligned(shape: tuple[int, ...], dtype: Any) -> FloatArray:
    """Give memory that begins with a cache line, so that no vector of a row of lanes lies in two (6 % of a CRF)."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % _CACHE_LINE
    aligned: FloatArray = memory[start : start + size].view(dtype).reshape(shape)
    return aligned


def split_points(points: int, vertices: int) -> list[tuple[int, int]]:
    """Give the ranges of points that are spread over lattices of their own, which are then added up.

    They do not depend on the number of threads, so that sums do not either. More ranges share the work better; each
    costs a lattice.

    Example:
        >>> split_points(6, 100), len(split_points(100_000, 5_000))
        ([(0, 3), (3, 6)], 5)
    """
    parts = min(_MOST_PARTS, max(2, points // (4 * vertices)))
    return [(points * part // parts, points * (part + 1) // parts) for part in range(parts)]


def run_points(work: Callable[[int, int], Result], count: int, threads: int) -> list[Result]:
    """Call `work(start, stop)` on ranges of points or vertices that are worth a thread."""
    return run_ranges(work, count, min(threads, count // _ROWS))


def run_parts(work: Callable[[int], Result], parts: Sequence[tuple[int, int]], threads: int) -> list[Result]:
    """Call `work` with the number of each range of points."""
    return map_in_threads(work, range(len(parts)), min(threads, parts[-1][1] // _ROWS))


class CompiledLattice:
    """Lattices of B sets of N points; threads share the sets, or the points of a single one.

    Args:
        features: (B,N,d) float on the CPU.
    """

    def __init__(self, features: torch.Tensor) -> None:
        self._outer, self._inner = thread_plan(len(features))
        self._lattices = map_in_threads(
            partial(PointLattice, threads=self._inner), list(features.float().transpose(1, 2).numpy()), self._outer
        )

    def filter(self, values: torch.Tensor, transpose: bool) -> torch.Tensor:
        """Filter (B,N,K) float32 or float64."""
        result = torch.empty_like(values)  # in the memory layout of the values
        given, filtered = values.numpy(), result.numpy()

        def apply(item: int) -> None:
            filtered[item] = self._lattices[item].filter(given[item], transpose, self._inner)

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


class _MeanField:
    """Arrays of a mean field, and its iterations."""

    def __init__(
        self,
        lattices: Sequence[PointLattice],
        factors: Sequence[float],
        probs: FloatArray,
        unary: Callable[[FloatArray], FloatArray],
        threads: int,
    ) -> None:
        models, classes, points = probs.shape
        lanes = lane_count(classes)
        rows = _aligned((points, models, lanes), np.float32)
        run_points(partial(_fill_rows, probs, unary, rows), points, threads)
        self._group, self._row, self._rows = (0,) * lanes, (0,) * (models * lanes), rows.reshape(points, -1)
        self._parts = split_points(points, max((each.vertices for each in lattices), default=points))
        self._lattices, self._factors, self._threads = lattices, factors, threads
        self._workspaces = [each.workspace(models * lanes, len(self._parts)) for each in lattices]
        self.q = np.empty_like(probs)

    def step(self, receive: bool = True, spread: bool = True, keep: bool = False, compare: bool = False) -> float:
        """One pass over the points (`kernels.mean_field_step`); gives the largest change of a probability."""
        pairs = zip(self._lattices, self._workspaces, strict=True)
        lattices = [each.blurred(memory, False, self._threads) if receive else memory.pair[0] for each, memory in pairs]
        parameters = (self._row, self._group, self._rows)
        flags = (receive, spread, keep, compare)

        def work(part: int) -> float:
            terms = self._terms(lattices, part)
            change: float = kernels.mean_field_step(*parameters, terms, self.q, flags, *self._parts[part])
            return change

        return max(run_parts(work, self._parts, self._threads))

    def _terms(self, lattices: Sequence[FloatArray], part: int) -> tuple[Any, ...]:
        terms = [
            (each.count, each.corners, each.weights, np.float32(factor), lattice, memory.parts[part])
            for each, factor, lattice, memory in zip(
                self._lattices, self._factors, lattices, self._workspaces, strict=True
            )
        ]
        nothing = np.zeros((1, len(self._row)), np.float32)
        absent = ((), np.zeros((0, 0), np.int32), np.zeros((0, 0), np.float32), np.float32(0), nothing, nothing)
        return (*terms, *[absent] * (2 - len(terms)))


def _fill_rows(
    probs: FloatArray, unary: Callable[[FloatArray], FloatArray], rows: FloatArray, start: int, stop: int
) -> None:
    for first in range(start, stop, _BLOCK):
        last = min(first + _BLOCK, stop)
        rows[first:last, :, probs.shape[1] :] = -np.inf
        kernels.fill_rows(unary(probs[:, :, first:last]), rows[first:last])


def mean_field(
    lattices: Sequence[PointLattice],
    factors: Sequence[float],
    probs: FloatArray,
    unary: Callable[[FloatArray], FloatArray],
    iterations: int,
    tolerance: float = 0.0,
    threads: int = 1,
) -> FloatArray:
    """Mean field of R dense CRFs on the same points, Q <- softmax(unary(P) + sum_m factor_m W_m Q).

    Args:
        lattices: one a kernel, normalised; at most two.
        factors: Potts weight of each.
        probs: (R,K,N) float32, read only.
        unary: gives the negative unary energies (the logits) of a block (R,K,n) of probabilities; by NumPy or any other
            means that does not start threads.
        iterations: >= 0.
        tolerance: stops when no probability changed by more; 0 makes all iterations.
        threads: that share the work.

    Returns:
        (R,K,N) float32.
    """
    field, last = _MeanField(lattices, factors, probs, unary, threads), iterations if lattices else 0
    field.step(receive=False, spread=last > 0, keep=last == 0 or tolerance > 0)
    for iteration in range(1, last + 1):
        done = iteration == last
        change = field.step(spread=not done, keep=done or tolerance > 0, compare=tolerance > 0)
        if tolerance > 0 and change < tolerance:
            break
    return field.q


def _build(features: FloatArray, threads: int) -> tuple[FloatArray, FloatArray, list[FloatArray]]:
    """Vertices (P,d+1) and weights (P,d+1) of each point, and per axis the neighbours (M,2) of each vertex."""
    dimensions, points = features.shape
    layout = key_layout(features.min(axis=1), features.max(axis=1))
    keys, orders = np.empty(points, np.int64), np.empty(points, np.int32 if dimensions < 8 else np.int64)
    weights = np.empty((points, dimensions + 1), np.float32)
    fields = (layout.scales, layout.shifts, layout.low)
    run_points(partial(kernels.enclosing_simplices, features, *fields, keys, orders, weights), points, threads)
    corners = np.empty((points, dimensions + 1), np.int32)
    table, vertices = kernels.number_vertices(keys, orders, 1 << layout.shifts, corners)
    blurs = [np.empty((len(vertices), 2), np.int32) for _ in layout.steps]

    def find(start: int, stop: int) -> None:
        for axis in range(start, stop):
            kernels.find_neighbours(table, vertices, layout.steps[axis], blurs[axis])

    run_ranges(find, len(layout.steps), min(threads, len(vertices) // _ROWS))
    return corners, weights, blurs
