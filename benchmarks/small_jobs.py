"""What `runtime.preload` saves: a workflow of small jobs with stages forked from one process, against stages alone.

    python -m benchmarks.small_jobs --out results/benchmarks/small_jobs.json [--cores 2] [--config FILE...]

Both sides are `snakemake` in a new folder, up to `results/table5.csv`, for the configuration of `--config` (the demo
made small: ten photos and trainings of a few steps). Its own start and planning count too. Processor seconds are those
of all processes. Sides take turns.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from benchmarks.harness import compare, metadata, write

ROOT = Path(__file__).resolve().parents[1]
SIDES = {"stages alone": False, "stages forked (preload)": True}
_LOOP = {"steps": 2, "batch_size": 4, "crop": 48, "checkpoint_every": 2}
_DEEPLAB: dict[str, Any] = {"network": {"options": {"width": 0.03125}}, "train": _LOOP}
SMALL: dict[str, Any] = {
    "seeds": [0],
    "dataset": {"name": "small", "demo": {"size": 64, "train": 10, "val": 5, "test": 5}},
    "classifier": {"train": _LOOP},
    "one_step": {"train": _LOOP},
    "methods": {"em_adapt": {"train": _LOOP}},
    "step_two": {"vgg16": _DEEPLAB, "resnet101": _DEEPLAB, "cam_resnet101": None},
    "bounds": {"resnet38": {"train": _LOOP}, "resnet101": None, "vgg16": None},
}


def run(folder: Path, files: Sequence[Path], cores: int, preload: bool) -> None:
    """The workflow in a new folder."""
    folder.mkdir()
    last = folder / "preload.yaml"
    last.write_text(yaml.safe_dump({"runtime": {"preload": preload}}))
    command = [sys.executable, "-m", "snakemake", "--cores", str(cores), "--snakefile", str(ROOT / "Snakefile")]
    command += ["--directory", str(folder), "--quiet", "all", "--configfile", *map(str, files), str(last)]
    done = subprocess.run([*command, "--", "results/table5.csv"], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{folder}: the workflow failed\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


class Meter:
    """Calls of a side with the processor seconds of all processes that they started."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work, self.seconds = work, list[float]()

    def __call__(self) -> None:
        before = _used()
        self.work()
        self.seconds.append(_used() - before)


def _used() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--config", type=Path, nargs="+", help="configuration files (default: the demo made small)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds that count (default: 3)")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as made:
        files = [path.resolve() for path in options.config or ()]
        if not files:
            files = [ROOT / "config.yaml", Path(made) / "small.yaml"]
            files[-1].write_text(yaml.safe_dump(SMALL))
        number = count()

        def side(preload: bool) -> None:
            run(Path(made) / f"run{next(number)}", files, options.cores, preload)

        meters = {name: Meter(partial(side, preload)) for name, preload in SIDES.items()}
        result = compare("results/table5.csv", meters, repeats=options.repeats, warmup=1, cores=options.cores)
    taken = {name: round(statistics.median(meter.seconds[1:]), 1) for name, meter in meters.items()}
    result["facts"]["processor_seconds"] = taken
    write(options.out, [result], metadata(options.cores, 0))


if __name__ == "__main__":
    main()
