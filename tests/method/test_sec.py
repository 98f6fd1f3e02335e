"""SEC's losses: values computed by hand, limits, gradients, padding."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rrm.crf import DenseCRF
from rrm.errors import RRMError
from rrm.sec import REFERENCE_PIXELS, boundary_loss, expansion_loss, rank_pooled


def _maps(count: int = 2, classes: int = 3, height: int = 6, width: int = 5, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, classes + 1, height, width, generator=generator, dtype=torch.float64)


def test_pooling_is_the_weighted_mean_of_sorted_values() -> None:
    maps, decay = _maps().sigmoid(), 0.996
    step = decay ** (REFERENCE_PIXELS / 30)
    for image, pooled in zip(maps, rank_pooled(maps, decay), strict=True):
        for values, got in zip(image, pooled, strict=True):
            weights = [step**k for k in range(30)]
            ordered = sorted(values.flatten().tolist(), reverse=True)
            expected = sum(w * v for w, v in zip(weights, ordered, strict=True)) / sum(weights)
            assert float(got) == pytest.approx(expected)


def test_on_the_published_map_the_decay_is_as_published() -> None:
    maps = torch.rand(1, 1, 41, 41, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = 0.99 ** torch.arange(1681)
    expected = (maps.flatten().sort(descending=True).values * weights).sum() / weights.sum()
    assert rank_pooled(maps, 0.99).item() == pytest.approx(expected.item())


def test_pooling_hardly_depends_on_the_size() -> None:
    maps = torch.rand(1, 1, 40, 40, generator=torch.Generator().manual_seed(0))
    larger = maps.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert rank_pooled(maps, 0.996).item() == pytest.approx(rank_pooled(larger, 0.996).item(), rel=1e-3)


def test_limits_are_maximum_and_mean() -> None:
    maps = _maps().sigmoid()
    torch.testing.assert_close(rank_pooled(maps, 0.0), maps.amax((2, 3)))
    torch.testing.assert_close(rank_pooled(maps, 1.0), maps.mean((2, 3)))


def test_padding_is_left_out() -> None:
    maps = _maps().softmax(1)
    valid = torch.zeros(2, 6, 5, dtype=torch.bool)
    valid[0, :3, :4] = True
    torch.testing.assert_close(rank_pooled(maps, 0.99, valid)[0], rank_pooled(maps[:1, :, :3, :4], 0.99)[0])
    assert not rank_pooled(maps, 0.99, valid)[1].any()
    present = torch.tensor([[1, 0, 1], [0, 1, 0]])
    torch.testing.assert_close(expansion_loss(maps, present, valid), expansion_loss(maps[:1, :, :3, :4], present[:1]))
    assert float(expansion_loss(maps, present, torch.zeros_like(valid))) == 0


def test_expansion_by_hand() -> None:
    maps = torch.tensor([0.5, 0.3, 0.2]).double()[None, :, None, None].expand(1, 3, 4, 4)
    wanted = -math.log(0.3) - math.log(1 - 0.2) - math.log(0.5)
    assert expansion_loss(maps, torch.tensor([[1, 0]])).item() == pytest.approx(wanted)
    none = -(math.log(1 - 0.3) + math.log(1 - 0.2)) / 2 - math.log(0.5)
    assert expansion_loss(maps, torch.zeros(1, 2)).item() == pytest.approx(none)
    both = -(math.log(0.3) + math.log(0.2)) / 2 - math.log(0.5)
    assert expansion_loss(maps, torch.ones(1, 2)).item() == pytest.approx(both)


def test_expansion_has_the_derivative_that_differences_give() -> None:
    logits, present = _maps(height=3, width=3).requires_grad_(), torch.tensor([[1, 0, 1], [0, 0, 0]])
    valid = torch.ones(2, 3, 3, dtype=torch.bool)
    valid[0, 0] = False
    assert torch.autograd.gradcheck(lambda x: expansion_loss(x.softmax(1), present, valid), (logits,))


def test_certain_maps_are_finite() -> None:
    logits = torch.zeros(1, 3, 4, 4).requires_grad_()
    probabilities = (logits + torch.tensor([1e4, 0, 0])[None, :, None, None]).softmax(1)
    value = expansion_loss(probabilities, torch.tensor([[1, 0]]))
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(logits.grad).all()  # type: ignore[arg-type]


def test_boundary_loss_is_the_divergence_from_the_crf() -> None:
    crf = DenseCRF(gaussian_sigma=6, bilateral_sigma_xy=20, iterations=3)
    logits = _maps(height=8, width=8).float().requires_grad_()
    images = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(1)).float()
    value = boundary_loss(logits, images, crf)
    small = torch.nn.functional.interpolate(images, size=(8, 8), mode="bilinear", antialias=True).round().byte()
    half = DenseCRF(gaussian_sigma=3, bilateral_sigma_xy=10, iterations=3)
    q = half(small.permute(0, 2, 3, 1).contiguous(), logits.detach().softmax(1))
    expected = torch.nn.functional.kl_div(logits.detach().log_softmax(1), q, reduction="none").sum(1).mean()
    torch.testing.assert_close(value.detach(), expected)
    value.backward()  # of a cross-entropy: f - Q
    torch.testing.assert_close(logits.grad, (logits.detach().softmax(1) - q) / 128, atol=1e-6, rtol=1e-3)


def test_boundary_loss_without_padding() -> None:
    crf, logits = DenseCRF(iterations=2), _maps(height=4, width=4).float()
    images = torch.rand(2, 3, 8, 8) * 255
    valid = torch.zeros(2, 4, 4, dtype=torch.bool)
    assert float(boundary_loss(logits, images, crf, valid)) == 0
    valid[:] = True
    torch.testing.assert_close(boundary_loss(logits, images, crf, valid), boundary_loss(logits, images, crf))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: rank_pooled(torch.zeros(1, 2, 3, 3), 1.1), "rank pooling decay"),
        (lambda: rank_pooled(torch.zeros(2, 3, 3), 0.9), "rank pooling"),
        (lambda: expansion_loss(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2)), "expansion loss"),
        (lambda: boundary_loss(torch.zeros(1, 2, 3, 3), torch.zeros(2, 3, 6, 6), DenseCRF()), "boundary loss"),
    ],
)
def test_mistakes_are_named(call: Any, named: str) -> None:
    with pytest.raises(RRMError, match=f"{named}.* got "):
        call()
