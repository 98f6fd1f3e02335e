"""The dense CRF: the authors' recorded results, presets, kinds, hostile input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from rrm.crf import DenseCRF
from rrm.errors import RRMError


def photo(height: int = 12, width: int = 15, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def scores(classes: int = 3, height: int = 12, width: int = 15, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random((classes, height, width), dtype=np.float32)


@pytest.fixture(params=["compiled", "torch"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The compiled CPU lattice, or plain torch as on a GPU and where Numba is not installed."""
    if request.param == "torch":
        monkeypatch.setattr("rrm.crf.has_compiled_lattice", lambda: False)
        monkeypatch.setattr("rrm.gaussian.filter.has_compiled_lattice", lambda: False)
    return request.param


def smooth(classes: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Probabilities in blobs, as networks give them."""
    coarse = torch.randn(1, classes, 6, 6, generator=torch.Generator().manual_seed(seed)) * 3
    return F.interpolate(coarse, size=(height, width), mode="bilinear")[0].softmax(0).numpy()


def natural(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A photo of coloured blobs with noise."""
    generator = torch.Generator().manual_seed(seed)
    blobs = F.interpolate(torch.rand(1, 3, 7, 7, generator=generator) * 255, size=(height, width), mode="bicubic")
    noise = torch.randn(1, 3, height, width, generator=generator) * 8
    return (blobs + noise)[0].clamp(0, 255).byte().permute(1, 2, 0).numpy()


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("name", ["crf_im1_3labels", "crf_im2_21labels"])
@pytest.mark.parametrize(("preset", "key"), [("psa", "Q_train"), ("rrm-inference", "Q_inf")])
def test_equals_the_authors(goldens: Path, name: str, preset: str, key: str) -> None:
    recorded = np.load(goldens / f"{name}.npz")
    result = DenseCRF.preset(preset)(recorded["img"], recorded["probs"])
    assert np.abs(result - recorded[key]).max() < 5e-5
    np.testing.assert_array_equal(result.argmax(axis=0), recorded[key].argmax(axis=0))


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("classes", [2, 3, 5, 21])
@pytest.mark.parametrize("preset", ["psa", "rrm-inference"])
@pytest.mark.parametrize("size", [(48, 60), (37, 53)])
def test_equals_pydensecrf(classes: int, preset: str, size: tuple[int, int]) -> None:
    """Both round in float32; where a pixel is undecided, ten iterations magnify that."""
    for seed in range(3):
        image, probs = natural(*size, seed), smooth(classes, *size, seed)
        expected = DenseCRF.preset(preset, backend="pydensecrf")(image, probs)
        result = DenseCRF.preset(preset)(image, probs)
        assert np.abs(result - expected).max() < 1e-4
        assert (result.argmax(0) == expected.argmax(0)).mean() >= 0.9999


def test_equals_pydensecrf_on_photos(voc_mini: Path) -> None:
    for number, path in enumerate(sorted((voc_mini / "JPEGImages").glob("*.jpg"))[:3]):
        with Image.open(path) as photo:
            for size in ((321, 321), (249, 187)):
                image = np.asarray(photo.convert("RGB").resize(size))
                for classes in (2, 3, 5, 21):
                    probs = smooth(classes, *image.shape[:2], number)
                    for preset in ("psa", "rrm-inference"):
                        expected = DenseCRF.preset(preset, backend="pydensecrf")(image, probs)
                        result = DenseCRF.preset(preset)(image, probs)
                        assert np.abs(result - expected).max() < 1e-4
                        assert (result.argmax(0) == expected.argmax(0)).mean() >= 0.9999


@pytest.mark.usefixtures("kind")
def test_crfs_of_one_photo_share_its_lattice() -> None:
    image, probs = natural(30, 41), np.stack([smooth(3, 30, 41, seed) for seed in range(2)])
    together = DenseCRF()(image, probs)
    for item in range(2):
        np.testing.assert_allclose(together[item], DenseCRF()(image, probs[item]), atol=1e-5)


@pytest.mark.usefixtures("kind")
def test_list_of_any_sizes_and_label_counts() -> None:
    sizes, counts = [(20, 31), (17, 12), (20, 31)], [2, 5, 21]
    images = [natural(*size) for size in sizes]
    probs = [smooth(count, *size) for count, size in zip(counts, sizes, strict=True)]
    for image, scores_, result in zip(images, probs, DenseCRF()(images, probs), strict=True):
        assert result.shape == scores_.shape
        np.testing.assert_allclose(result, DenseCRF()(image, scores_), atol=1e-5)


def test_number_of_threads_changes_nothing() -> None:
    image, probs, threads = natural(120, 131), smooth(3, 120, 131), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(DenseCRF()(image, probs))
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_exact_kernel_smooths_likewise() -> None:
    image, probs = natural(24, 30), smooth(3, 24, 30)
    exact, lattice = DenseCRF(backend="exact")(image, probs), DenseCRF()(image, probs)
    assert (exact.argmax(0) == lattice.argmax(0)).mean() > 0.95
    assert np.abs(exact - lattice).max() > 1e-4


@pytest.mark.usefixtures("kind")
def test_tolerance_stops_early() -> None:
    image, probs = natural(40, 44), smooth(3, 40, 44)
    ten, many = DenseCRF()(image, probs), DenseCRF(iterations=200, tolerance=1e-5)(image, probs)
    np.testing.assert_array_equal(
        DenseCRF(iterations=200, tolerance=2)(image, probs), DenseCRF(iterations=1)(image, probs)
    )
    np.testing.assert_allclose(many, DenseCRF(iterations=200)(image, probs), atol=0.02)
    assert (many != ten).any()


def test_temperature_flattens_the_probabilities() -> None:
    probs = smooth(3, 12, 15)
    half = DenseCRF(iterations=0, temperature=2)(photo(), probs)
    np.testing.assert_allclose(half, np.sqrt(probs) / np.sqrt(probs).sum(0), atol=1e-5)
    cold = DenseCRF(iterations=2, temperature=1e-3)(photo(), probs)
    assert np.isfinite(cold).all()


def test_wide_photo_and_one_row() -> None:
    image, probs = natural(2, 20_000), smooth(2, 2, 20_000)
    q = DenseCRF(gaussian_sigma=1, iterations=2)(image, probs)
    assert np.isfinite(q).all()
    np.testing.assert_allclose(q.sum(0), 1, atol=1e-5)


def test_works_without_numba_and_pydensecrf() -> None:
    script = """
import sys
sys.modules.update(dict.fromkeys(("numba", "llvmlite", "pydensecrf", "snakemake")))
import numpy as np, torch, rrm
image, probs = np.zeros((9, 8, 3), np.uint8), np.full((3, 9, 8), 0.3, np.float32)
assert rrm.DenseCRF(iterations=2)(image, probs).shape == probs.shape
loss = rrm.DenseEnergyLoss()(torch.zeros(1, 3, 8, 8), torch.full((1, 2, 8, 8), 0.5))
assert loss < 0 and "numba" not in {name for name, module in sys.modules.items() if module}
try:
    rrm.DenseCRF(backend="pydensecrf")(image, probs)
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "RRMError" in done.stdout
    assert "pip install pydensecrf2" in done.stdout


def test_presets_hold_the_published_numbers() -> None:
    def numbers(name: str) -> tuple[float, ...]:
        crf = DenseCRF.preset(name)
        bilateral = (crf.bilateral_weight, crf.bilateral_sigma_xy, crf.bilateral_sigma_rgb)
        return (*bilateral, crf.gaussian_weight, crf.gaussian_sigma, crf.iterations)

    assert numbers("psa") == (10, 80, 13, 3, 3, 10)
    assert numbers("rrm-inference") == (4, 83, 5, 3, 3, 10)
    assert numbers("dsrg") == (4, 49, 5, 3, 3, 10)
    assert numbers("deeplab-v2") == (4, 67, 3, 3, 1, 10)
    assert DenseCRF.preset("psa") == DenseCRF()
    assert DenseCRF.preset("psa", iterations=1).iterations == 1


def test_result_is_a_distribution() -> None:
    q = DenseCRF()(photo(), scores())
    assert q.dtype == np.float32
    assert q.shape == (3, 12, 15)
    np.testing.assert_allclose(q.sum(axis=0), 1, atol=1e-5)


def test_torch_in_torch_out_and_the_same_numbers() -> None:
    image, probs = photo(), scores()
    result = DenseCRF()(torch.from_numpy(image), torch.from_numpy(probs))
    assert isinstance(result, torch.Tensor)
    np.testing.assert_array_equal(result.numpy(), DenseCRF()(image, probs))


def test_batch_equals_single() -> None:
    images, probs = np.stack([photo(seed=s) for s in range(3)]), np.stack([scores(seed=s) for s in range(3)])
    batch = DenseCRF(iterations=3)(images, probs)
    for item in range(3):
        np.testing.assert_array_equal(batch[item], DenseCRF(iterations=3)(images[item], probs[item]))


def test_memory_layout_does_not_matter() -> None:
    image, probs = photo(), scores()
    turned = np.asfortranarray(image)
    strided = np.repeat(probs, 2, axis=2)[:, :, ::2]
    expected = DenseCRF()(image, probs)
    np.testing.assert_array_equal(DenseCRF()(turned, strided), expected)
    frozen = image.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(DenseCRF()(frozen, probs), expected)


def test_a_common_factor_changes_nothing() -> None:
    image, probs = photo(), scores() * 0.5 + 0.25
    np.testing.assert_allclose(DenseCRF()(image, probs), DenseCRF()(image, probs / 2), atol=1e-5)


def test_one_class_is_certain() -> None:
    np.testing.assert_array_equal(DenseCRF()(photo(), scores(1)), np.ones((1, 12, 15), np.float32))


def test_no_iterations_normalises_only() -> None:
    probs = scores() + 0.1
    expected = np.clip(probs, 0, 1) / np.clip(probs, 0, 1).sum(axis=0)
    np.testing.assert_allclose(DenseCRF(iterations=0)(photo(), probs), expected, atol=1e-6)


def test_edges_are_followed() -> None:
    """A photo of two halves and a seed in each: the CRF labels both halves up to their border."""
    image = np.zeros((24, 24, 3), np.uint8)
    image[:, 12:] = 255
    probs = np.full((2, 24, 24), 0.5, np.float32)
    probs[:, 8:16, 2:6] = np.array([0.9, 0.1], np.float32)[:, None, None]
    probs[:, 8:16, 18:22] = np.array([0.1, 0.9], np.float32)[:, None, None]
    expected = np.repeat(np.arange(2), 12)[None].repeat(24, axis=0)
    np.testing.assert_array_equal(DenseCRF()(image, probs).argmax(axis=0), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 1), (2, 3)])
def test_tiny_and_black_photos(size: tuple[int, int]) -> None:
    q = DenseCRF()(np.zeros((*size, 3), np.uint8), scores(2, *size))
    assert np.isfinite(q).all()


def test_terms_can_be_left_out() -> None:
    image, probs = photo(), scores() + 0.1
    nothing = DenseCRF(gaussian_weight=0, bilateral_weight=0)(image, probs)
    np.testing.assert_allclose(nothing, DenseCRF(iterations=0)(image, probs), atol=1e-6)


def test_scaled_multiplies_the_spatial_sigma_only() -> None:
    assert DenseCRF().scaled(0.25) == DenseCRF(bilateral_sigma_xy=20)


def test_wrong_input_is_refused() -> None:
    crf = DenseCRF(iterations=1)
    nan = scores()
    nan[0, 0, 0] = np.nan
    for call, message in (
        (lambda: crf(photo().astype(np.float32), scores()), "uint8"),
        (lambda: crf(photo()[..., 0], scores()), r"\(H,W,3\)"),
        (lambda: crf(photo().transpose(2, 0, 1), scores()), r"\(H,W,3\)"),
        (lambda: crf(photo(), scores(3, 12, 14)), "resize"),
        (lambda: crf(photo(), scores(0)), "K >= 1"),
        (lambda: crf(photo(), scores().astype(np.int64)), "floating"),
        (lambda: crf(photo(), nan), "NaN"),
        (lambda: crf([photo()], [scores().tolist()]), "list"),
        (lambda: crf([photo(), photo()], [scores()]), "2 and 1"),
        (lambda: crf(np.stack([photo()] * 2), np.stack([scores()] * 3)), "2 and 3"),
        (lambda: crf(photo(), scores()[None, None]), r"\(N,H,W,3\)"),
        (lambda: DenseCRF(gaussian_sigma=0), "gaussian_sigma"),
        (lambda: DenseCRF(bilateral_weight=-1), "bilateral_weight"),
        (lambda: DenseCRF(bilateral_sigma_rgb=float("nan")), "bilateral_sigma_rgb"),
        (lambda: DenseCRF(iterations=-1), "iterations"),
        (lambda: DenseCRF(backend="cuda"), "backend"),
        (lambda: DenseCRF.preset("rrm"), "psa"),
        (lambda: DenseCRF().scaled(0), "factor"),
        (lambda: DenseCRF(temperature=0), "temperature"),
        (lambda: DenseCRF(tolerance=-1), "tolerance"),
        (lambda: DenseCRF(tolerance=0.1, backend="pydensecrf"), "tolerance"),
        (lambda: DenseCRF(gaussian_sigma=1e-4, backend="pydensecrf")(photo(), scores()), "backend 'lattice'"),
        (lambda: DenseCRF(gaussian_sigma=1e-6)(photo(), scores()), "larger sigmas"),
    ):
        with pytest.raises(RRMError, match=message):
            call()
