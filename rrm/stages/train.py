"""What the training stages share: the network with its start weights, the batches, and one call of the loop."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rrm.datasets.augmentation import TrainTransform
from rrm.datasets.loading import naming_lost_workers, train_loader
from rrm.distributed import is_first, processes, rank
from rrm.errors import RRMError
from rrm.networks import build_network, load_reference_weights, load_weights
from rrm.schedules import build_optimizer
from rrm.stages.call import Call
from rrm.stages.trained import save_trained
from rrm.store import Store, atomic_path
from rrm.training import LoopOptions, Run, Task, fit, take_device


def new_network(kind: str, photos: Store, options: Mapping[str, Any], seed: int) -> Any:
    """Build a network with seeded random weights, then the start weights that the configuration names.

    Args:
        kind: `"rrm"`, `"segmentation"` or `"affinity"`.
        photos: packed photos; they say how many classes there are.
        options: config section `network`.
        seed: of the random weights.
    """
    torch.manual_seed(seed)
    network = build_network(
        kind, num_classes=len(photos.attrs["classes"]), backbone=options["backbone"], **options["options"]
    )
    if options["weights"]:
        load = load_reference_weights if options["weights_format"] == "reference" else load_weights
        load(network, Path(options["weights"]))
    return network


def train(
    call: Call,
    photos: Store,
    kind: str,
    task: Task,
    network_options: Mapping[str, Any],
    loop: Mapping[str, Any],
    masks: Store | None = None,
) -> None:
    """Run the loop for a stage and write its final weights and its history; the first of several processes does.

    Args:
        call: the stage's call.
        photos: packed photos.
        kind: `"rrm"`, `"segmentation"` or `"affinity"`, of the network.
        task: network and losses.
        network_options: config section `network`.
        loop: config section `train`.
        masks: store of labels, where the task needs them.

    Raises:
        RRMError: the batch cannot be divided among the processes, and what `rrm.training.fit` raises.
    """
    identity = call.identity()
    run = Run(call.output.with_suffix(".checkpoints"), identity)
    options = _loop_options(call, loop)
    batches = functools.partial(_batches, photos, masks, call, loop)
    optimizer = _optimizer(task.network, loop["optimizer"])
    with naming_lost_workers():
        fit(task, batches, optimizer, options, run, name=call.output.parent.name + "/" + call.output.stem)
    if not is_first():
        return
    save_trained(call.output, task.network, kind, photos.attrs["classes"], network_options, identity)
    run.keep_history_before(options.steps)
    with atomic_path(call.output.with_suffix(".history.jsonl")) as temporary:
        shutil.copyfile(run.history, temporary)


def _loop_options(call: Call, loop: Mapping[str, Any]) -> LoopOptions:
    size, parts = loop["batch_size"], processes() * loop["accumulate"]
    if processes() > 1 and size % parts:
        raise RRMError(
            f"batch_size: expected a multiple of {parts} ({processes()} processes, accumulate {loop['accumulate']}), "
            f"got {size}: change one of the three"
        )
    return LoopOptions(
        steps=loop["steps"],
        batch_size=size,
        seed=call.options["seed"],
        accumulate=loop["accumulate"],
        precision=loop["precision"],
        power=loop["optimizer"]["power"],
        schedule=loop["optimizer"]["schedule"],
        clip_gradient=loop["clip_gradient"],
        checkpoint_every=loop["checkpoint_every"],
        device=take_device(call.runtime),
        compile=call.runtime.get("compile", False),
        log_seconds=call.runtime["log_seconds"],
    )


def _optimizer(network: Any, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    values = {k: v for k, v in options.items() if k not in ("power", "schedule")}
    return build_optimizer(network.parameter_groups(), **values)


def _batches(photos: Store, masks: Store | None, call: Call, loop: Mapping[str, Any], start: int) -> Any:
    transform = TrainTransform(
        crop=loop["crop"], scale=tuple(loop["scale"]), flip=loop["flip"], scale_per=loop["scale_per"]
    )
    return train_loader(
        photos,
        masks,
        "train",
        transform,
        batch_size=loop["batch_size"],
        seed=call.options["seed"],
        start_step=start,
        steps=loop["steps"],
        workers=call.runtime["workers"],
        rank=rank(),
        world_size=processes(),
        device=take_device(call.runtime),
    )
