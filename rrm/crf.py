"""Fully connected CRF by mean field (Krähenbühl and Koltun 2011), the CRF(I, P) of the paper's Eq. 5.

The unary term is -log(clip(p, 1e-5, 1)); the two pairwise terms are Potts models over Gaussian kernels, one
on the position, one on position and colour, each normalised symmetrically:

    E(x) = sum_i -log p_i(x_i) + sum_ij [x_i != x_j] (w_g k_g(i, j) + w_b k_b(i, j))
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from rrm.errors import RRMError

Array = TypeVar("Array", npt.NDArray[Any], torch.Tensor)
FloatArray = npt.NDArray[np.float32]

PROBABILITY_FLOOR = 1e-5
_BACKENDS = ("pydensecrf",)
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


def to_numpy(array: npt.NDArray[Any] | torch.Tensor, name: str) -> npt.NDArray[Any]:
    """Give `array` as NumPy with its dtype kept (bfloat16 becomes float32); NumPy and (detached) torch are
    taken, nothing else.

    Example:
        >>> to_numpy(torch.ones(2), "scores")
        array([1., 1.], dtype=float32)
    """
    if isinstance(array, torch.Tensor):
        plain = array.detach().cpu()
        return plain.float().numpy() if plain.dtype == torch.bfloat16 else plain.numpy()
    if isinstance(array, np.ndarray):
        return array
    raise RRMError(f"{name}: expected a NumPy array or a torch tensor, got {type(array).__name__}: convert it first")


def like(result: npt.NDArray[Any], template: Array) -> Array:
    """Give `result` in the kind (and on the device) of `template`.

    Example:
        >>> like(np.zeros(2), torch.ones(1))
        tensor([0., 0.], dtype=torch.float64)
    """
    if isinstance(template, torch.Tensor):
        return torch.from_numpy(result).to(template.device)
    return result


def check_photo(image: npt.NDArray[Any], name: str = "image") -> None:
    """Refuse anything but a non-empty (H,W,3) uint8 array.

    Raises:
        RRMError: wrong shape or dtype.

    Example:
        >>> check_photo(np.zeros((4, 5, 3), np.uint8))
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise RRMError(
            f"{name}: expected shape (H,W,3) with H, W >= 1, got {tuple(image.shape)}: pass RGB, channels last"
        )
    if image.dtype != np.uint8:
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
        backend: "pydensecrf", or "auto", which means the same in this release.

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

    def __post_init__(self) -> None:
        for name in ("gaussian_sigma", "bilateral_sigma_xy", "bilateral_sigma_rgb"):
            _check_number(name, getattr(self, name), positive=True)
        for name in ("gaussian_weight", "bilateral_weight"):
            _check_number(name, getattr(self, name), positive=False)
        if int(self.iterations) != self.iterations or self.iterations < 0:
            raise RRMError(f"DenseCRF iterations: expected an integer >= 0, got {self.iterations!r}: use 10")
        if self.backend not in ("auto", *_BACKENDS):
            raise RRMError(
                f"DenseCRF backend: expected one of auto, {', '.join(_BACKENDS)}, got {self.backend!r}: use auto"
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

    def __call__(self, image: Array, probs: Array) -> Array:
        """Run mean field.

        Args:
            image: (H,W,3) uint8 RGB, or a batch (N,H,W,3); NumPy or torch.
            probs: (K,H,W) float, or (N,K,H,W); class probabilities in 0..1, clipped to 1e-5..1. They need not
                sum to one: a factor common to all classes of a pixel changes nothing.

        Returns:
            q: the shape and kind of `probs`, float32, sums to one over K. With K = 1 it is one everywhere.

        Raises:
            RRMError: shape, dtype or value of an input is wrong.
        """
        photo, scores = to_numpy(image, "image"), to_numpy(probs, "probs")
        if scores.ndim == 4 and photo.ndim == 4:
            if len(photo) != len(scores):
                raise RRMError(f"DenseCRF batch: expected as many images as probs, got {len(photo)} and {len(scores)}")
            result = np.zeros(scores.shape, np.float32)
            for item in range(len(scores)):
                result[item] = self._single(photo[item], scores[item])
            return like(result, probs)
        return like(self._single(photo, scores), probs)

    def _single(self, image: npt.NDArray[Any], probs: npt.NDArray[Any]) -> FloatArray:
        check_photo(image)
        _check_probabilities(probs, image.shape[:2])
        self._check_range(image)
        if len(probs) == 1:
            return np.ones(probs.shape, np.float32)
        return self._mean_field(image, unary_energy(probs))

    def _check_range(self, image: npt.NDArray[Any]) -> None:
        smallest_xy = min(self.gaussian_sigma, self.bilateral_sigma_xy)
        reach = max(max(image.shape[:2]) / smallest_xy, 255.0 / self.bilateral_sigma_rgb)
        if reach > _LARGEST_COORDINATE:
            raise RRMError(
                f"DenseCRF: expected coordinates of at most {_LARGEST_COORDINATE:.0f} standard deviations, "
                f"got {reach:.0f} for an image of {image.shape[0]}x{image.shape[1]}: use larger sigmas"
            )

    def _mean_field(self, image: npt.NDArray[Any], unary: FloatArray) -> FloatArray:
        import pydensecrf.densecrf

        classes, height, width = unary.shape
        model = pydensecrf.densecrf.DenseCRF2D(width, height, classes)
        model.setUnaryEnergy(unary.reshape(classes, -1))
        if self.gaussian_weight > 0:
            model.addPairwiseGaussian(sxy=self.gaussian_sigma, compat=self.gaussian_weight)
        if self.bilateral_weight > 0:
            model.addPairwiseBilateral(
                sxy=self.bilateral_sigma_xy,
                srgb=self.bilateral_sigma_rgb,
                rgbim=np.require(image, requirements=("C", "W")),
                compat=self.bilateral_weight,
            )
        return np.array(model.inference(self.iterations), np.float32).reshape(unary.shape)


def unary_energy(probs: npt.NDArray[Any]) -> FloatArray:
    """Give -log(clip(probs, 1e-5, 1)) as C-contiguous float32, the shape of `probs`.

    Example:
        >>> float(unary_energy(np.ones((1, 1, 1)))[0, 0, 0])
        -0.0
    """
    return np.ascontiguousarray(-np.log(np.clip(probs, PROBABILITY_FLOOR, 1.0)), dtype=np.float32)


def _check_number(name: str, value: Any, positive: bool) -> None:
    ok = isinstance(value, (int, float)) and np.isfinite(value) and (value > 0 if positive else value >= 0)
    if not ok:
        raise RRMError(
            f"DenseCRF {name}: expected a finite number {'>' if positive else '>='} 0, got {value!r}: change it"
        )


def _check_probabilities(probs: npt.NDArray[Any], size: tuple[int, ...]) -> None:
    if probs.ndim != 3 or len(probs) == 0 or probs.shape[1:] != size:
        raise RRMError(
            f"probs: expected shape (K,{size[0]},{size[1]}) with K >= 1 to fit the image, got "
            f"{tuple(probs.shape)}: resize them to the image; a batch needs (N,H,W,3) and (N,K,H,W)"
        )
    if not np.issubdtype(probs.dtype, np.floating):
        raise RRMError(f"probs: expected a floating dtype, got {probs.dtype}: pass probabilities in 0..1")
    if not np.isfinite(probs).all():
        raise RRMError("probs: expected finite numbers, got NaN or infinity: look at what made them")
