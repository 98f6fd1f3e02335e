"""One training step of RRM (Algorithm 1), part by part, as the training loop runs it.

    python -m benchmarks.training_step --threads 2 --out results/benchmarks/training_step.json
    python -m benchmarks.training_step --device cuda --precision bfloat16 --out FILE [--photos DIR]

`rrm.training.fit` trains a network with random weights on one batch of photos, over and over, with a learning rate that
leaves the weights as they are. The parts are the scopes that the package names for profilers (`rrm.cam`, `rrm.mining`
and so on), so there is no second copy of the step that could differ from the first; `rest` is what no scope covers.
Reading and augmenting photos is not among them: the loader does that beside the step.

Where pydensecrf is installed, every other step mines its labels with that instead, all else equal: the two sides take
turns in one run. On a GPU the edges of the scopes are CUDA events, read once the step is over: a part lasts from the
moment the GPU reaches its first edge to its last, waiting for the processor included, and nothing stops to be measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.filtering import photos
from benchmarks.harness import busy_machine, metadata, quartiles, time_summary, write
from rrm.crf import DenseCRF
from rrm.networks import build_network
from rrm.parallel import prepare_process
from rrm.recipes import ONE_STEP_RECIPES
from rrm.regions import RegionRule
from rrm.schedules import build_optimizer
from rrm.tasks import OneStepTask
from rrm.terms import Term
from rrm.training import Batch, Counts, LoopOptions, Run, Task, fit

if TYPE_CHECKING:
    from rrm.config import OneStep

CLASSES = 20
PREFIX, STEP, REST = "rrm.", "step", "rest"
WITH_SCOPES = ("rrm.tasks", "rrm.training")
LEARNING_RATE = 1e-12
SIZES: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {
        "network": {"options": {"width": 0.125, "units": [1, 1, 1, 1], "batch_norm": "train"}},
        "train": {"crop": 161},
    },
}


class Clock:
    """Takes the place of `record_function`: notes when each scope begins and ends, step by step.

    Args:
        device: "cpu" (wall time) or "cuda" (events in the GPU's queue).
    """

    def __init__(self, device: str) -> None:
        self._on_gpu = device == "cuda"
        self._spans: list[tuple[str, Any, Any]] = []
        self._steps: list[list[tuple[str, Any, Any]]] = []

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Note one scope; that of the step closes the step."""
        name, start = name.removeprefix(PREFIX), self._now()
        yield
        self._spans.append((name, start, self._now()))
        if name == STEP:
            self._steps.append(self._spans)
            self._spans = []

    def steps(self) -> list[dict[str, float]]:
        """Milliseconds of each step and of its parts, in the order in which they end; `rest` is added."""
        if self._on_gpu:
            torch.cuda.synchronize()
        return [self._sums(spans) for spans in self._steps]

    def seconds_after(self, first: int) -> float:
        """From the end of step `first`, counted from 0, to that of the last one: waiting for batches counts."""
        if self._on_gpu:
            torch.cuda.synchronize()
        return self._elapsed(self._steps[first][-1][2], self._steps[-1][-1][2]) / 1e3

    def _elapsed(self, start: Any, stop: Any) -> float:
        return float(start.elapsed_time(stop) if self._on_gpu else 1e3 * (stop - start))

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _sums(self, spans: list[tuple[str, Any, Any]]) -> dict[str, float]:
        sums: dict[str, float] = {}
        for name, start, stop in spans:
            sums[name] = sums.get(name, 0.0) + self._elapsed(start, stop)
        whole = sums.pop(STEP)
        return {STEP: whole, **sums, REST: whole - sum(sums.values())}


@contextmanager
def watched(clock: Clock) -> Iterator[None]:
    """Let the package's scopes go to a clock meanwhile."""
    with ExitStack() as stack:
        for module in WITH_SCOPES:
            stack.enter_context(patch(f"{module}.record_function", clock.scope))
        yield


class TakingTurns(Task):
    """A task whose steps are those of several tasks in turn, which share a network."""

    def __init__(self, tasks: Sequence[OneStepTask]) -> None:
        super().__init__(tasks[0].network)
        self.tasks, self.turn = tasks, 0

    def prepare(self, batch: Batch) -> Batch:
        """The batch as the task whose turn it is prepares it."""
        return self._now.prepare(batch)

    def counts(self, batch: Batch) -> Counts:
        return self._now.counts(batch)

    def losses(self, batch: Batch, progress: float) -> Mapping[str, Term]:
        """Loss terms of the task whose turn it is."""
        task = self._now
        self.turn += 1
        return task.losses(batch, progress)

    @property
    def _now(self) -> OneStepTask:
        return self.tasks[self.turn % len(self.tasks)]


def options(recipe: str, size: str, configs: Sequence[Path], changes: Mapping[str, Any]) -> OneStep:
    """Options of the section `one_step`: those of config files, or a recipe at a size, with `changes`."""
    from rrm.config import OneStep, load, merge

    base = load(*configs).one_step.model_dump() if configs else merge(ONE_STEP_RECIPES[recipe], SIZES[size])
    return OneStep.model_validate(merge({"recipe": recipe, **base}, changes))


def tasks(values: OneStep) -> dict[str, OneStepTask]:
    """The task as configured, after the same with pydensecrf where that is installed and the rule has a CRF."""
    section = values.model_dump()
    torch.manual_seed(0)
    settings = section["network"]
    network = build_network("rrm", num_classes=CLASSES, backbone=settings["backbone"], **settings["options"])
    rule = RegionRule(**{**section["mining"], "crf": DenseCRF(**section["mining"]["crf"])})
    rules = {"rrm": rule}
    if find_spec("pydensecrf") and rule.rule != "cam":
        calls = values.train.batch_size * (2 if rule.rule == "reference" else 1)
        theirs = replace(rule, crf=DenseCRF(**section["mining"]["crf"], backend="pydensecrf"))
        rules = {f"mining with {calls} pydensecrf calls": theirs, **rules}
    parts = (section["cam"], section["losses"], section["energy"])
    return {name: OneStepTask(network, each, *parts) for name, each in rules.items()}


def batch_of(folder: Path | None, count: int, crop: int, pinned: bool) -> Batch:
    """A batch as the loader gives it, of photos with one, two, three and two classes and so on."""
    images = np.stack(photos(folder, count, crop, crop))
    present = torch.zeros(count, CLASSES)
    for item in range(count):
        present[item, : (1, 2, 3, 2)[item % 4]] = 1
    batch: Batch = {
        "images": torch.from_numpy(images).permute(0, 3, 1, 2).float().contiguous(),
        "valid": torch.ones(count, crop, crop, dtype=torch.bool),
        "present": present,
        "ids": [str(item) for item in range(count)],
    }
    return {name: each.pin_memory() if pinned and name != "ids" else each for name, each in batch.items()}


def profile(values: OneStep, folder: Path | None, device: str, repeats: int, warmup: int) -> dict[str, Any]:
    """Times of the step and of its parts, a side for each of `tasks`."""
    sides, loop = tasks(values), values.train
    batch = batch_of(folder, loop.batch_size, loop.crop, device == "cuda")
    rounds = len(sides) * (warmup + repeats)
    task = TakingTurns(list(sides.values()))
    optimizer_options = loop.optimizer.model_dump(exclude={"power", "schedule"}) | {"lr": LEARNING_RATE}
    optimizer = build_optimizer(task.network.parameter_groups(), **optimizer_options)
    how = LoopOptions(steps=2 * rounds, batch_size=loop.batch_size, seed=0, precision=loop.precision, device=device,
                      accumulate=loop.accumulate, clip_gradient=loop.clip_gradient, checkpoint_every=3 * rounds,
                      log_seconds=600)  # fmt: skip
    clock = Clock(device)
    with tempfile.TemporaryDirectory() as made, watched(clock):  # batches end before the loop does: no checkpoint
        fit(task, lambda _: repeat(batch, rounds), optimizer, how, Run(Path(made), {}))
    steps = clock.steps()[len(sides) * warmup :]
    times = {f"{name} ({device})": steps[place :: len(sides)] for place, name in enumerate(sides)}
    reference = statistics.median(step[STEP] for step in next(iter(times.values())))
    return {
        "case": f"one training step, {loop.batch_size} crops of {loop.crop}x{loop.crop}",
        "facts": _facts(values, task.network),
        "sides": {name: side_of(each, reference, loop.batch_size) for name, each in times.items()},
    }


def _facts(values: OneStep, network: Any) -> dict[str, Any]:
    return {
        "options": values.model_dump(mode="json"),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }


def side_of(steps: Sequence[Mapping[str, float]], reference: float, images: int) -> dict[str, Any]:
    whole = [step[STEP] for step in steps]
    median = statistics.median(whole)
    parts = {name: [step[name] for step in steps] for name in steps[0] if name != STEP}
    stages = {
        name: {**quartiles(times), "share": round(statistics.median(times) / median, 4)}
        for name, times in parts.items()
    }
    per_second = {"steps": round(1e3 / median, 4), "images": round(1e3 * images / median, 4)}
    return {**time_summary(whole, reference), "per_second": per_second, "stages": stages}


def arguments(description: str = "a training step of RRM, part by part") -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--busy", type=int, default=0, help="processes that keep processors busy meanwhile")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--recipe", choices=tuple(ONE_STEP_RECIPES), default="reference")
    parser.add_argument("--size", choices=tuple(SIZES), help="paper: ResNet-38, 4 crops of 321x321, default on a GPU")
    parser.add_argument("--config", type=Path, nargs="+", default=[], help="config files instead of recipe and size")
    parser.add_argument("--backbone")
    parser.add_argument("--network", type=json.loads, default={}, help='JSON over its options, as {"width": 0.25}')
    parser.add_argument("--crop", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--precision", choices=("float32", "bfloat16", "float16"), help="on a GPU")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    return parser


def asked_options(asked: argparse.Namespace) -> OneStep:
    """Options of the section `one_step` that the command line asks for."""
    loop = {"crop": asked.crop, "batch_size": asked.batch_size, "precision": asked.precision}
    changes: dict[str, Any] = {
        "train": {name: value for name, value in loop.items() if value is not None},
        "network": {"options": asked.network, **({"backbone": asked.backbone} if asked.backbone else {})},
    }
    size = asked.size or ("paper" if asked.device == "cuda" else "small")
    return options(asked.recipe, size, asked.config, changes)


def main(given: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    asked = arguments().parse_args(given)
    prepare_process(asked.threads)
    with busy_machine(asked.busy):
        result = profile(asked_options(asked), asked.photos, asked.device, asked.repeats, asked.warmup)
    result["facts"]["photos"] = "given photos" if asked.photos else "made photos"
    write(asked.out, [result], metadata(asked.threads, asked.busy))


if __name__ == "__main__":
    main()
