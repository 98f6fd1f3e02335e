"""EM-Adapt's E-step: shares, absent classes, padding, precision, hostile maps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rrm.em_adapt import estimate_labels
from rrm.errors import RRMError


def _logits(count: int = 3, classes: int = 4, height: int = 9, width: int = 11, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, classes + 1, height, width, generator=generator) * 3


def _count(labels: torch.Tensor, label: int) -> int:
    return int((labels == label).sum())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shares", [(0.4, 0.2), (0.0, 0.5), (0.85, 0.1), (0.0, 0.0)])
def test_one_class_and_background_have_their_shares_after_one_pass(seed: int, shares: tuple[float, float]) -> None:
    present = torch.tensor([[0, 1, 0, 0]] * 3)
    logits = _logits(seed=seed)
    logits[0, 0] += 20  # all background
    logits[1, 2] += 20  # all foreground
    for labels in estimate_labels(logits, present, None, *shares, passes=1):
        wanted = [math.ceil(share * labels.numel() - 1e-9) for share in shares]
        assert _count(labels, 0) >= wanted[0] and _count(labels, 2) >= wanted[1]
        assert _count(labels, 0) + _count(labels, 2) == labels.numel()


def test_a_class_that_falls_short_gets_its_share_to_the_pixel() -> None:
    logits = _logits()
    logits[:, 0] += 20
    labels = estimate_labels(logits, torch.tensor([[0, 1, 0, 0]] * 3), None, 0.4, 0.2)
    assert [_count(each, 2) for each in labels] == [20, 20, 20]  # of 99 pixels
    top = logits[:, 2].sub(logits[:, 0]).flatten(1).topk(20).indices
    assert all((each.flatten()[best] == 2).all() for each, best in zip(labels, top, strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_several_classes_have_their_shares_to_a_pixel_or_two_after_five_passes(seed: int) -> None:
    logits = _logits(height=20, width=20, seed=seed)
    logits[:, 0] += 5
    present = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 1], [0, 1, 0, 1]])
    labels = estimate_labels(logits, present, None, 0.3, 0.2)
    for each, classes in zip(labels, present, strict=True):
        assert _count(each, 0) >= 118
        assert all(_count(each, int(k) + 1) >= 78 for k in classes.nonzero()[:, 0])


@pytest.mark.parametrize("passes", [1, 2, 5])
def test_the_class_raised_last_has_its_share_even_where_all_ask_for_too_much(passes: int) -> None:
    labels = estimate_labels(_logits(), torch.ones(3, 4), None, 0.8, 0.7, passes)
    assert all(_count(each, 4) >= 70 for each in labels)


def test_enough_of_everything_is_the_plain_arg_max() -> None:
    logits = _logits()
    labels = estimate_labels(logits, torch.ones(3, 4), None, 0.0, 0.0)
    torch.testing.assert_close(labels, logits.argmax(1))
    labels = estimate_labels(logits, torch.tensor([[1, 0, 1, 0]] * 3), None, 0.05, 0.05)
    torch.testing.assert_close(labels, logits[:, [0, 1, 3]].argmax(1).apply_(lambda k: (0, 1, 3)[k]))


def test_absent_classes_never_appear_and_no_label_is_background() -> None:
    logits = _logits()
    logits[:, 2] += 1e4
    labels = estimate_labels(logits, torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]]))
    assert set(labels[0].unique().tolist()) == {0, 1}
    assert set(labels[1].unique().tolist()) == {0}
    assert set(labels[2].unique().tolist()) == {0, 3, 4}


def test_padding_is_left_out() -> None:
    logits, present = _logits(), torch.tensor([[0, 1, 0, 0]] * 3)
    valid = torch.zeros(3, 9, 11, dtype=torch.bool)
    valid[0, :4, :5], valid[1, 0, 0] = True, True
    loud = logits.clone().masked_fill_(~valid[:, None], 1e6)
    labels = estimate_labels(loud, present, valid)
    cut = estimate_labels(logits[:1, :, :4, :5], present[:1])
    torch.testing.assert_close(labels[0, :4, :5], cut[0])
    assert ((labels == 255) == ~valid).all()


def test_images_do_not_meet() -> None:
    logits, present = _logits(), torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1]])
    whole = estimate_labels(logits, present)
    parts = [estimate_labels(logits[k : k + 1], present[k : k + 1]) for k in range(3)]
    torch.testing.assert_close(whole, torch.cat(parts))


def test_a_constant_a_class_changes_nothing_where_all_classes_are_raised() -> None:
    logits, present = _logits(), torch.tensor([[1, 0, 0, 0]] * 3)
    low = logits.clone()
    low[:, 1] -= 100
    lower = low.clone()
    lower[:, 1] -= 100
    torch.testing.assert_close(estimate_labels(low, present), estimate_labels(lower, present))


def test_one_pixel_and_flat_maps() -> None:
    present = torch.tensor([[0, 1]])
    assert estimate_labels(torch.zeros(1, 3, 1, 1), present).tolist() == [[[2]]]
    assert estimate_labels(torch.zeros(1, 3, 4, 4), present).unique().tolist() == [2]
    assert estimate_labels(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2)).unique().tolist() == [0]
    assert estimate_labels(torch.zeros(0, 3, 4, 4), torch.zeros(0, 2)).shape == (0, 4, 4)
    halves = torch.zeros(1, 3, 4, 4)
    halves[:, 2, :2] = 1
    assert [_count(estimate_labels(halves - 3 * torch.eye(3)[2, :, None, None], present), k) for k in (0, 2)] == [8, 8]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    logits = _logits().to(dtype)
    present = torch.tensor([[1, 0, 0, 1]] * 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        labels = estimate_labels(logits, present)
    torch.testing.assert_close(labels, estimate_labels(logits.double(), present))
    assert all(_count(each, 4) >= 20 for each in labels)


def test_no_gradient_and_no_change_of_the_arguments() -> None:
    logits = _logits().requires_grad_()
    before = logits.detach().clone()
    assert not estimate_labels(logits, torch.ones(3, 4)).requires_grad
    assert torch.equal(before, logits.detach())


GOOD: dict[str, Any] = {"logits": torch.zeros(1, 3, 2, 2), "present": torch.zeros(1, 2)}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"logits": torch.zeros(3, 2, 2)}, "EM-Adapt logits"),
        ({"logits": torch.zeros(1, 3, 2, 2, dtype=torch.long)}, "EM-Adapt logits"),
        ({"logits": torch.zeros(1, 3, 0, 2)}, "EM-Adapt logits"),
        ({"present": torch.zeros(1, 3)}, "EM-Adapt present"),
        ({"valid": torch.ones(1, 2, 2)}, "EM-Adapt valid"),
        ({"valid": torch.ones(1, 3, 2, dtype=torch.bool)}, "EM-Adapt valid"),
        ({"background": 1.5}, "EM-Adapt background"),
        ({"foreground": math.nan}, "EM-Adapt foreground"),
        ({"passes": 0}, "EM-Adapt passes"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(RRMError, match=f"{named}: expected .* got "):
        estimate_labels(**(GOOD | change))
