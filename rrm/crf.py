"""Fully connected CRF by mean field (Krähenbühl and Koltun 2011), the CRF(I, P) of the paper's Eq. 5.

The unary term is -log(clip(p, 1e-5, 1)); the two pairwise terms are Potts models over Gaussian kernels, one
on the position, one on position and colour, each normalised symmetrically:

    E(x) = sum_i -log p_i(x_i) + sum_ij [x_i != x_j] (w_g k_g(i, j) + w_b k_b(i, j))
    Q <- softmax(log p + w_g K_g Q + w_b K_b Q), from Q = softmax(log p)

On the CPU the kernels are compiled lattices (`rrm.gaussian.lattice_cpu`), on a GPU `GaussianFilter`s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt
import torch

from rrm.errors import RRMError
from rrm.gaussian import FLOATING, GaussianFilter, has_compiled_lattice, position_colour_features, position_features
from rrm.parallel import map_in_threads

Array = TypeVar("Array", npt.NDArray[Any], torch.Tensor)

PROBABILITY_FLOOR = 1e-5
_BACKENDS = ("auto", "lattice", "exact", "pydensecrf")
_LARGEST_NUMBER = 1e12  # of a parameter, and its inverse the smallest: what is made of them stays finite in float32
_LARGEST_COORDINATE = 8000.0  # lattice keys of pydensecrf are 16-bit

_PRESETS: dict[str, dict[str, float]] = {
    "psa": {},
    "rrm-inference": {"bilateral_sigma_xy": 83, "bilateral_sigma_rgb": 5, "bilateral_weight": 4},
    "dsrg": {"bilateral_sigma_xy": 49, "bilateral_sigma_rgb": 5, "bilateral_weight": 4},
    "deeplab-v2": {
        "gaussian_sigma": 1,
        "gaussian_weight": 3,
        "bilateral_sigma_xy": 67,
        "bilateral_sigma_rgb": 3,
        "bilateral_weight": 4,
    },
}


def to_tensor(array: npt.NDArray[Any] | torch.Tensor, name: str) -> torch.Tensor:
    """Give a NumPy array or a tensor as a detached tensor on its device, memory shared where possible.

    Example:
        >>> to_tensor(np.ones(2, np.float32), "scores")
        tensor([1., 1.])
    """
    if isinstance(array, torch.Tensor):
        if array.layout != torch.strided or array.is_meta:
            raise RRMError(f"{name}: expected a dense tensor, got {array.layout} on {array.device}: use to_dense()")
        return array.detach()
    if isinstance(array, np.ndarray):
        held = np.require(array, requirements=("C", "W"))
        if min(held.strides, default=0) < 0:  # axes of length 1 keep theirs
            held = held.copy()
        try:
            return torch.from_numpy(held)
        except (TypeError, ValueError):
            raise RRMError(
                f"{name}: expected a dtype of torch's in native byte order, got {array.dtype!r}: use astype"
            ) from None
    raise RRMError(f"{name}: expected a NumPy array or a torch tensor, got {type(array).__name__}: convert it first")


def like(result: torch.Tensor, template: Array) -> Array:
    """Give `result` in the kind (and on the device) of `template`.

    Example:
        >>> like(torch.zeros(2), np.ones(1))
        array([0., 0.], dtype=float32)
    """
    if isinstance(template, torch.Tensor):
        return result.to(template.device)
    return result.cpu().numpy()


def check_photo(image: torch.Tensor, name: str = "image") -> None:
    """Refuse anything but a non-empty (H,W,3) uint8 array.

    Raises:
        RRMError: wrong shape or dtype.

    Example:
        >>> check_photo(torch.zeros(4, 5, 3, dtype=torch.uint8))
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.numel() == 0:
        raise RRMError(
            f"{name}: expected shape (H,W,3) with H, W >= 1, got {tuple(image.shape)}: pass RGB, channels last"
        )
    if image.dtype != torch.uint8:
        raise RRMError(f"{name}: expected uint8 (0..255), got {image.dtype}: convert with round() and astype(uint8)")


@dataclass(frozen=True)
class DenseCRF:
    """Dense CRF: sharpens class probabilities along the colours of a photo.

    Args:
        gaussian_sigma: standard deviation of the position kernel, pixels, > 0.
        gaussian_weight: Potts weight of the position kernel, >= 0 (0 leaves it out).
        bilateral_sigma_xy: position standard deviation of the colour kernel, pixels, > 0.
        bilateral_sigma_rgb: colour standard deviation of the colour kernel, levels of 0..255, > 0.
        bilateral_weight: Potts weight of the colour kernel, >= 0 (0 leaves it out).
        iterations: mean-field steps, >= 0 (0 gives the normalised probabilities).
        backend: "lattice" (the permutohedral lattice, equal to pydensecrf's up to rounding), "exact" (all pairs of
            pixels; slow), "pydensecrf" (the C++ package, if installed; CPU, one thread) or "auto", the lattice.
        temperature: divides the unary energy, > 0; above 1 the photo counts for more. Probabilities are never raised to
            a power, so nothing underflows.
        tolerance: stops once no probability changes by more in an iteration; 0 makes them all. A whole batch on a GPU
            stops together. Not with "pydensecrf".

    Raises:
        RRMError: a parameter or an input is out of range; the message names it.

    Source:
        Krähenbühl and Koltun 2011; default parameters as in PSA (Ahn and Kwak 2018), which RRM trains with.

    Example:
        >>> crf = DenseCRF(iterations=2)
        >>> image = np.zeros((4, 6, 3), np.uint8)
        >>> crf(image, np.full((2, 4, 6), 0.5, np.float32)).shape
        (2, 4, 6)
    """

    gaussian_sigma: float = 3
    gaussian_weight: float = 3
    bilateral_sigma_xy: float = 80
    bilateral_sigma_rgb: float = 13
    bilateral_weight: float = 10
    iterations: int = 10
    backend: str = "auto"
    temperature: float = 1
    tolerance: float = 0

    def __post_init__(self) -> None:
        for name in ("gaussian_sigma", "bilateral_sigma_xy", "bilateral_sigma_rgb", "temperature"):
            _check_number(name, getattr(self, name), positive=True)
        for name in ("gaussian_weight", "bilateral_weight", "tolerance"):
            _check_number(name, getattr(self, name), positive=False)
        if not isinstance(self.iterations, (int, np.integer)) or self.iterations < 0:
            raise RRMError(f"DenseCRF iterations: expected an integer >= 0, got {self.iterations!r}: use 10")
        if self.backend not in _BACKENDS:
            raise RRMError(f"DenseCRF backend: expected one of {', '.join(_BACKENDS)}, got {self.backend!r}: use auto")
        if self.backend == "pydensecrf" and self.tolerance > 0:
            raise RRMError(
                f"DenseCRF tolerance: expected 0 with backend 'pydensecrf', got {self.tolerance!r}: use 'lattice'"
            )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> DenseCRF:
        """Give the CRF of a published recipe, with `changes` to single parameters.

        Args:
            name: "psa" (3/3, 80/13/10; RRM in training), "rrm-inference" (3/3, 83/5/4; RRM at test time),
                "dsrg" (3/3, 49/5/4; Huang et al. 2018) or "deeplab-v2" (1/3, 67/3/4); the numbers are
                Gaussian sigma/weight and bilateral sigma_xy/sigma_rgb/weight.
            changes: any argument of `DenseCRF`.

        Raises:
            RRMError: unknown name.

        Example:
            >>> DenseCRF.preset("rrm-inference").bilateral_sigma_xy
            83
        """
        if name not in _PRESETS:
            raise RRMError(f"DenseCRF preset: expected one of {', '.join(_PRESETS)}, got {name!r}: choose one of them")
        values: dict[str, Any] = {**_PRESETS[name], **changes}
        return cls(**values)

    def scaled(self, factor: float) -> DenseCRF:
        """Give the same CRF for photos shown at `factor` times their size: `bilateral_sigma_xy` is
        multiplied.

        Raises:
            RRMError: `factor` is not positive.

        Example:
            >>> DenseCRF().scaled(0.5).bilateral_sigma_xy
            40.0
        """
        _check_number("scaled factor", factor, positive=True)
        return replace(self, bilateral_sigma_xy=self.bilateral_sigma_xy * factor)

    @overload
    def __call__(self, image: Array, probs: Array) -> Array: ...

    @overload
    def __call__(self, image: Sequence[Array] | Array, probs: Sequence[Array]) -> list[Array]: ...

    def __call__(self, image: Any, probs: Any) -> Any:
        """Run mean field.

        Args:
            image: (H,W,3) uint8 RGB, or a batch: (N,H,W,3), or a list of photos of any sizes. NumPy or torch.
            probs: (K,H,W) float, class probabilities in 0..1, clipped to 1e-5..1. They need not sum to one: a factor
                common to all classes of a pixel changes nothing. (R,K,H,W) are R CRFs of one photo, which share its
                lattice. A batch has one more dimension, or is a list with any number of classes an item.

        Returns:
            q: the shape and kind of `probs`, float32, sums to one over K. With K = 1 it is one everywhere. Torch
            probabilities on a GPU are worked on there.

        Raises:
            RRMError: shape, dtype or value of an input is wrong, or the backend is not installed.

        Example:
            >>> photos = [np.zeros((4, 6, 3), np.uint8), np.zeros((3, 5, 3), np.uint8)]
            >>> scores = [np.full((2, 4, 6), 0.5, np.float32), np.full((2, 3, 3, 5), 0.3, np.float32)]
            >>> [q.shape for q in DenseCRF(iterations=2)(photos, scores)]
            [(2, 4, 6), (2, 3, 3, 5)]
        """
        if isinstance(probs, (list, tuple)):
            return [like(q, p) for q, p in zip(self._run(image, probs), probs, strict=True)]
        if _dimensions(image, "image") == 4 and _dimensions(probs, "probs") in (4, 5):
            results = self._run(image, probs)
            return like(torch.stack(results) if results else torch.zeros(probs.shape), probs)
        return like(self._run([image], [probs])[0], probs)

    def _run(self, images: Any, probs: Any) -> list[torch.Tensor]:
        count = len(images) if isinstance(images, (list, tuple)) or _dimensions(images, "image") > 0 else 0
        if count != len(probs):
            raise RRMError(f"DenseCRF batch: expected as many images as probs, got {count} and {len(probs)}")
        items = [self._item(image, each) for image, each in zip(images, probs, strict=True)]
        return [q.view(each.shape) for q, each in zip(self._solve(items), probs, strict=True)]

    def _item(self, image: Any, probs: Any) -> _Item:
        photo, scores = to_tensor(image, "image"), to_tensor(probs, "probs")
        check_photo(photo)
        _check_probabilities(scores, tuple(photo.shape[:2]))
        stacked = scores if scores.ndim == 4 else scores[None]
        return _Item(photo.to(scores.device), stacked.float())

    def _solve(self, items: list[_Item]) -> list[torch.Tensor]:
        """Probabilities (R,K,H,W) of each item."""
        if self.backend == "pydensecrf":
            return [_pydensecrf(self, item) for item in items]
        compiled = has_compiled_lattice() and self.backend != "exact"
        on_cpu = [compiled and item.probs.device.type == "cpu" for item in items]
        here = iter(_compiled(self, [item for item, cpu in zip(items, on_cpu, strict=True) if cpu]))
        there = iter(_in_groups(self, [item for item, cpu in zip(items, on_cpu, strict=True) if not cpu]))
        return [next(here) if cpu else next(there) for cpu in on_cpu]


@dataclass(frozen=True)
class _Item:
    """One photo (H,W,3) and the probabilities (R,K,H,W) of its CRFs."""

    image: torch.Tensor
    probs: torch.Tensor

    def logits(self, temperature: float) -> torch.Tensor:
        """The negative unary energies (R,K,H,W), NaN where probabilities are."""
        return unary_energy(self.probs) / -temperature


def _compiled(crf: DenseCRF, items: list[_Item]) -> list[torch.Tensor]:
    """Compiled lattices, one photo a thread; threads share a photo that is alone."""
    if not items:
        return []
    from rrm.gaussian.lattice_cpu import thread_plan

    outer, inner = thread_plan(len(items))
    return map_in_threads(lambda item: _compiled_item(crf, item, inner), items, outer)


def _compiled_item(crf: DenseCRF, item: _Item, threads: int) -> torch.Tensor:
    from rrm.gaussian.lattice_cpu import PointLattice, mean_field, pixel_features

    models, classes, height, width = item.probs.shape
    lattices, factors = [], []
    if crf.gaussian_weight > 0:
        lattices.append(_position_lattice(height, width, crf.gaussian_sigma))
        factors.append(crf.gaussian_weight)
    if crf.bilateral_weight > 0:
        features = pixel_features(item.image.numpy(), crf.bilateral_sigma_xy, crf.bilateral_sigma_rgb)
        lattices.append(PointLattice(features, threads, normalize=True))
        factors.append(crf.bilateral_weight)
    floor, one, temperature = np.float32(PROBABILITY_FLOOR), np.float32(1), np.float32(crf.temperature)

    def unary(block: npt.NDArray[Any]) -> npt.NDArray[Any]:
        _check_finite(block.min(), block.max())
        logits: npt.NDArray[Any] = np.clip(block, floor, one)
        np.log(logits, out=logits)
        logits /= temperature
        return logits

    probs = item.probs.reshape(models, classes, -1).numpy()
    q = mean_field(lattices, factors, probs, unary, crf.iterations, crf.tolerance, threads)
    return torch.from_numpy(q).view(item.probs.shape)


@lru_cache(maxsize=8)
def _position_lattice(height: int, width: int, sigma: float) -> Any:
    from rrm.gaussian.lattice_cpu import PointLattice

    return PointLattice(position_features(height, width, sigma)[0].t().numpy(), torch.get_num_threads(), normalize=True)


def _in_groups(crf: DenseCRF, items: list[_Item]) -> list[torch.Tensor]:
    """Photos of one size and device together, on that device; fewer classes than others have are filled up."""
    groups: dict[Any, list[int]] = {}
    for position, item in enumerate(items):
        groups.setdefault((item.image.shape, len(item.probs), item.probs.device), []).append(position)
    results: dict[int, torch.Tensor] = {}
    _check_all_finite([item.probs for item in items])
    for positions in groups.values():
        most = max(items[position].probs.shape[1] for position in positions)
        logits = torch.stack([_filled_up(items[position].logits(crf.temperature), most) for position in positions])
        q = _mean_field(crf, torch.stack([items[position].image for position in positions]), logits)
        results |= {position: q[row, :, : items[position].probs.shape[1]] for row, position in enumerate(positions)}
    return [results[position] for position in range(len(items))]


def _filled_up(logits: torch.Tensor, classes: int) -> torch.Tensor:
    filling = torch.full_like(logits[:, :1], -torch.inf).expand(-1, classes - logits.shape[1], -1, -1)
    return torch.cat([logits, filling], dim=1)


def _mean_field(crf: DenseCRF, images: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Mean field of a batch on its device; images (N,H,W,3), logits and result (N,R,K,H,W)."""
    batch, models, classes, _, _ = logits.shape
    terms = list(_messages(crf, images))
    unary = logits.reshape(batch, models, classes, -1).permute(0, 3, 1, 2)
    q = unary.softmax(dim=3)
    for _ in range(crf.iterations if terms else 0):
        before = q
        brought = sum(weight * send(q.flatten(2)) for send, weight in terms)
        q = (unary + torch.as_tensor(brought).view(q.shape)).softmax(dim=3)
        if crf.tolerance > 0 and bool((q - before).abs().max() < crf.tolerance):
            break
    return q.permute(0, 2, 3, 1).reshape(logits.shape)


def _messages(crf: DenseCRF, images: torch.Tensor) -> Iterator[tuple[Callable[[torch.Tensor], torch.Tensor], float]]:
    """The filters of images (N,H,W,3), which take (N,H*W,K), and their weights."""
    if crf.gaussian_weight > 0:
        how = (crf.gaussian_sigma, crf.backend, images.device, torch.are_deterministic_algorithms_enabled())
        yield _position_filter(tuple(images.shape[:3]), *how).apply, crf.gaussian_weight
    if crf.bilateral_weight > 0:
        colour = position_colour_features(images.permute(0, 3, 1, 2), crf.bilateral_sigma_xy, crf.bilateral_sigma_rgb)
        yield GaussianFilter(colour, crf.backend, normalization="symmetric").apply, crf.bilateral_weight


@lru_cache(maxsize=4)
def _position_filter(
    shape: tuple[int, int, int], sigma: float, backend: str, device: torch.device, deterministic: bool
) -> GaussianFilter:
    """That of all batches of a shape (N,H,W): building it makes a GPU wait, and training steps have one shape."""
    del deterministic  # chooses the kernel of the filter
    batch, height, width = shape
    features = position_features(height, width, sigma, device).expand(batch, -1, -1)
    return GaussianFilter(features, backend, normalization="symmetric")


def _pydensecrf(crf: DenseCRF, item: _Item) -> torch.Tensor:
    try:
        import pydensecrf.densecrf as package
    except ImportError:
        raise RRMError(
            "DenseCRF backend: expected pydensecrf to be installed, it is not: pip install pydensecrf2, or use backend "
            "'lattice', which gives the same"
        ) from None
    _, classes, height, width = item.probs.shape
    _check_short_keys(crf, height, width)
    if classes == 1:
        return torch.ones_like(item.probs)
    results = []
    _check_all_finite([item.probs])
    for logits in item.logits(crf.temperature).cpu():
        model = package.DenseCRF2D(width, height, classes)
        model.setUnaryEnergy((-logits).reshape(classes, -1).contiguous().numpy())
        if crf.gaussian_weight > 0:
            model.addPairwiseGaussian(sxy=crf.gaussian_sigma, compat=crf.gaussian_weight)
        if crf.bilateral_weight > 0:
            photo = np.require(item.image.cpu().numpy(), requirements=("C", "W"))
            sigmas = {"sxy": crf.bilateral_sigma_xy, "srgb": crf.bilateral_sigma_rgb}
            model.addPairwiseBilateral(**sigmas, rgbim=photo, compat=crf.bilateral_weight)
        results.append(torch.from_numpy(np.array(model.inference(crf.iterations), np.float32)))
    return torch.stack(results).view(item.probs.shape).to(item.probs.device)


def unary_energy(probs: torch.Tensor) -> torch.Tensor:
    """Give -log(clip(probs, 1e-5, 1)), the shape and dtype of `probs`.

    Example:
        >>> unary_energy(torch.ones(1)).item()
        -0.0
    """
    return -probs.clamp(PROBABILITY_FLOOR, 1.0).log()


def _check_number(name: str, value: Any, positive: bool) -> None:
    lowest = 1 / _LARGEST_NUMBER if positive else 0
    if not isinstance(value, (int, float)) or not lowest <= value <= _LARGEST_NUMBER:
        raise RRMError(
            f"DenseCRF {name}: expected a number of {lowest:g} to {_LARGEST_NUMBER:g}, got {value!r}: change it"
        )


def _dimensions(array: Any, name: str) -> int:
    return to_tensor(array, name).ndim


def _check_short_keys(crf: DenseCRF, height: int, width: int) -> None:
    reach = max(max(height, width) / min(crf.gaussian_sigma, crf.bilateral_sigma_xy), 255.0 / crf.bilateral_sigma_rgb)
    if reach > _LARGEST_COORDINATE:
        raise RRMError(
            f"DenseCRF: expected coordinates of at most {_LARGEST_COORDINATE:.0f} standard deviations with backend "
            f"'pydensecrf', got {reach:.0f} for an image of {height}x{width}: use larger sigmas or backend 'lattice'"
        )


def _check_finite(smallest: Any, largest: Any) -> None:
    """Refuse probabilities by their bounds; NaN anywhere makes both NaN."""
    if not (np.isfinite(float(smallest)) and np.isfinite(float(largest))):
        raise RRMError("probs: expected finite numbers, got NaN or infinity: look at what made them")


def _check_all_finite(probs: Sequence[torch.Tensor]) -> None:
    """`_check_finite` of several tensors, with one look at all that are on one device: each makes a GPU wait."""
    for device in {each.device for each in probs}:
        bounds = [torch.stack(each.aminmax()) for each in probs if each.device == device]
        lowest, highest = torch.stack(torch.stack(bounds).aminmax()).tolist()
        _check_finite(lowest, highest)


def _check_probabilities(probs: torch.Tensor, size: tuple[int, ...]) -> None:
    if probs.ndim not in (3, 4) or 0 in probs.shape or tuple(probs.shape[-2:]) != size:
        raise RRMError(
            f"probs: expected shape (K,{size[0]},{size[1]}) with K >= 1 to fit the image, or (R,K,...) for R CRFs, "
            f"got {tuple(probs.shape)}: resize them to the image; a batch needs (N,H,W,3) and (N,K,H,W)"
        )
    if probs.dtype not in FLOATING:
        raise RRMError(
            f"probs: expected a floating dtype of 16 to 64 bits, got {probs.dtype}: pass probabilities in 0..1"
        )
