"""From a trained network to probabilities and labels of whole photos: views, CAM scores, CRF, resizing.

Networks see photos of one size together, with their mirror images. What they give does not depend on which photos those
are, but for the last bits: libraries choose other kernels for other batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rrm.cam import cam_probabilities, multi_scale_cam, normalize_cam, resize
from rrm.crf import Array, DenseCRF, like
from rrm.parallel import map_alike
from rrm.training import autocast

Photo = npt.NDArray[np.uint8]
Scores = npt.NDArray[np.float32]
LEAST_PROBABILITY = 1e-5
"""Smaller probabilities are stored as 0: the CRF clips its input at this value anyway."""
PASS_PIXELS = {"cpu": 1 << 17, "cuda": 1 << 21}
"""Pixels that a network sees at once, by device; more photos take several passes, a larger photo has one of its own."""


def as_batch(images: Sequence[Photo], device: str = "cpu") -> Tensor:
    """Photos of one size, (H,W,3) uint8 each, as (N,3,H,W) float32 0..255, channels last in memory.

    Example:
        >>> as_batch([np.zeros((2, 4, 3), np.uint8)]).shape
        torch.Size([1, 3, 2, 4])
    """
    return torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2).float()


class Pictured(Protocol):
    """Whatever has a photo, (H,W,3) uint8."""

    @property
    def image(self) -> Photo: ...


Item = TypeVar("Item", bound=Pictured)
Result = TypeVar("Result")


def in_batches(
    function: Callable[[list[Item]], Iterable[Result]], items: Iterable[Item], device: str
) -> Iterator[Result]:
    """Apply a function to items with photos of one size at a time, about as many as a network sees at once.

    Args:
        function: gives a result for each item of a batch.
        items: taken, and worked on, while results are used (`rrm.parallel.map_alike`).
        device: of the network.

    Returns:
        Results in the order of the items.
    """
    return map_alike(function, items, lambda i: i.image.shape, lambda i: i.image[..., 0].size, PASS_PIXELS[device])


def _in_passes(forward: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """`forward` of images (N,3,H,W), few enough at a time."""
    most = PASS_PIXELS[images.device.type] // (images.shape[2] * images.shape[3])
    return torch.cat([forward(part) for part in torch.split(images, max(1, most))])


def _views(network: Any, images: Tensor, scales: Sequence[float], flip: bool) -> Iterator[Tensor]:
    """Logits (N,K,H,W) of each scale and mirror image at the photos' size; both mirror images in the same passes."""
    count, size = len(images), (int(images.shape[2]), int(images.shape[3]))
    for scale in scales:
        scaled = resize(images, (max(1, round(size[0] * scale)), max(1, round(size[1] * scale))))
        seen = torch.cat([scaled, scaled.flip(3)]) if flip else scaled
        logits = resize(_in_passes(network.forward_segmentation, seen).float(), size)
        yield logits[:count]
        if flip:
            yield logits[count:].flip(3)


def _merged(views: Iterator[Tensor], merge: str) -> Tensor:
    if merge == "max":
        highest = next(views)
        for each in views:
            highest = torch.maximum(highest, each)
        return highest.softmax(1)
    count, total = 1, next(views).softmax(1)
    for each in views:
        count, total = count + 1, total + each.softmax(1)
    return total / count


@torch.inference_mode()
def segmentation_probabilities(
    network: Any, images: Sequence[Photo], views: Mapping[str, Any], device: str = "cpu"
) -> Tensor:
    """Class probabilities of photos of one size, merged over views.

    Args:
        network: with `normalize` and `forward_segmentation`, in evaluation mode.
        images: (H,W,3) uint8 RGB each.
        views: `scales`, `flip`, `merge` ("mean" of probabilities or "max" of logits) and `precision`
            (`rrm.config.Inference`).
        device: of the network.

    Returns:
        (N, num_classes + 1, H, W) float32 on the device, sums to one over classes.
    """
    with autocast(device, views["precision"]):
        logits = _views(network, network.normalize(as_batch(images, device)), views["scales"], views["flip"])
        return _merged(logits, views["merge"])


@torch.inference_mode()
def predicted_labels(
    network: Any, images: Sequence[Photo], device: str = "cpu", precision: str = "float32"
) -> npt.NDArray[np.uint8]:
    """Image-level labels of photos of one size by the classification branch: scores above 0, at least the highest.

    Returns:
        (N, num_classes) uint8, 1 = present.
    """

    def class_logits(part: Tensor) -> Tensor:
        logits: Tensor = network.forward_classification(part).class_logits
        return logits

    with autocast(device, precision):
        scores = _in_passes(class_logits, network.normalize(as_batch(images, device))).float()
    present = (scores > 0) | (scores == scores.amax(1, keepdim=True))
    return np.asarray(present.cpu().numpy(), np.uint8)


@torch.inference_mode()
def activation_scores(
    network: Any,
    images: Sequence[Photo],
    present: npt.NDArray[np.uint8],
    cam: Mapping[str, Any],
    device: str = "cpu",
    precision: str = "float32",
) -> Tensor:
    """Background and foreground scores of photos of one size from their CAM and image-level labels (Eq. 2-4).

    Args:
        network: with `normalize` and `forward_cam`, in evaluation mode.
        images: (H,W,3) uint8 RGB each.
        present: (N,C), 1 = present.
        cam: `scales`, `average` and the `exponent` of the background.
        device: of the network.
        precision: see `rrm.config.Inference`.

    Returns:
        (N, num_classes + 1, H, W) float32 in 0..1 on the device, which need not sum to one; classes that are not
        present are 0.
    """
    with autocast(device, precision):
        batch = network.normalize(as_batch(images, device))
        forward = partial(_in_passes, network.forward_cam)
        cams = multi_scale_cam(forward, batch, scales=cam["scales"], average=cam["average"]).float()
    shown = torch.from_numpy(present).to(device)
    return cam_probabilities(normalize_cam(cams, shown), shown, cam["exponent"])


def summing_to_one(scores: Array) -> Array:
    """Scores (K,H,W) or (N,K,H,W) >= 0 divided by their sum over classes; where all are 0 they stay 0.

    Example:
        >>> summing_to_one(np.array([[[1.0, 0.0]], [[3.0, 0.0]]], np.float32)).tolist()
        [[[0.25, 0.0]], [[0.75, 0.0]]]
    """
    if isinstance(scores, Tensor):
        return scores / scores.sum(-3, keepdim=True).clamp(min=1e-8)
    return np.asarray(scores / np.maximum(scores.sum(-3, keepdims=True), 1e-8), np.float32)


def keep_image_labels(probabilities: Array, present: npt.NDArray[np.uint8]) -> Array:
    """Set the classes that are not among the image's labels to zero and let the rest sum to one; background stays.

    Args:
        probabilities: (C+1,H,W) float; NumPy or torch.
        present: (C,), 1 = present.

    Example:
        >>> keep_image_labels(np.full((3, 1, 1), 1 / 3, np.float32), np.array([1, 0], np.uint8)).ravel().tolist()
        [0.5, 0.5, 0.0]
    """
    kept = np.concatenate([[1], present > 0]).astype(np.float32)[:, None, None]
    if isinstance(probabilities, Tensor):
        return summing_to_one(probabilities * torch.from_numpy(kept).to(probabilities.device))
    return summing_to_one(probabilities * kept)


def crf_on_present(
    crf: DenseCRF,
    images: Sequence[Photo],
    probabilities: Sequence[Array],
    present: Sequence[npt.NDArray[np.uint8] | None],
) -> list[Array]:
    """CRF over background and each image's labels only; all other classes are 0 in the result.

    Args:
        crf: for all of them.
        images: (H,W,3) uint8 RGB each, of any sizes.
        probabilities: of each image (C+1,H,W) float32; NumPy or torch.
        present: of each image (C,), 1 = present; None: all are.

    Returns:
        The shapes and kind of `probabilities`, float32.

    Example:
        >>> photo, scores = np.zeros((2, 4, 3), np.uint8), np.full((3, 2, 4), 1 / 3, np.float32)
        >>> (refined,) = crf_on_present(DenseCRF(), [photo], [scores], [np.array([0, 1], np.uint8)])
        >>> refined[:, 0, 0].round(3).tolist()
        [0.5, 0.0, 0.5]
    """
    channels: list[Any] = [None if p is None else np.flatnonzero(np.concatenate([[1], p > 0])) for p in present]
    parts = [scores if which is None else scores[which] for scores, which in zip(probabilities, channels, strict=True)]
    photos: Any = list(images)  # of another kind than tensors on a GPU
    found: list[Array] = crf(photos, parts)
    return [_in_place(q, scores, which) for q, scores, which in zip(found, probabilities, channels, strict=True)]


def _in_place(q: Array, scores: Array, channels: Any) -> Array:
    if channels is None:
        return q
    whole: Array = like(torch.zeros(scores.shape), scores)
    whole[channels] = q
    return whole


def refined(crf: DenseCRF, image: Array, probabilities: Array, size: tuple[int, int]) -> Array:
    """CRF on photos as they were packed, with the sigma of their position scaled from the original size to that.

    Args:
        crf: for photos of the original size.
        image: (H,W,3) uint8 RGB, or (N,H,W,3); NumPy or torch.
        probabilities: (K,H,W) float32, or (N,K,H,W).
        size: (H,W) of the original photos.

    Returns:
        The shape and kind of `probabilities`, float32.

    Example:
        >>> refined(DenseCRF(), np.zeros((2, 4, 3), np.uint8), np.ones((1, 2, 4), np.float32), (20, 40)).shape
        (1, 2, 4)
    """
    return crf.scaled(max(image.shape[-3:-1]) / max(size))(image, probabilities)


def labels_at(probabilities: Array, size: tuple[int, int]) -> Array:
    """Most probable class at another size: probabilities are resized bilinearly, then compared.

    Args:
        probabilities: (K,H,W) or (N,K,H,W) float; NumPy or torch.
        size: (h,w) of the result.

    Returns:
        (h,w) or (N,h,w) uint8, the kind of `probabilities`.

    Example:
        >>> labels_at(np.array([[[0.2]], [[0.8]]], np.float32), (1, 2)).tolist()
        [[1, 1]]
    """
    given = torch.as_tensor(probabilities)  # a part of a larger array is not copied
    at_size = resize(given.reshape(-1, *given.shape[-3:]), size)
    labels = at_size.max(1).indices.byte()  # the first of equal ones, as argmax gives, in a quarter of its time
    return like(labels.view(*given.shape[:-3], *size), probabilities)


def for_storage(probabilities: Array) -> Array:
    """Half precision, with probabilities below 1e-5 set to 0; NumPy or torch, any shape."""
    if isinstance(probabilities, Tensor):
        return torch.where(probabilities < LEAST_PROBABILITY, 0, probabilities).half()
    return np.where(probabilities < LEAST_PROBABILITY, 0, probabilities).astype(np.float16)
