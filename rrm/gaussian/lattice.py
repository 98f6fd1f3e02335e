"""The permutohedral lattice (Adams, Baek and Davis 2010) in plain torch, for any device.

It has the arithmetic of Krähenbühl's dense CRF code, which gives about 0.5-0.6 of the exact sum on photos. That code
pads the points to a multiple of four with zero features; the vertices which the padding creates pass values on during
blurring, so they are made here too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from rrm.errors import RRMError

KEY_BITS = 63
SIMD_WIDTH = 4
_LARGEST_COORDINATE = 2.0**22


def gain(dimensions: int) -> float:
    """Factor of the lattice's result that makes up for the blur.

    Example:
        >>> gain(1)
        0.6666666666666666
    """
    return 1.0 / (1.0 + 2.0 ** (-dimensions))


def check_finite(finite: bool) -> None:
    """Refuse features that are not all finite.

    Raises:
        RRMError: `finite` is False.

    Example:
        >>> check_finite(True)
    """
    if not finite:
        raise RRMError("features: expected finite numbers, got NaN or infinity: look at the images and sigmas")


def check_reach(coordinate: float) -> None:
    """Refuse lattice coordinates that float32 cannot hold to a fraction.

    Raises:
        RRMError: 2^22 or more.

    Example:
        >>> check_reach(100.0)
    """
    if coordinate >= _LARGEST_COORDINATE:
        raise RRMError(
            f"GaussianFilter: expected lattice coordinates below {_LARGEST_COORDINATE:.0f}, "
            f"got {coordinate:.3g}: use larger sigmas or backend='exact'"
        )


def check_key_bits(bits: list[int], more: int = 0) -> None:
    """Refuse packed keys that do not fit one signed 64-bit integer.

    Raises:
        RRMError: the coordinates' bits, and `more` for the rest of the key, are above 63.

    Example:
        >>> check_key_bits([12, 13])
    """
    if sum(bits) + more > KEY_BITS:
        raise RRMError(
            f"GaussianFilter: expected lattice keys of at most {KEY_BITS} bits, got {sum(bits) + more} (up to "
            f"{max(bits)} for each of {len(bits)} coordinates): use larger sigmas or backend='exact'"
        )


@dataclass(frozen=True)
class KeyLayout:
    """How the d coordinates of a vertex share one integer: the sum of (coordinate - low) << shift.

    Attributes:
        scales: (d,) float32, of the elevation.
        low: (d,) int64, smallest coordinate.
        shifts: (d,) int64, bits.
        bits: of the whole key.
        steps: d+1 differences between the keys of neighbours, one an axis of the blur.
    """

    scales: npt.NDArray[np.float32]
    low: npt.NDArray[np.int64]
    shifts: npt.NDArray[np.int64]
    bits: int
    steps: list[int]


def key_layout(smallest: npt.NDArray[np.float32], largest: npt.NDArray[np.float32], more: int = 0) -> KeyLayout:
    """Lay out keys for the vertices around points.

    Bounds of the coordinates follow from those of the features; a margin of one step keeps fields apart.

    Args:
        smallest, largest: (d,) float32, of each feature.
        more: bits that must remain.

    Raises:
        RRMError: a bound is not finite, the coordinates are out of reach of float32, or their bits and `more` are above
            63.

    Example:
        >>> key_layout(np.zeros(2, np.float32), np.ones(2, np.float32)).steps
        [63, -30, -33]
    """
    dimensions = len(smallest)
    scales = elevation_scales(dimensions)
    bounds = np.stack([smallest, largest]) * scales
    check_finite(bool(np.isfinite(bounds).all()))
    low, high = np.zeros(dimensions + 1), np.zeros(dimensions + 1)
    for axis in range(dimensions, 0, -1):
        low[axis] = bounds[0, axis:].sum() - bounds[1, axis - 1] * axis
        high[axis] = bounds[1, axis:].sum() - bounds[0, axis - 1] * axis
    low[0], high[0] = bounds[0].sum(), bounds[1].sum()
    check_reach(max(-low.min(), high.max()))
    margin = 3 * (dimensions + 1)
    origin = np.floor(low[:dimensions]).astype(np.int64) - margin
    bits = [int(span).bit_length() for span in np.ceil(high[:dimensions]).astype(np.int64) + margin - origin]
    check_key_bits(bits, more)
    shifts = [sum(bits[axis + 1 :]) for axis in range(dimensions)]
    return KeyLayout(scales, origin, np.array(shifts, np.int64), sum(bits), blur_steps([1 << each for each in shifts]))


def blur_steps(units: list[int]) -> list[int]:
    """Differences between the packed keys of neighbours along each axis, for `units` of the coordinates in a key.

    Example:
        >>> blur_steps([10, 1])
        [19, -8, -11]
    """
    diagonal = sum(units)
    return [(len(units) + 1) * unit - diagonal for unit in units] + [-diagonal]


def elevation_scales(dimensions: int) -> npt.NDArray[np.float32]:
    """Scale of each feature on the plane sum(x) = 0, with the deviation of the blur, (d,).

    Example:
        >>> elevation_scales(1)
        array([1.1547006], dtype=float32)
    """
    deviation = np.float32(math.sqrt(2.0 / 3.0) * (dimensions + 1))
    axes = range(1, dimensions + 1)
    return np.array([1.0 / math.sqrt((axis + 1) * axis) * float(deviation) for axis in axes], np.float32)


@dataclass(frozen=True)
class _Simplex:
    """Corners around P points: coordinates (P,d+1,d) int64 and barycentric weights (P,d+1) float32."""

    keys: torch.Tensor
    weights: torch.Tensor


class BatchLattice:
    """Splat to vertices, blur along d+1 axes, slice back; each step is one weighted gather-and-sum."""

    def __init__(self, features: torch.Tensor) -> None:
        batch, points, dimensions = features.shape
        self._shape = (batch, points)
        padded = F.pad(features.float(), (0, 0, 0, 1 if points % SIMD_WIDTH else 0))
        simplex = _enclosing_simplex(padded.reshape(-1, dimensions))
        packed, steps = _pack_keys(simplex.keys, batch)
        vertices, order, counts = _sort_unique(packed.flatten())
        inverse = torch.empty_like(order)
        inverse[order] = torch.repeat_interleave(counts)
        self._build_splat(simplex.weights, order, counts, padded.shape[1])
        corners = inverse.view(batch, -1, dimensions + 1)[:, :points].reshape(batch * points, dimensions + 1)
        weights = simplex.weights.view(batch, -1, dimensions + 1)[:, :points].reshape(corners.shape)
        self._slice = (corners.int().contiguous(), weights.contiguous())
        self._gain = gain(dimensions)
        self._blurs = [_neighbours(vertices, step) for step in steps]

    def _build_splat(self, weights: torch.Tensor, order: torch.Tensor, counts: torch.Tensor, padded: int) -> None:
        """CSR of vertices over points; entries of padding points keep their vertex but carry no weight."""
        point = order // weights.shape[1]
        image, row = point // padded, point % padded
        real = row < self._shape[1]
        rows = torch.where(real, image * self._shape[1] + row, 0)
        offsets = torch.cumsum(counts, 0) - counts
        self._splat = (rows.int(), offsets.int(), weights.flatten()[order] * real)

    def filter(self, values: torch.Tensor, transpose: bool) -> torch.Tensor:
        flat = values.reshape(-1, values.shape[2])
        rows, offsets, weights = self._splat
        lattice = F.embedding_bag(rows, flat, offsets, mode="sum", per_sample_weights=weights.to(flat.dtype))
        for indices, factors in reversed(self._blurs) if transpose else self._blurs:
            lattice = F.embedding_bag(indices, lattice, mode="sum", per_sample_weights=factors.to(flat.dtype))
        corners, weights = self._slice
        weights = weights.to(flat.dtype) * self._gain
        result = F.embedding_bag(corners, lattice, mode="sum", per_sample_weights=weights)
        return result.view(values.shape)


def _enclosing_simplex(features: torch.Tensor) -> _Simplex:
    """Find each point's simplex (Adams et al., section 3) in float32, in the original's order."""
    dimensions = features.shape[1]
    elevated = _elevate(features)
    check_reach(float(elevated.abs().max()))
    nearest = torch.round(elevated * np.float32(1.0 / (dimensions + 1)).item())
    rank = _descending_rank(elevated - nearest * (dimensions + 1)) + nearest.sum(dim=0).to(torch.int64)
    shift = (rank < 0).long() - (rank > dimensions).long()
    rank += shift * (dimensions + 1)
    origin = (nearest.long() + shift) * (dimensions + 1)
    excess = (elevated - origin) * np.float32(1.0 / (dimensions + 1)).item()
    by_rank = torch.empty_like(excess).scatter_(0, rank, excess)
    first = by_rank[dimensions] + (1 - by_rank[0])
    weights = torch.cat([first[None], by_rank[:dimensions].flip(0) - by_rank[1:].flip(0)])
    corner = torch.arange(dimensions + 1, device=features.device)[:, None, None]
    offset = corner - (dimensions + 1) * (rank[None, :dimensions] > dimensions - corner)
    keys = origin[None, :dimensions] + offset
    return _Simplex(keys.permute(2, 0, 1), weights.t().contiguous())


def _elevate(features: torch.Tensor) -> torch.Tensor:
    """Map (P,d) features to the plane sum(x) = 0 of d+1 coordinates, scaled to the blur; (d+1,P)."""
    dimensions = features.shape[1]
    scales = elevation_scales(dimensions).tolist()
    total = torch.zeros_like(features[:, 0])
    elevated = [total] * (dimensions + 1)
    for axis in range(dimensions, 0, -1):
        scaled = features[:, axis - 1] * scales[axis - 1]
        elevated[axis] = total - scaled * axis
        total = total + scaled
    elevated[0] = total
    return torch.stack(elevated)


def _descending_rank(values: torch.Tensor) -> torch.Tensor:
    """Rank (d+1,P) of each row in its column: largest first, the earlier row first among equals."""
    rank = torch.zeros_like(values, dtype=torch.int64)
    for first in range(len(values) - 1):
        smaller = values[first] < values[first + 1 :]
        rank[first] += smaller.sum(dim=0)
        rank[first + 1 :] += ~smaller
    return rank


def _pack_keys(keys: torch.Tensor, batch: int) -> tuple[torch.Tensor, list[int]]:
    """Pack image number and coordinates in one int64, and the step to the next vertex of each axis.

    Every field has a margin of one step on both sides, so adding a step never carries into another field.
    """
    dimensions = keys.shape[2]
    margin = dimensions + 1
    low = keys.amin(dim=(0, 1)) - margin
    spans: list[int] = (keys.amax(dim=(0, 1)) + margin - low).tolist()
    bits = [(span + 1).bit_length() for span in spans]
    check_key_bits(bits, batch.bit_length())
    points = keys.shape[0] // batch
    packed = torch.arange(batch, device=keys.device).repeat_interleave(points)[:, None].expand(keys.shape[:2])
    units = [0] * dimensions
    for axis in range(dimensions):
        packed = (packed << bits[axis]) | (keys[:, :, axis] - low[axis])
        units = [unit << bits[axis] for unit in units]
        units[axis] = 1
    return packed, blur_steps(units)


def _sort_unique(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give the distinct keys in order, the stable order of all keys, and each distinct key's count."""
    entry_bits = len(packed).bit_length()
    if int(packed.max()).bit_length() + entry_bits <= KEY_BITS:
        entries = (packed << entry_bits) | torch.arange(len(packed), device=packed.device)
        if packed.device.type == "cpu":
            ordered = torch.from_numpy(np.sort(entries.numpy()))
        else:
            ordered = torch.sort(entries).values
        keys, order = ordered >> entry_bits, ordered & ((1 << entry_bits) - 1)
    else:
        keys, order = torch.sort(packed, stable=True)
    vertices, counts = torch.unique_consecutive(keys, return_counts=True)
    return vertices, order, counts


def _neighbours(vertices: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Blur along one axis: a vertex and its neighbours (M,3), and factors 1, 1/2, 1/2 (0 if missing)."""
    found = torch.searchsorted(vertices, vertices + step).clamp_(max=len(vertices) - 1)
    exists = vertices[found] == vertices + step
    own = torch.arange(len(vertices), device=vertices.device)
    sources, targets = own[exists], found[exists]
    indices = own[:, None].repeat(1, 3)
    factors = torch.zeros(indices.shape, device=vertices.device)
    factors[:, 0] = 1
    indices[sources, 1], factors[sources, 1] = targets, 0.5
    indices[targets, 2], factors[targets, 2] = sources, 0.5
    return indices.int(), factors
