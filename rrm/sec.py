"""Losses of SEC: expansion by global weighted rank pooling, and constraint to boundaries.

    G_c(d) = sum_j d^(j-1) f_(j),c / sum_j d^(j-1)                 f sorted from the highest to the lowest, per class
    L_expand    = -mean_{c in Z} log G_c(d+) - mean_{c not in Z} log(1 - G_c(d-)) - log G_bg(d_bg)
    L_constrain = mean_i sum_c Q_c(i) log(Q_c(i) / f_c(i))         Q the dense CRF's output for f

Source: Kolesnikov and Lampert, "Seed, expand and constrain: three principles for weakly-supervised image segmentation",
ECCV 2016, section 3. DSRG (Huang et al. 2018) has the same L_constrain.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from rrm.crf import DenseCRF
from rrm.errors import RRMError

REFERENCE_PIXELS = 41 * 41
"""Size of the published network's map, for which the decays are given."""
_LEAST = 1e-5  # of a probability in a logarithm


def rank_pooled(probabilities: torch.Tensor, decay: float, valid: torch.Tensor | None = None) -> torch.Tensor:
    """Global weighted rank pooling: a mean in which the k-th highest value counts `decay` as much as the one before.

    The decay is that of a map of 41x41 pixels. For P pixels its power 1681 / P is used, so that the same share of an
    image has the same say at any size of the map.

    Args:
        probabilities: (N,K,H,W) float.
        decay: 0 (maximum) to 1 (mean); in between, values down to rank 1 / (1 - decay) of 1681 have most of the say.
        valid: (N,H,W) bool, False marks padding, which is left out; None: there is none.

    Returns:
        (N,K), the dtype of `probabilities`; differentiable. 0 for an image without a valid pixel.

    Raises:
        RRMError: a shape is wrong or the decay is out of range.

    Example:
        >>> maps = torch.tensor([[[[0.2, 0.6]]]])
        >>> [round(rank_pooled(maps, decay).item(), 2) for decay in (0.0, 1.0)]
        [0.6, 0.4]
    """
    if not 0 <= decay <= 1:
        raise RRMError(f"rank pooling decay: expected 0 to 1, got {decay!r}: SEC's are 0.996, 0.999 and 0.99")
    if probabilities.ndim != 4 or (valid is not None and valid.shape != probabilities[:, 0].shape):
        raise RRMError(
            f"rank pooling: expected (N,K,H,W) and valid (N,H,W), got {tuple(probabilities.shape)} and "
            f"{None if valid is None else tuple(valid.shape)}"
        )
    values = probabilities.flatten(2)
    counted = torch.ones_like(values[:, 0], dtype=torch.bool) if valid is None else valid.flatten(1)
    counts = counted.sum(dim=1)[:, None]
    ranks = torch.arange(values.shape[2], device=values.device)
    powers = decay ** (ranks * (REFERENCE_PIXELS / counts.clamp(min=1)))
    weights = (powers * (ranks < counts)).to(values.dtype)
    ordered = values.masked_fill(~counted[:, None], -torch.inf).sort(dim=2, descending=True).values
    ordered = ordered.masked_fill(ordered == -torch.inf, 0)
    return (ordered * weights[:, None]).sum(dim=2) / weights.sum(dim=1, keepdim=True).clamp(min=1)


def expansion_loss(
    probabilities: torch.Tensor,
    present: torch.Tensor,
    valid: torch.Tensor | None = None,
    foreground_decay: float = 0.996,
    absent_decay: float = 0.999,
    background_decay: float = 0.99,
) -> torch.Tensor:
    """SEC's expansion loss: the image's classes have some area each, the others have none.

    Args:
        probabilities: (N,C+1,H,W) float, background first.
        present: (N,C); a class is among the image's labels where the value is above 0.
        valid: (N,H,W) bool, False marks padding, which is left out; None: there is none.
        foreground_decay: d+, of `rank_pooled`.
        absent_decay: d-.
        background_decay: d_bg.

    Returns:
        Scalar >= 0, mean over images that have a valid pixel. A mean over no class is 0. Probabilities in logarithms
        are at least 1e-5.

    Raises:
        RRMError: shapes do not fit or a decay is out of range.

    Example:
        >>> round(expansion_loss(torch.full((1, 2, 4, 4), 0.5), torch.ones(1, 1)).item(), 4)
        1.3863
    """
    if probabilities.ndim != 4 or tuple(present.shape) != (len(probabilities), probabilities.shape[1] - 1):
        raise RRMError(
            f"expansion loss: expected probabilities (N,C+1,H,W) and labels (N,C), got {tuple(probabilities.shape)} "
            f"and {tuple(present.shape)}"
        )
    shown, classes = present > 0, probabilities[:, 1:]
    inside = -rank_pooled(classes, foreground_decay, valid).clamp(min=_LEAST).log()
    outside = -(1 - rank_pooled(classes, absent_decay, valid)).clamp(min=_LEAST).log()
    background = -rank_pooled(probabilities[:, :1], background_decay, valid).clamp(min=_LEAST).log()[:, 0]
    each = _mean_where(inside, shown) + _mean_where(outside, ~shown) + background
    seen = torch.ones_like(each) if valid is None else valid.flatten(1).any(dim=1).to(each)
    return (each * seen).sum() / seen.sum().clamp(min=1)


def boundary_loss(
    logits: torch.Tensor, images: torch.Tensor, crf: DenseCRF, valid: torch.Tensor | None = None
) -> torch.Tensor:
    """Divergence of the segmentation from what a dense CRF makes of it.

    The photos are reduced to the size of the map, and so are the standard deviations of the CRF's positions. No
    gradient goes through the CRF: its output is a target.

    Args:
        logits: (N,K,h,w) float32.
        images: (N,3,H,W), 0..255 RGB.
        crf: for photos of the size of `images`; SEC's is `DenseCRF.preset("psa")`.
        valid: (N,h,w) bool, False marks padding, which is left out of the mean; None: there is none.

    Returns:
        Scalar >= 0, mean over valid pixels; 0 where there are none.

    Raises:
        RRMError: shapes do not fit.

    Example:
        >>> boundary_loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 8, 8), DenseCRF(iterations=2)).item()
        0.0
    """
    if logits.ndim != 4 or images.ndim != 4 or len(logits) != len(images):
        raise RRMError(
            f"boundary loss: expected logits (N,K,h,w) and images (N,3,H,W), got {tuple(logits.shape)} and "
            f"{tuple(images.shape)}"
        )
    size = (int(logits.shape[2]), int(logits.shape[3]))
    log_probabilities = logits.log_softmax(dim=1)
    with torch.no_grad():
        photos = F.interpolate(images.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
        shrunk = photos.round().clamp(0, 255).byte().permute(0, 2, 3, 1)
        factor = max(size) / max(images.shape[2:])
        smaller = replace(crf.scaled(factor), gaussian_sigma=crf.gaussian_sigma * factor)
        target = smaller(shrunk.contiguous(), log_probabilities.exp())
    divergence = (torch.xlogy(target, target) - target * log_probabilities).sum(dim=1)
    if valid is None:
        return divergence.mean()
    return (divergence * valid).sum() / valid.sum().clamp(min=1)


def _mean_where(values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Mean of the chosen values (N,C) of each row, 0 where none is."""
    return (values * chosen).sum(dim=1) / chosen.sum(dim=1).clamp(min=1)
