"""High-dimensional Gaussian filtering, the numeric kernel under dense CRF (Eq. 5) and dense energy loss (the G of
Eq. 11, not normalised).

    out_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j

"exact" is that sum; "lattice" approximates it on the permutohedral lattice with the arithmetic of Krähenbühl's dense
CRF code, which gives about 0.5-0.6 of the exact sum on photos.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from rrm.errors import RRMError
from rrm.gaussian.exact import ExactKernel
from rrm.gaussian.lattice import BatchLattice, check_finite

_BACKENDS = ("auto", "exact", "lattice")
_NORMALIZATIONS = ("none", "symmetric")
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MOST_DIMENSIONS = 15  # the compiled lattice keeps four bits a coordinate
_LARGEST_FEATURE = 1e16  # squares are added up in float32
_TRITON_CAPABILITY = (8, 0)
_TRITON_DIMENSIONS = 16  # its kernels have no loops over dimensions: more would take long to compile


class GaussianFilter:
    """Filters values with a Gaussian kernel between features; built once, applied to any number of values.

    The filter is linear, and differentiable in the values to any order; no gradient reaches the features.

    Args:
        features: (B,N,d) float, in standard deviations; B independent sets of N points. CPU or CUDA.
        backend: "exact" (all pairs; memory bounded, time B N^2), "lattice" (time B N, float32 geometry) or "auto",
            which is the lattice unless `include_self` is False. On the CPU the lattice is compiled by Numba where that
            is installed, on CUDA both are compiled by Triton (`uses_triton`); elsewhere they are plain torch. Triton's
            lattice adds up in no fixed order, so under `torch.use_deterministic_algorithms` plain torch takes its
            place.
        include_self: whether j = i counts; the lattice cannot leave it out.
        normalization: "none", or "symmetric" for D^-1/2 W D^-1/2 with D = diag(W 1), that of the dense CRF.

    Raises:
        RRMError: wrong shape, NaN, unknown backend, or a lattice whose keys do not fit 63 bits.

    Example:
        >>> points = torch.tensor([[[0.0], [1.0]]])
        >>> GaussianFilter(points, "exact").apply(torch.ones(1, 2, 1)).flatten()
        tensor([1.6065, 1.6065])
    """

    def __init__(
        self,
        features: torch.Tensor,
        backend: str = "auto",
        include_self: bool = True,
        normalization: str = "none",
    ) -> None:
        self.backend = _resolve(backend, include_self)
        _check_features(features, self.backend)
        if normalization not in _NORMALIZATIONS:
            raise RRMError(
                f"GaussianFilter normalization: expected one of {', '.join(_NORMALIZATIONS)}, got {normalization!r}: "
                "choose one"
            )
        self.shape = (features.shape[0], features.shape[1])
        self._kernel = _build(features.detach(), self.backend, include_self)
        self._scale: torch.Tensor | None = None
        if normalization == "symmetric":
            ones = torch.ones(*self.shape, 1, device=features.device)
            scale = (self.apply(ones) + 1e-20).rsqrt()
            if hasattr(self._kernel, "scale"):  # into its weights, at no cost later
                self._kernel.scale(scale)
            else:
                self._scale = scale

    def apply(self, values: torch.Tensor) -> torch.Tensor:
        """Filter values.

        Args:
            values: (B,N,K) float32 or float64, on the device of the features.

        Returns:
            (B,N,K), the dtype of `values`.

        Raises:
            RRMError: the shape does not fit the features.
        """
        return self._filtered(values, transpose=False)

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
        return self._filtered(values, transpose=True)

    def _filtered(self, values: torch.Tensor, transpose: bool) -> torch.Tensor:
        _check_tensor(values, "values", "(B,N,K)")
        if (
            values.ndim != 3
            or tuple(values.shape[:2]) != self.shape
            or values.dtype not in (torch.float32, torch.float64)
            or values.shape[2] == 0
        ):
            raise RRMError(
                f"values: expected float32 or float64 ({self.shape[0]},{self.shape[1]},K) to fit the "
                f"features, got {values.dtype} {tuple(values.shape)}: reshape or cast them"
            )
        scale = None if self._scale is None else self._scale.to(values.dtype)
        result: torch.Tensor = _Apply.apply(values if scale is None else scale * values, self._kernel, transpose)
        return result if scale is None else scale * result


class _Apply(torch.autograd.Function):
    """A kernel's product with values; its derivative is the transposed kernel."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, kernel: Any, transpose: bool) -> torch.Tensor:
        ctx.kernel, ctx.transpose = kernel, transpose
        result: torch.Tensor = kernel.filter(values.detach().resolve_neg(), transpose)
        return result

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _Apply.apply(grad, ctx.kernel, not ctx.transpose), None, None


def has_compiled_lattice() -> bool:
    """Whether Numba is there to compile the CPU lattice."""
    from importlib.util import find_spec

    return find_spec("numba") is not None


def uses_triton(features: torch.Tensor) -> bool:
    """Whether Triton's kernels filter these features.

    They do for CUDA features (B,N,d) with d <= 16 on a GPU of compute capability 8.0 or more, where Triton is
    installed.

    Example:
        >>> uses_triton(torch.zeros(1, 4, 2))
        False
    """
    from importlib.util import find_spec

    if features.device.type != "cuda" or torch.version.cuda is None or features.shape[2] > _TRITON_DIMENSIONS:
        return False
    return torch.cuda.get_device_capability(features.device) >= _TRITON_CAPABILITY and find_spec("triton") is not None


def _resolve(backend: str, include_self: bool) -> str:
    if backend not in _BACKENDS:
        raise RRMError(f"GaussianFilter backend: expected one of {', '.join(_BACKENDS)}, got {backend!r}: choose one")
    if backend == "lattice" and not include_self:
        raise RRMError("include_self: expected True with the lattice, got False: use backend='exact'")
    return backend if backend != "auto" else ("lattice" if include_self else "exact")


def _check_tensor(tensor: Any, name: str, shape: str) -> None:
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
        what = type(tensor).__name__ if not isinstance(tensor, torch.Tensor) else f"a {tensor.layout} one"
        raise RRMError(f"{name}: expected a dense torch tensor {shape}, got {what}: convert it (torch.from_numpy)")


def _check_features(features: torch.Tensor, backend: str) -> None:
    _check_tensor(features, "features", "(B,N,d)")
    if features.ndim != 3 or 0 in features.shape or features.dtype not in FLOATING:
        raise RRMError(
            f"features: expected float (B,N,d), none zero, got {features.dtype} "
            f"{tuple(features.shape)}: see position_colour_features"
        )
    if features.shape[2] > _MOST_DIMENSIONS:
        raise RRMError(f"features: expected at most {_MOST_DIMENSIONS} dimensions, got {features.shape[2]}: use fewer")
    if backend == "lattice" and _uses_triton_lattice(features):
        return  # it looks at the bounds itself, and each look makes a GPU wait
    largest = float(features.detach().abs().max())  # NaN where there is one
    check_finite(math.isfinite(largest))
    if largest > _LARGEST_FEATURE:
        raise RRMError(
            f"features: expected numbers up to {_LARGEST_FEATURE:.0e} standard deviations, got {largest:.1e}: use "
            "larger sigmas"
        )


def _build(features: torch.Tensor, backend: str, include_self: bool) -> Any:
    return _exact(features, include_self) if backend == "exact" else _lattice(features)


def _exact(features: torch.Tensor, include_self: bool) -> Any:
    if uses_triton(features):
        from rrm.gaussian.exact_triton import TritonExactKernel

        return TritonExactKernel(features, include_self)
    return ExactKernel(features, include_self)


def _uses_triton_lattice(features: torch.Tensor) -> bool:
    return uses_triton(features) and not torch.are_deterministic_algorithms_enabled()


def _lattice(features: torch.Tensor) -> Any:
    if _uses_triton_lattice(features):
        from rrm.gaussian.lattice_triton import TritonLattice

        return TritonLattice(features)
    if features.device.type == "cpu" and has_compiled_lattice():
        from rrm.gaussian.lattice_cpu import CompiledLattice

        return CompiledLattice(features)
    return BatchLattice(features)


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

    Raises:
        RRMError: images of another shape.

    Example:
        >>> position_colour_features(torch.zeros(1, 3, 1, 2), 2.0, 15.0)[0, 1].tolist()
        [0.5, 0.0, 0.0, 0.0, 0.0]
    """
    _check_tensor(images, "images", "(B,3,H,W)")
    if images.ndim != 4 or images.shape[1] != 3:
        raise RRMError(f"images: expected shape (B,3,H,W), got {tuple(images.shape)}: a single photo needs [None]")
    if isinstance(sigma_xy, tuple) and len(sigma_xy) != 2:
        raise RRMError(f"sigma_xy: expected a number or (sigma_x, sigma_y), got {sigma_xy!r}: give two")
    dtype = images.dtype if images.is_floating_point() else torch.float32
    batch, _, height, width = images.shape
    sigma_x, sigma_y = sigma_xy if isinstance(sigma_xy, tuple) else (sigma_xy, sigma_xy)
    grid = _positions(height, width, sigma_x, sigma_y, dtype, images.device).expand(batch, 2, height, width)
    return torch.cat([grid, images.to(dtype) / sigma_rgb], dim=1).flatten(2).transpose(1, 2)


def position_features(height: int, width: int, sigma: float, device: torch.device | str | None = None) -> torch.Tensor:
    """Give pixel features (x, y) divided by `sigma` pixels.

    Returns:
        (1, height*width, 2) float32, rows before columns.

    Example:
        >>> position_features(1, 2, 2.0).tolist()
        [[[0.0, 0.0], [0.5, 0.0]]]
    """
    return _positions(height, width, sigma, sigma, torch.float32, device).flatten(1).t()[None]


def _positions(
    height: int, width: int, sigma_x: float, sigma_y: float, dtype: torch.dtype, device: torch.device | str | None
) -> torch.Tensor:
    """Column and row of each pixel in standard deviations, (2,height,width)."""
    x = torch.arange(width, dtype=dtype, device=device) / sigma_x
    y = torch.arange(height, dtype=dtype, device=device) / sigma_y
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)])
