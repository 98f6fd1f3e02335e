"""Triton's kernels on the CPU. Triton asks for its interpreter while kernels are being defined, so these tests need
TRITON_INTERPRET=1 from the start of the process; `test_gaussian_triton` gives them one of their own."""

from __future__ import annotations

import pytest
import torch

from rrm.errors import RRMError
from rrm.gaussian import GaussianFilter
from rrm.gaussian.exact import ExactKernel
from rrm.gaussian.lattice import BatchLattice


@pytest.fixture(autouse=True)
def _triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rrm.gaussian.filter.uses_triton", lambda _: True)


def points(batch: int, count: int, dimensions: int, spread: float = 20.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.rand(batch, count, dimensions, generator=generator) * (spread / dimensions)


def numbers(batch: int, count: int, channels: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(channels)
    return torch.randn(batch, count, channels, dtype=dtype, generator=generator)


def channels_first(values: torch.Tensor) -> torch.Tensor:
    """The same values in the memory layout of images."""
    return values.transpose(1, 2).contiguous().transpose(1, 2)


SIZES = [(1, 1, 1, 2), (2, 130, 3, 5), (1, 65, 21, 2), (2, 64, 40, 5), (1, 50, 70, 5), (1, 3, 3, 1)]


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize(("batch", "count", "channels", "dimensions"), SIZES)
def test_exact(batch: int, count: int, channels: int, dimensions: int, include_self: bool) -> None:
    features, values = points(batch, count, dimensions), channels_first(numbers(batch, count, channels))
    kernel = GaussianFilter(features, "exact", include_self)
    assert type(kernel._kernel).__name__ == "TritonExactKernel"
    result = kernel.apply(values)
    expected = ExactKernel(features.double(), include_self).filter(values.double(), transpose=False)
    assert result.dtype == torch.float32
    assert result.stride() == values.stride()
    assert (result - expected).abs().max() <= 2e-6 * expected.abs().max()


def test_exact_is_accurate_where_weights_are_faint() -> None:
    features = torch.tensor([[[0.0, 0.0], [0.0, 3.0], [4.0, 0.0], [3.0, 3.5]]])
    values = numbers(1, 4, 3).abs()
    result = GaussianFilter(features, "exact", include_self=False).apply(values)
    expected = ExactKernel(features.double(), include_self=False).filter(values.double(), transpose=False)
    assert expected.min() < 1e-3
    torch.testing.assert_close(result.double(), expected, rtol=5e-6, atol=0)


def test_exact_takes_channels_of_any_size() -> None:
    features = points(1, 70, 2)
    values = numbers(1, 70, 5) * torch.tensor([1e-25, 1e-4, 0.0, 1e6, 1e25])
    result = GaussianFilter(features, "exact").apply(values).double()
    expected = ExactKernel(features.double(), include_self=True).filter(values.double(), transpose=False)
    largest = expected.abs().amax(dim=1)
    assert ((result - expected).abs().amax(dim=1) <= 2e-6 * largest).all()


def test_exact_far_points_do_not_matter() -> None:
    features, values = torch.tensor([[[0.0], [1e4], [2e4]]]), torch.tensor([[[1.0], [2.0], [3.0]]])
    torch.testing.assert_close(GaussianFilter(features, "exact").apply(values), values, rtol=1e-6, atol=0)


def test_exact_float64_is_plain_torch() -> None:
    features, values = points(2, 9, 3).double(), numbers(2, 9, 2, torch.float64)
    result = GaussianFilter(features, "exact", include_self=False).apply(values)
    assert torch.equal(result, ExactKernel(features, include_self=False).filter(values, transpose=False))


@pytest.mark.parametrize(
    ("batch", "count", "channels", "dimensions"),
    [(1, 1, 1, 2), (2, 66, 3, 5), (1, 65, 21, 2), (3, 64, 3, 2), (2, 67, 40, 2), (1, 47, 70, 5)],
)
def test_lattice(batch: int, count: int, channels: int, dimensions: int) -> None:
    features = points(batch, count, dimensions)
    kernel = GaussianFilter(features, "lattice")
    assert type(kernel._kernel).__name__ == "TritonLattice"
    plain = BatchLattice(features)
    assert kernel._kernel._neighbours.shape[2] == len(plain._blurs[0][0])
    for dtype in (torch.float32, torch.float64):
        values = channels_first(numbers(batch, count, channels, dtype))
        for product, transpose in ((kernel.apply, False), (kernel.apply_transpose, True)):
            result, expected = product(values), plain.filter(values, transpose)
            assert result.dtype == dtype
            assert result.stride() == values.stride()
            assert (result - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("spread", [8.0, 1200.0])
def test_lattice_equals_the_compiled_one(spread: float) -> None:
    """Few vertices, and long keys."""
    from rrm.gaussian.lattice_cpu import CompiledLattice

    features, values = points(2, 70, 5, spread), numbers(2, 70, 4, torch.float64)
    result = GaussianFilter(features, "lattice").apply(values)
    torch.testing.assert_close(result, CompiledLattice(features).filter(values, transpose=False), rtol=0, atol=1e-12)


def test_lattice_on_a_regular_grid() -> None:
    """Many ties: their order must be that of the CPU."""
    rows = torch.cartesian_prod(torch.arange(8.0), torch.arange(9.0))[None] * 0.5
    values = numbers(1, 72, 2)
    expected = BatchLattice(rows).filter(values, transpose=False)
    result = GaussianFilter(rows, "lattice").apply(values)
    assert (result - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_transpose_is_the_adjoint() -> None:
    lattice = GaussianFilter(points(2, 77, 5, spread=10.0), "lattice")
    first, second = numbers(2, 77, 2, torch.float64), numbers(2, 77, 2, torch.float64).flip(1)
    forward = (lattice.apply(first) * second).sum()
    torch.testing.assert_close((first * lattice.apply_transpose(second)).sum(), forward, rtol=1e-10, atol=0)
    assert abs((first * lattice.apply(second)).sum() - forward) > 1e-6 * forward.abs()


@pytest.mark.parametrize("probes", [2, 128])
def test_a_full_table_grows(monkeypatch: pytest.MonkeyPatch, probes: int) -> None:
    from rrm.gaussian import lattice_triton

    monkeypatch.setattr(lattice_triton, "_LEAST_CAPACITY", 1)
    monkeypatch.setattr(lattice_triton, "_PROBES", probes)
    capacities, fill = [], lattice_triton._fill_table

    def recorded(features: torch.Tensor, layout: object, capacity: int) -> object:
        capacities.append(capacity)
        return fill(features, layout, capacity)

    monkeypatch.setattr(lattice_triton, "_fill_table", recorded)
    features, values = points(1, 21, 5, spread=60.0), numbers(1, 21, 1)
    result = GaussianFilter(features, "lattice").apply(values)
    assert len(capacities) > 1
    torch.testing.assert_close(result, BatchLattice(features).filter(values, transpose=False), rtol=1e-5, atol=1e-6)


def test_key_overflow_is_refused() -> None:
    with pytest.raises(RRMError, match="63 bits"):
        GaussianFilter(points(1, 8, 5, spread=1e6), "lattice")
    with pytest.raises(RRMError, match="lattice coordinates"):
        GaussianFilter(points(1, 8, 5, spread=1e10), "lattice")


@pytest.mark.parametrize("backend", ["exact", "lattice"])
def test_symmetric_normalization_and_gradient(backend: str) -> None:
    features = points(1, 18, 2, spread=4.0)
    values = numbers(1, 18, 2).requires_grad_()
    kernel = GaussianFilter(features, backend, normalization="symmetric")
    other = numbers(1, 18, 2).flip(1)
    (kernel.apply(values) * other).sum().backward()
    torch.testing.assert_close(values.grad, kernel.apply_transpose(other))
    root = GaussianFilter(features, backend).apply(torch.ones(1, 18, 1)).rsqrt()
    expected = root * GaussianFilter(features, backend).apply(root * values.detach())
    torch.testing.assert_close(kernel.apply(values.detach()), expected)


def test_deterministic_algorithms_are_plain_torch() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        assert type(GaussianFilter(torch.zeros(1, 4, 2), "lattice")._kernel).__name__ != "TritonLattice"
    finally:
        torch.use_deterministic_algorithms(False)
