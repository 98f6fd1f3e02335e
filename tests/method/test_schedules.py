"""Learning rates and optimisers against the authors' recorded numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import Parameter

from rrm.errors import RRMError
from rrm.schedules import (
    GROUPS,
    build_optimizer,
    poly_lr,
    reference_momentum,
    restarted_poly_lr,
    set_learning_rate,
)


def groups() -> dict[str, list[Parameter]]:
    return {name: [Parameter(torch.ones(1))] for name in GROUPS}


@pytest.mark.parametrize(("prefix", "schedule"), [("PolyOptimizer_cls", "poly"), ("PolyOptimizer", "poly-restart")])
def test_equals_the_authors(goldens: Path, prefix: str, schedule: str) -> None:
    recorded = np.load(goldens / "lr_schedules.npz")
    base, decay = float(recorded[f"{prefix}_base_lr"]), float(recorded[f"{prefix}_wd"])
    momentum = reference_momentum(decay)
    optimizer = build_optimizer(groups(), lr=base, momentum=momentum, weight_decay=decay, bias_decay=False)
    for step, expected in zip(recorded["global_step"], recorded[f"{prefix}_lr"], strict=True):
        set_learning_rate(optimizer, int(step), 20_000, schedule=schedule)
        np.testing.assert_allclose([group["lr"] for group in optimizer.param_groups], expected, rtol=1e-12)
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    momenta = [group["momentum"] for group in optimizer.param_groups]
    np.testing.assert_allclose(decays, recorded[f"{prefix}_sgd_weight_decay_per_group"])
    np.testing.assert_allclose(momenta, recorded[f"{prefix}_sgd_momentum_per_group"])


@pytest.mark.parametrize(("prefix", "schedule"), [("PolyOptimizer_cls", "poly"), ("PolyOptimizer", "poly-restart")])
def test_three_steps_equal_the_authors(goldens: Path, prefix: str, schedule: str) -> None:
    recorded = np.load(goldens / "lr_schedules.npz")
    base, decay = float(recorded[f"{prefix}_base_lr"]), float(recorded[f"{prefix}_wd"])
    parameters = groups()
    momentum = reference_momentum(decay)
    optimizer = build_optimizer(parameters, lr=base, momentum=momentum, weight_decay=decay, bias_decay=False)
    for step, expected in enumerate(recorded[f"{prefix}_param_after_step_0_1_2"]):
        for name in GROUPS:
            parameters[name][0].grad = torch.ones(1)
        set_learning_rate(optimizer, step, 20_000, schedule=schedule)
        optimizer.step()
        np.testing.assert_allclose([parameters[name][0].item() for name in GROUPS], expected, rtol=1e-6)


def test_poly_falls_to_the_last_step_and_stays() -> None:
    rates = [poly_lr(1.0, step, 10) for step in range(15)]
    assert rates[0] == 1
    assert rates[:10] == sorted(rates[:10], reverse=True)
    assert rates[9] == rates[14] == pytest.approx(0.1**0.9)
    assert {poly_lr(0.5, step, 10, power=0) for step in range(12)} == {0.5}


def test_restart_halves_add_up_for_odd_lengths() -> None:
    rates = [restarted_poly_lr(1.0, 10, step, 7) for step in range(7)]
    assert rates[0] == 10
    assert rates[3] == 7e-4
    assert min(rates) > 0


def test_warmup_climbs_linearly() -> None:
    optimizer = build_optimizer(groups(), lr=1.0, lr_factors=[1, 1, 1, 1])
    rates = [set_learning_rate(optimizer, step, 100, power=0, warmup_steps=4) for step in range(6)]
    assert rates == [0.25, 0.5, 0.75, 1, 1, 1]


def test_groups_keep_their_factor_through_a_checkpoint() -> None:
    first = build_optimizer(groups(), lr=0.1)
    second = build_optimizer(groups(), lr=9.0)
    second.load_state_dict(first.state_dict())
    assert [group["lr_factor"] for group in second.param_groups] == [1, 2, 10, 20]
    assert [group["base_lr"] for group in second.param_groups] == [0.1] * 4
    assert [group["name"] for group in second.param_groups] == list(GROUPS)


def test_adamw_and_bias_decay() -> None:
    optimizer = build_optimizer(groups(), "adamw", 1e-4, weight_decay=0.1, bias_decay=False, lr_factors=[1, 1, 10, 10])
    assert isinstance(optimizer, torch.optim.AdamW)
    np.testing.assert_allclose([group["lr"] for group in optimizer.param_groups], [1e-4, 1e-4, 1e-3, 1e-3])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0, 0.1, 0]


def test_missing_groups_are_left_out() -> None:
    optimizer = build_optimizer({"backbone.weight": [], "head.bias": iter([Parameter(torch.ones(1))])}, lr=1.0)
    assert [group["name"] for group in optimizer.param_groups] == ["head.bias"]
    assert set_learning_rate(optimizer, 0, 1) == 20


def test_wrong_input_is_refused() -> None:
    plain = torch.optim.SGD([Parameter(torch.ones(1))], lr=0.1)
    good = build_optimizer(groups())
    for call, message in (
        (lambda: poly_lr(1, -1, 10), "step"),
        (lambda: poly_lr(1, 0, 0), "max_steps"),
        (lambda: build_optimizer({"head": []}), "head.weight"),
        (lambda: build_optimizer({}), "frozen"),
        (lambda: build_optimizer(groups(), kind="lion"), "sgd, adamw"),
        (lambda: build_optimizer(groups(), lr=0), "lr"),
        (lambda: build_optimizer(groups(), momentum=1), "momentum"),
        (lambda: build_optimizer(groups(), lr_factors=[1, 2]), "lr_factors"),
        (lambda: set_learning_rate(good, 0, 1, schedule="cosine"), "schedule"),
        (lambda: set_learning_rate(plain, 0, 1), "build_optimizer"),
    ):
        with pytest.raises(RRMError, match=message):
            call()
