"""What the other methods minimise: finite on hostile batches, falling in training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rrm.crf import DenseCRF
from rrm.method_tasks import AffinityTask, DSRGTask, EMAdaptTask, SECTask, valid_at
from rrm.networks import build_network
from rrm.regions import RegionRule
from tests.training.test_tasks import HOSTILE, SIDE, _batch, _network, totals

SEEDS = {"scales": [0.5, 1.0], "foreground": 0.4, "background": 0.3}
DECAYS = {"foreground_decay": 0.996, "absent_decay": 0.999, "background_decay": 0.99}
THRESHOLDS = {"foreground_threshold": 0.85, "background_threshold": 0.99}
CRF = DenseCRF(iterations=3)
TASKS: dict[str, Callable[[Any], Any]] = {
    "em_adapt": lambda network: EMAdaptTask(network, {"background": 0.4, "foreground": 0.2, "passes": 2}),
    "sec": lambda network: SECTask(network, SEEDS, CRF, DECAYS),
    "dsrg": lambda network: DSRGTask(network, SEEDS, CRF, THRESHOLDS),
}


def _total(task: Any, batch: dict[str, Any]) -> torch.Tensor:
    return torch.stack(list(totals(task, batch).values())).sum()


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("case", HOSTILE)
def test_finite_with_finite_gradients(name: str, case: str) -> None:
    network = _network()
    total = _total(TASKS[name](network), _batch(**HOSTILE[case]))
    total.backward()
    assert torch.isfinite(total)
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)
    assert network.fc8.weight.grad is None, "the classification branch is not trained"


def _assert_loss_falls(task: Any, batch: Any) -> None:
    optimizer = torch.optim.SGD(task.network.parameters(), lr=0.01)
    totals = []
    for _ in range(12):
        total = _total(task, batch)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    assert totals[-1] < 0.9 * totals[0], totals


@pytest.mark.parametrize("name", TASKS)
def test_a_few_steps_lower_the_loss(name: str) -> None:
    network, batch = _network(), _batch()
    task = TASKS[name](network)
    _assert_loss_falls(task, batch)


def test_half_precision_scores() -> None:
    network = _network()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = totals(EMAdaptTask(network, {}), _batch())
    assert terms["cross_entropy"].dtype == torch.float32 and torch.isfinite(terms["cross_entropy"])


def test_padding_has_no_loss() -> None:
    network = _network().eval()
    batch = _batch()
    nothing = _batch(valid=torch.zeros(2, SIDE, SIDE, dtype=torch.bool))
    task = EMAdaptTask(network, {})
    assert float(totals(task, nothing)["cross_entropy"].detach()) == 0
    assert float(totals(task, batch)["cross_entropy"].detach()) > 0
    assert valid_at(nothing["valid"], (4, 4)).shape == (2, 4, 4)


@pytest.mark.parametrize("kind", [SECTask, DSRGTask])
def test_seeds_are_those_of_the_start_whatever_training_does(kind: Any) -> None:
    network, batch = _network(), _batch()
    task = kind(network, SEEDS, CRF, DECAYS if kind is SECTask else THRESHOLDS)
    images = network.normalize(batch["images"])
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    before = task.seeds(batch, images, (4, 4))
    assert all(torch.equal(buffers[name], value) for name, value in network.named_buffers())
    assert network.training
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    torch.testing.assert_close(before, task.seeds(batch, images, (4, 4)))
    assert set(before[0].unique().tolist()) <= {0, 1, 3, 255}
    assert set(before[1].unique().tolist()) <= {0, 2, 255}


def _affinity_task(**rule: Any) -> AffinityTask:
    torch.manual_seed(0)
    options = {"width": 1 / 16, "units": (1, 1, 1, 1), "output_stride": 4, "batch_norm": "train"}
    network = build_network("affinity", num_classes=3, backbone="resnet38", **options).train()
    mining = RegionRule(**{"rule": "cam", "ratio": 0.6, "padding": "ignore", **rule})
    return AffinityTask(network, _network(), mining, [0.5, 1.0], radius=3)


@pytest.mark.parametrize("case", HOSTILE)
def test_affinity_terms_are_finite_with_finite_gradients(case: str) -> None:
    task = _affinity_task(rule="reference", score_threshold=0.0, background_threshold=0.0, crf_confidence=0.0, crf=CRF)
    total = _total(task, _batch(**HOSTILE[case]))
    total.backward()
    assert torch.isfinite(total)
    assert all(torch.isfinite(parameter.grad).all() for parameter in task.network.parameters())
    assert not task.labeller.training and all(parameter.grad is None for parameter in task.labeller.parameters())
    if case == "padding only":
        assert float(total.detach()) == 0


def test_affinity_loss_falls_and_the_labels_stay() -> None:
    task, batch = _affinity_task(), _batch()
    state = {name: value.clone() for name, value in task.labeller.state_dict().items()}
    _assert_loss_falls(task, batch)
    assert all(torch.equal(value, state[name]) for name, value in task.labeller.state_dict().items())
