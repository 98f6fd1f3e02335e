"""Reliable regions: the authors' recorded labels, a pixel-by-pixel rewrite, hostile input, processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rrm.cam import cam_probabilities, normalize_cam
from rrm.crf import DenseCRF
from rrm.errors import RRMError
from rrm.regions import RegionRule, mine_regions
from rrm.regions import confident_labels as confident_labels_of_batch
from rrm.regions import reliable_labels as reliable_labels_of_batch

RULES = ("reference", "paper", "cam")


def reliable_labels(scores: np.ndarray, q: np.ndarray, q_background: np.ndarray, *options: float) -> np.ndarray:
    """The rule for a single image."""
    return reliable_labels_of_batch(*(torch.from_numpy(each)[None] for each in (scores, q, q_background)), *options)[
        0
    ].numpy()


def confident_labels(scores: np.ndarray, ratio: float) -> np.ndarray:
    """The rule for a single image."""
    return confident_labels_of_batch(torch.from_numpy(scores)[None], ratio)[0].numpy()


def scene(height: int = 24, width: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A noisy photo with two coloured squares, blob-like CAMs for four classes, labels for two of them."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 40, (height, width, 3)).astype(np.uint8)
    image[4:14, 3:13] += np.array([180, 0, 0], np.uint8)
    image[8:20, 16:27] += np.array([0, 180, 60], np.uint8)
    rows, columns = np.mgrid[:height, :width]
    blobs = [np.exp(-((rows - r) ** 2 + (columns - c) ** 2) / 50) for r, c in ((9, 8), (14, 21), (3, 25), (20, 4))]
    cams = np.stack(blobs).astype(np.float32) + rng.random((4, height, width), dtype=np.float32) * 0.05
    return image, normalize_cam(cams), np.array([True, True, False, False])


def slow_reference(scores: np.ndarray, q: np.ndarray, q_background: np.ndarray, ratio: float) -> np.ndarray:
    """The reference rule as sentences, one pixel at a time."""
    channels, height, width = scores.shape
    cut = {}
    for c in range(1, channels):
        won = [scores[c, y, x] for y in range(height) for x in range(width) if scores[:, y, x].argmax() == c]
        candidates = sorted(value for value in won if value > 0.1)
        if candidates:
            cut[c] = candidates[int(len(candidates) * (1 - ratio))]
    shown = {q[:, y, x].argmax() for y in range(height) for x in range(width)}
    labels = np.full((height, width), 255, np.uint8)
    for y in range(height):
        for x in range(width):
            best, label = scores[:, y, x].argmax(), q[:, y, x].argmax()
            score = scores[best, y, x]
            sure = best in shown and (score > 0.8 if best == 0 else best in cut and score > cut[best])
            confidence = max([q_background[0, y, x], *q[1:, y, x]])
            if q_background[:, y, x].argmax() == 0:
                label = 0
            elif label == 0:
                continue
            if sure and confidence >= 0.8:
                labels[y, x] = label
    return labels


@pytest.mark.parametrize("name", ["seglabel_1class", "seglabel_2class"])
def test_equals_the_authors_bit_for_bit(goldens: Path, name: str) -> None:
    recorded = np.load(goldens / f"{name}.npz")
    result = mine_regions(recorded["ori_img"], recorded["norm_cam"], recorded["cam_label"])
    np.testing.assert_array_equal(result, recorded["seg_label"])


@pytest.mark.parametrize("name", ["seglabel_1class", "seglabel_2class"])
def test_joining_equals_the_authors_given_their_crf(goldens: Path, name: str) -> None:
    recorded = np.load(goldens / f"{name}.npz")
    channels = recorded["channels"]
    scores = cam_probabilities(recorded["norm_cam"][channels[1:] - 1], exponent=32)
    labels = reliable_labels(scores, recorded["crf_la"], recorded["crf_ha"])
    names = np.full(256, 255)
    names[: len(channels)] = channels
    np.testing.assert_array_equal(names[labels], recorded["seg_label"])


@pytest.mark.parametrize("seed", range(6))
def test_reference_rule_equals_its_sentences(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cams = rng.random((3, 9, 11), dtype=np.float32) ** 3
    q = rng.dirichlet([0.15] * 4, (9, 11)).transpose(2, 0, 1).astype(np.float32)
    q_background = rng.dirichlet([0.6, 0.1, 0.1, 0.1], (9, 11)).transpose(2, 0, 1).astype(np.float32)
    scores = cam_probabilities(cams, exponent=4 if seed % 2 else 32)
    ratio = (0.4, 0.25, 0.75)[seed % 3]
    result = reliable_labels(scores, q, q_background, ratio)
    np.testing.assert_array_equal(result, slow_reference(scores, q, q_background, ratio))
    assert len(np.unique(result)) >= 3


@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.7, 1.0])
def test_each_class_keeps_its_share(ratio: float) -> None:
    cams = np.random.default_rng(0).random((3, 20, 20), dtype=np.float32)
    scores = cam_probabilities(cams, exponent=2)
    labels, winner = confident_labels(scores, ratio), scores.argmax(axis=0)
    for channel in range(4):
        region = winner == channel
        kept = labels == channel
        assert (kept <= region).all()
        assert ratio * region.sum() <= kept.sum() < ratio * region.sum() + 1
        if kept.sum() < region.sum():
            assert scores[channel][kept].min() > scores[channel][region & ~kept].max()
    assert set(np.unique(labels)) <= {0, 1, 2, 3, 255}


def test_equal_scores_stay_together() -> None:
    scores = np.stack([np.full((2, 4), 0.2), [[0.9, 0.9, 0.9, 0.5], [0.9, 0.5, 0.1, 0.1]]]).astype(np.float32)
    labels = confident_labels(scores, 0.4)
    np.testing.assert_array_equal(labels, [[1, 1, 1, 255], [1, 255, 0, 0]])


def test_paper_rule_is_eq_5_to_7() -> None:
    image, cams, present = scene()
    kept = cams[:2]
    scores = cam_probabilities(kept, exponent=4)
    crf_label = DenseCRF()(image, scores).argmax(axis=0)
    cam_label = confident_labels(scores, 0.4)
    expected = np.where(cam_label == crf_label, cam_label, 255)
    np.testing.assert_array_equal(mine_regions(image, cams, present, rule="paper"), expected)
    np.testing.assert_array_equal(mine_regions(image, cams, present, rule="cam"), cam_label)
    assert (expected != cam_label).any()


def test_exponents_act_where_they_should() -> None:
    image, cams, present = scene()
    scores = cam_probabilities(cams[:2], exponent=16)
    crf_label = DenseCRF()(image, cam_probabilities(cams[:2], exponent=8)).argmax(axis=0)
    cam_label = confident_labels(scores, 0.4)
    result = mine_regions(image, cams, present, rule="paper", cam_exponent=16, crf_exponent=8)
    np.testing.assert_array_equal(result, np.where(cam_label == crf_label, cam_label, 255))
    assert RegionRule().resolved_cam_exponent == 32
    assert RegionRule("paper").resolved_cam_exponent == RegionRule("cam").resolved_cam_exponent == 4
    assert RegionRule().crf_exponent == 4


@pytest.mark.parametrize("rule", RULES)
def test_labels_are_of_the_image_only(rule: str) -> None:
    image, cams, present = scene()
    labels = mine_regions(image, cams, present, rule=rule, ratio=0.6)
    assert labels.dtype == np.uint8
    assert {1, 2, 255} <= set(np.unique(labels)) <= {0, 1, 2, 255}
    turned = np.array([False, True, False, True])
    assert set(np.unique(mine_regions(image, cams, turned, rule=rule, ratio=0.6))) <= {0, 2, 4, 255}


@pytest.mark.parametrize("rule", RULES)
def test_torch_in_torch_out(rule: str) -> None:
    image, cams, present = scene()
    result = mine_regions(*(torch.from_numpy(each) for each in (image, cams, present)), rule=rule)
    assert isinstance(result, torch.Tensor)
    np.testing.assert_array_equal(result.numpy(), mine_regions(image, cams, present, rule=rule))


@pytest.mark.parametrize("rule", RULES)
class TestHostileImages:
    def test_no_labels_is_background(self, rule: str) -> None:
        image, cams, present = scene()
        assert not mine_regions(image, cams, np.zeros_like(present), rule=rule).any()

    def test_all_cams_zero_is_background(self, rule: str) -> None:
        image, cams, present = scene()
        assert not mine_regions(image, np.zeros_like(cams), present, rule=rule).any()

    def test_one_cam_zero(self, rule: str) -> None:
        image, cams, present = scene()
        cams[1] = 0
        labels = mine_regions(image, cams, present, rule=rule)
        assert 2 not in labels
        assert 1 in labels

    def test_class_that_wins_nowhere(self, rule: str) -> None:
        image, cams, present = scene()
        cams[1] = cams[0] * 0.9
        assert 2 not in mine_regions(image, cams, present, rule=rule)

    def test_black_photo(self, rule: str) -> None:
        image, cams, present = scene()
        labels = mine_regions(np.zeros_like(image), cams, present, rule=rule)
        assert {255} <= set(np.unique(labels)) <= {0, 1, 2, 255}

    def test_one_pixel(self, rule: str) -> None:
        cams, image = np.full((2, 1, 1), 0.99, np.float32), np.zeros((1, 1, 3), np.uint8)
        assert mine_regions(image, cams, np.array([1, 0]), rule=rule).shape == (1, 1)

    def test_soft_labels_count_from_a_threshold(self, rule: str) -> None:
        image, cams, present = scene()
        soft = np.array([1.0, 0.5, 1e-6, 0.0], np.float32)
        np.testing.assert_array_equal(
            mine_regions(image, cams, soft, rule=rule), mine_regions(image, cams, present, rule=rule)
        )


def test_crf_label_without_cam_pixels_does_not_crash() -> None:
    """The CRF gives class 1 where its score never wins above the threshold: the authors' code stops there."""
    scores = np.array([[[0.9, 0.5]], [[0.05, 0.2]]], np.float32)
    q = np.array([[[0.1, 0.1]], [[0.9, 0.9]]], np.float32)
    assert reliable_labels(scores, q, q).tolist() == [[255, 255]]


def test_padding() -> None:
    image, cams, present = scene()
    valid = np.ones(image.shape[:2], bool)
    valid[:, 25:] = False
    for rule in RULES:
        plain = mine_regions(image, cams, present, rule=rule)
        np.testing.assert_array_equal(mine_regions(image, cams, present, rule=rule, valid=valid), plain)
        ignored = mine_regions(image, cams, present, rule=rule, valid=valid, padding="ignore")
        assert (ignored[~valid] == 255).all()
        assert (ignored[valid] != 255).any()
        nothing = mine_regions(image, cams, present, rule=rule, valid=np.zeros_like(valid), padding="ignore")
        assert (nothing == 255).all()
    cut = mine_regions(image[:, :25], cams[:, :, :25], present, rule="cam")
    ignored = mine_regions(image, cams, present, rule="cam", valid=valid, padding="ignore")
    np.testing.assert_array_equal(ignored[:, :25], cut)


def test_smaller_crf_is_close() -> None:
    image, cams, present = scene(48, 60)
    whole = mine_regions(image, cams, present, rule="paper", ratio=1.0)
    smaller = mine_regions(image, cams, present, rule="paper", ratio=1.0, crf_scale=0.5)
    assert whole.shape == smaller.shape
    assert (whole == smaller).mean() > 0.8
    assert (whole != smaller).any()
    tiny = mine_regions(image, cams, present, rule="reference", crf_scale=0.01)
    assert tiny.shape == (48, 60)


def test_crf_parameters_are_used() -> None:
    image, cams, present = scene()
    sharp = mine_regions(image, cams, present, ratio=1.0, crf=DenseCRF(iterations=0))
    assert (sharp != mine_regions(image, cams, present, ratio=1.0)).any()


def batch(count: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    items = [scene(seed=seed) for seed in range(count)]
    return tuple(np.stack(each) for each in zip(*items, strict=True))


@pytest.mark.parametrize("rule", RULES)
def test_batch_equals_single(rule: str) -> None:
    images, cams, present = batch()
    result = mine_regions(images, cams, present, rule=rule)
    for item in range(len(images)):
        single = mine_regions(images[item], cams[item], present[item], rule=rule)
        np.testing.assert_array_equal(result[item], single)


@pytest.mark.parametrize("rule", RULES)
def test_batch_of_different_label_counts(rule: str) -> None:
    images, cams, _ = batch()
    present = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1]])
    result = mine_regions(images, cams, present, rule=rule)
    for item in range(len(images)):
        single = mine_regions(images[item], cams[item], present[item], rule=rule)
        np.testing.assert_array_equal(result[item], single)
    assert set(np.unique(result[2])) <= {0, 2, 4, 255}


def test_empty_batch() -> None:
    images, cams, present = batch(1)
    assert mine_regions(images[:0], cams[:0], present[:0]).shape == (0, 24, 30)


def test_number_of_threads_changes_nothing() -> None:
    images, cams, present = (torch.from_numpy(each) for each in batch())
    valid = torch.ones(images.shape[:3], dtype=torch.bool)
    valid[0, :3] = False
    rule, threads = RegionRule(padding="ignore", crf_scale=0.7), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = rule.mine(images, cams, present, valid)
        torch.set_num_threads(3)
        for _ in range(2):
            assert torch.equal(rule.mine(images, cams, present, valid), expected)
    finally:
        torch.set_num_threads(threads)


def test_wrong_input_is_refused() -> None:
    image, cams, present = scene()
    nan = cams.copy()
    nan[0, 0, 0] = np.nan

    def mine(**changes: Any) -> Any:
        values = {"image": image, "cams": cams, "present": present, **changes}
        return mine_regions(values.pop("image"), values.pop("cams"), values.pop("present"), **values)

    for changes, message in (
        ({"image": image / 255}, "uint8"),
        ({"cams": cams[:, ::2]}, "resize the CAMs"),
        ({"cams": cams[0]}, "resize the CAMs"),
        ({"cams": (cams * 255).astype(np.uint8)}, "uint8"),
        ({"cams": cams * 2}, "0..1"),
        ({"cams": nan}, "NaN"),
        ({"present": present[:3]}, "present"),
        ({"valid": np.ones((2, 2), bool)}, "valid"),
        ({"valid": np.ones(image.shape[:2])}, "valid"),
        ({"rule": "best"}, "reference, paper, cam"),
        ({"ratio": 0.0}, "ratio"),
        ({"ratio": 40}, "ratio"),
        ({"cam_exponent": 0}, "cam_exponent"),
        ({"crf_exponent": -1}, "crf_exponent"),
        ({"crf_confidence": 2}, "crf_confidence"),
        ({"crf_scale": 1.5}, "crf_scale"),
        ({"padding": "drop"}, "padding"),
        ({"crf": "psa"}, "DenseCRF"),
    ):
        with pytest.raises(RRMError, match=message):
            mine(**changes)
    with pytest.raises(RRMError, match="one batch size"):
        mine_regions(image[None], np.stack([cams, cams]), present[None])


@pytest.mark.parametrize("rule", RULES)
def test_steps_lead_to_the_label_of_the_rule(rule: str) -> None:
    image, cams, present = (torch.from_numpy(each)[None] for each in scene())
    how = RegionRule(rule, ratio=0.5)
    steps = how.steps(image, cams, present)
    scores = cam_probabilities(cams, present, how.resolved_cam_exponent)
    torch.testing.assert_close(steps.cam, scores.argmax(1).byte())
    torch.testing.assert_close(steps.final, how.mine(image, cams, present))
    sure = steps.confident != 255
    assert bool((steps.confident == steps.cam)[sure].all()) and not bool(sure.all())
    assert bool(sure[steps.final != 255].all())
    if rule == "paper":
        agree = torch.where(steps.confident == steps.crf, steps.confident, 255)
        torch.testing.assert_close(steps.final, agree.byte())
