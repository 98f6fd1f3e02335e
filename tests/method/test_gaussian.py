"""The Gaussian filter against a double loop, the authors' filter and pydensecrf."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rrm.crf import DenseCRF, unary_energy
from rrm.errors import RRMError
from rrm.gaussian import GaussianFilter, exact, lattice, position_colour_features


def smooth_images(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Images with regions of like colour, 0..255."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=generator) * 255
    fine = torch.rand(count, 3, height, width, generator=generator) * 30
    return (F.interpolate(coarse, size=(height, width), mode="bilinear") + fine).clamp(0, 255).round()


@pytest.fixture(params=["compiled", "torch"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The compiled CPU lattice, or plain torch as on a GPU and where Numba is not installed."""
    if request.param == "torch":
        monkeypatch.setattr("rrm.gaussian.filter.has_compiled_lattice", lambda: False)
    return request.param


def test_exact_equals_a_double_loop() -> None:
    features = torch.randn(2, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = torch.randn(2, 7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.zeros_like(values)
    for image in range(2):
        for i in range(7):
            for j in range(7):
                distance = (features[image, i] - features[image, j]).square().sum()
                expected[image, i] += torch.exp(-distance / 2) * values[image, j]
    torch.testing.assert_close(GaussianFilter(features, "exact").apply(values), expected)
    without = GaussianFilter(features, "exact", include_self=False).apply(values)
    torch.testing.assert_close(without, expected - values)


@pytest.mark.parametrize("include_self", [True, False])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, include_self: bool) -> None:
    features = position_colour_features(smooth_images(2, 9, 11), 5.0, 15.0)
    values = torch.rand(2, 99, 3, generator=torch.Generator().manual_seed(2))
    whole = GaussianFilter(features, "exact", include_self).apply(values)
    monkeypatch.setattr(exact, "_CACHED_ENTRIES", 0)
    monkeypatch.setattr(exact, "_CHUNK_ENTRIES", 2000)
    chunked = GaussianFilter(features, "exact", include_self).apply(values)
    torch.testing.assert_close(chunked, whole)


def test_far_points_do_not_matter_and_do_not_overflow() -> None:
    features = torch.tensor([[[0.0], [1e4], [2e4]]])
    values = torch.tensor([[[1.0], [2.0], [3.0]]])
    torch.testing.assert_close(GaussianFilter(features, "exact").apply(values), values)


@pytest.mark.usefixtures("kind")
def test_lattice_equals_the_authors_filter(goldens: Path) -> None:
    recorded, more = np.load(goldens / "energy_k4.npz"), np.load(goldens / "energy_k4_more.npz")
    probs = F.interpolate(torch.from_numpy(recorded["probs"]), scale_factor=0.5, mode="bilinear")
    mask = F.interpolate(torch.from_numpy(recorded["rois"])[:, None].float(), scale_factor=0.5)
    features = position_colour_features(torch.from_numpy(more["scaled_images"]), 50.0, 15.0)
    result = GaussianFilter(features, "lattice").apply((probs * mask).flatten(2).transpose(1, 2))
    expected = torch.from_numpy(more["AS_before_gate"]).flatten(2).transpose(1, 2)
    assert (result - expected).abs().max() < 2e-6 * expected.abs().max()


def mean_field(image: torch.Tensor, probs: np.ndarray, crf: DenseCRF) -> np.ndarray:
    """Mean field written on `GaussianFilter`, to compare the lattice with pydensecrf's."""
    height, width = image.shape[2:]
    position = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"), dim=-1)
    flat = (position.reshape(1, -1, 2) / crf.gaussian_sigma).float()
    colour = position_colour_features(image, float(crf.bilateral_sigma_xy), float(crf.bilateral_sigma_rgb))
    terms = []
    for features, weight in ((flat, crf.gaussian_weight), (colour, crf.bilateral_weight)):
        kernel = GaussianFilter(features, "lattice")
        scale = (kernel.apply(torch.ones(1, height * width, 1)) + 1e-20).rsqrt()
        terms.append((kernel, scale, weight))
    unary = unary_energy(torch.from_numpy(probs)).flatten(1).t()[None]
    q = (-unary).softmax(dim=2)
    for _ in range(crf.iterations):
        q = (-unary + sum(w * s * k.apply(s * q) for k, s, w in terms)).softmax(dim=2)
    return q[0].t().reshape(probs.shape).numpy()


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("size", [(20, 24), (19, 23), (13, 26), (15, 21)])
def test_lattice_equals_that_of_pydensecrf(size: tuple[int, int]) -> None:
    """Sizes with every remainder of the pixels by four: the vertices of the padding must be there."""
    image = smooth_images(1, *size, seed=size[0])
    probs = np.random.default_rng(0).dirichlet(np.ones(3), size).transpose(2, 0, 1).astype(np.float32)
    crf = DenseCRF(iterations=5, backend="pydensecrf")
    photo = image[0].permute(1, 2, 0).numpy().astype(np.uint8)
    assert np.abs(mean_field(image, probs, crf) - crf(photo, probs)).max() < 2e-5


@pytest.mark.usefixtures("kind")
def test_padding_vertices_matter() -> None:
    """The case above would not hold without them: the filter of 399 points differs from that of 400."""
    features = position_colour_features(smooth_images(1, 20, 20, seed=3), 80.0, 13.0)
    values = torch.ones(1, 400, 1)
    values[0, 399] = 0
    whole = GaussianFilter(features, "lattice").apply(values)[:, :399]
    shorter = GaussianFilter(features[:, :399], "lattice").apply(values[:, :399])
    assert (whole - shorter).abs().max() > 1e-4


@pytest.mark.usefixtures("kind")
def test_transpose_is_the_adjoint() -> None:
    features = position_colour_features(smooth_images(2, 17, 19), 10.0, 15.0)
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(2, 17 * 19, 2, dtype=torch.float64, generator=generator) for _ in range(2))
    lattice = GaussianFilter(features, "lattice")
    forward = (lattice.apply(first) * second).sum()
    torch.testing.assert_close((first * lattice.apply_transpose(second)).sum(), forward, rtol=1e-10, atol=0)
    assert abs((first * lattice.apply(second)).sum() - forward) > 1e-4 * forward.abs()


@pytest.mark.usefixtures("kind")
def test_lattice_is_linear() -> None:
    lattice = GaussianFilter(position_colour_features(smooth_images(1, 12, 12), 8.0, 15.0), "lattice")
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(1, 144, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    torch.testing.assert_close(lattice.apply(2 * first - second), 2 * lattice.apply(first) - lattice.apply(second))


@pytest.mark.usefixtures("kind")
def test_lattice_is_a_scaled_gaussian() -> None:
    features = position_colour_features(smooth_images(1, 40, 40), 50.0, 15.0)
    values = torch.rand(1, 1600, 4, generator=torch.Generator().manual_seed(0))
    lattice = GaussianFilter(features, "lattice").apply(values)
    exact = GaussianFilter(features, "exact").apply(values)
    assert 0.45 < lattice.sum() / exact.sum() < 0.7
    assert F.cosine_similarity(lattice.flatten(), exact.flatten(), dim=0) > 0.99


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("backend", ["exact", "lattice"])
@pytest.mark.parametrize("size", [(12, 16), (11, 13)])
def test_batch_equals_single(backend: str, size: tuple[int, int]) -> None:
    features = position_colour_features(smooth_images(3, *size), 10.0, 15.0)
    values = torch.rand(3, size[0] * size[1], 2, generator=torch.Generator().manual_seed(0))
    batch = GaussianFilter(features, backend).apply(values)
    for item in range(3):
        single = GaussianFilter(features[item : item + 1], backend).apply(values[item : item + 1])
        torch.testing.assert_close(batch[item : item + 1], single, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(21, 33), (40, 40), (1, 1)])
@pytest.mark.parametrize("channels", [1, 4, 7, 21, 40])
def test_compiled_lattice_equals_the_torch_one(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], channels: int
) -> None:
    features = position_colour_features(smooth_images(2, *size), 20.0, 10.0)
    values = torch.randn(2, size[0] * size[1], channels, generator=torch.Generator().manual_seed(0))
    compiled = GaussianFilter(features, "lattice")
    monkeypatch.setattr("rrm.gaussian.filter.has_compiled_lattice", lambda: False)
    plain = GaussianFilter(features, "lattice")
    for name in ("apply", "apply_transpose"):
        torch.testing.assert_close(getattr(compiled, name)(values), getattr(plain, name)(values), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("backend", ["exact", "lattice"])
@pytest.mark.parametrize("normalization", ["none", "symmetric"])
def test_gradients(backend: str, normalization: str) -> None:
    points = torch.rand(2, 13, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    kernel = GaussianFilter(points, backend, normalization=normalization)
    values = torch.rand(2, 13, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    for product in (kernel.apply, kernel.apply_transpose):
        assert torch.autograd.gradcheck(product, (values,))
        assert torch.autograd.gradgradcheck(product, (values,))


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("backend", ["exact", "lattice"])
def test_symmetric_normalization(backend: str) -> None:
    points = torch.rand(2, 50, 3, generator=torch.Generator().manual_seed(0)) * 3
    values = torch.rand(2, 50, 2, generator=torch.Generator().manual_seed(1))
    plain = GaussianFilter(points, backend)
    root = plain.apply(torch.ones(2, 50, 1)).rsqrt()
    result = GaussianFilter(points, backend, normalization="symmetric").apply(values)
    torch.testing.assert_close(result, root * plain.apply(root * values))


def test_long_keys_are_sorted_without_packing() -> None:
    """Keys that leave no room for the point number take the other path; both must agree."""
    keys = torch.randint(0, 50, (300,), generator=torch.Generator().manual_seed(0))
    packed = lattice._sort_unique(keys)
    unpacked = lattice._sort_unique(keys << 56)
    assert int((keys << 56).max()).bit_length() + len(keys).bit_length() > 63
    for first, second, factor in zip(packed, unpacked, (1 << 56, 1, 1), strict=True):
        assert torch.equal(first * factor, second)
    assert torch.equal(packed[1], torch.argsort(keys, stable=True))


@pytest.mark.usefixtures("kind")
def test_key_overflow_is_refused() -> None:
    features = torch.randn(1, 8, 5, generator=torch.Generator().manual_seed(0)) * 1e4
    with pytest.raises(RRMError, match="63 bits"):
        GaussianFilter(features, "lattice")
    with pytest.raises(RRMError, match="lattice coordinates"):
        GaussianFilter(features * 1e6, "lattice")


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("points", [1, 2, 4, 5])
def test_few_points(points: int) -> None:
    lattice = GaussianFilter(torch.zeros(1, points, 5), "lattice")
    result = lattice.apply(torch.ones(1, points, 1))
    assert torch.isfinite(result).all()
    assert (result > 0).all()


def test_wrong_input_is_refused() -> None:
    features = torch.zeros(1, 4, 2)
    for call, message in (
        (lambda: GaussianFilter(features, "fast"), "backend"),
        (lambda: GaussianFilter(features[0]), "features"),
        (lambda: GaussianFilter(features.long()), "features"),
        (lambda: GaussianFilter(torch.full_like(features, torch.nan)), "finite"),
        (lambda: GaussianFilter(features, "lattice", include_self=False), "include_self"),
        (lambda: GaussianFilter(features, normalization="row"), "normalization"),
        (lambda: GaussianFilter(features).apply(torch.zeros(1, 3, 1)), "values"),
        (lambda: GaussianFilter(features).apply(torch.zeros(1, 4, 1, dtype=torch.int64)), "values"),
    ):
        with pytest.raises(RRMError, match=message):
            call()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", ["exact", "lattice"])
def test_gpu_equals_cpu(backend: str) -> None:
    features = position_colour_features(smooth_images(2, 31, 33), 20.0, 15.0)
    values = torch.rand(2, 31 * 33, 5, generator=torch.Generator().manual_seed(0))
    expected = GaussianFilter(features, backend).apply(values)
    result = GaussianFilter(features.cuda(), backend).apply(values.cuda()).cpu()
    assert (result - expected).abs().max() < 2e-5 * expected.abs().max()
