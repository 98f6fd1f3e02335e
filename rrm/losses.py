"""Losses: classification, cross-entropy on reliable pixels, dense energy, and their joint loss (Eq. 8-14).

    L_joint  = L_ce + L_energy                                                 Eq. 8
    E(i, j)  = G(i, j) sum_c P_c(i) (1 - P_c(j))                                Eq. 12
    L_energy = sum_i S(i) sum_{j != i} E(i, j)                                  Eq. 13
    S(i)     = 1 - max_c P_c(i) where i is labelled, else 1                     Eq. 14

The authors' code drops the constant of Eq. 12 (hence negative values), keeps j = i, does not normalise G, and
passes back a gradient that is not the derivative. `DenseEnergyLoss` has a switch for each.
"""

from __future__ import annotations

from functools import partial
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from rrm.errors import RRMError
from rrm.gaussian import FLOATING, GaussianFilter, has_compiled_lattice, position_colour_features
from rrm.labels import IGNORE
from rrm.parallel import map_in_threads, run_ranges
from rrm.terms import Term

_CLASSIFICATION = ("multilabel-soft-margin", "softmax")
_CROSS_ENTROPY = ("balanced", "mean", "sum")
_FORMS = ("reference", "paper")
_GRADIENTS = ("reference", "exact")
_NORMALIZATIONS = ("none", "row", "mean")
_BACKENDS = ("auto", "lattice", "exact")
_LARGEST_NUMBER = 1e12  # of an option, and its inverse the smallest: what is made of them stays finite in float32


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, kind: str = "multilabel-soft-margin"
) -> torch.Tensor:
    """Loss of the classification branch against image-level labels.

    Args:
        logits: (N,C) float.
        labels: (N,C) multi-hot, 0 or 1, any dtype.
        kind: "multilabel-soft-margin" (the authors' code: one logistic loss a class, averaged) or "softmax"
            (the paper's words: cross-entropy against the labels divided by their number; images without
            labels add nothing).

    Returns:
        Scalar, mean over images; differentiable.

    Raises:
        RRMError: shapes differ or the kind is unknown.

    Example:
        >>> round(classification_loss(torch.zeros(1, 2), torch.tensor([[1, 0]])).item(), 4)
        0.6931
    """
    _check_choice("classification loss kind", kind, _CLASSIFICATION)
    if logits.ndim != 2 or logits.shape != labels.shape:
        raise RRMError(
            f"classification loss: expected logits and labels (N,C), got {_shape(logits)} and {_shape(labels)}"
        )
    scores, target = logits.float() if logits.dtype != torch.float64 else logits, labels.to(logits.device)
    if kind == "multilabel-soft-margin":
        return F.multilabel_soft_margin_loss(scores, target.to(scores.dtype))
    share = target.to(scores.dtype) / target.sum(dim=1, keepdim=True).clamp(min=1)
    return -(share * scores.log_softmax(dim=1)).sum(dim=1).mean()


def balanced_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, mode: str = "balanced") -> torch.Tensor:
    """Cross-entropy over labelled pixels (Eq. 9).

    Args:
        logits: (N,K,H,W) float, background first.
        labels: (N,H,W) integer: 0 background, 1..K-1 foreground, 255 ignored.
        mode: "balanced" is the mean over labelled background plus the mean over labelled foreground (the
            authors' code), "mean" the mean over all labelled pixels, "sum" their sum (Eq. 9; grows with crop
            and batch).

    Returns:
        Scalar. A mean over no pixel is zero with zero gradient (the authors' code gives NaN there).

    Raises:
        RRMError: shapes do not fit, labels are no integers or above K-1, or the mode is unknown.

    Example:
        >>> labels = torch.tensor([[[0, 1, 255]]])
        >>> round(balanced_cross_entropy(torch.zeros(1, 2, 1, 3), labels).item(), 4)
        1.3863
    """
    return cross_entropy_term(logits, labels, mode).total


def cross_entropy_term(logits: torch.Tensor, labels: torch.Tensor, mode: str = "balanced") -> Term:
    """`balanced_cross_entropy` of a part of a batch: its means over pixels, of which the parts have different numbers.

    Args:
        logits, labels, mode: as there.

    Returns:
        `Term` of two means ("balanced"), one ("mean") or a sum.

    Raises:
        RRMError: as there.

    Example:
        >>> labels = torch.tensor([[[0, 1, 255, 1]]])
        >>> cross_entropy_term(torch.zeros(1, 2, 1, 4), labels).counts.tolist()
        [1.0, 2.0]
    """
    _check_choice("cross-entropy mode", mode, _CROSS_ENTROPY)
    target = _checked_labels(logits, labels)
    scores = logits if logits.dtype == torch.float64 else logits.float()
    pixels = F.cross_entropy(scores, target, ignore_index=IGNORE, reduction="none")
    if mode == "sum":
        return Term(pixels.sum().reshape(1), None)
    means = [_masked_mean(pixels, mask) for mask in _averaged(target, mode)]
    return Term(torch.stack(means), cross_entropy_counts(target, mode))


def cross_entropy_counts(labels: torch.Tensor, mode: str) -> torch.Tensor | None:
    """The counts of `cross_entropy_term`, (2,) or (1,) float64, without its means; None for the mode "sum"."""
    if mode == "sum":
        return None
    return torch.stack([mask.sum() for mask in _averaged(labels, mode)]).double()


def _averaged(labels: torch.Tensor, mode: str) -> list[torch.Tensor]:
    """The pixels of each mean, (N,H,W) bool."""
    if mode == "mean":
        return [labels != IGNORE]
    return [labels == 0, (labels != 0) & (labels != IGNORE)]


class DenseEnergyLoss(nn.Module):
    """Gated dense energy: close pixels of like colour should agree, most of all where no label holds them
    (Eq. 10-14).

    With s the masked softmax, g the gate S(i) and W the Gaussian kernel, the value of one image is -sum_i g_i
    s_i . (W s)_i ("reference") or sum_i g_i (r_i (W r)_i - s_i . (W s)_i) ("paper", r the valid mask, >= 0).
    Images are averaged.

    Args:
        weight: factor of the loss. 1e-7 holds for 321-pixel crops at scale 0.5, `normalize="none"` and the
            lattice: the sums run over pixels, and an exact kernel is about 1.7 times the lattice's.
        sigma_rgb: colour standard deviation, levels of 0..255. The paper's text has the two sigmas swapped.
        sigma_xy: position standard deviation, pixels of the images as passed in; follows `scale` or `grid`.
        scale: everything is computed at this share of the size, in (0, 1]: images, mask, labels by nearest,
            probabilities bilinearly.
        gradient: "reference" is -2 g (W s) / N, which ignores that the gate breaks the kernel's symmetry (not
            the derivative of the value: relative distance about 0.2, cosine 0.99); "exact" is the derivative.
        backend: "lattice", "exact", or "auto": exact with `grid` or without `include_self`, else the lattice.
        form: "reference" or "paper", the value above. Sets the defaults of the next two.
        normalize: "none", "row" (each row of W sums to one over valid pixels) or "mean" (W divided by an
            image's mean row sum). None means "none" for the form "reference", "row" for "paper".
        include_self: whether j = i counts. None means True for "reference", False for "paper". False needs
            the exact kernel.
        grid: number of rows and columns, or (rows, columns), of a fixed grid instead of `scale`: images and
            probabilities are averaged onto it. Fast on a CPU at 32; with "row" a weight of about 2 is in
            balance with the cross-entropy, whatever the crop.
        average_pixels: whether an image's sum is divided by its number of pixels at the working size. None
            means True with `grid`, else False (the authors' code).
        gate: the soft filter S of Eq. 14. False: 1 at every pixel, labelled or not, which is the regularised loss of
            Tang et al. (2018).
        differentiate_gate: for `gradient="exact"`: whether the gate's own derivative is part of it. False
            holds the gate fixed: -(g (W s) + W^T (g s)) / N.

    Raises:
        RRMError: an argument or an input is out of range; the message names it.

    Source:
        Zhang et al., AAAI 2020; Tang et al., ECCV 2018.

    Example:
        >>> loss = DenseEnergyLoss(weight=1.0)
        >>> images, probs = torch.zeros(1, 3, 8, 8), torch.full((1, 2, 8, 8), 0.5)
        >>> bool(loss(images, probs, torch.ones(1, 8, 8, dtype=torch.bool), torch.full((1, 8, 8), 255)) < 0)
        True
    """

    def __init__(
        self,
        weight: float = 1e-7,
        sigma_rgb: float = 15,
        sigma_xy: float = 100,
        scale: float = 0.5,
        gradient: str = "reference",
        backend: str = "auto",
        *,
        form: str = "reference",
        normalize: str | None = None,
        include_self: bool | None = None,
        grid: int | tuple[int, int] | None = None,
        average_pixels: bool | None = None,
        gate: bool = True,
        differentiate_gate: bool = True,
    ) -> None:
        super().__init__()
        _check_choice("energy form", form, _FORMS)
        self.weight, self.sigma_rgb, self.sigma_xy, self.scale = weight, sigma_rgb, sigma_xy, scale
        self.gradient, self.form = gradient, form
        self.gate, self.differentiate_gate = gate, differentiate_gate
        self.normalize = normalize if normalize is not None else ("none" if form == "reference" else "row")
        self.include_self = include_self if include_self is not None else form == "reference"
        self.grid = (grid, grid) if isinstance(grid, int) else grid
        self.average_pixels = average_pixels if average_pixels is not None else self.grid is not None
        fast = self.grid is None and self.include_self
        self.backend = backend if backend != "auto" else ("lattice" if fast else "exact")
        self._check_options(backend)

    def extra_repr(self) -> str:
        """Give all switches, for printing the module."""
        names = (
            "weight",
            "sigma_rgb",
            "sigma_xy",
            "scale",
            "gradient",
            "backend",
            "form",
            "normalize",
            "include_self",
        )
        every = (*names, "grid", "average_pixels", "gate", "differentiate_gate")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in every)

    def forward(
        self,
        images: torch.Tensor,
        probs: torch.Tensor,
        valid: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute the loss.

        Args:
            images: (N,3,H,W), 0..255 RGB; uint8 or float; no gradient reaches them.
            probs: (N,K,H,W) softmax; with `grid` any height and width will do.
            valid: (N,H,W) bool (or 0 and 1), False marks padding; None means no padding.
            labels: (N,H,W) integer, 255 = unlabelled; only that matters. None means all unlabelled (gate 1).

        Returns:
            Scalar `weight` * mean over images; float32, or float64 for float64 probabilities. It is not finite where
            probabilities or mask are not: a look at the values would make a GPU wait, and the loop looks at the losses.

        Raises:
            RRMError: kinds or shapes do not fit one another, or images hold NaN or infinity.
        """
        self._check_inputs(images, probs, valid, labels)
        with torch.autocast(device_type=probs.device.type, enabled=False):
            dtype = torch.float64 if probs.dtype == torch.float64 else torch.float32
            given = (valid, labels if self.gate else None)
            maps = [None if each is None else each.detach().to(probs.device) for each in given]
            scene, scores = self._shrink(images.detach().to(probs.device), probs.to(dtype), *maps)
            value = self._value(scene, scores)
            return value * (self.weight / (scores.shape[2] * scores.shape[3]) if self.average_pixels else self.weight)

    def _value(self, scene: _Scene, scores: torch.Tensor) -> torch.Tensor:
        """Mean energy of a batch, scores (N,K,h,w)."""
        value: torch.Tensor
        if self.backend == "lattice" and scores.device.type == "cpu" and has_compiled_lattice():
            options = (self.form == "paper", self.normalize, self.gradient == "exact", self.differentiate_gate)
            value = _CompiledEnergy.apply(scores, scene, self.sigma_rgb, options)
        else:
            features = position_colour_features(scene.images.to(scores.dtype), scene.sigmas_xy, self.sigma_rgb)
            mask, labelled = scene.mask(scores.dtype), scene.labelled()
            kernel = _Kernel(GaussianFilter(features, self.backend, self.include_self), self.normalize, mask)
            flat = scores.flatten(2).transpose(1, 2)
            value = _Energy.apply(flat, kernel, mask, labelled, self.form, self.gradient, self.differentiate_gate)
        return value

    def _shrink(
        self, images: torch.Tensor, probs: torch.Tensor, valid: torch.Tensor | None, labels: torch.Tensor | None
    ) -> tuple[_Scene, torch.Tensor]:
        """Bring all to the working size; the probabilities become (N,K,h,w)."""
        if self.grid is None:
            sigma = self.sigma_xy * self.scale
            images, valid, labels = (_nearest(each, self.scale) for each in (images, valid, labels))
            if self.scale != 1:
                probs = _halved(probs) if self.scale == 0.5 else _scaled(probs, self.scale)
            return _Scene(images, (sigma, sigma), valid, labels), probs
        rows, columns = self.grid
        sigmas = (self.sigma_xy * columns / images.shape[3], self.sigma_xy * rows / images.shape[2])
        images = F.adaptive_avg_pool2d(images.to(probs.dtype), self.grid)
        probs = probs if tuple(probs.shape[2:]) == self.grid else F.adaptive_avg_pool2d(probs, self.grid)
        valid, labels = (
            None if each is None else F.interpolate(each[:, None].to(probs.dtype), size=self.grid)[:, 0]
            for each in (valid, labels)
        )
        return _Scene(images, sigmas, valid, labels), probs

    def _check_options(self, backend: str) -> None:
        _check_choice("energy gradient", self.gradient, _GRADIENTS)
        _check_choice("energy backend", backend, _BACKENDS)
        _check_choice("energy normalize", self.normalize, _NORMALIZATIONS)
        for name in ("sigma_rgb", "sigma_xy"):
            if not _is_within(getattr(self, name), 1 / _LARGEST_NUMBER, _LARGEST_NUMBER):
                raise RRMError(
                    f"energy {name}: expected a number of {1 / _LARGEST_NUMBER:g} to {_LARGEST_NUMBER:g}, got "
                    f"{getattr(self, name)!r}: the default is a good start"
                )
        if not _is_within(self.weight, 0, _LARGEST_NUMBER):
            raise RRMError(f"energy weight: expected a number >= 0, got {self.weight!r}: use 0 to switch it off")
        if not _is_within(self.scale, 0, 1) or self.scale == 0:
            raise RRMError(f"energy scale: expected a number in (0, 1], got {self.scale!r}: the authors use 0.5")
        if self.grid is not None and not _is_grid(self.grid):
            raise RRMError(f"energy grid: expected an integer >= 2, two of them, or None, got {self.grid!r}: use 32")
        if self.backend == "lattice" and not self.include_self:
            raise RRMError("energy include_self: expected True with backend 'lattice', got False: use backend 'exact'")

    def _check_inputs(
        self,
        images: torch.Tensor,
        probs: torch.Tensor,
        valid: torch.Tensor | None,
        labels: torch.Tensor | None,
    ) -> None:
        for name, each in (("images", images), ("probs", probs), ("valid", valid), ("labels", labels)):
            _check_tensor(name, each, optional=name in ("valid", "labels"))
        if probs.dtype not in FLOATING:
            raise RRMError(f"energy probs: expected a floating dtype of 16 to 64 bits, got {probs.dtype}: use float32")
        shapes_fit = images.ndim == probs.ndim == 4 and images.shape[1] == 3 and len(images) == len(probs)
        if not shapes_fit or 0 in images.shape or 0 in probs.shape:
            raise RRMError(
                f"energy: expected images (N,3,H,W) and probs (N,K,H,W), got {_shape(images)} and {_shape(probs)}"
            )
        if self.grid is None and images.shape[2:] != probs.shape[2:]:
            raise RRMError(
                f"energy: expected probs of the images' size {_shape(images)[2:]}, got {_shape(probs)[2:]}: "
                "resize them, or use grid"
            )
        if self.grid is None and min(images.shape[2:]) * self.scale < 1:
            raise RRMError(
                f"energy: expected at least one pixel at scale {self.scale}, got images of {_shape(images)[2:]}"
            )
        expected = (len(images), *images.shape[2:])
        for name, each in (("valid", valid), ("labels", labels)):
            if each is not None and tuple(each.shape) != expected:
                raise RRMError(
                    f"energy {name}: expected shape {expected}, got {_shape(each)}: one value a pixel, no class axis"
                )


class JointLoss(NamedTuple):
    """Both parts of Eq. 8; `total` is what is minimised.

    Example:
        >>> JointLoss(torch.tensor(1.0), torch.tensor(-0.25)).total
        tensor(0.7500)
    """

    cross_entropy: torch.Tensor
    energy: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        """Sum of the parts."""
        return self.cross_entropy + self.energy


def joint_loss(
    logits: torch.Tensor,
    images: torch.Tensor,
    labels: torch.Tensor,
    valid: torch.Tensor | None = None,
    energy: DenseEnergyLoss | None = None,
    mode: str = "balanced",
) -> JointLoss:
    """Loss of the segmentation branch: cross-entropy plus dense energy (Eq. 8).

    Logits are resized bilinearly to the labels; with an energy on a fixed grid they are resized to that grid
    for the energy, which is much cheaper than taking the softmax at full size.

    Args:
        logits: (N,K,h,w) float, any stride.
        images: (N,3,H,W), 0..255 RGB.
        labels: (N,H,W) integer, 255 = unlabelled.
        valid: (N,H,W) bool, False marks padding: the energy alone looks at it, as in the authors' code.
        energy: the energy loss; None leaves it out (the CE rows of the paper's Tables 1 and 2).
        mode: of `balanced_cross_entropy`.

    Returns:
        `JointLoss` of two scalars; `.total` is their sum.

    Raises:
        RRMError: shapes do not fit.

    Example:
        >>> logits, images = torch.zeros(1, 2, 2, 2), torch.zeros(1, 3, 8, 8)
        >>> joint_loss(logits, images, torch.full((1, 8, 8), 255)).total
        tensor(0.)
    """
    size = (labels.shape[-2], labels.shape[-1])
    scores = logits if logits.dtype == torch.float64 else logits.float()
    full = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
    cross_entropy = balanced_cross_entropy(full, labels, mode)
    if energy is None:
        return JointLoss(cross_entropy, torch.zeros_like(cross_entropy))
    shown = (
        full if energy.grid is None else F.interpolate(scores, size=energy.grid, mode="bilinear", align_corners=False)
    )
    return JointLoss(cross_entropy, energy(images, shown.softmax(dim=1), valid, labels))


class _Scene(NamedTuple):
    """What the energy of a batch depends on beside the probabilities, at the working size, of any dtypes.

    `images` is (N,3,h,w), `sigmas_xy` its position standard deviations in x and y, `valid` (N,h,w) is 1 at pixels that
    are no padding, `labels` (N,h,w) 255 at those without a label; None stands for ones and for 255.
    """

    images: torch.Tensor
    sigmas_xy: tuple[float, float]
    valid: torch.Tensor | None
    labels: torch.Tensor | None

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        """1 at pixels that are no padding, (N,P)."""
        ones = torch.ones_like(self.images[:, 0], dtype=dtype)
        return (ones if self.valid is None else self.valid.to(dtype)).flatten(1)

    def labelled(self) -> torch.Tensor:
        """Whether pixels have a label, (N,P) bool."""
        none = torch.zeros_like(self.images[:, 0], dtype=torch.bool)
        return (none if self.labels is None else self.labels != IGNORE).flatten(1)

    def item(self, number: int) -> _Scene:
        """The scene of one image, a batch of one."""
        maps = (None if each is None else each[number : number + 1] for each in (self.valid, self.labels))
        return _Scene(self.images[number : number + 1], self.sigmas_xy, *maps)


class _Kernel:
    """W: a Gaussian filter, its rows divided by their sum over valid pixels, by the mean of those, or not."""

    def __init__(self, gaussian: GaussianFilter, normalize: str, mask: torch.Tensor) -> None:
        self._gaussian = gaussian
        self._divisor: torch.Tensor | None = None
        if normalize != "none":
            sums = gaussian.apply(mask[:, :, None]).clamp(min=0)
            if normalize == "mean":
                count = mask.sum(dim=1).clamp(min=1)[:, None, None]
                sums = (sums * mask[:, :, None]).sum(dim=1, keepdim=True) / count
            self._divisor = torch.where(sums > 0, 1 / sums, 0)

    def apply(self, values: torch.Tensor) -> torch.Tensor:
        """W v for (N,P,K) values."""
        filtered = self._gaussian.apply(values)
        return filtered if self._divisor is None else filtered * self._divisor

    def apply_transpose(self, values: torch.Tensor) -> torch.Tensor:
        """Transposed W times v."""
        return self._gaussian.apply_transpose(values if self._divisor is None else values * self._divisor)


class _CompiledEnergy(torch.autograd.Function):
    """`_Energy` on the compiled lattice, for scores (N,K,h,w); the gradient is made with the value.

    Threads share the images. There are no torch operations on whole batches: their threads would wait for one another
    where others use the processors too.
    """

    @staticmethod
    def forward(
        ctx: Any, scores: torch.Tensor, scene: _Scene, sigma_rgb: float, options: tuple[bool, str, bool, bool]
    ) -> torch.Tensor:
        from rrm.gaussian.energy_cpu import EnergyOptions, dense_energy
        from rrm.gaussian.lattice_cpu import PointLattice, pixel_features, thread_plan

        planes = scores.detach().contiguous().flatten(2)
        slope = torch.empty_like(planes) if ctx.needs_input_grad[0] else None
        outer, inner = thread_plan(len(planes))

        def energy(number: int) -> float:
            here, wanted = scene.item(number), None if slope is None else slope[number].numpy()
            features = pixel_features(here.images[0].permute(1, 2, 0).numpy(), scene.sigmas_xy, sigma_rgb)
            inputs = (planes[number].numpy(), here.mask(planes.dtype)[0].numpy(), here.labelled()[0].numpy())
            return dense_energy(PointLattice(features, inner), *inputs, EnergyOptions(*options), wanted, inner)

        total = sum(map_in_threads(energy, range(len(planes)), outer))
        ctx.slope, ctx.threads, ctx.shape = slope, outer, scores.shape
        return planes.new_tensor(total / len(planes))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        result = torch.empty_like(ctx.slope)
        here, there = ctx.slope.numpy(), result.numpy()
        factor = here.dtype.type(float(grad_output) / len(here))
        map_in_threads(lambda item: np.multiply(here[item], factor, out=there[item]), range(len(here)), ctx.threads)
        return (result.view(ctx.shape), None, None, None)


class _Energy(torch.autograd.Function):
    """Mean energy of a batch; scores (N,P,K), mask (N,P), labelled (N,P)."""

    @staticmethod
    def forward(
        ctx: Any,
        scores: torch.Tensor,
        kernel: _Kernel,
        mask: torch.Tensor,
        labelled: torch.Tensor,
        form: str,
        gradient: str,
        differentiate_gate: bool,
    ) -> torch.Tensor:
        if gradient == "exact" and differentiate_gate:
            strongest, winner = scores.max(dim=2)
        else:
            strongest, winner = scores.amax(dim=2), None
        gate = torch.where(labelled, (mask - strongest).clamp(min=0), 1.0)
        masked = scores * mask[:, :, None]
        filtered = kernel.apply(masked)
        pairs = -(masked * filtered).sum(dim=2)
        if form == "paper":
            pairs = pairs + mask * kernel.apply(mask[:, :, None])[:, :, 0]
        gate_slope = None if winner is None else pairs * (labelled & (gate > 0))
        ctx.save_for_backward(masked, filtered, gate, mask, winner, gate_slope)
        ctx.kernel, ctx.gradient = kernel, gradient
        total = (gate * pairs).sum(dtype=torch.float64) / len(scores)
        return total.to(scores.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        masked, filtered, gate, mask, winner, gate_slope = ctx.saved_tensors
        outer = -grad_output / len(masked)
        if ctx.gradient == "reference":
            slope = filtered * (2 * outer * gate * mask)[:, :, None]
        else:
            slope = ctx.kernel.apply_transpose(gate[:, :, None] * masked).addcmul(gate[:, :, None], filtered)
            slope *= (outer * mask)[:, :, None]
            if winner is not None:
                slope.scatter_add_(2, winner[:, :, None], (outer * gate_slope)[:, :, None])
        return (slope, None, None, None, None, None, None)


def _checked_labels(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    if logits.ndim != 4 or tuple(labels.shape) != (len(logits), *logits.shape[2:]):
        raise RRMError(
            f"cross-entropy: expected logits (N,K,H,W) and labels (N,H,W), got {_shape(logits)} and {_shape(labels)}"
        )
    if labels.is_floating_point():
        raise RRMError(f"cross-entropy labels: expected an integer dtype, got {labels.dtype}: convert with .long()")
    target = labels.to(logits.device, torch.int64)
    if target.device.type == "cpu":  # a look at the values would stall a GPU; its own assertion fires there
        wrong = target[(target != IGNORE) & ((target < 0) | (target >= logits.shape[1]))]
        if len(wrong):
            raise RRMError(
                f"cross-entropy labels: expected 0..{logits.shape[1] - 1} or 255, got {int(wrong[0])}: check "
                "num_classes"
            )
    return target


def _nearest(maps: Any, scale: float) -> Any:
    """Resize (...,H,W) by nearest neighbour; None stays None. A view where every n-th pixel is kept."""
    step = round(1 / scale)
    if maps is None or scale == 1:
        return maps
    if step * scale == 1:
        height, width = (int(size * scale) for size in maps.shape[-2:])
        return maps[..., ::step, ::step][..., :height, :width]
    resized = F.interpolate((maps if maps.ndim == 4 else maps[:, None]).float(), scale_factor=scale)
    return resized if maps.ndim == 4 else resized[:, 0]


def _scaled(maps: torch.Tensor, scale: float) -> torch.Tensor:
    return F.interpolate(maps, scale_factor=scale, mode="bilinear", align_corners=False)


def _halved(maps: torch.Tensor) -> torch.Tensor:
    """`_scaled` by 0.5, faster: cell centres lie between two pixels, so it is a mean of four."""
    if min(maps.shape[2:]) == 1:
        return _scaled(maps, 0.5)
    if maps.device.type != "cpu" or not has_compiled_lattice():
        return F.avg_pool2d(maps, 2)
    halved: torch.Tensor = _CompiledHalving.apply(maps)
    return halved


class _CompiledHalving(torch.autograd.Function):
    """Mean of each two by two pixels of (N,K,H,W); threads share the planes."""

    @staticmethod
    def forward(ctx: Any, maps: torch.Tensor) -> torch.Tensor:
        from rrm.gaussian.kernels import halve

        ctx.shape = maps.shape
        size = (maps.shape[2] // 2, maps.shape[3] // 2)
        result = maps.new_empty(*maps.shape[:2], *size)
        planes = maps.detach().contiguous().flatten(0, 1)
        run_ranges(partial(halve, planes.numpy(), result.flatten(0, 1).numpy()), len(planes), torch.get_num_threads())
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> torch.Tensor:
        from rrm.gaussian.kernels import halve_transposed

        result, planes = grad_output.new_empty(ctx.shape), grad_output.contiguous().flatten(0, 1)
        work = partial(halve_transposed, planes.numpy(), result.flatten(0, 1).numpy())
        run_ranges(work, len(planes), torch.get_num_threads())
        return result


def _masked_mean(pixels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (pixels * mask).sum() / mask.sum().clamp(min=1)


def _is_within(value: Any, lowest: float, highest: float) -> bool:
    number: Any = value if isinstance(value, Real) else None
    return number is not None and bool(lowest <= number <= highest)


def _is_grid(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(n, int) and n >= 2 for n in value)


def _check_tensor(name: str, given: Any, optional: bool) -> None:
    if given is None and optional:
        return
    if not isinstance(given, torch.Tensor):
        raise RRMError(f"energy {name}: expected a torch tensor, got {type(given).__name__}: use torch.from_numpy")
    if given.layout != torch.strided or given.is_meta or given.is_complex():
        raise RRMError(
            f"energy {name}: expected a dense real tensor, got {given.dtype}, {given.layout}, {given.device}"
        )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise RRMError(f"{name}: expected one of {', '.join(choices)}, got {value!r}: choose one of them")


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
