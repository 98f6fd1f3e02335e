"""Reliable regions: from CAM scores and photo colours to the few pixels that are labelled, Eq. 5-7.

    I_crf   = CRF(I, [P_fg, P_bg])                                            Eq. 5
    I_cam   = arg max P where max P > alpha, else 255                         Eq. 6
    I_final = I_cam where I_cam = I_crf, else 255                             Eq. 7

Three rules share the code: "paper" is Eq. 5-7, "cam" is Eq. 6 alone, "reference" is what the authors' code does. Whole
batches are worked on, on the device of the CAMs; on the CPU the CRFs of several images run at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from rrm.cam import PRESENCE_THRESHOLD, background_score
from rrm.crf import Array, DenseCRF, check_photo, like, to_tensor
from rrm.errors import RRMError
from rrm.labels import IGNORE

_RULES = ("reference", "paper", "cam")
_PADDING = ("label", "ignore")
_DEFAULT_CAM_EXPONENT = {"reference": 32.0, "paper": 4.0, "cam": 4.0}


class MiningSteps(NamedTuple):
    """Labels (N,H,W) uint8 on the way to the reliable ones: 0 background, 1..C class index + 1, 255 none."""

    cam: torch.Tensor
    """Arg max of the CAM scores."""
    crf: torch.Tensor
    """Arg max of the CRF on the scores with `crf_exponent` (Eq. 5); the rule "cam" makes no use of it."""
    confident: torch.Tensor
    """The CAM label where the rule is sure of the score (Eq. 6)."""
    final: torch.Tensor
    """What `RegionRule.mine` gives (Eq. 7)."""


@dataclass(frozen=True)
class RegionRule:
    """How pixels are chosen: every argument of `mine_regions` that is not an array.

    Args:
        rule: "reference", "paper" or "cam"; see `mine_regions`.
        ratio: share of each class's pixels that is kept, in (0, 1].
        cam_exponent: of the background score in the CAM label (Eq. 4), > 0; under "reference" also that of
            the second CRF, which decides on background. None means 32 under "reference", else 4.
        crf_exponent: of the background score given to the CRF (Eq. 5), > 0; under "reference" that CRF
            decides on foreground.
        score_threshold: "reference" only: foreground pixels compete for the top `ratio` above this score,
            0..1.
        background_threshold: "reference" only: background is sure above this score, 0..1.
        crf_confidence: "reference" only: lowest CRF probability of a labelled pixel, 0..1.
        crf: the CRF; None means the authors' training CRF, `DenseCRF.preset("psa")`.
        crf_scale: run the CRF on the photo at this share of its size, in (0, 1]; faster, coarser. 1 changes
            nothing.
        padding: "label" treats padded pixels as any others (the authors' code), "ignore" gives them 255 and
            leaves them out of the ratio.

    Raises:
        RRMError: a value is out of range; the message names it.

    Example:
        >>> RegionRule("paper").resolved_cam_exponent
        4.0
    """

    rule: str = "reference"
    ratio: float = 0.4
    cam_exponent: float | None = None
    crf_exponent: float = 4.0
    score_threshold: float = 0.1
    background_threshold: float = 0.8
    crf_confidence: float = 0.8
    crf: DenseCRF | None = field(default=None)
    crf_scale: float = 1.0
    padding: str = "label"

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> RegionRule:
        """The rule of a configuration's section `mining`, whose `crf` are the arguments of `DenseCRF`."""
        return cls(**{**options, "crf": DenseCRF(**options["crf"])})

    def __post_init__(self) -> None:
        if self.rule not in _RULES:
            raise RRMError(f"rule: expected one of {', '.join(_RULES)}, got {self.rule!r}: choose one of them")
        if self.padding not in _PADDING:
            raise RRMError(f"padding: expected one of {', '.join(_PADDING)}, got {self.padding!r}: choose one of them")
        for name in ("ratio", "crf_scale"):
            if not _is_number(getattr(self, name)) or not 0 < getattr(self, name) <= 1:
                raise RRMError(f"{name}: expected a number in (0, 1], got {getattr(self, name)!r}: change it")
        for name in ("score_threshold", "background_threshold", "crf_confidence"):
            if not _is_number(getattr(self, name)) or not 0 <= getattr(self, name) <= 1:
                raise RRMError(f"{name}: expected a number in 0..1, got {getattr(self, name)!r}: change it")
        for name in ("resolved_cam_exponent", "crf_exponent"):
            if not _is_number(getattr(self, name)) or not getattr(self, name) > 0:
                raise RRMError(
                    f"{name.removeprefix('resolved_')}: expected a number > 0, got {getattr(self, name)!r}: use 4"
                )
        if self.crf is not None and not isinstance(self.crf, DenseCRF):
            raise RRMError(f"crf: expected a DenseCRF or None, got {type(self.crf).__name__}: build one")

    @property
    def resolved_cam_exponent(self) -> float:
        """The CAM label's exponent, with the rule's default filled in."""
        return _DEFAULT_CAM_EXPONENT[self.rule] if self.cam_exponent is None else self.cam_exponent

    def mine(
        self, images: torch.Tensor, cams: torch.Tensor, present: torch.Tensor, valid: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Label the reliable pixels of a batch, on the device of the CAMs.

        Args:
            images: (N,H,W,3) uint8 RGB.
            cams: (N,C,H,W) float in 0..1.
            present: (N,C) bool or number.
            valid: (N,H,W) bool or None.

        Returns:
            (N,H,W) uint8 labels, as `mine_regions`.

        Raises:
            RRMError: an input is wrong; the message names it.
        """
        _check_batch(images, cams, present, valid)
        if len(cams) == 0:
            return torch.zeros(0, *cams.shape[2:], dtype=torch.uint8, device=cams.device)
        channels = _present_channels(cams.float(), present.to(cams.device))
        _check_scores(channels.cams)
        counted = valid.to(cams.device) if valid is not None and self.padding == "ignore" else None
        return channels.named(self._label(images.to(cams.device), channels, counted))

    def steps(self, images: torch.Tensor, cams: torch.Tensor, present: torch.Tensor) -> MiningSteps:
        """The labels between the CAMs and the reliable pixels, to look at; `mine` is faster.

        Args:
            images: (N,H,W,3) uint8 RGB, N >= 1.
            cams: (N,C,H,W) float in 0..1.
            present: (N,C) bool or number.

        Raises:
            RRMError: an input is wrong; the message names it.

        Example:
            >>> image = torch.zeros(1, 1, 4, 3, dtype=torch.uint8)
            >>> cams = torch.tensor([[[[0.0, 0.0, 0.6, 0.9]]]])
            >>> steps = RegionRule("cam", ratio=0.5).steps(image, cams, torch.tensor([[True]]))
            >>> steps.cam.tolist(), steps.final.tolist()
            ([[[0, 0, 1, 1]]], [[[0, 0, 255, 1]]])
        """
        final = self.mine(images, cams, present)
        channels = _present_channels(cams.float(), present.to(cams.device))
        scores = _with_background(channels.cams, self.resolved_cam_exponent)
        for_crf = _with_background(channels.cams, self.crf_exponent)
        (q,) = self._crf(images.to(cams.device), [for_crf], channels.counts)
        if self.rule == "reference":
            sure = _sure_pixels(scores, q, self.ratio, self.score_threshold, self.background_threshold, None)
            confident = torch.where(sure, _winner(scores), IGNORE)
        else:
            confident = confident_labels(scores, self.ratio)
        cam, crf, sure_of = map(channels.named, (_winner(scores), _winner(q), confident))
        return MiningSteps(cam, crf, sure_of, final)

    def _label(self, images: torch.Tensor, channels: _Channels, counted: torch.Tensor | None) -> torch.Tensor:
        """Channel of each reliable pixel, (N,H,W), 255 elsewhere."""
        scores = _with_background(channels.cams, self.resolved_cam_exponent)
        if self.rule == "cam":
            return confident_labels(scores, self.ratio, counted)
        for_crf = _with_background(channels.cams, self.crf_exponent)
        if self.rule == "paper":
            (q,) = self._crf(images, [for_crf], channels.counts)
            labels = confident_labels(scores, self.ratio, counted)
            return torch.where(_winner(q) == labels, labels, IGNORE)
        q, q_background = self._crf(images, [for_crf, scores], channels.counts)
        thresholds = (self.score_threshold, self.background_threshold, self.crf_confidence)
        return reliable_labels(scores, q, q_background, self.ratio, *thresholds, counted)

    def _crf(self, images: torch.Tensor, scores: list[torch.Tensor], counts: list[int]) -> list[torch.Tensor]:
        """CRF results of several scores (N,K,H,W); those of one image share its lattice."""
        crf = (self.crf if self.crf is not None else DenseCRF.preset("psa")).scaled(self.crf_scale)
        size = (images.shape[1], images.shape[2])
        if self.crf_scale != 1:
            smaller = (max(1, round(size[0] * self.crf_scale)), max(1, round(size[1] * self.crf_scale)))
            photos = _resized(images.permute(0, 3, 1, 2).float(), smaller).round().clamp(0, 255)
            images, scores = photos.byte().permute(0, 2, 3, 1), [_resized(each, smaller) for each in scores]
        together = torch.stack(scores, dim=1)
        items = [item[:, : count + 1] for item, count in zip(together, counts, strict=True)]
        results = torch.zeros_like(together)
        for result, q in zip(results, crf(list(images), items), strict=True):
            result[:, : q.shape[1]] = q
        return [each if self.crf_scale == 1 else _resized(each, size) for each in results.unbind(dim=1)]


def mine_regions(
    image: Array,
    cams: Array,
    present: Array,
    rule: str = "reference",
    ratio: float = 0.4,
    valid: Array | None = None,
    **options: Any,
) -> Array:
    """Label the reliable pixels of an image, or of each image of a batch.

    Rules:
        "reference" (the authors' code). CAM label: arg max with background exponent 32. A foreground pixel is
        sure if its class wins there and its score is above the one that leaves the top `ratio` of the class's
        winning pixels scoring above 0.1 (taken over classes that the CRF shows too); a background pixel if
        its score is above 0.8. The label of a sure pixel is that of the CRF (exponent 4) if foreground, and
        background where the second CRF (exponent 32) says so; the CRF probability must be 0.8. Whether CAM
        and CRF agree is not tested.

        "paper" (Eq. 5-7). alpha is a class's own: the highest that leaves at least `ratio` of the pixels
        which the class (background included) wins; equal scores at the border stay together, so a flat map is
        kept whole. The CAM label is kept where the CRF label is the same.

        "cam" (Eq. 6). As "paper" without the CRF; the row CAM of the paper's Table 2.

    Args:
        image: (H,W,3) uint8 RGB, or (N,H,W,3); NumPy or torch, as the others.
        cams: (C,H,W) or (N,C,H,W) float in 0..1, already divided by the maximum of each class.
        present: (C,) or (N,C) bool or number; a class is labelled in this image where the value is above 1e-5.
        rule: "reference", "paper" or "cam".
        ratio: share of each class's pixels that is kept, in (0, 1].
        valid: (H,W) or (N,H,W) bool, False marks padding; None means no padding. Matters with `padding="ignore"` only.
        options: the other arguments of `RegionRule`.

    Returns:
        (H,W) or (N,H,W) uint8 labels: 0 background, 1..C class index + 1, 255 not reliable. An image without labels, or
        with all-zero CAMs, is background.

    Raises:
        RRMError: an input or option is wrong; the message names it.

    Source:
        Zhang et al., Reliability Does Matter, AAAI 2020.

    Example:
        >>> image = torch.zeros(2, 4, 3, dtype=torch.uint8)
        >>> cams = torch.tensor([[[0.0, 0.0, 0.6, 0.9]] * 2])
        >>> mine_regions(image, cams, torch.tensor([True]), rule="cam", ratio=0.5).tolist()
        [[0, 0, 255, 1], [0, 0, 255, 1]]
    """
    how = RegionRule(rule=rule, ratio=ratio, **options)
    given = [image, cams, present] if valid is None else [image, cams, present, valid]
    tensors = [to_tensor(each, name) for each, name in zip(given, ("image", "cams", "present", "valid"), strict=False)]
    if tensors[1].ndim == 4:
        return like(how.mine(*tensors), cams)
    return like(how.mine(*(each[None] for each in tensors))[0], cams)


def reliable_labels(
    cam_scores: torch.Tensor,
    q: torch.Tensor,
    q_background: torch.Tensor,
    ratio: float = 0.4,
    score_threshold: float = 0.1,
    background_threshold: float = 0.8,
    crf_confidence: float = 0.8,
    counted: torch.Tensor | None = None,
) -> torch.Tensor:
    """Join CAM scores and two CRF results as the authors' code does (the "reference" rule).

    Args:
        cam_scores: (N,K,H,W), background first; background with the large exponent.
        q: (N,K,H,W) CRF result of the small exponent; gives the foreground labels.
        q_background: (N,K,H,W) CRF result of the large exponent; gives the background labels.
        ratio: share of a class's sure pixels among those it wins above `score_threshold`, in (0, 1].
        score_threshold: lowest score of a foreground candidate.
        background_threshold: background is sure above this score.
        crf_confidence: lowest CRF probability of a labelled pixel.
        counted: (N,H,W) bool, pixels that may be sure; None means all.

    Returns:
        (N,H,W) int64: index into the K channels, 255 where not reliable.

    Example:
        >>> scores = torch.tensor([[[[0.9, 0.0]], [[0.1, 1.0]]]])
        >>> reliable_labels(scores, scores, scores, ratio=1.0).tolist()
        [[[0, 255]]]
    """
    sure = _sure_pixels(cam_scores, q, ratio, score_threshold, background_threshold, counted)
    crf_label = _winner(q)
    labels = torch.where(crf_label == 0, IGNORE, crf_label)
    labels[_winner(q_background) == 0] = 0
    confidence = torch.cat([q_background[:, :1], q[:, 1:]], dim=1).amax(dim=1)
    labels[~sure | (confidence < crf_confidence)] = IGNORE
    return labels


def confident_labels(cam_scores: torch.Tensor, ratio: float = 0.4, counted: torch.Tensor | None = None) -> torch.Tensor:
    """Arg max of the scores where it is above the alpha of its class (Eq. 6).

    Args:
        cam_scores: (N,K,H,W), background first.
        ratio: least share of the pixels won by a class that stays, in (0, 1].
        counted: (N,H,W) bool, pixels that may be labelled; None means all.

    Returns:
        (N,H,W) int64: index into the K channels, 255 where the score is not above alpha.

    Example:
        >>> confident_labels(torch.tensor([[[[0.1, 0.2]], [[0.8, 0.9]]]]), ratio=0.5).tolist()
        [[[255, 1]]]
    """
    winner = _winner(cam_scores)
    regions = _regions(cam_scores, winner, counted)
    lowest, _ = _lowest_kept(cam_scores, regions, ratio)
    kept = regions & (cam_scores >= lowest[:, :, None, None])
    return torch.where(kept.any(dim=1), winner, IGNORE)


class _Channels(NamedTuple):
    """CAMs of the classes of each image, the others left out.

    `cams` is (N,K,H,W), `names` (N,K+1) the labels of background and classes, `counts` the classes of each image; with
    fewer than K classes the rest is filled with zero CAMs.
    """

    cams: torch.Tensor
    names: torch.Tensor
    counts: list[int]

    def named(self, labels: torch.Tensor) -> torch.Tensor:
        """Labels (N,H,W) uint8 of channels (N,H,W) int64; 255 stays."""
        names = F.pad(self.names, (0, IGNORE + 1 - self.names.shape[1]), value=IGNORE)
        return torch.gather(names, 1, labels.flatten(1)).view(labels.shape).byte()


def _present_channels(cams: torch.Tensor, present: torch.Tensor) -> _Channels:
    """Raises RRMError where `present` is not finite: a GPU is asked for that and for the counts at once."""
    wanted = present > PRESENCE_THRESHOLD
    *counts, finite = torch.cat([wanted.sum(dim=1), torch.isfinite(present).all()[None]]).tolist()
    if not finite:
        raise RRMError(f"present: expected booleans or finite numbers, got {present.dtype} or NaN: give 0 or 1 a class")
    order = torch.argsort(~wanted, dim=1, stable=True)[:, : max(counts, default=0)]
    chosen = torch.gather(cams, 1, order[:, :, None, None].expand(-1, -1, *cams.shape[2:]))
    chosen = chosen * torch.gather(wanted, 1, order)[:, :, None, None]
    return _Channels(chosen, F.pad(order + 1, (1, 0)), counts)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real)


def _with_background(cams: torch.Tensor, exponent: float) -> torch.Tensor:
    return torch.cat([background_score(cams, exponent)[:, None], cams], dim=1)


def _winner(scores: torch.Tensor) -> torch.Tensor:
    """Channel with the largest score, the first among equals, (N,H,W) int64; `argmax` is ten times slower on a CPU."""
    best, winner = scores[:, 0], torch.zeros_like(scores[:, 0], dtype=torch.int64)
    for channel in range(1, scores.shape[1]):
        winner.masked_fill_(scores[:, channel] > best, channel)
        best = torch.maximum(best, scores[:, channel])
    return winner


def _regions(cam_scores: torch.Tensor, winner: torch.Tensor, counted: torch.Tensor | None) -> torch.Tensor:
    """Which pixels each channel wins, (N,K,H,W) bool."""
    channels = torch.arange(cam_scores.shape[1], device=cam_scores.device)[:, None, None]
    won = winner[:, None] == channels
    return won if counted is None else won & counted[:, None]


def _sure_pixels(
    cam_scores: torch.Tensor,
    q: torch.Tensor,
    ratio: float,
    score_threshold: float,
    background_threshold: float,
    counted: torch.Tensor | None,
) -> torch.Tensor:
    """Where the "reference" rule trusts the CAM's score, (N,H,W) bool."""
    regions = _regions(cam_scores, _winner(cam_scores), counted)
    shown = F.one_hot(_winner(q), q.shape[1]).amax(dim=(1, 2)).bool()
    lowest, found = _lowest_kept(cam_scores, regions & (cam_scores > score_threshold), ratio)
    lowest[:, 0], found[:, 0] = background_threshold, True
    above = cam_scores > lowest[:, :, None, None]
    return (regions & above & (shown & found)[:, :, None, None]).any(dim=1)


def _lowest_kept(scores: torch.Tensor, chosen: torch.Tensor, ratio: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Score where the top `ratio` of the chosen pixels of each channel begins, (N,K), and whether there are any.

    1e-9 undoes the rounding of 1 - ratio.
    """
    values, mask = scores.flatten(2), chosen.flatten(2)
    counts = mask.sum(dim=2)
    positions = (counts.double() * (1 - ratio) + 1e-9).long().minimum(counts - 1).clamp(min=0)
    if values.device.type == "cpu":  # selecting is ten times faster than sorting
        lowest = torch.full(counts.shape, torch.inf, dtype=values.dtype)
        for item, channel in counts.nonzero().tolist():
            among = values[item, channel][mask[item, channel]]
            lowest[item, channel] = among.kthvalue(int(positions[item, channel]) + 1).values
    else:
        ascending = torch.where(mask, values, torch.inf).sort(dim=2).values
        lowest = ascending.gather(2, positions[:, :, None])[:, :, 0]
    return lowest, counts > 0


def _resized(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False, antialias=True)


def _check_batch(images: torch.Tensor, cams: torch.Tensor, present: torch.Tensor, valid: torch.Tensor | None) -> None:
    given = (images, cams, present) if valid is None else (images, cams, present, valid)
    counts = [len(each) if each.ndim else None for each in given]
    if len(set(counts)) != 1 or None in counts:
        raise RRMError(
            f"mine_regions: expected one batch size, got {counts} (images, cams, present, valid): pass a batch of each"
        )
    for image in images[:1]:
        check_photo(image)
    if cams.ndim != 4 or (len(cams) and cams.shape[2:] != images.shape[1:3]) or not cams.is_floating_point():
        raise RRMError(
            f"cams: expected float (C,H,W) to fit the image, {tuple(images.shape[1:3])}, got {cams.dtype} "
            f"{tuple(cams.shape[1:])}: resize the CAMs to the image"
        )
    if present.shape != cams.shape[:2] or cams.shape[1] >= IGNORE:
        raise RRMError(
            f"present: expected shape ({cams.shape[1]},) with fewer than 255 classes, got {tuple(present.shape[1:])}"
        )
    if present.is_complex():
        raise RRMError(f"present: expected booleans or finite numbers, got {present.dtype}: give 0 or 1 a class")
    if valid is not None and (valid.shape != cams[:, 0].shape or valid.dtype != torch.bool):
        raise RRMError(
            f"valid: expected bool {tuple(cams.shape[2:])}, got {valid.dtype} {tuple(valid.shape[1:])}: True marks "
            "real pixels"
        )


def _check_scores(cams: torch.Tensor) -> None:
    if cams.numel() and not bool(((cams >= -1e-4) & (cams <= 1 + 1e-4)).all()):
        raise RRMError(
            "cams: expected values in 0..1, got others or NaN: divide each class by its maximum (rrm.cam.normalize_cam)"
        )
