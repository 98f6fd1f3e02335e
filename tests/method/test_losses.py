"""Losses: the authors' recorded numbers, brute force, gradients by finite differences, hostile input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rrm.errors import RRMError
from rrm.losses import DenseEnergyLoss, _halved, balanced_cross_entropy, classification_loss, joint_loss


def example(
    size: tuple[int, int] = (8, 10), classes: int = 3, count: int = 2, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, probabilities, mask with a border, labels half of them 255."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 3, 3, generator=generator) * 255
    images = F.interpolate(coarse, size=size, mode="bilinear").round()
    probs = (torch.randn(count, classes, *size, generator=generator, dtype=dtype) * 2).softmax(dim=1)
    valid = torch.ones(count, *size, dtype=torch.bool)
    valid[0, :, -2:] = False
    labels = torch.randint(0, classes, (count, *size), generator=generator)
    labels[:, ::2] = 255
    return images, probs, valid, labels


def brute_force(
    loss: DenseEnergyLoss,
    images: torch.Tensor,
    probs: torch.Tensor,
    valid: torch.Tensor,
    labels: torch.Tensor,
) -> torch.Tensor:
    """Eq. 10-14 at full size, all pairs, by autograd."""
    count, _, height, width = probs.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    total = torch.zeros((), dtype=probs.dtype)
    for item in range(count):
        place = torch.stack([rows, columns]).flatten(1).t().to(probs.dtype) / loss.sigma_xy
        colour = images[item].flatten(1).t().to(probs.dtype) / loss.sigma_rgb
        features = torch.cat([place, colour], dim=1)
        kernel = (-(features[:, None] - features[None]).square().sum(dim=2) / 2).exp()
        if not loss.include_self:
            kernel = kernel - torch.diag(torch.diag(kernel))
        mask = valid[item].flatten().to(probs.dtype)
        rowsum = (kernel * mask).sum(dim=1)
        if loss.normalize == "row":
            kernel = kernel / rowsum[:, None]
        if loss.normalize == "mean":
            kernel = kernel / ((rowsum * mask).sum() / mask.sum())
        p = probs[item].flatten(1).t()
        labelled = labels[item].flatten() != 255
        gate = torch.where(labelled, (mask - p.max(dim=1).values).clamp(min=0), 1.0)
        gate = gate if loss.differentiate_gate else gate.detach()
        s = p * mask[:, None]
        agreement = kernel * (s @ s.t())
        pairs = (kernel * torch.outer(mask, mask) if loss.form == "paper" else 0) - agreement
        total = total + (gate[:, None] * pairs).sum() / (height * width if loss.average_pixels else 1)
    return loss.weight * total / count


SWITCHES = [
    {"form": form, "normalize": normalize, "include_self": include_self, "average_pixels": average}
    for form in ("reference", "paper")
    for normalize, include_self, average in (
        ("none", True, False),
        ("row", False, True),
        ("mean", True, False),
    )
]


class TestClassification:
    def test_soft_margin_is_the_mean_logistic_loss(self) -> None:
        logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
        labels = (torch.rand(4, 5, generator=torch.Generator().manual_seed(1)) > 0.5).to(torch.uint8)
        signs = labels.float() * 2 - 1
        expected = torch.log1p(torch.exp(-signs * logits)).mean()
        torch.testing.assert_close(classification_loss(logits, labels), expected)

    def test_softmax_with_one_label_is_cross_entropy(self) -> None:
        logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
        classes = torch.tensor([0, 3, 2, 4])
        loss = classification_loss(logits, F.one_hot(classes, 5), "softmax")
        torch.testing.assert_close(loss, F.cross_entropy(logits, classes))

    def test_softmax_shares_among_labels_and_skips_unlabelled_images(self) -> None:
        logits = torch.tensor([[1.0, 0.0, -1.0], [3.0, 1.0, 2.0]], requires_grad=True)
        loss = classification_loss(logits, torch.tensor([[1, 1, 0], [0, 0, 0]]), "softmax")
        expected = -logits[0].log_softmax(dim=0)[:2].mean() / 2
        torch.testing.assert_close(loss, expected)
        loss.backward()
        assert logits.grad is not None
        assert not logits.grad[1].any()

    def test_wrong_input_is_refused(self) -> None:
        with pytest.raises(RRMError, match="kind"):
            classification_loss(torch.zeros(1, 2), torch.zeros(1, 2), "hinge")
        with pytest.raises(RRMError, match=r"\(N,C\)"):
            classification_loss(torch.zeros(1, 2), torch.zeros(2))


class TestCrossEntropy:
    def test_modes(self) -> None:
        logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
        labels = torch.randint(0, 3, (2, 4, 5), generator=torch.Generator().manual_seed(1))
        labels[:, 0] = 255
        nll = -logits.log_softmax(dim=1).gather(1, labels.clamp(max=2)[:, None])[:, 0]
        background, foreground = nll[labels == 0], nll[(labels > 0) & (labels < 255)]
        both = torch.cat([background, foreground])
        torch.testing.assert_close(balanced_cross_entropy(logits, labels), background.mean() + foreground.mean())
        torch.testing.assert_close(balanced_cross_entropy(logits, labels, "mean"), both.mean())
        torch.testing.assert_close(balanced_cross_entropy(logits, labels, "sum"), both.sum())

    @pytest.mark.parametrize("mode", ["balanced", "mean", "sum"])
    def test_no_label_is_zero_with_zero_gradient(self, mode: str) -> None:
        logits = torch.randn(1, 3, 4, 4, requires_grad=True)
        loss = balanced_cross_entropy(logits, torch.full((1, 4, 4), 255), mode)
        loss.backward()
        assert loss.item() == 0
        assert logits.grad is not None
        assert not logits.grad.any()

    @pytest.mark.parametrize("label", [0, 2])
    def test_one_kind_only_is_its_mean(self, label: int) -> None:
        logits = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        labels = torch.full((1, 4, 4), label)
        torch.testing.assert_close(balanced_cross_entropy(logits, labels), F.cross_entropy(logits, labels))

    def test_small_label_types_and_half_logits(self) -> None:
        labels = torch.tensor([[[0, 1, 255]]], dtype=torch.uint8)
        loss = balanced_cross_entropy(torch.zeros(1, 2, 1, 3, dtype=torch.bfloat16), labels)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(2 * np.log(2))

    def test_wrong_input_is_refused(self) -> None:
        logits, labels = torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, dtype=torch.int64)
        for call, message in (
            (lambda: balanced_cross_entropy(logits, labels, "weighted"), "mode"),
            (lambda: balanced_cross_entropy(logits, labels[:, :2]), r"\(N,K,H,W\)"),
            (lambda: balanced_cross_entropy(logits, labels[0]), r"\(N,K,H,W\)"),
            (lambda: balanced_cross_entropy(logits, labels + 2), "got 2"),
            (lambda: balanced_cross_entropy(logits, labels - 1), "got -1"),
            (lambda: balanced_cross_entropy(logits, labels.float()), "integer"),
        ):
            with pytest.raises(RRMError, match=message):
                call()


class TestReferenceEnergy:
    def test_equals_the_authors(self, goldens: Path) -> None:
        recorded = np.load(goldens / "energy_k4.npz")
        probs = torch.from_numpy(recorded["probs"]).requires_grad_()
        loss = DenseEnergyLoss(weight=1.0)
        value = loss(
            torch.from_numpy(recorded["images"]).float(),
            probs,
            torch.from_numpy(recorded["rois"]),
            torch.from_numpy(recorded["seg_label"])[:, 0],
        )
        value.backward()
        assert value.item() == pytest.approx(recorded["value_w1"].item(), rel=1e-5)
        assert probs.grad is not None
        difference = np.abs(probs.grad.numpy() - recorded["grad_w1"]).max()
        assert difference < 2e-6 * np.abs(recorded["grad_w1"]).max()

    def test_weight_equals_the_authors(self, goldens: Path) -> None:
        recorded, more = np.load(goldens / "energy_k4.npz"), np.load(goldens / "energy_k4_more.npz")
        probs = torch.from_numpy(recorded["probs"]).requires_grad_()
        labels, rois = (torch.from_numpy(recorded[key]) for key in ("seg_label", "rois"))
        value = DenseEnergyLoss()(torch.from_numpy(recorded["images"]), probs, rois > 0, labels[:, 0])
        value.backward()
        assert value.item() == pytest.approx(recorded["value_w1em7"].item(), rel=1e-5)
        assert probs.grad is not None
        expected = more["grad_w1em7"]
        assert np.abs(probs.grad.numpy() - expected).max() < 2e-6 * np.abs(expected).max()

    @pytest.mark.parametrize("suffix", ["", "_nobg"])
    def test_joint_loss_equals_the_authors(self, goldens: Path, suffix: str) -> None:
        recorded = np.load(goldens / "joint_loss.npz")
        logits = torch.from_numpy(recorded["seg"]).requires_grad_()
        labels = torch.from_numpy(recorded["seg_label"]).clone()
        if suffix:
            labels[labels == 0] = 255
        valid = torch.from_numpy(recorded["croppings"]).permute(2, 0, 1)
        images = torch.from_numpy(recorded["ori_images"])
        result = joint_loss(logits, images, labels, valid, DenseEnergyLoss())
        result.total.backward()
        cross_entropy = recorded["fg_celoss_nobg"] if suffix else recorded["celoss"]
        assert result.cross_entropy.item() == pytest.approx(float(cross_entropy), rel=1e-6)
        assert result.energy.item() == pytest.approx(float(recorded[f"dloss{suffix}"]), rel=1e-5)
        expected = recorded[f"grad_seg{suffix}"]
        assert logits.grad is not None
        assert np.abs(logits.grad.numpy() - expected).max() < 1e-6 * np.abs(expected).max()

    def test_gradient_formula(self) -> None:
        images, probs, valid, labels = example()
        probs.requires_grad_()
        loss = DenseEnergyLoss(weight=1.0, scale=1.0, sigma_xy=5, backend="exact")
        (gradient,) = torch.autograd.grad(loss(images, probs, valid, labels), probs)
        fixed = DenseEnergyLoss(
            weight=1.0, scale=1.0, sigma_xy=5, backend="exact", gradient="exact", differentiate_gate=False
        )
        (derivative,) = torch.autograd.grad(fixed(images, probs, valid, labels), probs)
        ungated = torch.full_like(labels, 255)
        (without_gate,) = torch.autograd.grad(loss(images, probs, valid, ungated), probs)
        gate = torch.where(labels == 255, 1.0, (valid.double() - probs.detach().amax(dim=1)).clamp(min=0))
        torch.testing.assert_close(gradient, gate[:, None] * without_gate)
        assert (gradient - derivative).norm() > 0.01 * derivative.norm()

    def test_without_labels_both_gradients_agree(self) -> None:
        """Gate one everywhere: the exact kernel is symmetric, so the authors' formula is the derivative."""
        images, probs, valid, _ = example()
        probs.requires_grad_()
        results = []
        for gradient in ("reference", "exact"):
            loss = DenseEnergyLoss(weight=1.0, backend="exact", gradient=gradient)
            (slope,) = torch.autograd.grad(loss(images, probs, valid), probs)
            results.append(slope)
        torch.testing.assert_close(results[0], results[1])


class TestEnergyValue:
    @pytest.mark.parametrize("switches", SWITCHES)
    def test_equals_brute_force(self, switches: dict[str, object]) -> None:
        images, probs, valid, labels = example()
        loss = DenseEnergyLoss(2.0, 30, 6, 1.0, "exact", "exact", **switches)
        probs.requires_grad_()
        value, expected = loss(images, probs, valid, labels), brute_force(loss, images, probs, valid, labels)
        torch.testing.assert_close(value, expected)
        (gradient,) = torch.autograd.grad(value, probs)
        (derivative,) = torch.autograd.grad(expected, probs)
        torch.testing.assert_close(gradient, derivative)

    def test_gate_held_fixed(self) -> None:
        images, probs, valid, labels = example()
        probs.requires_grad_()
        loss = DenseEnergyLoss(1.0, 30, 6, 1.0, "exact", "exact", differentiate_gate=False)
        (gradient,) = torch.autograd.grad(loss(images, probs, valid, labels), probs)
        (expected,) = torch.autograd.grad(brute_force(loss, images, probs, valid, labels), probs)
        torch.testing.assert_close(gradient, expected)

    @pytest.mark.parametrize("switches", SWITCHES)
    def test_gradcheck_exact_kernel(self, switches: dict[str, object]) -> None:
        images, probs, valid, labels = example(size=(3, 4), classes=2)
        loss = DenseEnergyLoss(1.0, 30, 6, 1.0, "exact", "exact", **switches)
        probs.requires_grad_()
        assert torch.autograd.gradcheck(lambda p: loss(images, p, valid, labels), (probs,))

    @pytest.mark.parametrize("form", ["reference", "paper"])
    def test_gradcheck_lattice(self, form: str) -> None:
        """The lattice is not symmetric: its derivative needs the adjoint."""
        images, probs, valid, labels = example(size=(3, 4), classes=2)
        loss = DenseEnergyLoss(1.0, 30, 6, 1.0, "exact", "lattice", form=form, include_self=True)
        probs.requires_grad_()
        assert torch.autograd.gradcheck(lambda p: loss(images, p, valid, labels), (probs,))

    def test_gradcheck_grid(self) -> None:
        images, probs, valid, labels = example(size=(4, 6), classes=2)
        loss = DenseEnergyLoss(1.0, grid=(2, 3), gradient="exact", normalize="row")
        probs.requires_grad_()
        assert torch.autograd.gradcheck(lambda p: loss(images, p, valid, labels), (probs,))

    def test_grid_of_the_images_size_is_scale_one(self) -> None:
        images, probs, valid, labels = example(size=(8, 10))
        grid = DenseEnergyLoss(1.0, grid=(8, 10), average_pixels=False)
        scale = DenseEnergyLoss(1.0, scale=1.0, backend="exact")
        torch.testing.assert_close(grid(images, probs, valid, labels), scale(images, probs, valid, labels))
        assert DenseEnergyLoss(grid=32).average_pixels
        averaged = DenseEnergyLoss(1.0, grid=(8, 10))
        expected = scale(images, probs, valid, labels) / 80
        torch.testing.assert_close(averaged(images, probs, valid, labels), expected)

    def test_grid_takes_probabilities_of_any_size(self) -> None:
        images, _, valid, labels = example(size=(8, 12))
        probs = torch.full((2, 3, 2, 3), 1 / 3)
        small = DenseEnergyLoss(1.0, grid=4)(images, probs, valid, labels)
        large = DenseEnergyLoss(1.0, grid=4)(images, torch.full((2, 3, 8, 12), 1 / 3), valid, labels)
        torch.testing.assert_close(small, large)

    def test_grid_hardly_depends_on_the_crop(self) -> None:
        images, probs, valid, labels = example(size=(8, 8))
        enlarged = [F.interpolate(each, scale_factor=4) for each in (images, probs)]
        masks = [each.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2) for each in (valid, labels)]
        small = DenseEnergyLoss(1.0, sigma_xy=5, grid=8, normalize="row")(images, probs, valid, labels)
        large = DenseEnergyLoss(1.0, sigma_xy=20, grid=8, normalize="row")(*enlarged, *masks)
        torch.testing.assert_close(small, large)

    def test_odd_sizes_round_down(self) -> None:
        images, probs, valid, labels = example(size=(9, 11))
        value = DenseEnergyLoss(1.0)(images, probs, valid, labels)
        assert torch.isfinite(value)
        cut = DenseEnergyLoss(1.0)(*(each[..., :8, :10] for each in (images, probs, valid, labels)))
        torch.testing.assert_close(value, cut)

    def test_lattice_is_about_half_of_the_exact_energy(self) -> None:
        images, probs, valid, labels = example(size=(64, 64))
        lattice = DenseEnergyLoss(1.0)(images, probs, valid, labels)
        exact = DenseEnergyLoss(1.0, backend="exact")(images, probs, valid, labels)
        assert 0.45 < lattice / exact < 0.7

    def test_batch_is_the_mean_of_its_images(self) -> None:
        images, probs, valid, labels = example(size=(16, 16), dtype=torch.float32)
        for loss in (DenseEnergyLoss(1.0), DenseEnergyLoss(1.0, grid=8, normalize="row")):
            whole = loss(images, probs, valid, labels)
            items = [loss(images[i : i + 1], probs[i : i + 1], valid[i : i + 1], labels[i : i + 1]) for i in (0, 1)]
            torch.testing.assert_close(whole, (items[0] + items[1]) / 2, rtol=1e-5, atol=0)


class TestGateAndMask:
    def test_certain_labelled_pixels_have_no_energy(self) -> None:
        images, _, valid, _ = example()
        probs = F.one_hot(torch.zeros(2, 8, 10, dtype=torch.int64), 3).permute(0, 3, 1, 2).double().requires_grad_()
        loss = DenseEnergyLoss(1.0, scale=1.0)
        value = loss(images, probs, valid, torch.zeros(2, 8, 10, dtype=torch.int64))
        value.backward()
        assert value.item() == 0
        assert probs.grad is not None
        assert not probs.grad.any()
        assert loss(images, probs, valid, None).item() < 0

    def test_padding_has_no_part(self) -> None:
        images, probs, valid, labels = example()
        changed = probs.clone()
        changed[0, :, :, -2:] = changed[0, :, :, -2:].flip(0)
        changed.requires_grad_()
        for options in ({"form": "reference"}, {"form": "paper"}, {"normalize": "row"}):
            loss = DenseEnergyLoss(1.0, scale=1.0, backend="exact", gradient="exact", **options)
            value = loss(images, changed, valid, labels)
            torch.testing.assert_close(value, loss(images, probs, valid, labels))
            (gradient,) = torch.autograd.grad(value, changed)
            assert not gradient[0, :, :, -2:].any()

    def test_nothing_valid_is_zero(self) -> None:
        images, probs, valid, labels = example()
        for options in ({}, {"normalize": "row"}, {"normalize": "mean"}, {"form": "paper"}, {"grid": 4}):
            loss = DenseEnergyLoss(1.0, **options)
            assert loss(images, probs, torch.zeros_like(valid), labels).item() == 0

    def test_paper_form_is_not_negative_and_zero_where_all_agree(self) -> None:
        images, probs, valid, labels = example()
        loss = DenseEnergyLoss(1.0, form="paper", scale=1.0)
        assert loss(images, probs, valid, labels) > 0
        agreed = torch.zeros_like(probs)
        agreed[:, 1] = 1
        assert abs(loss(images, agreed, valid).item()) < 1e-9

    def test_black_photo_and_batch_of_one(self) -> None:
        images, probs, valid, labels = (each[:1] for each in example(dtype=torch.float32))
        for options in ({}, {"grid": 4, "normalize": "row"}, {"form": "paper"}):
            value = DenseEnergyLoss(1.0, **options)(torch.zeros_like(images), probs, valid, labels)
            assert torch.isfinite(value)

    def test_defaults_follow_the_form(self) -> None:
        reference, paper = DenseEnergyLoss(), DenseEnergyLoss(form="paper")
        assert (reference.normalize, reference.include_self, reference.backend) == ("none", True, "lattice")
        assert (paper.normalize, paper.include_self, paper.backend) == ("row", False, "exact")
        assert "gradient='reference'" in repr(reference)

    def test_half_precision_is_computed_in_float32(self) -> None:
        images, probs, valid, labels = example(dtype=torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = DenseEnergyLoss(1.0, backend="exact")(images, probs, valid, labels)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, DenseEnergyLoss(1.0, backend="exact")(images, probs, valid, labels))
        half = DenseEnergyLoss(1.0)(images, probs.bfloat16(), valid, labels)
        assert half.dtype == torch.float32

    def test_uint8_and_float_images_agree(self) -> None:
        images, probs, valid, labels = example(dtype=torch.float32)
        loss = DenseEnergyLoss(1.0)
        torch.testing.assert_close(
            loss(images.byte(), probs, valid, labels), loss(images.float(), probs, valid.float(), labels)
        )

    def test_wrong_input_is_refused(self) -> None:
        images, probs, valid, labels = example()
        loss = DenseEnergyLoss()
        for call, message in (
            (lambda: loss(images[:1], probs, valid, labels), r"\(N,3,H,W\)"),
            (lambda: loss(images[:, :1], probs, valid, labels), r"\(N,3,H,W\)"),
            (lambda: loss(images, probs[..., ::2], valid, labels), "resize"),
            (lambda: loss(images, probs, valid[:, None], labels), "valid"),
            (lambda: loss(images, probs, valid, labels[..., 1:]), "labels"),
            (lambda: loss(images[..., :1, :1], probs[..., :1, :1]), "one pixel"),
            (lambda: DenseEnergyLoss(weight=-1), "weight"),
            (lambda: DenseEnergyLoss(sigma_rgb=0), "sigma_rgb"),
            (lambda: DenseEnergyLoss(sigma_xy=-3), "sigma_xy"),
            (lambda: DenseEnergyLoss(scale=2), "scale"),
            (lambda: DenseEnergyLoss(gradient="true"), "gradient"),
            (lambda: DenseEnergyLoss(backend="cuda"), "backend"),
            (lambda: DenseEnergyLoss(form="potts"), "form"),
            (lambda: DenseEnergyLoss(normalize="rows"), "normalize"),
            (lambda: DenseEnergyLoss(grid=1), "grid"),
            (lambda: DenseEnergyLoss(backend="lattice", include_self=False), "include_self"),
        ):
            with pytest.raises(RRMError, match=message):
                call()


class TestJointLoss:
    def test_without_energy(self) -> None:
        images, _, valid, labels = example()
        logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
        result = joint_loss(logits, images, labels, valid)
        enlarged = F.interpolate(logits, size=(8, 10), mode="bilinear")
        torch.testing.assert_close(result.total, balanced_cross_entropy(enlarged, labels))
        assert result.energy.item() == 0

    def test_grid_energy_reaches_the_logits(self) -> None:
        images, _, valid, _ = example()
        logits = torch.randn(2, 3, 4, 5, requires_grad=True)
        energy = DenseEnergyLoss(2.0, grid=4, normalize="row", gradient="exact")
        result = joint_loss(logits, images, torch.full((2, 8, 10), 255), valid, energy)
        result.total.backward()
        assert result.cross_entropy.item() == 0
        assert logits.grad is not None
        assert logits.grad.abs().sum() > 0

    def test_descent_lowers_the_energy(self) -> None:
        images, _, valid, _ = example()
        energy = DenseEnergyLoss(1.0, grid=(8, 10), form="paper", gradient="exact", sigma_xy=10, sigma_rgb=30)
        logits = torch.randn(2, 3, 8, 10, generator=torch.Generator().manual_seed(0)).requires_grad_()
        optimizer = torch.optim.SGD([logits], lr=500.0)
        unlabelled = torch.full((2, 8, 10), 255)
        values = []
        for _ in range(20):
            optimizer.zero_grad()
            value = joint_loss(logits, images, unlabelled, valid, energy).total
            value.backward()
            optimizer.step()
            values.append(value.item())
        assert values[-1] < 0.8 * values[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("options", [{}, {"backend": "exact"}, {"grid": 8, "normalize": "row", "gradient": "exact"}])
def test_gpu_equals_cpu(options: dict[str, object]) -> None:
    tensors = example(size=(33, 41), dtype=torch.float32)
    results = []
    for device in ("cpu", "cuda"):
        images, probs, valid, labels = (each.to(device) for each in tensors)
        probs = probs.requires_grad_()
        value = DenseEnergyLoss(1.0, **options)(images, probs, valid, labels)
        (gradient,) = torch.autograd.grad(value, probs)
        results.append((value.cpu(), gradient.cpu()))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=0)
    assert (results[0][1] - results[1][1]).abs().max() < 1e-4 * results[0][1].abs().max()


@pytest.mark.parametrize("classes", [3, 4, 8])  # with and without a spare lane for the mask
@pytest.mark.parametrize("form", ["reference", "paper"])
@pytest.mark.parametrize("normalize", ["none", "row", "mean"])
@pytest.mark.parametrize(("gradient", "live"), [("reference", True), ("exact", True), ("exact", False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_energy_equals_the_torch_one(
    monkeypatch: pytest.MonkeyPatch,
    classes: int,
    form: str,
    normalize: str,
    gradient: str,
    live: bool,
    dtype: torch.dtype,
) -> None:
    images, probs, valid, labels = example((19, 22), classes, 3, dtype)
    loss = DenseEnergyLoss(
        1.0, backend="lattice", form=form, normalize=normalize, gradient=gradient, differentiate_gate=live,
        include_self=True, sigma_xy=20,
    )  # fmt: skip
    results = []
    for compiled in (True, False):
        monkeypatch.setattr("rrm.losses.has_compiled_lattice", lambda compiled=compiled: compiled)
        leaf = probs.clone().requires_grad_()
        value = loss(images, leaf, valid, labels)
        torch.testing.assert_close(loss(images, probs, valid, labels), value.detach(), rtol=0, atol=0)
        results.append((value.detach(), *torch.autograd.grad(3 * value, leaf)))
    tolerance = 2e-5 if dtype == torch.float32 else 1e-6
    torch.testing.assert_close(results[0][0], results[1][0], rtol=tolerance, atol=0)
    assert (results[0][1] - results[1][1]).abs().max() < tolerance * results[1][1].abs().max()


@pytest.mark.parametrize("gradient", ["reference", "exact"])
def test_threads_do_not_change_the_energy(gradient: str) -> None:
    threads, results = torch.get_num_threads(), []
    images, probs, valid, labels = example((101, 93), 5, 1, torch.float32)
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            leaf = probs.clone().requires_grad_()
            value = DenseEnergyLoss(1.0, gradient=gradient, scale=1)(images, leaf, valid, labels)
            results.append((value.detach(), *torch.autograd.grad(value, leaf)))
    finally:
        torch.set_num_threads(threads)
    for value, slope in results[1:]:
        assert torch.equal(value, results[0][0])
        assert torch.equal(slope, results[0][1])


@pytest.mark.parametrize("size", [(2, 2), (9, 8), (8, 9), (1, 6), (32, 33)])
@pytest.mark.parametrize("compiled", [True, False])
def test_half_size_is_bilinear(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], compiled: bool) -> None:
    monkeypatch.setattr("rrm.losses.has_compiled_lattice", lambda: compiled)
    maps = torch.rand(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    if size[0] == 1:
        with pytest.raises((RRMError, RuntimeError)):  # no pixel is left; the loss refuses such images before
            _halved(maps)
        return
    expected = F.interpolate(maps, scale_factor=0.5, mode="bilinear", align_corners=False)
    torch.testing.assert_close(_halved(maps), expected)
    assert torch.autograd.gradcheck(_halved, (maps,))


@pytest.mark.parametrize("gradient", ["reference", "exact"])
def test_without_the_gate_labels_do_not_matter(gradient: str) -> None:
    images, probs, valid, labels = example()
    results = []
    for gate, given in ((False, labels), (True, None), (True, labels)):
        leaf = probs.clone().requires_grad_()
        value = DenseEnergyLoss(1.0, scale=1, gradient=gradient, gate=gate)(images, leaf, valid, given)
        results.append((value.detach(), *torch.autograd.grad(value, leaf)))
    assert all(torch.equal(first, second) for first, second in zip(results[0], results[1], strict=True))
    assert results[0][0] < results[2][0]
