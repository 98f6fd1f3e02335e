"""From a trained network to probabilities and labels of whole photos: views, CAM scores, CRF, resizing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rrm.cam import cam_probabilities, multi_scale_cam, normalize_cam, resize
from rrm.crf import DenseCRF

Photo = npt.NDArray[np.uint8]
Scores = npt.NDArray[np.float32]
LEAST_PROBABILITY = 1e-5
"""Smaller probabilities are stored as 0: the CRF clips its input at this value anyway."""


def as_batch(image: Photo, device: str = "cpu") -> Tensor:
    """One photo (H,W,3) uint8 as (1,3,H,W) float32 0..255.

    Example:
        >>> as_batch(np.zeros((2, 4, 3), np.uint8)).shape
        torch.Size([1, 3, 2, 4])
    """
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float().to(device)


def _views(network: Any, images: Tensor, scales: Sequence[float], flip: bool) -> list[Tensor]:
    """Logits (1,K,H,W) of each scale and mirror image at the photo's size."""
    size = (int(images.shape[2]), int(images.shape[3]))
    logits = []
    for scale in scales:
        scaled = resize(images, (max(1, round(size[0] * scale)), max(1, round(size[1] * scale))))
        for mirrored in (False, True) if flip else (False,):
            seen = scaled.flip(3) if mirrored else scaled
            scores = resize(network.forward_segmentation(seen).float(), size)
            logits.append(scores.flip(3) if mirrored else scores)
    return logits


@torch.inference_mode()
def segmentation_probabilities(network: Any, image: Photo, views: Mapping[str, Any], device: str = "cpu") -> Scores:
    """Class probabilities of one photo, merged over views.

    Args:
        network: with `normalize` and `forward_segmentation`, in evaluation mode.
        image: (H,W,3) uint8 RGB.
        views: `scales`, `flip` and `merge` ("mean" of probabilities or "max" of logits).
        device: of the network.

    Returns:
        (num_classes + 1, H, W) float32, sums to one over classes.
    """
    logits = _views(network, network.normalize(as_batch(image, device)), views["scales"], views["flip"])
    if views["merge"] == "max":
        merged = torch.stack(logits).amax(0).softmax(1)
    else:
        merged = torch.stack([each.softmax(1) for each in logits]).mean(0)
    return np.asarray(merged[0].cpu().numpy(), np.float32)


@torch.inference_mode()
def predicted_labels(network: Any, image: Photo, device: str = "cpu") -> npt.NDArray[np.uint8]:
    """Image-level labels of one photo by the classification branch: scores above 0, at least the highest.

    Returns:
        (num_classes,) uint8, 1 = present.
    """
    logits = network.forward_classification(network.normalize(as_batch(image, device))).class_logits[0]
    scores = logits.float().cpu().numpy()
    return np.asarray((scores > 0) | (scores == scores.max()), np.uint8)


@torch.inference_mode()
def activation_scores(
    network: Any,
    image: Photo,
    present: npt.NDArray[np.uint8],
    scales: Sequence[float],
    average: str,
    exponent: float,
    device: str,
) -> Scores:
    """Background and foreground scores of one photo from its CAM and its image-level labels (Eq. 2-4).

    Returns:
        (num_classes + 1, H, W) float32 in 0..1, which need not sum to one; classes that are not present are 0.
    """
    images = network.normalize(as_batch(image, device))
    cams = multi_scale_cam(network.forward_cam, images, scales=scales, average=average)[0].float().cpu().numpy()
    return np.asarray(cam_probabilities(normalize_cam(cams, present), present, exponent), np.float32)


def summing_to_one(scores: Scores) -> Scores:
    """Scores >= 0 divided by their sum over classes; where all are 0 they stay 0.

    Example:
        >>> summing_to_one(np.array([[[1.0, 0.0]], [[3.0, 0.0]]], np.float32)).tolist()
        [[[0.25, 0.0]], [[0.75, 0.0]]]
    """
    return np.asarray(scores / np.maximum(scores.sum(0, keepdims=True), 1e-8), np.float32)


def keep_image_labels(probabilities: Scores, present: npt.NDArray[np.uint8]) -> Scores:
    """Set the classes that are not among the image's labels to zero and let the rest sum to one; background stays.

    Example:
        >>> keep_image_labels(np.full((3, 1, 1), 1 / 3, np.float32), np.array([1, 0], np.uint8)).ravel().tolist()
        [0.5, 0.5, 0.0]
    """
    return summing_to_one(probabilities * np.concatenate([[1], present > 0]).astype(np.float32)[:, None, None])


def crf_on_present(crf: DenseCRF, image: Photo, probabilities: Scores, present: npt.NDArray[np.uint8]) -> Scores:
    """CRF over background and the image's labels only; all other classes are 0 in the result."""
    channels = np.flatnonzero(np.concatenate([[1], present > 0]))
    result: Scores = np.zeros(probabilities.shape, np.float32)
    refined: npt.NDArray[Any] = crf(image, np.ascontiguousarray(probabilities[channels]))
    result[channels] = refined
    return result


def refined(crf: DenseCRF, image: Photo, probabilities: Scores, size: tuple[int, int]) -> Scores:
    """CRF on a photo as it was packed, with the sigma of its position scaled from the original size to that.

    Args:
        crf: for photos of the original size.
        image: (H,W,3) uint8 RGB.
        probabilities: (K,H,W) float32.
        size: (H,W) of the original photo.

    Returns:
        (K,H,W) float32.

    Example:
        >>> refined(DenseCRF(), np.zeros((2, 4, 3), np.uint8), np.ones((1, 2, 4), np.float32), (20, 40)).shape
        (1, 2, 4)
    """
    result: Scores = crf.scaled(max(image.shape[:2]) / max(size))(image, probabilities)
    return result


def labels_at(probabilities: Scores, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Most probable class at another size: probabilities are resized bilinearly, then compared.

    Example:
        >>> labels_at(np.array([[[0.2]], [[0.8]]], np.float32), (1, 2)).tolist()
        [[1, 1]]
    """
    resized = resize(torch.from_numpy(probabilities)[None], size)[0]
    return np.asarray(resized.argmax(0).numpy(), np.uint8)


def for_storage(probabilities: Scores) -> npt.NDArray[np.float16]:
    """Half precision, with probabilities below 1e-5 set to 0."""
    return np.where(probabilities < LEAST_PROBABILITY, 0, probabilities).astype(np.float16)
