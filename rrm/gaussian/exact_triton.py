"""The Gaussian filter over all pairs on a GPU, in one pass that never stores the matrix of all pairs.

    out_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j

A program holds a block of rows i and walks over blocks of columns j, as flash attention does. It takes exponents from
differences, not from products, which would cancel; with g = f sqrt(log2(e) / 2) a weight is exp2(-|g_i - g_j|^2).

The products with the values run on tensor cores. Those take short numbers, so weights and values are each split in two
float16, x = high + low to 22 bits, and three of the four products are added up: an error of about 1e-6. Both are
scaled to at most 2^15 first, so that `low` seldom falls among float16's coarse small numbers: weights keep their 22
bits down to 2^-17, values down to 2^-17 of the largest of their channel and image, and below that an error of 2^-40
of the largest. `input_precision="tf32x3"` would make as many products of numbers twice as long, at half the speed, and
on Hopper pass the weights through shared memory; "ieee" would leave the tensor cores idle.
"""

from __future__ import annotations

import math

import torch
import triton

from rrm.gaussian import kernels_triton as kernels
from rrm.gaussian.exact import ExactKernel

# Fixed, not tuned at run time: another block size adds up in another order, and results should not depend on a race
# between configurations. One warp group to a block and, for up to 32 channels, at most 128 registers a thread, so
# that a multiprocessor of compute capability 9.0 holds four of them: while one waits for its products, others take
# exponentials. Blocks of 64 x 128 would take 211 registers.
_ROWS, _COLUMNS, _WARPS, _STAGES = 64, 64, 4, 3
_PADDING = max(_ROWS, _COLUMNS)
_MOST_CHANNELS = 64  # of one program; more are shared out
_PEAK = 15  # exponent of the largest weight and of the largest value
_TINY = 1e-30


class TritonExactKernel:
    """All pairs of B sets of N points, on a GPU.

    Args:
        features: (B,N,d) float, in standard deviations.
        include_self: whether j = i counts.
    """

    def __init__(self, features: torch.Tensor, include_self: bool) -> None:
        self._given, self._include_self = features, include_self
        self._plain: ExactKernel | None = None
        batch, points, dimensions = features.shape
        exact = features.double()
        centred = exact - exact.mean(dim=1, keepdim=True)
        padded = triton.cdiv(points, _PADDING) * _PADDING
        self._features = torch.zeros((batch, dimensions, padded), device=features.device)
        self._features[:, :, :points] = (centred * math.sqrt(math.log2(math.e) / 2)).transpose(1, 2)

    def filter(self, values: torch.Tensor, transpose: bool) -> torch.Tensor:
        """Filter (B,N,K) float32 or float64; the latter is left to `ExactKernel`."""
        if values.dtype == torch.float64:
            self._plain = self._plain or ExactKernel(self._given, self._include_self)
            return self._plain.filter(values, transpose)
        batch, points, channels = values.shape
        _, dimensions, padded = self._features.shape
        width = min(_MOST_CHANNELS, max(16, triton.next_power_of_2(channels)))
        parts = triton.cdiv(channels, width)
        largest = torch.linalg.vector_norm(values, math.inf, dim=1).clamp_min(_TINY).contiguous()
        halves = torch.empty((batch, parts, 2, padded, width), dtype=torch.float16, device=values.device)
        result = torch.empty_like(values)  # in the memory layout of the values
        with on_device(values):
            kernels.split_values[padded // _COLUMNS, parts, batch](
                values, largest, halves, points, channels, padded, *values.stride(), _COLUMNS, width, _PEAK
            )
            kernels.weighted_sums[padded // _ROWS, parts, batch](
                self._features, halves, largest, result, points, channels, padded, *result.stride(),
                dimensions, self._include_self, _ROWS, _COLUMNS, width, _PEAK, num_warps=_WARPS, num_stages=_STAGES
            )  # fmt: skip
        return result


def on_device(tensor: torch.Tensor) -> torch.cuda.device:
    """Make the tensor's GPU the current one, on which Triton starts kernels; nothing for a tensor on the CPU."""
    return torch.cuda.device(tensor.device if tensor.is_cuda else -1)
