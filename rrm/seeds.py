"""Seeds: the few pixels whose class a classifier's activation maps show, and how they grow.

Sources: Kolesnikov and Lampert, "Seed, expand and constrain", ECCV 2016, section 3.3.1 (foreground seeds and their
conflicts); Huang, Wang, Wang, Liu and Wang, "Weakly-supervised semantic segmentation network with deep seeded region
growing", CVPR 2018, section 3.2 (growing). Both publications take seeds of background from a salience map, the second
from a model that was trained on masks of salient objects; here they are where all activation maps of the image's
classes are low, so that image-level labels remain the only supervision.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from rrm.errors import RRMError
from rrm.labels import IGNORE


def cam_seeds(
    cams: torch.Tensor,
    present: torch.Tensor,
    valid: torch.Tensor | None = None,
    foreground: float = 0.2,
    background: float = 0.05,
) -> torch.Tensor:
    """Labels of the pixels at which activation maps are high, or all of them low.

    A class has a seed where its map is above `foreground`; where several have, the one with the fewest such pixels in
    the image wins, the first of equals. Background is where no map of the image's classes reaches `background`.

    Args:
        cams: (N,C,H,W) float in 0..1, each map divided by its maximum (`rrm.cam.normalize_cam`).
        present: (N,C); a class is among the image's labels where the value is above 0.
        valid: (N,H,W) bool, False marks padding, which gets no seed; None: there is none.
        foreground: share of the maximum, 0..1; 0.2 in both publications.
        background: the same, 0..1, at most `foreground`.

    Returns:
        (N,H,W) int64: 0 background, 1..C class index + 1, 255 no seed. An image without labels is background.

    Raises:
        RRMError: a shape or number is wrong; the message names it.

    Example:
        >>> cam_seeds(torch.tensor([[[[1.0, 0.1, 0.0]]]]), torch.ones(1, 1)).tolist()
        [[[1, 255, 0]]]
    """
    _check_maps("seeds cams", cams, present, valid, extra=0)
    if not 0 <= background <= foreground <= 1:
        raise RRMError(
            f"seeds: expected 0 <= background <= foreground <= 1, got {background!r} and {foreground!r}: use 0.05, 0.2"
        )
    shown = cams * (present > 0).to(cams)[:, :, None, None]
    high = shown > foreground
    rarity = high.sum(dim=(2, 3), keepdim=True).masked_fill(~high, torch.iinfo(torch.int64).max)
    labels = rarity.argmin(dim=1) + 1
    labels = labels.masked_fill(~high.any(dim=1), IGNORE).masked_fill(shown.amax(dim=1) < background, 0)
    labels = labels.masked_fill((shown.amax(dim=(1, 2, 3)) == 0)[:, None, None], 0)
    return labels if valid is None else labels.masked_fill(~valid, IGNORE)


def grow_seeds(
    seeds: torch.Tensor,
    probabilities: torch.Tensor,
    present: torch.Tensor,
    valid: torch.Tensor | None = None,
    foreground: float = 0.85,
    background: float = 0.99,
) -> torch.Tensor:
    """Grow seeds into the neighbours that the segmentation is sure of (DSRG).

    A pixel without a seed takes a label if that label is the most probable among background and the image's classes,
    is more probable than the threshold, and one of the pixel's 8 neighbours has the label; this is repeated until
    nothing changes. Seeds keep their labels. Each pixel can take one label only, so the order does not matter.

    Args:
        seeds: (N,H,W) integer, 0..C, 255 = none.
        probabilities: (N,C+1,H,W) float, background first.
        present: (N,C); a class is among the image's labels where the value is above 0.
        valid: (N,H,W) bool, False marks padding, into which nothing grows; None: there is none.
        foreground: least probability of a class, 0..1.
        background: least probability of background, 0..1.

    Returns:
        (N,H,W) int64, labels as in `seeds`.

    Raises:
        RRMError: a shape or number is wrong; the message names it.

    Example:
        >>> probabilities = torch.tensor([[[[0.0, 0.1, 0.6, 0.1]], [[1.0, 0.9, 0.4, 0.9]]]])
        >>> grow_seeds(torch.tensor([[[1, 255, 255, 255]]]), probabilities, torch.ones(1, 1)).tolist()
        [[[1, 1, 255, 255]]]
    """
    _check_maps("growing probabilities", probabilities, present, valid, extra=1)
    if seeds.shape != probabilities[:, 0].shape or seeds.is_floating_point():
        raise RRMError(
            f"growing seeds: expected integer {tuple(probabilities[:, 0].shape)}, got {seeds.dtype} "
            f"{tuple(seeds.shape)}: one label a pixel"
        )
    if not (0 <= foreground <= 1 and 0 <= background <= 1):
        raise RRMError(
            f"growing: expected thresholds of 0 to 1, got foreground {foreground!r}, background {background!r}: the "
            "paper's are 0.85 and 0.99"
        )
    allowed = torch.cat([torch.ones_like(present[:, :1], dtype=torch.bool), present > 0], dim=1)
    highest, winner = probabilities.masked_fill(~allowed[:, :, None, None], -1).max(dim=1)
    sure = (highest >= torch.where(winner == 0, background, foreground)) & (seeds == IGNORE)
    if valid is not None:
        sure &= valid
    names = torch.arange(probabilities.shape[1], device=seeds.device)[:, None, None]
    free = ((winner[:, None] == names) & sure[:, None]).float()
    reached = _spread((seeds[:, None] == names).float(), free)
    return torch.where(sure & reached.any(dim=1), winner, seeds.long())


def _spread(reached: torch.Tensor, free: torch.Tensor) -> torch.Tensor:
    """Where one gets from the reached pixels (N,K,H,W) by steps to free neighbours of the same channel, bool."""
    while True:
        wider = torch.maximum(reached, F.max_pool2d(reached, 3, stride=1, padding=1) * free)
        if torch.equal(wider, reached):
            return reached > 0
        reached = wider


def _check_maps(name: str, maps: torch.Tensor, present: torch.Tensor, valid: torch.Tensor | None, extra: int) -> None:
    """Maps (N,C+extra,H,W), labels (N,C) and mask (N,H,W) that belong together."""
    if maps.ndim != 4 or maps.shape[1] <= extra or 0 in maps.shape[2:] or not maps.is_floating_point():
        raise RRMError(
            f"{name}: expected float (N,{'C+1' if extra else 'C'},H,W), got {maps.dtype} {tuple(maps.shape)}"
        )
    expected = (len(maps), maps.shape[1] - extra)
    if tuple(present.shape) != expected:
        raise RRMError(
            f"{name}: expected image-level labels {expected}, got {tuple(present.shape)}: one value an image and class"
        )
    if valid is not None and (valid.shape != maps[:, 0].shape or valid.dtype != torch.bool):
        raise RRMError(
            f"{name}: expected valid as bool {tuple(maps[:, 0].shape)}, got {valid.dtype} {tuple(valid.shape)}: True "
            "marks real pixels"
        )
