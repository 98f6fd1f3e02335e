"""High-dimensional Gaussian filtering, the numeric kernel under the dense energy loss (the G of Eq. 11, not
normalised).

    out_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j

"exact" is that sum; "lattice" approximates it on the permutohedral lattice (Adams, Baek and Davis 2010) with
the arithmetic of Krähenbühl's dense CRF code, which gives about 0.5-0.6 of the exact sum on photos. That code
pads the points to a multiple of four with zero features; the vertices which the padding creates pass values
on during blurring, so they are made here too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from rrm.errors import RRMError

_BACKENDS = ("exact", "lattice")
_KEY_BITS = 63
_SIMD_WIDTH = 4
_CACHED_ENTRIES = 1 << 24  # a kernel matrix up to this size is kept, larger ones are rebuilt in chunks
_LARGEST_COORDINATE = 2.0**22
_CHUNK_ENTRIES = 1 << 22


class GaussianFilter:
    """Filters values with a Gaussian kernel between features; built once, applied to any number of values.

    Nothing is recorded for autograd: a caller's own backward uses `apply_transpose`.

    Args:
        features: (B,N,d) float, in standard deviations; B independent sets of N points. CPU or CUDA.
        backend: "exact" (all pairs; memory bounded, time B N^2) or "lattice" (time B N, float32 geometry).
        include_self: whether j = i counts; the lattice cannot leave it out.

    Raises:
        RRMError: wrong shape, NaN, unknown backend, or a lattice whose keys do not fit 63 bits.

    Example:
        >>> points = torch.tensor([[[0.0], [1.0]]])
        >>> GaussianFilter(points, "exact").apply(torch.ones(1, 2, 1)).flatten()
        tensor([1.6065, 1.6065])
    """

    def __init__(self, features: torch.Tensor, backend: str = "exact", include_self: bool = True) -> None:
        if backend not in _BACKENDS:
            raise RRMError(
                f"GaussianFilter backend: expected one of {', '.join(_BACKENDS)}, got {backend!r}: choose one"
            )
        if features.ndim != 3 or 0 in features.shape or not features.is_floating_point():
            raise RRMError(
                f"features: expected float (B,N,d), none zero, got {features.dtype} "
                f"{tuple(features.shape)}: see position_colour_features"
            )
        if backend == "lattice" and not include_self:
            raise RRMError("include_self: expected True with the lattice, got False: use backend='exact'")
        if not bool(torch.isfinite(features).all()):
            raise RRMError("features: expected finite numbers, got NaN or infinity: look at the images and sigmas")
        self.backend = backend
        self.shape = (features.shape[0], features.shape[1])
        self._kernel: _Exact | _Lattice
        if backend == "exact":
            self._kernel = _Exact(features.detach(), include_self)
        else:
            self._kernel = _Lattice(features.detach())

    def apply(self, values: torch.Tensor) -> torch.Tensor:
        """Filter values.

        Args:
            values: (B,N,K) float32 or float64, on the device of the features.

        Returns:
            (B,N,K), the dtype of `values`.

        Raises:
            RRMError: the shape does not fit the features.
        """
        self._check(values)
        with torch.no_grad():
            return self._kernel.filter(values.detach(), transpose=False)

    def apply_transpose(self, values: torch.Tensor) -> torch.Tensor:
        """Filter with the transposed kernel.

        For all a and b, <apply(a), b> = <a, apply_transpose(b)>. The exact kernel is symmetric, the lattice
        nearly so (2 %).

        Args:
            values: (B,N,K) float32 or float64, on the device of the features.

        Returns:
            (B,N,K), the dtype of `values`.

        Raises:
            RRMError: the shape does not fit the features.
        """
        self._check(values)
        with torch.no_grad():
            return self._kernel.filter(values.detach(), transpose=True)

    def _check(self, values: torch.Tensor) -> None:
        if (
            values.ndim != 3
            or tuple(values.shape[:2]) != self.shape
            or values.dtype not in (torch.float32, torch.float64)
        ):
            raise RRMError(
                f"values: expected float32 or float64 ({self.shape[0]},{self.shape[1]},K) to fit the "
                f"features, got {values.dtype} {tuple(values.shape)}: reshape or cast them"
            )


def position_colour_features(
    images: torch.Tensor, sigma_xy: float | tuple[float, float], sigma_rgb: float
) -> torch.Tensor:
    """Give pixel features (x, y, r, g, b), each divided by its standard deviation.

    Args:
        images: (B,3,H,W) RGB in the units of `sigma_rgb` (0..255).
        sigma_xy: pixels; a number, or (sigma_x, sigma_y).
        sigma_rgb: colour levels.

    Returns:
        (B, H*W, 5) in the images' floating dtype (float32 for integers), rows before columns.

    Example:
        >>> position_colour_features(torch.zeros(1, 3, 1, 2), 2.0, 15.0)[0, 1].tolist()
        [0.5, 0.0, 0.0, 0.0, 0.0]
    """
    dtype = images.dtype if images.is_floating_point() else torch.float32
    batch, _, height, width = images.shape
    sigma_x, sigma_y = sigma_xy if isinstance(sigma_xy, tuple) else (sigma_xy, sigma_xy)
    x = torch.arange(width, dtype=dtype, device=images.device) / sigma_x
    y = torch.arange(height, dtype=dtype, device=images.device) / sigma_y
    grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)]).expand(batch, 2, height, width)
    return torch.cat([grid, images.to(dtype) / sigma_rgb], dim=1).flatten(2).transpose(1, 2).contiguous()


class _Exact:
    """All pairs. Exponents stop at -30 in float32 (9e-14): denormal numbers are 35 times slower."""

    def __init__(self, features: torch.Tensor, include_self: bool) -> None:
        self._diagonal = 1.0 if include_self else 0.0
        self._features = features - features.mean(dim=1, keepdim=True)
        self._half_squares = self._features.square().sum(dim=2) / 2
        self._lowest = -30.0 if features.dtype != torch.float64 else -300.0
        batch, points = features.shape[:2]
        self._rows = max(1, min(points, _CHUNK_ENTRIES // (batch * points)))
        self._matrix = self._block(0, points) if batch * points**2 <= _CACHED_ENTRIES else None

    def filter(self, values: torch.Tensor, transpose: bool) -> torch.Tensor:
        del transpose  # the kernel is symmetric
        if self._matrix is not None:
            return torch.bmm(self._matrix.to(values.dtype), values)
        return torch.cat([torch.bmm(block.to(values.dtype), values) for block in self._blocks()], dim=1)

    def _blocks(self) -> Iterator[torch.Tensor]:
        points = self._features.shape[1]
        for start in range(0, points, self._rows):
            yield self._block(start, min(points, start + self._rows))

    def _block(self, start: int, stop: int) -> torch.Tensor:
        rows = self._features[:, start:stop]
        exponent = torch.baddbmm(self._half_squares[:, None, :], rows, self._features.transpose(1, 2), beta=-1)
        exponent -= self._half_squares[:, start:stop, None]
        block = exponent.clamp_(self._lowest, 0).exp_()
        torch.diagonal(block, offset=start, dim1=1, dim2=2).fill_(self._diagonal)
        return block


@dataclass(frozen=True)
class _Simplex:
    """Corners around P points: coordinates (P,d+1,d) int64 and barycentric weights (P,d+1) float32."""

    keys: torch.Tensor
    weights: torch.Tensor


class _Lattice:
    """Splat to vertices, blur along d+1 axes, slice back; each step is one weighted gather-and-sum."""

    def __init__(self, features: torch.Tensor) -> None:
        batch, points, dimensions = features.shape
        self._shape = (batch, points)
        padded = F.pad(features.float(), (0, 0, 0, 1 if points % _SIMD_WIDTH else 0))
        simplex = _enclosing_simplex(padded.reshape(-1, dimensions))
        packed, steps = _pack_keys(simplex.keys, batch)
        vertices, order, counts = _sort_unique(packed.flatten())
        inverse = torch.empty_like(order)
        inverse[order] = torch.repeat_interleave(counts)
        self._build_splat(simplex.weights, order, counts, padded.shape[1])
        corners = inverse.view(batch, -1, dimensions + 1)[:, :points].reshape(batch * points, dimensions + 1)
        weights = simplex.weights.view(batch, -1, dimensions + 1)[:, :points].reshape(corners.shape)
        self._slice = (corners.int().contiguous(), weights.contiguous())
        self._gain = 1.0 / (1.0 + 2.0 ** (-dimensions))
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
    if float(elevated.abs().max()) >= _LARGEST_COORDINATE:
        raise RRMError(
            f"GaussianFilter: expected lattice coordinates below {_LARGEST_COORDINATE:.0f}, "
            f"got {float(elevated.abs().max()):.3g}: use larger sigmas or backend='exact'"
        )
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
    deviation = np.float32(math.sqrt(2.0 / 3.0) * (dimensions + 1))
    total = torch.zeros_like(features[:, 0])
    elevated = [total] * (dimensions + 1)
    for axis in range(dimensions, 0, -1):
        scale = np.float32(1.0 / math.sqrt((axis + 1) * axis) * float(deviation)).item()
        scaled = features[:, axis - 1] * scale
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
    total = sum(bits) + batch.bit_length()
    if total > _KEY_BITS:
        raise RRMError(
            f"GaussianFilter: expected lattice keys of at most {_KEY_BITS} bits, got {total} (up to "
            f"{max(bits)} for each of {dimensions} coordinates): use larger sigmas or backend='exact'"
        )
    points = keys.shape[0] // batch
    packed = torch.arange(batch, device=keys.device).repeat_interleave(points)[:, None].expand(keys.shape[:2])
    units = [0] * dimensions
    for axis in range(dimensions):
        packed = (packed << bits[axis]) | (keys[:, :, axis] - low[axis])
        units = [unit << bits[axis] for unit in units]
        units[axis] = 1
    diagonal = sum(units)
    return packed, [(dimensions + 1) * unit - diagonal for unit in units] + [-diagonal]


def _sort_unique(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give the distinct keys in order, the stable order of all keys, and each distinct key's count."""
    entry_bits = len(packed).bit_length()
    if int(packed.max()).bit_length() + entry_bits <= _KEY_BITS:
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
