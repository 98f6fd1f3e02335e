"""What resume checkpoints cost: the time to write one and to read it, beside the steps that it covers.

    python -m benchmarks.checkpoints --threads 2 --out results/benchmarks/checkpoints.json
    python -m benchmarks.checkpoints --device cuda --config configs/voc2012.yaml --out FILE --folder DIR

`rrm.training.fit` trains as in `benchmarks.training_step` and takes a checkpoint after each step: network and
optimiser. The training waits until it is copied, another thread writes it, to the disk and not only to the kernel's
cache; here the next step waits for that too. The last one is read again. The first side is the time of the steps
between two checkpoints (`checkpoint_every`), so "times faster" of the others is the inverse of their share of it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

from benchmarks.harness import metadata, time_summary, write
from benchmarks.training_step import LEARNING_RATE, STEP, Clock, arguments, asked_options, batch_of, tasks, watched
from rrm.config import OneStep
from rrm.parallel import prepare_process
from rrm.schedules import build_optimizer
from rrm.training import LoopOptions, Run, fit


class TimedRun(Run):
    """A run that notes how long its checkpoints take, in ms, and how large they are."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, {})
        self.waited: list[float] = []
        self.written: list[float] = []
        self.read: list[float] = []

    def save_behind(self, state: Mapping[str, Any]) -> None:
        start = time.perf_counter()
        super().save_behind(state)
        self.waited.append(1e3 * (time.perf_counter() - start))
        self.settle()
        self.written.append(1e3 * (time.perf_counter() - start))

    def load(self) -> dict[str, Any] | None:
        start = time.perf_counter()
        state = super().load()
        self.read.append(1e3 * (time.perf_counter() - start))
        return state


def profile(values: OneStep, device: str, folder: Path, repeats: int, warmup: int) -> dict[str, Any]:
    """Times of the steps between two checkpoints, and of writing and of reading one."""
    loop, task = values.train, tasks(values)["rrm"]
    batch = batch_of(None, loop.batch_size, loop.crop, device == "cuda")
    how = LoopOptions(steps=2 * (warmup + repeats), batch_size=loop.batch_size, seed=0, precision=loop.precision,
                      device=device, accumulate=loop.accumulate, clip_gradient=loop.clip_gradient, checkpoint_every=1,
                      log_seconds=600)  # fmt: skip
    given = loop.optimizer.model_dump(exclude={"power", "schedule"}) | {"lr": LEARNING_RATE}
    optimizer = build_optimizer(task.network.parameter_groups(), **given)
    clock, run = Clock(device), TimedRun(folder)
    with watched(clock):
        fit(task, lambda _: repeat(batch, warmup + repeats), optimizer, how, run)
    for _ in range(repeats):
        run.load()
    steps = [step[STEP] for step in clock.steps()[warmup:]]
    return _result(values, steps, run, warmup)


def _result(values: OneStep, steps: Sequence[float], run: TimedRun, warmup: int) -> dict[str, Any]:
    every, crop = values.train.checkpoint_every, values.train.crop
    covered = [every * step for step in steps]
    reference = statistics.median(covered)
    facts = {
        "options": values.model_dump(mode="json"),
        "bytes": run.checkpoint.stat().st_size,
        "share_waited": round(statistics.median(run.waited[warmup:]) / reference, 6),
        "share_written": round(statistics.median(run.written[warmup:]) / reference, 6),
    }
    sides = {
        f"{every} steps": covered,
        "waiting for a checkpoint": run.waited[warmup:],
        "until it is on the disk": run.written[warmup:],
        "reading it": run.read[1:],
    }
    return {
        "case": f"a checkpoint every {every} steps of {values.train.batch_size} crops of {crop}x{crop}",
        "facts": facts,
        "sides": {name: time_summary(times, reference) for name, times in sides.items()},
    }


def main(given: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = arguments("what resume checkpoints cost beside the steps that they cover")
    parser.add_argument("--folder", type=Path, help="where checkpoints go (default: temporary files)")
    asked = parser.parse_args(given)
    prepare_process(asked.threads)
    values = asked_options(asked)
    with tempfile.TemporaryDirectory(dir=asked.folder) as made:
        result = profile(values, asked.device, Path(made), asked.repeats, asked.warmup)
    facts = result["facts"]
    print(
        f"{facts['bytes'] / 1e6:.0f} MB each; of its steps' time a training waits {facts['share_waited']:.3%}, "
        f"they are on the disk after {facts['share_written']:.3%}"
    )
    write(asked.out, [result], metadata(asked.threads, asked.busy))


if __name__ == "__main__":
    main()
