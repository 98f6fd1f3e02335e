"""Reliable regions: from CAM scores and photo colours to the few pixels that are labelled, Eq. 5-7.

    I_crf   = CRF(I, [P_fg, P_bg])                                            Eq. 5
    I_cam   = arg max P where max P > alpha, else 255                         Eq. 6
    I_final = I_cam where I_cam = I_crf, else 255                             Eq. 7

Three rules share the code: "paper" is Eq. 5-7, "cam" is Eq. 6 alone, "reference" is what the authors' code
does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from rrm.cam import PRESENCE_THRESHOLD, background_score
from rrm.crf import Array, DenseCRF, check_photo, like, to_numpy
from rrm.errors import RRMError
from rrm.labels import IGNORE
from rrm.parallel import WorkerPool

LabelArray = npt.NDArray[np.uint8]
ScoreArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

_RULES = ("reference", "paper", "cam")
_PADDING = ("label", "ignore")
_DEFAULT_CAM_EXPONENT = {"reference": 32.0, "paper": 4.0, "cam": 4.0}


@dataclass(frozen=True)
class RegionRule:
    """How pixels are chosen; every argument of `mine_regions` that is not an array.

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

    def __post_init__(self) -> None:
        if self.rule not in _RULES:
            raise RRMError(f"rule: expected one of {', '.join(_RULES)}, got {self.rule!r}: choose one of them")
        if self.padding not in _PADDING:
            raise RRMError(f"padding: expected one of {', '.join(_PADDING)}, got {self.padding!r}: choose one of them")
        for name in ("ratio", "crf_scale"):
            if not 0 < getattr(self, name) <= 1:
                raise RRMError(f"{name}: expected a number in (0, 1], got {getattr(self, name)!r}: change it")
        for name in ("score_threshold", "background_threshold", "crf_confidence"):
            if not 0 <= getattr(self, name) <= 1:
                raise RRMError(f"{name}: expected a number in 0..1, got {getattr(self, name)!r}: change it")
        for name in ("resolved_cam_exponent", "crf_exponent"):
            if not getattr(self, name) > 0:
                raise RRMError(
                    f"{name.removeprefix('resolved_')}: expected a number > 0, got {getattr(self, name)!r}: use 4"
                )
        if self.crf is not None and not isinstance(self.crf, DenseCRF):
            raise RRMError(f"crf: expected a DenseCRF or None, got {type(self.crf).__name__}: build one")

    @property
    def resolved_cam_exponent(self) -> float:
        """The CAM label's exponent, with the rule's default filled in."""
        return _DEFAULT_CAM_EXPONENT[self.rule] if self.cam_exponent is None else self.cam_exponent


def mine_regions(
    image: Array,
    cams: Array,
    present: Array,
    rule: str = "reference",
    ratio: float = 0.4,
    valid: Array | None = None,
    **options: Any,
) -> Array:
    """Label the reliable pixels of one image.

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
        image: (H,W,3) uint8 RGB; NumPy or torch, as the others.
        cams: (C,H,W) float in 0..1, already divided by the maximum of each class.
        present: (C,) bool or number; a class is labelled in this image where the value is above 1e-5.
        rule: "reference", "paper" or "cam".
        ratio: share of each class's pixels that is kept, in (0, 1].
        valid: (H,W) bool, False marks padding; None means no padding. Matters with `padding="ignore"` only.
        options: the other arguments of `RegionRule`.

    Returns:
        (H,W) uint8 labels: 0 background, 1..C class index + 1, 255 not reliable. An image without labels, or
        with all-zero CAMs, is background.

    Raises:
        RRMError: an input or option is wrong; the message names it.

    Source:
        Zhang et al., Reliability Does Matter, AAAI 2020.

    Example:
        >>> image = np.zeros((2, 4, 3), np.uint8)
        >>> cams = np.array([[[0.0, 0.0, 0.6, 0.9]] * 2], np.float32)
        >>> mine_regions(image, cams, np.array([True]), rule="cam", ratio=0.5).tolist()
        [[0, 0, 255, 1], [0, 0, 255, 1]]
    """
    how = RegionRule(rule=rule, ratio=ratio, **options)
    mask = None if valid is None else to_numpy(valid, "valid")
    labels = _mine(to_numpy(image, "image"), to_numpy(cams, "cams"), to_numpy(present, "present"), mask, how)
    return like(labels, cams)


def reliable_labels(
    cam_scores: ScoreArray,
    q: ScoreArray,
    q_background: ScoreArray,
    ratio: float = 0.4,
    score_threshold: float = 0.1,
    background_threshold: float = 0.8,
    crf_confidence: float = 0.8,
    counted: BoolArray | None = None,
) -> LabelArray:
    """Join CAM scores and two CRF results as the authors' code does (the "reference" rule).

    Args:
        cam_scores: (K,H,W), background first; background with the large exponent.
        q: (K,H,W) CRF result of the small exponent; gives the foreground labels.
        q_background: (K,H,W) CRF result of the large exponent; gives the background labels.
        ratio: share of a class's sure pixels among those it wins above `score_threshold`, in (0, 1].
        score_threshold: lowest score of a foreground candidate.
        background_threshold: background is sure above this score.
        crf_confidence: lowest CRF probability of a labelled pixel.
        counted: (H,W) bool, pixels that may be sure; None means all.

    Returns:
        (H,W) uint8: index into the K channels, 255 where not reliable.

    Example:
        >>> scores = np.array([[[0.9, 0.0]], [[0.1, 1.0]]], np.float32)
        >>> reliable_labels(scores, scores, scores, ratio=1.0).tolist()
        [[0, 255]]
    """
    winner = _winner(cam_scores, counted)
    crf_label = q.argmax(axis=0)
    sure = np.zeros(winner.shape, dtype=bool)
    for channel in np.unique(crf_label):
        region = winner == channel
        if channel == 0:
            sure |= region & (cam_scores[0] > background_threshold)
        else:
            sure |= _top_share(cam_scores[channel], region, ratio, score_threshold)
    labels = np.where(crf_label == 0, IGNORE, crf_label)
    labels[q_background.argmax(axis=0) == 0] = 0
    confidence = np.maximum(q_background[0], q[1:].max(axis=0, initial=0))
    labels[~sure | (confidence < crf_confidence)] = IGNORE
    return labels.astype(np.uint8)


def confident_labels(cam_scores: ScoreArray, ratio: float = 0.4, counted: BoolArray | None = None) -> LabelArray:
    """Arg max of the scores where it is above the alpha of its class (Eq. 6).

    Args:
        cam_scores: (K,H,W), background first.
        ratio: least share of the pixels won by a class that stays, in (0, 1].
        counted: (H,W) bool, pixels that may be labelled; None means all.

    Returns:
        (H,W) uint8: index into the K channels, 255 where the score is not above alpha.

    Example:
        >>> confident_labels(np.array([[[0.1, 0.2]], [[0.8, 0.9]]], np.float32), ratio=0.5).tolist()
        [[255, 1]]
    """
    winner = _winner(cam_scores, counted)
    labels = np.full(winner.shape, IGNORE, np.uint8)
    for channel in range(len(cam_scores)):
        region = winner == channel
        scores = np.sort(cam_scores[channel][region])
        if len(scores):
            weakest_kept = scores[min(_first_kept(len(scores), ratio), len(scores) - 1)]
            labels[region & (cam_scores[channel] >= weakest_kept)] = channel
    return labels


class RegionMiner:
    """`mine_regions` for batches, on several processes if wanted; the result does not depend on their number.

    pydensecrf holds Python's lock, so threads would gain nothing. The processes (`rrm.parallel.WorkerPool`)
    start with the first batch, use one thread each and end with `close` or the `with` block. A script that
    uses them needs the usual `if __name__ == "__main__":`.

    Args:
        workers: processes, >= 0; 0 works in the caller's.
        options: arguments of `RegionRule` (`rule`, `ratio`, ...).

    Raises:
        RRMError: an option is wrong, or a process died.

    Example:
        >>> with RegionMiner(rule="cam", workers=0) as miner:
        ...     images, cams = np.zeros((1, 2, 2, 3), np.uint8), np.zeros((1, 3, 2, 2), np.float32)
        ...     labels = miner.mine(images, cams, np.ones((1, 3), bool))
        >>> labels.tolist()
        [[[0, 0], [0, 0]]]
    """

    def __init__(self, *, workers: int = 0, **options: Any) -> None:
        self.rule = RegionRule(**options)
        self._pool = WorkerPool(workers)

    def mine(self, images: Array, cams: Array, present: Array, valid: Array | None = None) -> Array:
        """Label the reliable pixels of a batch.

        Args:
            images: (N,H,W,3) uint8 RGB; NumPy or torch.
            cams: (N,C,H,W) float in 0..1.
            present: (N,C) bool or number.
            valid: (N,H,W) bool or None.

        Returns:
            (N,H,W) uint8 labels, as `mine_regions`.

        Raises:
            RRMError: batch sizes differ, an item is wrong, or a process died.
        """
        results = list(self._pool.map(_mine_task, self._tasks(images, cams, present, valid)))
        shape = (0, *cams.shape[2:])
        return like(np.stack(results) if results else np.zeros(shape, np.uint8), cams)

    def close(self) -> None:
        """End the processes; a later `mine` starts new ones."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tasks(self, images: Array, cams: Array, present: Array, valid: Array | None) -> Iterator[tuple[Any, ...]]:
        photos, scores, labels = (
            to_numpy(images, "images"),
            to_numpy(cams, "cams"),
            to_numpy(present, "present"),
        )
        masks = None if valid is None else to_numpy(valid, "valid")
        counts = [len(each) for each in (photos, scores, labels) if each.ndim] + ([] if masks is None else [len(masks)])
        if len(set(counts)) != 1:
            raise RRMError(
                f"RegionMiner: expected one batch size, got {counts} (images, cams, present, valid): pass a "
                "batch of each"
            )
        for item in range(len(photos)):
            mask = None if masks is None else masks[item]
            yield _prepare(photos[item], scores[item], labels[item], mask, self.rule)


def _mine(
    image: npt.NDArray[Any],
    cams: npt.NDArray[Any],
    present: npt.NDArray[Any],
    valid: npt.NDArray[Any] | None,
    rule: RegionRule,
) -> LabelArray:
    return _mine_channels(*_prepare(image, cams, present, valid, rule))


def _prepare(
    image: npt.NDArray[Any],
    cams: npt.NDArray[Any],
    present: npt.NDArray[Any],
    valid: npt.NDArray[Any] | None,
    rule: RegionRule,
) -> tuple[npt.NDArray[np.uint8], ScoreArray, LabelArray, BoolArray | None, RegionRule]:
    """Check one image's inputs and keep the channels of its classes only: all that a worker needs."""
    check_photo(image)
    if cams.ndim != 3 or cams.shape[1:] != image.shape[:2] or not np.issubdtype(cams.dtype, np.floating):
        raise RRMError(
            f"cams: expected float (C,{image.shape[0]},{image.shape[1]}) to fit the image, got {cams.dtype} "
            f"{tuple(cams.shape)}: resize the CAMs to the image"
        )
    if present.shape != cams.shape[:1] or len(present) >= IGNORE:
        raise RRMError(
            f"present: expected shape ({len(cams)},) with fewer than 255 classes, got {tuple(present.shape)}"
        )
    classes = np.flatnonzero(present > PRESENCE_THRESHOLD)
    chosen = np.ascontiguousarray(cams[classes], dtype=np.float32)
    if not np.isfinite(chosen).all() or (chosen.size and not -1e-4 <= chosen.min() <= chosen.max() <= 1 + 1e-4):
        raise RRMError(
            "cams: expected values in 0..1, got others or NaN: divide each class by its maximum (rrm.cam.normalize_cam)"
        )
    if valid is not None and (valid.shape != image.shape[:2] or valid.dtype != np.bool_):
        raise RRMError(
            f"valid: expected bool {image.shape[:2]}, got {valid.dtype} {tuple(valid.shape)}: True marks real pixels"
        )
    counted = valid if rule.padding == "ignore" else None
    channels = np.concatenate([[0], classes + 1]).astype(np.uint8)
    return np.ascontiguousarray(image), chosen, channels, counted, rule


def _mine_channels(
    image: npt.NDArray[np.uint8],
    cams: ScoreArray,
    channels: LabelArray,
    counted: BoolArray | None,
    rule: RegionRule,
) -> LabelArray:
    scores = _with_background(cams, rule.resolved_cam_exponent)
    if rule.rule == "reference":
        labels = reliable_labels(
            scores,
            _crf(image, _with_background(cams, rule.crf_exponent), rule),
            _crf(image, scores, rule),
            rule.ratio,
            rule.score_threshold,
            rule.background_threshold,
            rule.crf_confidence,
            counted,
        )
    else:
        labels = confident_labels(scores, rule.ratio, counted)
        if rule.rule == "paper":
            agreed = _crf(image, _with_background(cams, rule.crf_exponent), rule).argmax(axis=0) == labels
            labels = np.where(agreed, labels, IGNORE).astype(np.uint8)
    names = np.full(256, IGNORE, np.uint8)
    names[: len(channels)] = channels
    return names[labels]


def _with_background(cams: ScoreArray, exponent: float) -> ScoreArray:
    return np.concatenate([background_score(cams, exponent)[None], cams])


def _crf(image: npt.NDArray[np.uint8], scores: ScoreArray, rule: RegionRule) -> ScoreArray:
    crf = rule.crf if rule.crf is not None else DenseCRF.preset("psa")
    if rule.crf_scale == 1:
        return crf(np.asarray(image), scores)
    height, width = image.shape[:2]
    size = (max(1, round(height * rule.crf_scale)), max(1, round(width * rule.crf_scale)))
    smaller = _resized(image.transpose(2, 0, 1).astype(np.float32), size)
    photo = np.asarray(smaller.round().clip(0, 255), np.uint8)
    q: ScoreArray = crf.scaled(rule.crf_scale)(np.ascontiguousarray(photo.transpose(1, 2, 0)), _resized(scores, size))
    return _resized(q, (height, width))


def _resized(maps: ScoreArray, size: tuple[int, int]) -> ScoreArray:
    tensor = torch.from_numpy(np.ascontiguousarray(maps))[None]
    resized: ScoreArray = F.interpolate(tensor, size=size, mode="bilinear", align_corners=False, antialias=True)[
        0
    ].numpy()
    return resized


def _winner(cam_scores: ScoreArray, counted: BoolArray | None) -> npt.NDArray[np.int64]:
    winner = cam_scores.argmax(axis=0)
    return winner if counted is None else np.where(counted, winner, -1)


def _top_share(scores: ScoreArray, region: BoolArray, ratio: float, floor: float) -> BoolArray:
    """Pixels of `region` scoring above the score that cuts off the top `ratio` of those above `floor`."""
    candidates = np.sort(scores[region & (scores > floor)])
    if len(candidates) == 0:
        return np.zeros_like(region)
    cut = candidates[min(_first_kept(len(candidates), ratio), len(candidates) - 1)]
    return np.asarray(region & (scores > cut), bool)


def _first_kept(count: int, ratio: float) -> int:
    """Index in ascending order where the top `ratio` of `count` begins; 1e-9 undoes rounding of 1 - ratio."""
    return int(count * (1 - ratio) + 1e-9)


def _mine_task(task: tuple[Any, ...]) -> LabelArray:
    return _mine_channels(*task)
