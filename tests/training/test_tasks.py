"""Loss terms of the training stages, on hostile batches too."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rrm.config import OneStep
from rrm.crf import DenseCRF
from rrm.networks import build_network
from rrm.recipes import ONE_STEP_RECIPES
from rrm.regions import RegionRule
from rrm.tasks import (
    ClassificationTask,
    OneStepTask,
    SegmentationTask,
    evaluation_mode,
    mined_labels,
    multi_scale_logits,
)
from rrm.training import Task

SIDE, CLASSES = 32, 3


def _network(kind: str = "rrm") -> Any:
    torch.manual_seed(0)
    options = {"width": 1 / 16, "units": (1, 1, 1, 1), "batch_norm": "train", "head_dilation": 2}
    return build_network(kind, num_classes=CLASSES, backbone="resnet38", **options).train()


def _batch(count: int = 2, **changes: torch.Tensor) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    batch: dict[str, Any] = {
        "images": torch.randint(0, 256, (count, 3, SIDE, SIDE), generator=generator).float(),
        "valid": torch.ones(count, SIDE, SIDE, dtype=torch.bool),
        "present": torch.tensor([[1.0, 0, 1], [0, 1, 0]])[:count],
        "labels": torch.randint(0, CLASSES + 1, (count, SIDE, SIDE), generator=generator),
        "ids": [str(k) for k in range(count)],
    }
    return batch | changes


def totals(task: Task, batch: dict[str, Any], progress: float = 0.5) -> dict[str, torch.Tensor]:
    """The terms of a batch that is not split."""
    return {name: term.total for name, term in task.losses(batch, progress).items()}


def _one_step(recipe: str, network: Any) -> OneStepTask:
    values = OneStep.model_validate({"recipe": recipe, **ONE_STEP_RECIPES[recipe]}).model_dump()
    mining = {**values["mining"], "crf": DenseCRF(**values["mining"]["crf"])}
    energy = values["energy"] | {"weight": 1e-3}
    return OneStepTask(network, RegionRule(**mining), values["cam"], values["losses"], energy)


HOSTILE = {
    "plain": {},
    "batch of one": {"count": 1},
    "no labels": {"present": torch.zeros(2, CLASSES)},
    "all labels": {"present": torch.ones(2, CLASSES)},
    "black photos": {"images": torch.zeros(2, 3, SIDE, SIDE)},
    "padding only": {"valid": torch.zeros(2, SIDE, SIDE, dtype=torch.bool)},
}


@pytest.mark.parametrize("recipe", ["paper", "reference"])
@pytest.mark.parametrize("case", HOSTILE)
def test_one_step_is_finite_and_trains_both_branches(recipe: str, case: str) -> None:
    network = _network()
    task = _one_step(recipe, network)
    terms = totals(task, _batch(**HOSTILE[case]))
    assert set(terms) == {"classification", "cross_entropy", "energy"}
    torch.stack(list(terms.values())).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
    assert all(torch.isfinite(term) for term in terms.values())
    if case != "no labels":  # the paper's softmax has nothing to say about a photo without classes
        assert network.fc8.weight.grad.abs().sum() > 0


def test_cams_leave_batch_statistics_alone() -> None:
    network = _network()
    before = {name: value.clone() for name, value in network.named_buffers()}
    task = _one_step("reference", network)
    batch = _batch()
    mined_labels(network, task.rule, task.cam, batch, network.normalize(batch["images"]))
    assert all(torch.equal(before[name], value) for name, value in network.named_buffers())
    assert network.training


@pytest.mark.parametrize(
    ("recipe", "dropout", "passes"), [("reference", (0.3, 0.5), 3), ("paper", (0.0, 0.0), 3), ("paper", (0.3, 0.5), 4)]
)
def test_scale_one_is_the_training_pass_where_both_are_the_same(
    recipe: str, dropout: tuple[float, float], passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Extra passes: one a scale, but for scale 1 where dropout is the same in both, and batch norm frozen."""
    torch.manual_seed(0)
    small = {"width": 1 / 16, "units": (1, 1, 1, 1), "dropout": dropout, "classifier_dropout": 0.5}
    network: Any = build_network("rrm", num_classes=CLASSES, backbone="resnet38", **small).train()
    task, sides = _one_step(recipe, network), []
    whole = network.forward_cam
    monkeypatch.setattr(network, "forward_cam", lambda x: sides.append(x.shape[-1]) or whole(x))
    torch.manual_seed(1)
    terms = totals(task, _batch())
    assert len(sides) == passes
    assert (SIDE in sides) == (passes == 4)
    if dropout == (0.0, 0.0):  # then the labels are the same, and so is all that follows from them
        torch.manual_seed(1)
        other = {name: term.total for name, term in task.losses(task.prepare(_batch()), 0.5).items()}
        assert len(sides) == passes + 4
        torch.testing.assert_close(terms, other)


def test_mined_labels_are_present_classes() -> None:
    network = _network()
    batch = _batch()
    task = _one_step("paper", network)
    labels = mined_labels(network, task.rule, task.cam, batch, network.normalize(batch["images"]))
    assert labels.shape == (2, SIDE, SIDE)
    assert labels.dtype == torch.int64
    assert set(labels[0].unique().tolist()) <= {0, 1, 3, 255}
    assert set(labels[1].unique().tolist()) <= {0, 2, 255}


def test_weight_zero_has_no_energy_term_and_a_ramp_starts_at_nothing() -> None:
    network = _network("segmentation")
    energy = {"weight": 1.0, "grid": 8, "form": "paper", "normalize": "row", "include_self": True, "gradient": "exact"}
    terms = [totals(SegmentationTask(network, "mean", energy=e), _batch()) for e in (None, energy | {"weight": 0})]
    assert all(set(each) == {"cross_entropy"} for each in terms)
    ramped = SegmentationTask(network, "mean", energy=energy | {"ramp": 1.0})
    plain = SegmentationTask(network, "mean", energy=energy)
    assert float(totals(ramped, _batch(), 0.0)["energy"].detach()) == 0
    with evaluation_mode(network):
        half, whole = (float(totals(task, _batch())["energy"].detach()) for task in (ramped, plain))
    assert half == pytest.approx(whole / 2)


def test_multi_scale_logits_end_with_their_maximum() -> None:
    network = _network("segmentation").eval()
    images = network.normalize(_batch()["images"])
    logits = multi_scale_logits(network.forward_segmentation, images, [0.5, 1.0])
    assert [each.shape for each in logits] == [(2, CLASSES + 1, SIDE, SIDE)] * 3
    torch.testing.assert_close(logits[2], torch.maximum(logits[0], logits[1]))
    assert len(multi_scale_logits(network.forward_segmentation, images, [1.0])) == 1


def test_classification_alone_leaves_the_segmentation_branch() -> None:
    network = _network()
    totals(ClassificationTask(network, "multilabel-soft-margin"), _batch())["classification"].backward()
    assert network.fc8.weight.grad is not None
    assert all(parameter.grad is None for parameter in network.head.parameters())
