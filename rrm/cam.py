"""Class activation maps: multi-scale averaging and the scores made from them, Eq. 1-4.

A CAM is a non-negative map per foreground class. Eq. 2 averages it over image scales, Eq. 3 divides each
class by its own maximum, Eq. 4 makes the background score from the strongest class: (1 - max_c P_c) **
exponent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from rrm.crf import Array
from rrm.errors import RRMError

DEFAULT_SCALES = (1.0, 0.5, 1.5, 2.0)
PRESENCE_THRESHOLD = 1e-5  # a soft label counts from here on
_AVERAGES = ("feature", "image")


def multi_scale_cam(
    forward_cam: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    scales: Sequence[float] = DEFAULT_SCALES,
    size: tuple[int, int] | None = None,
    average: str = "feature",
    no_grad: bool = True,
    base_cam: torch.Tensor | None = None,
) -> torch.Tensor:
    """Average the rectified CAM over image scales (Eq. 2).

    Args:
        forward_cam: takes images (N,3,h,w), gives raw CAMs (N,C,h',w') of any stride; what else it takes in
            (its normalisation, its mode) is its own affair.
        images: (N,3,H,W), whatever range `forward_cam` takes; scaled ones have floor(H * scale) rows.
        scales: factors > 0.
        size: (height, width) of the result; None means that of `images`. In "feature" the size of the map of
            scale 1 leaves it as it is.
        average: "feature" resizes every scale to the map of scale 1, averages and resizes once (the authors'
            code); "image" resizes every scale to `size` and averages there (the paper; better with coarse
            strides).
        no_grad: run without recording gradients.
        base_cam: raw CAM (N,C,h',w') of scale 1 where the caller has it already: saves one pass.

    Returns:
        (N,C,height,width), >= 0, the dtype of the CAMs.

    Raises:
        RRMError: unknown average, no or non-positive scales, or "feature" without the scale 1.

    Example:
        >>> images = torch.rand(1, 3, 8, 8)
        >>> multi_scale_cam(lambda x: x[:, :2, ::4, ::4], images, scales=(1.0, 2.0)).shape
        torch.Size([1, 2, 8, 8])
    """
    _check_scales(scales, average)
    height_width = size if size is not None else (images.shape[2], images.shape[3])
    with torch.set_grad_enabled(torch.is_grad_enabled() and not no_grad):
        maps = [_scale_cam(forward_cam, images, scale, base_cam) for scale in scales]
        if average == "image":
            return torch.stack([resize(each, height_width) for each in maps]).mean(dim=0)
        base = maps[list(scales).index(1.0)].shape[2:]
        mean = torch.stack([resize(each, (base[0], base[1])) for each in maps]).mean(dim=0)
        return resize(mean, height_width)


def resize(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize (N,C,h,w) bilinearly, pixel centres kept (align_corners=False); the same size gives the same
    values.

    Example:
        >>> resize(torch.ones(1, 1, 2, 2), (3, 5)).shape
        torch.Size([1, 1, 3, 5])
    """
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def rescale(images: torch.Tensor, scale: float) -> torch.Tensor:
    """Resize (N,C,H,W) to floor(H * scale) rows and floor(W * scale) columns, at least one of each.

    Example:
        >>> rescale(torch.ones(1, 3, 5, 4), 0.5).shape
        torch.Size([1, 3, 2, 2])
    """
    return resize(images, (max(1, int(images.shape[2] * scale)), max(1, int(images.shape[3] * scale))))


def normalize_cam(cam: Array, present: Array | None = None, eps: float = 1e-5) -> Array:
    """Divide each class by its maximum plus `eps` (Eq. 3); negative values and absent classes become zero.

    Args:
        cam: (C,H,W) or (N,C,H,W) float; NumPy or torch.
        present: (C,) or (N,C); a class is present where the value is above 1e-5. None keeps all.
        eps: > 0; keeps an all-zero map at zero.

    Returns:
        The shape, kind and dtype of `cam`, in 0..1 (below 1).

    Raises:
        RRMError: shapes do not fit, or NaN; on a GPU, which a look would make wait, NaN stays NaN in its class.

    Example:
        >>> normalize_cam(np.array([[[0.0, 2.0]]]), eps=1e-9).round(3).tolist()
        [[[0.0, 1.0]]]
    """
    if isinstance(cam, torch.Tensor):
        _check_cam(cam.shape, cam.is_cuda or bool(torch.isfinite(cam).all()))
        positive = cam.clamp(min=0)
        return _present_only(positive / (positive.amax(dim=(-2, -1), keepdim=True) + eps), present)
    _check_cam(cam.shape, bool(np.isfinite(cam).all()))
    rectified = np.maximum(cam, 0)
    return _present_only(rectified / (rectified.max(axis=(-2, -1), keepdims=True) + eps), present)


def background_score(cam: Array, exponent: float = 4) -> Array:
    """Background score (1 - max over classes) ** exponent (Eq. 4).

    Args:
        cam: (C,H,W) or (N,C,H,W) in 0..1, absent classes zero; with C = 0 the score is one.
        exponent: > 0; a large one suppresses the background. The paper says > 1.

    Returns:
        (H,W) or (N,H,W), the kind and dtype of `cam`.

    Raises:
        RRMError: the exponent is not positive, or the shape is wrong.

    Example:
        >>> background_score(np.array([[[0.5, 1.0]]]), 2).tolist()
        [[0.25, 0.0]]
    """
    if not exponent > 0:
        raise RRMError(f"background exponent: expected a number > 0, got {exponent!r}: the paper uses 4")
    _check_cam(cam.shape, True)
    if isinstance(cam, torch.Tensor):
        strongest = cam.amax(dim=-3) if cam.shape[-3] else cam.sum(dim=-3)
        return (1 - strongest).clamp(min=0) ** exponent
    strongest_class = cam.max(axis=-3, initial=0)
    return np.asarray(np.power(np.maximum(1 - strongest_class, 0), exponent))


def cam_probabilities(cam: Array, present: Array | None = None, exponent: float = 4) -> Array:
    """Background and foreground scores as one map: P_fg,bg of the paper.

    Args:
        cam: (C,H,W) or (N,C,H,W) in 0..1, from `normalize_cam`.
        present: (C,) or (N,C); absent classes get zero. None keeps all.
        exponent: of the background score.

    Returns:
        (C+1,H,W) or (N,C+1,H,W), background first; the kind and dtype of `cam`. It does not sum to one.

    Example:
        >>> cam_probabilities(np.full((2, 1, 1), 0.5), np.array([1, 0]), exponent=1).ravel().tolist()
        [0.5, 0.5, 0.0]
    """
    shown = _present_only(cam, present)
    background = background_score(shown, exponent)
    if isinstance(shown, torch.Tensor):
        return torch.cat([torch.as_tensor(background).unsqueeze(-3), shown], dim=-3)
    return np.concatenate([np.expand_dims(background, -3), shown], axis=-3)


def _scale_cam(
    forward_cam: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    scale: float,
    base_cam: torch.Tensor | None,
) -> torch.Tensor:
    if scale == 1.0:
        return F.relu(forward_cam(images) if base_cam is None else base_cam)
    return F.relu(forward_cam(rescale(images, scale)))


def _check_scales(scales: Sequence[float], average: str) -> None:
    if average not in _AVERAGES:
        raise RRMError(f"CAM average: expected one of {', '.join(_AVERAGES)}, got {average!r}: choose one of them")
    if not scales or any(not scale > 0 for scale in scales):
        raise RRMError(
            f"CAM scales: expected at least one number, all > 0, got {list(scales)}: use {list(DEFAULT_SCALES)}"
        )
    if average == "feature" and 1.0 not in scales:
        raise RRMError(
            f"CAM scales: expected 1.0 among them for average 'feature', got {list(scales)}: add it or use 'image'"
        )


def _check_cam(shape: Sequence[int], finite: bool) -> None:
    if len(shape) not in (3, 4) or shape[-1] == 0 or shape[-2] == 0:
        raise RRMError(f"cam: expected shape (C,H,W) or (N,C,H,W) with H, W >= 1, got {tuple(shape)}: add or drop axes")
    if not finite:
        raise RRMError("cam: expected finite numbers, got NaN or infinity: look at the network's output")


def _present_only(cam: Array, present: Array | None) -> Array:
    if present is None:
        return cam
    if tuple(present.shape) != tuple(cam.shape[:-2]):
        raise RRMError(
            f"present: expected shape {tuple(cam.shape[:-2])} to fit the CAM, got {tuple(present.shape)}: "
            "give one value a class"
        )
    if isinstance(cam, torch.Tensor):
        return cam * (torch.as_tensor(present) > PRESENCE_THRESHOLD)[..., None, None].to(cam)
    kept = np.asarray(present) > PRESENCE_THRESHOLD
    return np.asarray(cam * kept[..., None, None].astype(cam.dtype))
