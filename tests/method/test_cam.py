"""Multi-scale CAM and the scores made from it, Eq. 2-4."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rrm.cam import background_score, cam_probabilities, multi_scale_cam, normalize_cam, resize
from rrm.errors import RRMError


def forward_cam(images: torch.Tensor) -> torch.Tensor:
    """Three raw CAMs of stride 4, some values negative."""
    return F.avg_pool2d(images, 4) - 0.5


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))


def test_feature_average_resizes_to_the_map_of_scale_one(images: torch.Tensor) -> None:
    maps = [F.relu(forward_cam(resize(images, (int(16 * s), int(24 * s))))) for s in (0.5, 1, 2)]
    mean = sum(F.interpolate(each, size=(4, 6), mode="bilinear", align_corners=False) for each in maps) / 3
    result = multi_scale_cam(forward_cam, images, [0.5, 1.0, 2.0])
    torch.testing.assert_close(result, resize(mean, (16, 24)))
    raw = multi_scale_cam(forward_cam, images, [0.5, 1.0, 2.0], size=(4, 6))
    torch.testing.assert_close(raw, mean)


def test_image_average_resizes_each_scale_to_the_image(images: torch.Tensor) -> None:
    maps = [F.relu(forward_cam(resize(images, (int(16 * s), int(24 * s))))) for s in (0.5, 1, 2)]
    mean = sum(resize(each, (16, 24)) for each in maps) / 3
    result = multi_scale_cam(forward_cam, images, [0.5, 1.0, 2.0], average="image")
    torch.testing.assert_close(result, mean)
    assert (result - multi_scale_cam(forward_cam, images, [0.5, 1.0, 2.0])).abs().max() > 1e-3


def test_one_scale_is_the_plain_cam(images: torch.Tensor) -> None:
    expected = resize(F.relu(forward_cam(images)), (16, 24))
    for average in ("feature", "image"):
        torch.testing.assert_close(multi_scale_cam(forward_cam, images, [1.0], average=average), expected)


def test_base_cam_saves_a_pass(images: torch.Tensor) -> None:
    sizes = []

    def recording(scaled: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(scaled.shape[2:]))
        return forward_cam(scaled)

    result = multi_scale_cam(recording, images, [1.0, 0.5], base_cam=forward_cam(images))
    assert sizes == [(8, 12)]
    torch.testing.assert_close(result, multi_scale_cam(forward_cam, images, [1.0, 0.5]))


def test_odd_sizes_round_down() -> None:
    sizes = []

    def recording(scaled: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(scaled.shape[2:]))
        return scaled

    multi_scale_cam(recording, torch.rand(1, 3, 21, 9), [0.5, 1.0, 1.5])
    assert sizes == [(10, 4), (21, 9), (31, 13)]


def test_gradients_only_on_request(images: torch.Tensor) -> None:
    leaf = images.clone().requires_grad_()
    assert not multi_scale_cam(forward_cam, leaf, [1.0]).requires_grad
    multi_scale_cam(forward_cam, leaf, [1.0], no_grad=False).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.abs().sum() > 0
    with torch.no_grad():
        assert not multi_scale_cam(forward_cam, leaf, [1.0], no_grad=False).requires_grad


@pytest.mark.parametrize("name", ["seglabel_1class", "seglabel_2class"])
def test_normalisation_equals_the_authors(goldens: Path, name: str) -> None:
    recorded = np.load(goldens / f"{name}.npz")
    size = recorded["norm_cam"].shape[1:]
    enlarged = resize(torch.from_numpy(recorded["cam_raw"])[None], size)
    present = torch.from_numpy(recorded["cam_label"])[None]
    kept = recorded["cam_label"] > 1e-5
    everything = normalize_cam(enlarged)[0].numpy()
    np.testing.assert_allclose(everything[kept], recorded["norm_cam"][kept], atol=2e-6)
    result = normalize_cam(enlarged, present)[0].numpy()
    np.testing.assert_allclose(result[kept], recorded["norm_cam"][kept], atol=2e-6)
    assert not result[~kept].any()


def test_numpy_and_torch_agree() -> None:
    cam = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype(np.float32)
    present = np.array([[1, 0, 1, 1], [0, 0, 1, 0]], np.uint8)
    scores = normalize_cam(cam, present)
    as_torch = normalize_cam(torch.from_numpy(cam), torch.from_numpy(present))
    np.testing.assert_allclose(as_torch.numpy(), scores, rtol=1e-6)
    probabilities = cam_probabilities(scores, present, 3)
    as_torch = cam_probabilities(torch.from_numpy(scores), torch.from_numpy(present), 3)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(as_torch.numpy(), probabilities, rtol=1e-5)
    for item in range(2):
        single = cam_probabilities(normalize_cam(cam[item], present[item]), present[item], 3)
        np.testing.assert_array_equal(single, probabilities[item])


def test_scores_stay_in_range_and_zero_stays_zero() -> None:
    cam = np.stack([np.zeros((3, 3)), np.full((3, 3), 7.0), np.full((3, 3), -1.0)]).astype(np.float32)
    scores = normalize_cam(cam)
    assert scores.min() >= 0
    assert 0.999 < scores.max() < 1
    assert not scores[0].any()
    assert not scores[2].any()


def test_background_is_one_without_classes() -> None:
    for cam in (np.zeros((0, 2, 3), np.float32), np.zeros((4, 2, 3), np.float32)):
        np.testing.assert_array_equal(background_score(cam, 4), np.ones((2, 3)))
        assert cam_probabilities(torch.from_numpy(cam)).shape == (len(cam) + 1, 2, 3)


def test_larger_exponents_lower_the_background() -> None:
    cam = np.full((1, 2, 2), 0.3, np.float32)
    assert background_score(cam, 32).max() < background_score(cam, 4).min()


def test_wrong_input_is_refused(images: torch.Tensor) -> None:
    cam = np.zeros((2, 3, 3), np.float32)
    for call, message in (
        (lambda: multi_scale_cam(forward_cam, images, [0.5, 2.0]), "1.0 among them"),
        (lambda: multi_scale_cam(forward_cam, images, []), "at least one"),
        (lambda: multi_scale_cam(forward_cam, images, [1.0, -1.0]), "> 0"),
        (lambda: multi_scale_cam(forward_cam, images, [1.0], average="max"), "feature, image"),
        (lambda: normalize_cam(cam[0]), r"\(C,H,W\)"),
        (lambda: normalize_cam(cam * np.nan), "NaN"),
        (lambda: normalize_cam(cam, np.ones(3)), "present"),
        (lambda: normalize_cam(torch.from_numpy(cam), torch.ones(1, 2)), "present"),
        (lambda: background_score(cam, 0), "exponent"),
    ):
        with pytest.raises(RRMError, match=message):
            call()
