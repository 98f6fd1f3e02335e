"""The permutohedral lattice (Adams, Baek and Davis 2010) on a GPU: W = slice blur_d+1 ... blur_1 splat.

It has the arithmetic of `rrm.gaussian.lattice`, with the vertices of the padding. Vertices are found with a table of
packed keys, where points that come first number them, so nothing is sorted. Building waits for the GPU twice, for the
bounds of the features and for the number of vertices; filtering never does.

Points add to vertices in no fixed order: the last bits of a result differ from run to run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton

from rrm.gaussian import kernels_triton as kernels
from rrm.gaussian.exact_triton import on_device
from rrm.gaussian.lattice import SIMD_WIDTH, KeyLayout, gain, key_layout

# One thread a point and its corners one after another, few enough points for a probe of the slowest to be short.
_POINTS = 128
_CELLS = 512  # of points or vertices times channels; four a thread keep memory busy
_SPARE = 1 << 16  # empty keys behind the table, for comparisons that must do nothing
_PROBES = 128  # slots to look at before a table counts as full
_LEAST_CAPACITY = 1 << 12


class TritonLattice:
    """Lattices of B sets of N points, on a GPU.

    Args:
        features: (B,N,d) float, in standard deviations.

    Raises:
        RRMError: the keys do not fit 63 bits.
    """

    def __init__(self, features: torch.Tensor) -> None:
        features = features.float()
        batch, points, dimensions = features.shape
        layout = _layout(features)
        capacity = max(_LEAST_CAPACITY, triton.next_power_of_2(2 * batch * points))  # photos have fewer vertices
        with on_device(features):
            table = _fill_table(features, layout, capacity)
            while not table.has_room():
                capacity *= 8
                table = _fill_table(features, layout, capacity)
            self._corners = table.numbers.index_select(0, table.slots.view(-1)).view(dimensions + 1, -1)
            self._weights = table.weights
            self._neighbours = table.neighbours()

    def scale(self, factors: torch.Tensor) -> None:
        """Make the filter D W D from now on, D the diagonal matrix of (B,N,1) factors."""
        self._weights *= factors.reshape(-1)

    def filter(self, values: torch.Tensor, transpose: bool) -> torch.Tensor:
        """Filter (B,N,K) float32 or float64."""
        _, points, channels = values.shape
        axes, _, vertices = self._neighbours.shape
        lanes = channels if channels <= 2 else triton.cdiv(channels, 4) * 4  # whole sectors of memory
        cells = max(_CELLS, triton.next_power_of_2(lanes))
        lattice = torch.zeros((vertices, lanes), dtype=values.dtype, device=values.device)
        other, result = torch.empty_like(lattice), torch.empty_like(values)  # in the memory layout of the values
        count = self._corners.shape[1]
        blocks = triton.cdiv(count, cells // channels)
        sizes = (axes, channels, lanes, cells)
        with on_device(values):
            places = (self._corners, self._weights)
            kernels.splat[(blocks,)](values, *places, lattice, count, points, *values.stride(), *sizes)
            for axis in reversed(range(axes)) if transpose else range(axes):
                grid = (triton.cdiv(vertices, cells // lanes),)
                kernels.blur[grid](lattice, other, self._neighbours[axis], vertices, lanes, cells)
                lattice, other = other, lattice
            kernels.slice_points[(blocks,)](lattice, *places, result, count, points, *result.stride(), *sizes)
        return result


@dataclass(frozen=True)
class _Table:
    """What `insert_points` has written, and the steps between neighbours (d+1,)."""

    keys: torch.Tensor
    numbers: torch.Tensor
    vertices: torch.Tensor
    counters: list[int]
    slots: torch.Tensor
    weights: torch.Tensor
    steps: torch.Tensor

    def has_room(self) -> bool:
        """Whether all keys found a slot, and few enough are taken for searches to be short."""
        count, failed = self.counters
        return not failed and 4 * count <= 3 * len(self.numbers)

    def neighbours(self) -> torch.Tensor:
        """Vertices before and after each one along each axis, (d+1,2,M) int32."""
        count, axes = self.counters[0], len(self.steps)
        result = torch.empty((axes, 2, count), dtype=torch.int32, device=self.keys.device)
        kernels.find_neighbours[(triton.cdiv(count, _POINTS), axes, 2)](
            self.keys, self.numbers, self.vertices, self.steps, result, count, len(self.numbers) - 1, _POINTS
        )
        return result


def _layout(features: torch.Tensor) -> KeyLayout:
    """Key layout for all images at once, zero features included where points are padded."""
    batch, points, _ = features.shape
    bounds = torch.stack([features.amin(dim=(0, 1)), features.amax(dim=(0, 1))])
    if points % SIMD_WIDTH:
        bounds = torch.stack([bounds[0].clamp(max=0), bounds[1].clamp(min=0)])
    smallest, largest = bounds.cpu().numpy()
    return key_layout(smallest, largest, batch.bit_length())


def _fill_table(features: torch.Tensor, layout: KeyLayout, capacity: int) -> _Table:
    batch, points, dimensions = features.shape
    padded = points + (1 if points % SIMD_WIDTH else 0)
    device = features.device
    given = torch.tensor([*layout.low.tolist(), *layout.shifts.tolist(), layout.bits, *layout.steps])
    fields = given.to(device, non_blocking=True)  # without waiting for what the GPU has to do before
    keys = torch.full((capacity + _SPARE,), -1, dtype=torch.int64, device=device)
    numbers = torch.empty(capacity, dtype=torch.int32, device=device)
    vertices = torch.empty(capacity, dtype=torch.int64, device=device)
    counters = torch.zeros(2, dtype=torch.int32, device=device)
    slots = torch.empty((dimensions + 1, batch * points), dtype=torch.int32, device=device)
    weights = torch.empty(slots.shape, device=device)
    kernels.insert_points[(triton.cdiv(batch * padded, _POINTS),)](
        features, fields, keys, numbers, vertices, counters, slots, weights, batch, points, padded,
        *features.stride(), capacity - 1, dimensions, tuple(layout.scales.tolist()), math.sqrt(gain(dimensions)),
        _SPARE, _PROBES, _POINTS, enable_fp_fusion=False,
    )  # fmt: skip
    return _Table(keys, numbers, vertices, counters.tolist(), slots, weights, fields[2 * dimensions + 1 :])
