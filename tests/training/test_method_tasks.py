"""What the other methods minimise: finite on hostile batches, falling in training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rrm.method_tasks import EMAdaptTask, valid_at
from tests.training.test_tasks import HOSTILE, SIDE, _batch, _network

TASKS: dict[str, Callable[[Any], Any]] = {
    "em_adapt": lambda network: EMAdaptTask(network, {"background": 0.4, "foreground": 0.2, "passes": 2}),
}


def _total(task: Any, batch: dict[str, Any]) -> torch.Tensor:
    return torch.stack(list(task.losses(batch, 0.5).values())).sum()


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


@pytest.mark.parametrize("name", TASKS)
def test_a_few_steps_lower_the_loss(name: str) -> None:
    network, batch = _network(), _batch()
    task = TASKS[name](network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    totals = []
    for _ in range(12):
        total = _total(task, batch)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    assert totals[-1] < 0.9 * totals[0], totals


def test_half_precision_scores() -> None:
    network = _network()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = EMAdaptTask(network, {}).losses(_batch(), 0.0)
    assert terms["cross_entropy"].dtype == torch.float32 and torch.isfinite(terms["cross_entropy"])


def test_padding_has_no_loss() -> None:
    network = _network().eval()
    batch = _batch()
    nothing = _batch(valid=torch.zeros(2, SIDE, SIDE, dtype=torch.bool))
    task = EMAdaptTask(network, {})
    assert float(task.losses(nothing, 0.0)["cross_entropy"].detach()) == 0
    assert float(task.losses(batch, 0.0)["cross_entropy"].detach()) > 0
    assert valid_at(nothing["valid"], (4, 4)).shape == (2, 4, 4)
