"""Optimisers and learning rates: the poly schedule, its per-group multipliers and the authors' two departures
from SGD.

    lr(t) = factor * base * (1 - t / T) ** power

Both departures were recorded from the authors' code. They pass the weight decay as SGD's momentum, so there
is in effect none (`reference_momentum`); and their from-ImageNet script restarts the schedule half way at one
rate for all groups (`restarted_poly_lr`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from rrm.errors import RRMError

GROUPS = ("backbone.weight", "backbone.bias", "head.weight", "head.bias")
REFERENCE_FACTORS = (1.0, 2.0, 10.0, 20.0)
RESTART_LR = 7e-4
_KINDS = ("sgd", "adamw")
_SCHEDULES = ("poly", "poly-restart")


def poly_lr(base: float, step: int, max_steps: int, power: float = 0.9) -> float:
    """Learning rate of a step under the poly schedule.

    Args:
        base: rate of step 0.
        step: steps done, >= 0. From `max_steps` on the rate stays that of the last step, as in the authors'
            code.
        max_steps: steps of the whole run, >= 1.
        power: of the decay, >= 0.

    Returns:
        The rate, > 0 for a positive base.

    Raises:
        RRMError: a number is out of range.

    Example:
        >>> round(poly_lr(0.01, 10_000, 20_000), 6)
        0.005359
    """
    if step < 0 or max_steps < 1 or power < 0:
        raise RRMError(
            f"poly schedule: expected step >= 0, max_steps >= 1, power >= 0, got {step}, {max_steps}, {power}"
        )
    return float(base * (1 - min(step, max_steps - 1) / max_steps) ** power)


def restarted_poly_lr(
    base: float, factor: float, step: int, max_steps: int, power: float = 0.9, restart_lr: float = RESTART_LR
) -> float:
    """Learning rate of the authors' from-ImageNet script: two poly schedules of half the length each.

    Args:
        base: rate of step 0 before the factor.
        factor: the group's multiplier; it holds in the first half only.
        step: steps done, >= 0.
        max_steps: steps of the whole run, >= 2.
        power: of the decay.
        restart_lr: rate of all groups at the start of the second half.

    Example:
        >>> restarted_poly_lr(0.01, 20, 0, 20_000), restarted_poly_lr(0.01, 20, 10_000, 20_000)
        (0.2, 0.0007)
    """
    half = max_steps // 2
    if step < half:
        return factor * poly_lr(base, step, half, power)
    return poly_lr(restart_lr, step - half, max_steps - half, power)


def reference_momentum(weight_decay: float) -> float:
    """Momentum that the authors' code trains with: its optimiser hands the weight decay to SGD in momentum's
    place.

    Example:
        >>> reference_momentum(1e-5)
        1e-05
    """
    return weight_decay


def build_optimizer(
    parameter_groups: Mapping[str, Iterable[torch.nn.Parameter]],
    kind: str = "sgd",
    lr: float = 1e-3,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    bias_decay: bool = True,
    lr_factors: Sequence[float] = REFERENCE_FACTORS,
) -> torch.optim.Optimizer:
    """Make an optimiser whose groups know their share of the learning rate.

    Args:
        parameter_groups: parameters under the names of `GROUPS`; a missing or empty group is left out.
        kind: "sgd" or "adamw" (momentum is then beta1).
        lr: base rate, > 0.
        momentum: 0..1; `reference_momentum(weight_decay)` gives what the authors trained with.
        weight_decay: >= 0.
        bias_decay: whether biases decay too; the authors' do not.
        lr_factors: multipliers in the order of `GROUPS`; the authors' are 1, 2, 10 and 20.

    Returns:
        The optimiser; each group has "name", "base_lr" and "lr_factor", which survive `state_dict`.

    Raises:
        RRMError: unknown group or kind, no parameter at all, or a number out of range.

    Example:
        >>> groups = {"head.weight": [torch.nn.Parameter(torch.zeros(1))]}
        >>> build_optimizer(groups, lr=0.01).param_groups[0]["lr"]
        0.1
    """
    _check_optimizer(parameter_groups, kind, lr, momentum, weight_decay, lr_factors)
    groups = []
    for name, factor in zip(GROUPS, lr_factors, strict=True):
        parameters = list(parameter_groups.get(name, ()))
        decay = weight_decay if bias_decay or not name.endswith("bias") else 0.0
        if parameters:
            groups.append(
                {
                    "params": parameters,
                    "lr": lr * factor,
                    "weight_decay": decay,
                    "name": name,
                    "base_lr": lr,
                    "lr_factor": factor,
                }
            )
    if not groups:
        raise RRMError("optimiser: expected at least one parameter to train, got none: is everything frozen?")
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(momentum, 0.999), weight_decay=weight_decay)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay)


def set_learning_rate(
    optimizer: torch.optim.Optimizer,
    step: int,
    max_steps: int,
    power: float = 0.9,
    warmup_steps: int = 0,
    schedule: str = "poly",
) -> float:
    """Set every group's learning rate for a step; call it before `optimizer.step()`.

    Args:
        optimizer: from `build_optimizer`.
        step: steps done so far, >= 0.
        max_steps: steps of the whole run.
        power: of the poly decay.
        warmup_steps: the rate climbs linearly over this many steps first; 0 for none.
        schedule: "poly", or "poly-restart", the authors' from-ImageNet script (`restarted_poly_lr`).

    Returns:
        The rate of the first group, for the log.

    Raises:
        RRMError: unknown schedule, or the optimiser was made elsewhere.

    Example:
        >>> optimizer = build_optimizer({"backbone.bias": [torch.nn.Parameter(torch.zeros(1))]}, lr=1.0)
        >>> set_learning_rate(optimizer, step=0, max_steps=10)
        2.0
    """
    if schedule not in _SCHEDULES:
        raise RRMError(f"schedule: expected one of {', '.join(_SCHEDULES)}, got {schedule!r}: choose one of them")
    ramp = min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0
    for group in optimizer.param_groups:
        if "lr_factor" not in group or "base_lr" not in group:
            raise RRMError(
                "set_learning_rate: expected an optimiser of build_optimizer, got groups without lr_factor: "
                "build it there"
            )
        if schedule == "poly":
            rate = group["lr_factor"] * poly_lr(group["base_lr"], step, max_steps, power)
        else:
            rate = restarted_poly_lr(group["base_lr"], group["lr_factor"], step, max_steps, power)
        group["lr"] = ramp * rate
    return float(optimizer.param_groups[0]["lr"])


def _check_optimizer(
    parameter_groups: Mapping[str, Iterable[torch.nn.Parameter]],
    kind: str,
    lr: float,
    momentum: float,
    weight_decay: float,
    lr_factors: Sequence[float],
) -> None:
    unknown = sorted(set(parameter_groups) - set(GROUPS))
    if unknown:
        raise RRMError(
            f"optimiser groups: expected names among {', '.join(GROUPS)}, got {', '.join(unknown)}: rename them"
        )
    if kind not in _KINDS:
        raise RRMError(f"optimiser kind: expected one of {', '.join(_KINDS)}, got {kind!r}: choose one of them")
    if not lr > 0 or not 0 <= momentum < 1 or not weight_decay >= 0:
        raise RRMError(
            f"optimiser: expected lr > 0, momentum in [0, 1), weight_decay >= 0, got {lr}, {momentum}, "
            f"{weight_decay}: change it"
        )
    if len(lr_factors) != len(GROUPS) or any(not factor >= 0 for factor in lr_factors):
        raise RRMError(
            f"optimiser lr_factors: expected four numbers >= 0, got {lr_factors}: the authors use {REFERENCE_FACTORS}"
        )
