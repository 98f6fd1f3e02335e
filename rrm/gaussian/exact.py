"""The Gaussian filter over all pairs, in plain torch: the oracle of the others. Time B N^2, memory bounded."""

from __future__ import annotations

from collections.abc import Iterator

import torch

_CACHED_ENTRIES = 1 << 24  # a kernel matrix up to this size is kept, larger ones are rebuilt in chunks
_CHUNK_ENTRIES = 1 << 22


class ExactKernel:
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
