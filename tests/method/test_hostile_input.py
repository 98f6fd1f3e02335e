"""Whatever comes in: an `RRMError` that says what was expected, or the right answer. Nothing else.

    python -m pytest tests/method/test_hostile_input.py

Properties are checked on small made arrays of any layout, dtype, kind and shape; single cases follow where one number
matters. Sizes and label counts stay small, so that few loops are compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rrm.crf import DenseCRF
from rrm.errors import RRMError
from rrm.gaussian import GaussianFilter, position_colour_features
from rrm.losses import DenseEnergyLoss
from rrm.regions import RegionRule, mine_regions

RULES = ("reference", "paper", "cam")
few = settings(max_examples=25, deadline=None, derandomize=True)
many = settings(max_examples=100, deadline=None, derandomize=True)

sides = st.integers(1, 7)
classes = st.sampled_from([1, 2, 3, 5])
seeds = st.integers(0, 2**16)
anything = st.floats(allow_nan=True, allow_infinity=True)
backends = st.sampled_from(["auto", "exact", "pydensecrf"])


def outcome(call: Callable[[], Any]) -> Any:
    """The result, or None after an `RRMError` with a message that says what was expected; other errors go through."""
    try:
        return call()
    except RRMError as error:
        message = str(error)
    assert "expected" in message
    assert "got" in message
    return None


def values(array: Any) -> np.ndarray:
    """A result's numbers, whatever its kind."""
    return array.detach().float().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def scores(channels: int, height: int, width: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random((channels, height, width), dtype=np.float32)


# Layouts: the same numbers, held otherwise.


def _reversed(array: np.ndarray) -> np.ndarray:
    turned = tuple(slice(None, None, -1) for _ in array.shape)
    return array[turned].copy()[turned]


def _strided(array: np.ndarray) -> np.ndarray:
    return np.repeat(array, 2, axis=-1)[..., ::2]


def _read_only(array: np.ndarray) -> np.ndarray:
    frozen = array.copy()
    frozen.flags.writeable = False
    return frozen


def _not_aligned(array: np.ndarray) -> np.ndarray:
    raw = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    raw[...] = array
    return raw


LAYOUTS: dict[str, Callable[[np.ndarray], Any]] = {
    "plain": np.ascontiguousarray,
    "fortran": np.asfortranarray,
    "negative strides": _reversed,
    "strided": _strided,
    "read-only": _read_only,
    "not aligned": _not_aligned,
    "tensor": torch.from_numpy,
    "strided tensor": lambda array: torch.from_numpy(np.repeat(array, 2, axis=-1))[..., ::2],
    "transposed tensor": lambda array: torch.from_numpy(array.T.copy()).permute(*range(array.ndim)[::-1]),
}
layouts = st.sampled_from(sorted(LAYOUTS))
tensor_layouts = st.sampled_from(sorted(name for name in LAYOUTS if "tensor" in name))


def _cast(array: Any, dtype: str) -> Any:
    if isinstance(array, torch.Tensor):
        return array.to(getattr(torch, dtype))
    return array if dtype == "bfloat16" else array.astype(dtype)


dtypes = st.sampled_from(["float16", "bfloat16", "float32", "float64"])

# Arrays that mostly do not fit.

NUMPY_DTYPES = ("uint8", "bool", "int64", "uint16", "float16", "float32", "float64", ">f4", "complex64", "object", "U1")


@st.composite
def strange(draw: st.DrawFn, sizes: tuple[int, ...]) -> Any:
    """An array of one of the wanted sizes or others, of any dtype, perhaps with a few NaN; or no array."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from([None, 3, "x", [], [[1.0]], (), torch.zeros(()), np.zeros(0), object()]))
    shape = sizes if draw(st.booleans()) else tuple(draw(st.lists(st.integers(0, 4), max_size=5)))
    array = np.random.default_rng(draw(seeds)).random(shape) * draw(st.sampled_from([1, 1, 255, 1e30, np.nan, np.inf]))
    with np.errstate(all="ignore"):
        array = np.asarray(array).astype(draw(st.sampled_from(NUMPY_DTYPES)))
    if draw(st.booleans()) and array.dtype.kind not in "OU" and array.dtype.isnative:
        tensor = torch.from_numpy(array)
        return (
            tensor.to_sparse() if draw(st.integers(0, 9)) == 0 and array.dtype.kind == "f" and tensor.ndim else tensor
        )
    return array


def one_of(fitting: Any, sizes: tuple[int, ...]) -> st.SearchStrategy[Any]:
    return st.one_of(st.just(fitting), strange(sizes))


def check_distribution(q: Any, probs: Any) -> None:
    assert type(q) is (torch.Tensor if isinstance(probs, torch.Tensor) else np.ndarray)
    assert tuple(q.shape) == tuple(probs.shape)
    assert str(q.dtype).endswith("float32")
    assert np.isfinite(values(q)).all()
    np.testing.assert_allclose(values(q).sum(-3), 1, atol=1e-4)


class TestDenseCRF:
    @many
    @given(sides, sides, classes, layouts, layouts, dtypes, st.booleans(), backends)
    def test_layout_dtype_and_kind_change_nothing(
        self, height: int, width: int, count: int, first: str, second: str, dtype: str, learns: bool, backend: str
    ) -> None:
        crf = DenseCRF(iterations=2, backend=backend)
        image, probs = photo(height, width), scores(count, height, width)
        given_probs = _cast(LAYOUTS[second](probs), dtype)
        if isinstance(given_probs, torch.Tensor) and learns:
            given_probs.requires_grad_()
        q = crf(LAYOUTS[first](image), given_probs)
        check_distribution(q, given_probs)
        assert not getattr(q, "requires_grad", False)
        np.testing.assert_array_equal(values(q), crf(image, np.ascontiguousarray(values(given_probs), np.float32)))

    @many
    @given(st.data())
    def test_strange_arrays(self, data: st.DataObject) -> None:
        image = data.draw(one_of(photo(3, 4), (3, 4, 3)))
        probs = data.draw(one_of(scores(2, 3, 4), (2, 3, 4)))
        q = outcome(lambda: DenseCRF(iterations=1)(image, probs))
        if q is not None and not isinstance(probs, list | tuple):
            check_distribution(q, probs)

    @few
    @given(st.data())
    def test_strange_batches(self, data: st.DataObject) -> None:
        images = data.draw(one_of(np.stack([photo(3, 4)] * 2), (2, 3, 4, 3)))
        probs = data.draw(st.sampled_from([np.stack([scores(2, 3, 4)] * 2), [scores(2, 3, 4)] * 2]))
        q = outcome(lambda: DenseCRF(iterations=1)(images, probs))
        if q is not None:
            check_distribution(np.stack(q), np.stack(probs))

    @many
    @given(*[anything] * 3, *[st.one_of(st.just(3.0), anything)] * 3, backends)
    def test_any_parameters(self, xy: float, rgb: float, sigma: float, first: float, second: float, temperature: float,
                            backend: str) -> None:  # fmt: skip
        options = {"bilateral_sigma_xy": xy, "bilateral_sigma_rgb": rgb, "gaussian_sigma": sigma}
        options |= {"gaussian_weight": first, "bilateral_weight": second, "temperature": temperature}
        probs = scores(3, 4, 5)
        q = outcome(lambda: DenseCRF(**options, iterations=2, backend=backend)(photo(4, 5), probs))
        if q is not None:
            check_distribution(q, probs)

    @pytest.mark.parametrize("backend", ["auto", "exact", "pydensecrf"])
    @pytest.mark.parametrize("largest", [1e-12, 1e-6, 1e-3, 1.0, 1e12])
    def test_huge_and_tiny_parameters(self, largest: float, backend: str) -> None:
        probs = scores(3, 4, 5)
        sigmas = dict.fromkeys(("bilateral_sigma_xy", "bilateral_sigma_rgb", "gaussian_sigma"), largest)
        for options in (sigmas, {"gaussian_weight": largest, "bilateral_weight": largest}, {"temperature": largest}):
            q = outcome(lambda: DenseCRF(**options, iterations=2, backend=backend)(photo(4, 5), probs))  # noqa: B023
            if q is not None:
                check_distribution(q, probs)

    @pytest.mark.parametrize("wrong", [2.0, "10", None, float("nan"), float("inf"), [1], -1, 2.5])
    def test_iterations_that_are_no_number(self, wrong: Any) -> None:
        assert outcome(lambda: DenseCRF(iterations=wrong)) is None

    @pytest.mark.parametrize("name", ["gaussian_sigma", "bilateral_weight", "temperature", "tolerance"])
    @pytest.mark.parametrize("wrong", ["3", None, 10**400, -1, float("nan"), float("inf"), 1e300, [3]])
    def test_parameters_that_are_no_number(self, name: str, wrong: Any) -> None:
        assert outcome(lambda: DenseCRF(**{name: wrong})) is None

    @pytest.mark.parametrize("backend", ["auto", "pydensecrf"])
    @pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (1, 1)])
    def test_one_row_one_column_one_pixel(self, size: tuple[int, int], backend: str) -> None:
        probs = scores(3, *size)
        check_distribution(DenseCRF(iterations=2, backend=backend)(photo(*size), probs), probs)

    @pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1)])
    def test_one_row_turned_round(self, size: tuple[int, int]) -> None:
        image, probs = photo(*size)[::-1, ::-1], scores(3, *size)[:, ::-1, ::-1]
        expected = DenseCRF(iterations=2)(image.copy(), probs.copy())
        np.testing.assert_array_equal(DenseCRF(iterations=2)(image, probs), expected)

    @pytest.mark.parametrize("kind", [np.zeros, torch.zeros])
    def test_nothing_to_do(self, kind: Any) -> None:
        dtype = np.uint8 if kind is np.zeros else torch.uint8
        q = DenseCRF()(kind((0, 3, 4, 3), dtype=dtype), kind((0, 2, 3, 4)))
        assert tuple(q.shape) == (0, 2, 3, 4)
        assert DenseCRF()([], []) == []
        assert outcome(lambda: DenseCRF()(kind((0, 4, 3), dtype=dtype), kind((2, 0, 4)))) is None
        assert outcome(lambda: DenseCRF()(kind((3, 4, 3), dtype=dtype), kind((0, 3, 4)))) is None

    def test_no_class_is_sure(self) -> None:
        for level in (0.0, -1.0, 1e-300, 3e38):
            q = DenseCRF()(photo(3, 4), np.full((4, 3, 4), level))
            np.testing.assert_allclose(q, 0.25, atol=1e-6)

    @pytest.mark.parametrize("backend", ["auto", "exact", "pydensecrf"])
    def test_channels_last_batch(self, backend: str) -> None:
        images = torch.from_numpy(np.stack([photo(5, 6, seed) for seed in range(2)]))
        probs = torch.from_numpy(np.stack([scores(3, 5, 6, seed) for seed in range(2)]))
        crf = DenseCRF(iterations=2, backend=backend)
        result = crf(images, probs.contiguous(memory_format=torch.channels_last))
        assert torch.equal(result, crf(images, probs))

    def test_images_that_are_no_batch(self) -> None:
        for images in (3, None, np.uint8(3), (photo(3, 4) for _ in range(1)), np.zeros((), np.uint8), [None]):
            assert outcome(lambda: DenseCRF()(images, [scores(2, 3, 4)])) is None  # noqa: B023


def _mined(image: Any, cams: Any, present: Any, **options: Any) -> Any:
    return outcome(lambda: mine_regions(image, cams, present, **options))


def check_labels(labels: Any, cams: Any, present: np.ndarray) -> None:
    assert type(labels) is (torch.Tensor if isinstance(cams, torch.Tensor) else np.ndarray)
    assert tuple(labels.shape) == tuple(cams.shape[-2:])
    assert str(labels.dtype).endswith("uint8")
    allowed = {0, 255, *(1 + np.flatnonzero(present)).tolist()}
    assert set(np.unique(np.asarray(labels)).tolist()) <= allowed


class TestMining:
    @many
    @given(sides, sides, layouts, layouts, dtypes, st.booleans(), st.sampled_from(RULES))
    def test_layout_dtype_and_kind_change_nothing(
        self, height: int, width: int, first: str, second: str, dtype: str, learns: bool, rule: str
    ) -> None:
        image, cams, present = photo(height, width), scores(3, height, width), np.array([1, 0, 1])
        given_cams = _cast(LAYOUTS[second](cams), dtype)
        if isinstance(given_cams, torch.Tensor) and learns:
            given_cams.requires_grad_()
        labels = mine_regions(LAYOUTS[first](image), given_cams, LAYOUTS[first](present), rule=rule)
        check_labels(labels, given_cams, present)
        expected = mine_regions(image, np.ascontiguousarray(values(given_cams), np.float32), present, rule=rule)
        np.testing.assert_array_equal(np.asarray(labels), expected)

    @many
    @given(st.data(), st.sampled_from(RULES))
    def test_strange_arrays(self, data: st.DataObject, rule: str) -> None:
        image = data.draw(one_of(photo(3, 4), (3, 4, 3)))
        cams = data.draw(one_of(scores(2, 3, 4), (2, 3, 4)))
        present = data.draw(one_of(np.array([1, 0]), (2,)))
        valid = data.draw(st.one_of(st.none(), one_of(np.ones((3, 4), bool), (3, 4))))
        labels = _mined(image, cams, present, rule=rule, valid=valid)
        if labels is not None and cams.ndim == 3:
            check_labels(labels, cams, np.asarray(present) > 1e-5)

    @many
    @given(st.sampled_from(RULES), *[st.one_of(st.just(0.4), anything)] * 4, anything)
    def test_any_options(
        self, rule: str, ratio: float, exponent: float, scale: float, threshold: float, other: float
    ) -> None:
        present = np.array([1, 1])
        options = {"ratio": ratio, "cam_exponent": exponent, "crf_scale": scale, "crf_confidence": threshold}
        labels = _mined(photo(4, 5), scores(2, 4, 5), present, rule=rule, **options)
        if labels is not None:
            check_labels(labels, scores(2, 4, 5), present)
        assert _mined(photo(4, 5), scores(2, 4, 5), present, rule=rule, crf_exponent=other) is not None or not other > 0

    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1)])
    def test_one_row_one_column_one_pixel(self, size: tuple[int, int], rule: str) -> None:
        present = np.array([1, 0])
        for scale in (1.0, 0.5):
            labels = mine_regions(photo(*size), scores(2, *size), present, rule=rule, crf_scale=scale)
            check_labels(labels, scores(2, *size), present)

    @pytest.mark.parametrize("rule", RULES)
    def test_numbers_of_classes(self, rule: str) -> None:
        image = photo(4, 5)
        assert not mine_regions(image, scores(0, 4, 5), np.zeros(0), rule=rule).any()
        check_labels(mine_regions(image, scores(1, 4, 5), np.ones(1), rule=rule), scores(1, 4, 5), np.ones(1))
        last = np.arange(254) > 251
        check_labels(mine_regions(image, scores(254, 4, 5), last, rule=rule), scores(254, 4, 5), last)
        assert _mined(image, scores(255, 4, 5), np.arange(255) > 252, rule=rule) is None

    @pytest.mark.parametrize("rule", RULES)
    def test_channels_last_batch_and_empty_batch(self, rule: str) -> None:
        images = torch.from_numpy(np.stack([photo(5, 6, seed) for seed in range(2)]))
        cams = torch.from_numpy(np.stack([scores(3, 5, 6, seed) for seed in range(2)]))
        present = torch.tensor([[1, 0, 1], [0, 1, 0]])
        expected = mine_regions(images, cams, present, rule=rule)
        turned = cams.contiguous(memory_format=torch.channels_last)
        assert torch.equal(mine_regions(images, turned, present, rule=rule), expected)
        assert mine_regions(images[:0], cams[:0], present[:0], rule=rule).shape == (0, 5, 6)

    def test_presence_that_is_no_number(self) -> None:
        for present in (np.array([np.nan, 1]), np.array([np.inf, 0]), np.array([1j, 0]), np.array(["a", "b"]), [1, 0]):
            assert _mined(photo(3, 4), scores(2, 3, 4), present) is None

    def test_arrays_without_axes(self) -> None:
        cams, present = scores(2, 3, 4)[None], np.array([[1, 0]])
        assert _mined(np.array(1), cams, present) is None
        assert _mined(photo(3, 4)[None], cams, np.array(1)) is None
        assert _mined(photo(3, 4)[None], cams, present, valid=np.array(True)) is None
        assert _mined(photo(3, 4), cams, present) is None

    @pytest.mark.parametrize("name", ["ratio", "crf_scale", "crf_confidence", "cam_exponent", "crf_exponent"])
    @pytest.mark.parametrize("wrong", ["0.4", [0.4], -1, float("nan"), np.zeros(2)])
    def test_options_that_are_no_number(self, name: str, wrong: Any) -> None:
        assert outcome(lambda: RegionRule(**{name: wrong})) is None

    def test_numbers_of_numpy_are_numbers(self) -> None:
        assert RegionRule(ratio=np.float32(0.5)).ratio == RegionRule(ratio=1).ratio / 2


ENERGIES: dict[str, dict[str, Any]] = {
    "reference": {},
    "exact gradient": {"gradient": "exact"},
    "exact kernel": {"backend": "exact", "scale": 1.0},
    "grid": {"grid": 3, "normalize": "row"},
    "paper": {"form": "paper", "gradient": "exact"},
    "mean": {"normalize": "mean", "scale": 0.3},
}
energies = st.sampled_from(sorted(ENERGIES))


def energy(options: dict[str, Any], *inputs: Any) -> Any:
    """Value and gradient, or None where it was refused."""
    images, probs, *rest = inputs
    leaf = probs.detach().requires_grad_() if isinstance(probs, torch.Tensor) and probs.is_floating_point() else probs
    value = outcome(lambda: DenseEnergyLoss(1.0, **options)(images, leaf, *rest))
    if value is None:
        return None
    assert value.ndim == 0
    (gradient,) = torch.autograd.grad(value, leaf)
    assert gradient.shape == leaf.shape
    assert gradient.dtype == leaf.dtype
    return value.detach(), gradient


def scene(height: int = 6, width: int = 8, count: int = 3, batch: int = 2) -> tuple[np.ndarray, ...]:
    """Images (of little contrast: all pixels count for one another), probabilities, mask and labels."""
    images = np.stack([photo(height, width, seed).transpose(2, 0, 1) // 8 for seed in range(batch)])
    probs = np.stack([scores(count, height, width, seed) for seed in range(batch)])
    valid, labels = np.ones((batch, height, width), bool), np.full((batch, height, width), 255)
    valid[:, -1], labels[:, :2, :2] = False, 0
    return images, probs / probs.sum(1, keepdims=True), valid, labels


class TestDenseEnergy:
    @many
    @given(sides, sides, classes, tensor_layouts, tensor_layouts, dtypes, energies)
    def test_layout_and_dtype_change_nothing(
        self, height: int, width: int, count: int, first: str, second: str, dtype: str, kind: str
    ) -> None:
        images, probs, valid, labels = scene(height, width, count)
        held = [LAYOUTS[first](images), _cast(LAYOUTS[second](probs), dtype)]
        held += [LAYOUTS[first](valid), LAYOUTS[second](labels)]
        found = energy(ENERGIES[kind], *held)
        plain = [torch.from_numpy(images).float(), held[1].to(torch.float64).contiguous()]
        expected = energy(ENERGIES[kind], *plain, torch.from_numpy(valid), torch.from_numpy(labels))
        assert (found is None) == (expected is None)
        if found is not None:
            torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-4, atol=1e-5)
            tolerance = {"float16": 1e-2, "bfloat16": 5e-2}.get(dtype, 1e-4)
            torch.testing.assert_close(found[1].double(), expected[1], rtol=tolerance, atol=tolerance)

    @many
    @given(st.data(), energies)
    def test_strange_tensors(self, data: st.DataObject, kind: str) -> None:
        arrays = scene(3, 4, 2)
        images, probs, valid, labels = (data.draw(one_of(torch.from_numpy(array), array.shape)) for array in arrays)
        found = energy(ENERGIES[kind], images, probs, valid, labels)
        bounds = ((images, 255), (probs, 1), (valid, 1))
        if found is not None and all(each is None or each.float().abs().max() <= most for each, most in bounds):
            assert torch.isfinite(found[0])
            assert torch.isfinite(found[1]).all()

    @pytest.mark.parametrize("kind", sorted(ENERGIES))
    @pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
    def test_what_is_not_finite_does_not_pass_for_a_loss(self, wrong: float, kind: str) -> None:
        images, probs, valid, labels = (torch.from_numpy(each) for each in scene())
        assert energy(ENERGIES[kind], images * wrong, probs, valid, labels) is None
        value, _ = energy(ENERGIES[kind], images, probs * wrong, valid, labels)
        assert not torch.isfinite(value)

    @many
    @given(energies, anything, anything, st.one_of(st.just(0.5), anything), anything)
    def test_any_options(self, kind: str, xy: float, rgb: float, scale: float, weight: float) -> None:
        inputs = [torch.from_numpy(each) for each in scene(3, 4, 2)]
        for changes in ({"sigma_xy": xy}, {"sigma_rgb": rgb}, {"scale": scale}):
            found = energy(ENERGIES[kind] | changes, *inputs)
            if found is not None:
                assert all(torch.isfinite(each).all() for each in found)
        loss = outcome(lambda: DenseEnergyLoss(weight))
        assert loss is None or torch.isfinite(loss(*inputs))

    @pytest.mark.parametrize("name", ["weight", "sigma_xy", "sigma_rgb", "scale"])
    @pytest.mark.parametrize("wrong", ["1", None, 10**400, -1, float("nan"), float("inf"), [1.0]])
    def test_options_that_are_no_number(self, name: str, wrong: Any) -> None:
        assert outcome(lambda: DenseEnergyLoss(**{name: wrong})) is None

    @pytest.mark.parametrize("wrong", [1, 0, -3, True, 2.0, 3.5, "ab", (2,), (4.0, 4), (None, 3), (2, 3, 4)])
    def test_grids_that_are_none(self, wrong: Any) -> None:
        assert outcome(lambda: DenseEnergyLoss(grid=wrong)) is None

    @pytest.mark.parametrize("kind", sorted(ENERGIES))
    def test_nothing_to_do(self, kind: str) -> None:
        images, probs, valid, labels = (torch.from_numpy(each) for each in scene())
        for rows, columns in ((0, 8), (6, 0)):
            cut = [each[..., :rows, :columns] for each in (images, probs, valid, labels)]
            assert energy(ENERGIES[kind], *cut) is None
            assert energy(ENERGIES[kind], cut[0], probs, *cut[2:]) is None
        assert energy(ENERGIES[kind], images[:0], probs[:0], valid[:0], labels[:0]) is None
        assert energy(ENERGIES[kind], images, probs[:, :0], valid, labels) is None
        value, gradient = energy(ENERGIES[kind], images, probs, torch.zeros_like(valid), labels)
        assert value == 0
        assert not gradient.any()

    @pytest.mark.parametrize("kind", ["reference", "grid", "mean"])
    def test_long_strip(self, kind: str) -> None:
        images, probs, valid, labels = (torch.from_numpy(each) for each in scene(4, 20_000, 2, batch=1))
        assert all(torch.isfinite(each).all() for each in energy(ENERGIES[kind], images, probs, valid, labels))
        assert energy(ENERGIES[kind] | {"scale": 0.5}, *(each[..., :1, :] for each in (images, probs))) is None or (
            kind == "grid"
        )

    def test_gradients_reach_the_probabilities_only(self) -> None:
        images, probs, _, _ = (torch.from_numpy(each) for each in scene())
        photos, leaf = images.float().requires_grad_(), probs.requires_grad_()
        DenseEnergyLoss(1.0)(photos, leaf).backward()
        assert photos.grad is None
        assert leaf.grad is not None
        with torch.inference_mode():
            assert torch.isfinite(DenseEnergyLoss(1.0)(images, probs.detach()))


@pytest.fixture(params=["compiled", "torch", "exact"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., GaussianFilter]:
    """The filter by the compiled lattice, by the lattice in plain torch or by all pairs."""
    if request.param == "torch":
        monkeypatch.setattr("rrm.gaussian.filter.has_compiled_lattice", lambda: False)
    backend = "exact" if request.param == "exact" else "lattice"
    return lambda features, **options: GaussianFilter(features, backend, **options)


def points(count: int = 10, dimensions: int = 5, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, count, dimensions, generator=torch.Generator().manual_seed(count))


def channels(count: int = 10, number: int = 3, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, count, number, generator=torch.Generator().manual_seed(number))


FILTER_BACKENDS = st.sampled_from(["lattice", "exact"])


class TestGaussianFilter:
    @many
    @given(st.integers(1, 9), st.integers(1, 7), classes, tensor_layouts, tensor_layouts, dtypes, FILTER_BACKENDS)
    def test_layout_changes_nothing(
        self, count: int, dimensions: int, number: int, first: str, second: str, dtype: str, backend: str
    ) -> None:
        features, given_values = points(count, dimensions).numpy(), channels(count, number).numpy()
        held = _cast(LAYOUTS[first](features), dtype)
        found = GaussianFilter(held, backend).apply(LAYOUTS[second](given_values))
        expected = GaussianFilter(held.float().contiguous(), backend).apply(torch.from_numpy(given_values))
        torch.testing.assert_close(found, expected, rtol=2e-2 if dtype in ("float16", "bfloat16") else 1e-4, atol=1e-4)

    @many
    @given(st.floats(1e-30, 1e16), st.floats(-1e6, 1e6), FILTER_BACKENDS, st.sampled_from(["none", "symmetric"]))
    def test_any_scale_and_place(self, scale: float, place: float, backend: str, normalization: str) -> None:
        features = points() * scale + place
        result = outcome(lambda: GaussianFilter(features, backend, normalization=normalization).apply(channels()))
        assert result is None or torch.isfinite(result).all()
        assert result is not None or backend == "lattice"

    @few
    @given(st.data(), FILTER_BACKENDS)
    def test_strange_shapes(self, data: st.DataObject, backend: str) -> None:
        shapes = st.lists(st.integers(0, 3), max_size=4)
        features = torch.rand(data.draw(st.one_of(st.just([2, 3, 2]), shapes)))
        given_values = torch.rand(data.draw(st.one_of(st.just([2, 3, 2]), shapes)))
        result = outcome(lambda: GaussianFilter(features, backend).apply(given_values))
        assert result is None or (result.shape == given_values.shape and bool(torch.isfinite(result).all()))

    @pytest.mark.parametrize("wrong", [torch.int64, torch.bool, torch.complex64, torch.float16, torch.bfloat16])
    def test_values_of_other_dtypes(self, kernel: Any, wrong: torch.dtype) -> None:
        assert outcome(lambda: kernel(points()).apply(channels().to(wrong))) is None
        assert outcome(lambda: kernel(points()).apply_transpose(channels().to(wrong))) is None

    @pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
    def test_features_that_are_not_finite(self, kernel: Any, wrong: float) -> None:
        features = points()
        features[1, 3, 2] = wrong
        assert outcome(lambda: kernel(features)) is None

    def test_gradients_reach_the_values_only(self, kernel: Any) -> None:
        features, leaf = points().requires_grad_(), channels().requires_grad_()
        kernel(features).apply(leaf).sum().backward()
        assert features.grad is None
        assert torch.isfinite(leaf.grad).all()

    def test_values_that_share_memory(self, kernel: Any) -> None:
        one = torch.rand(2, 10, 1)
        spread = kernel(points()).apply(one.expand(2, 10, 3))
        torch.testing.assert_close(spread, kernel(points()).apply(one).expand(2, 10, 3))
        assert torch.isfinite(kernel(torch.ones(1, 1, 1).expand(2, 10, 5)).apply(channels())).all()

    def test_long_strip(self) -> None:
        images = torch.from_numpy(photo(1, 20_000)).permute(2, 0, 1)[None]
        features = position_colour_features(images, 80.0, 13.0)
        assert torch.isfinite(GaussianFilter(features).apply(torch.ones(1, 20_000, 3))).all()

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float64])
    def test_images_of_any_dtype(self, kernel: Any, dtype: torch.dtype) -> None:
        images = torch.from_numpy(photo(4, 5)).permute(2, 0, 1)[None].to(dtype)
        assert torch.isfinite(kernel(position_colour_features(images, 8.0, 20.0)).apply(torch.ones(1, 20, 2))).all()


UNUSUAL: dict[str, Callable[[Callable[..., GaussianFilter]], Any]] = {
    "features of NumPy": lambda kernel: kernel(points().numpy()).apply(channels()),
    "no features": lambda kernel: kernel(None),
    "values of NumPy": lambda kernel: kernel(points()).apply(channels().numpy()),
    "values in a list": lambda kernel: kernel(points()).apply([1.0]),
    "eight-bit features": lambda kernel: kernel(points().to(torch.float8_e4m3fn)).apply(channels()),
    "sparse features": lambda kernel: kernel(points().to_sparse()).apply(channels()),
    "sparse values": lambda kernel: kernel(points()).apply(channels().to_sparse()),
    "negated view": lambda kernel: kernel(points()).apply(torch._neg_view(channels())),
    "no channels": lambda kernel: kernel(points()).apply(channels(number=3)[..., :0]),
    "features near the end of float32": lambda kernel: kernel(points() * 3e38).apply(channels()),
    "float64 features beyond float32": lambda kernel: kernel(points().double() * 1e300).apply(channels()),
    "image without batch": lambda kernel: kernel(position_colour_features(torch.rand(3, 4, 5), 8.0, 20.0)),
    "one of two sigmas": lambda kernel: kernel(position_colour_features(torch.rand(1, 3, 4, 5), (8.0,), 20.0)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_no_input_of_the_filter(name: str, kernel: Any) -> None:
    result = outcome(lambda: UNUSUAL[name](kernel))
    assert result is None or torch.isfinite(result.apply(channels()) if name == "no features" else result).all()


@pytest.mark.parametrize("dimensions", [7, 8, 9])
def test_both_lattices_agree_in_many_dimensions(dimensions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features, given_values = points(50, dimensions) * 0.1, channels(50)
    compiled = GaussianFilter(features, "lattice").apply(given_values)
    monkeypatch.setattr("rrm.gaussian.filter.has_compiled_lattice", lambda: False)
    torch.testing.assert_close(compiled, GaussianFilter(features, "lattice").apply(given_values))
