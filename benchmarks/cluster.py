"""A cluster simulated: pseudo masks, prediction and evaluation in shards, how long, what fails, what breaks first.

    python -m benchmarks.cluster --config config.yaml --measure --rates rates.json --out cluster.json --plot cluster.png

Measured are seconds and bytes a photo of each stage and of the merge of its shards (the rates file, which is that of
`rrm plan --measure`; here only the stages in question are measured, or with `--run` taken from what the jobs of a run
took), and what a record costs a store here: to write and to know (`store_costs`). All else is assumed, and stands in
the file that is written (`Assumptions`). Each job of a stage is an event: it waits for its submission and a free GPU,
opens its stores, works through its photos at its node's speed, and begins anew if the node fails before it has ended.
The merge starts after the last job.
"""

from __future__ import annotations

import argparse
import heapq
import json
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from rrm.config import Config, load
from rrm.cost import Job
from rrm.errors import RRMError
from rrm.pipeline import Layout
from rrm.rates import Rate, Rates, measure_rates, rate_key
from rrm.shards import KINDS, merge_shards, own_share, shard_path
from rrm.store import Store, StoreWriter, atomic_path
from rrm.training import pick_device
from rrm.usage import Usage

HOUR = 3600.0
SHARDS = (256, 1024, 4096, 16384)


@dataclass(frozen=True)
class Assumptions:
    """What is not measured. Times in seconds unless the name says hours.

    Attributes:
        photos: of the data set.
        gpus: jobs that run at a time, one a GPU.
        gpu_tflops: speed that networks reach (TFLOP/s), for rates that were measured on another device: a photo takes
            its counted FLOPs at that speed and the seconds in which the merge reads and writes it, or, where that is
            longer, the evaluation's CRF in `crf_processes` beside them. 0 takes the measured seconds as they are.
        crf_processes: for each GPU (`runtime.crf_workers`).
        mtbf_hours: mean time between failures of a GPU with its node. Meta's report on Llama 3 counts 419 unexpected
            interruptions in 54 days on 16,384 GPUs, which is 50,000 hours.
        repair: of a node, until it takes jobs again.
        notice: until a failed job is submitted again.
        spread: standard deviation of the logarithm of a job's speed.
        slow_share, slow_factor: share of jobs on slow nodes, and by what they take longer there at most.
        submissions: jobs that the scheduler takes a second.
        poll: until the end of a job is seen.
        dag: that Snakemake takes for each job, to plan it and to keep its record.
        disk: bytes a second that one process reads or writes.
        node_memory: bytes that a job may have.
    """

    photos: int = 10_000_000
    gpus: int = 256
    gpu_tflops: float = 0.0
    crf_processes: int = 8
    mtbf_hours: float = 50_000.0
    repair: float = 1800.0
    notice: float = 60.0
    spread: float = 0.05
    slow_share: float = 0.01
    slow_factor: float = 3.0
    submissions: float = 2.0
    poll: float = 20.0
    dag: float = 0.01
    disk: float = 1e9
    node_memory: float = 64 * 2.0**30


@dataclass(frozen=True)
class StoreCosts:
    """What a record of a small array costs, measured on this machine.

    Attributes:
        records: of the store that was measured.
        write, know: seconds a record to write it (rates hold that already: it shows whether it grows with the store),
            and to open a store that has it.
        memory: bytes a record of an open store; a writer's are of the same kind.
        index: bytes a record of the index in the file.
        file: bytes a record beside its array, of links, headers and index.
    """

    records: int
    write: float
    know: float
    memory: float
    index: float
    file: float


@dataclass(frozen=True)
class Load:
    """A stage: seconds and bytes a photo, start of a job, the merge's seconds a photo, stores that each job opens."""

    stage: str
    seconds: float
    start: float
    size: float
    merge: float
    stores: int = 1


@dataclass(frozen=True)
class Outcome:
    """One run of a stage in shards: hours until the last shard, failures, GPU hours lost to them, and jobs' hours."""

    hours: float
    failures: int
    lost_gpu_hours: float
    longest_job_hours: float


# ---- measured ----


def store_costs(folder: Path, records: int) -> StoreCosts:
    """Measure what records cost a store; writes a file there.

    Args:
        folder: for the file.
        records: at least 1.
    """
    path, array = folder / f"{records}.h5", np.zeros(1, np.uint8)
    begin = time.perf_counter()
    with StoreWriter(path, "probabilities", {}, "") as writer:
        for number in range(records):
            writer.add(f"{number:012d}", {"probabilities": array})
    written = time.perf_counter()
    store = Store(path, "probabilities")
    opened = time.perf_counter()
    index = len(json.dumps(store.ids)) + len(json.dumps([{"probabilities": 2**31}] * records))
    costs = (written - begin, opened - written, _memory(path), index, path.stat().st_size)
    return StoreCosts(records, *(each / records for each in costs))


def _memory(path: Path) -> int:
    """Bytes that Python holds for an open store, at its highest."""
    tracemalloc.start()
    store = Store(path, "probabilities")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    store.close()
    return peak


def rates_of_run(config: Config, run: Path, model: str, masks: str) -> Rates:
    """Rates by the processor seconds that the jobs of a run took, and by merging shards of its stores again.

    What a photo takes in prediction and evaluation is the difference of the jobs on val and on test over that of their
    photos, as a mean over the seeds. The rest is the start of a job; a set of pseudo masks starts as a prediction does.

    Args:
        config: of the run.
        run: its folder, `results/<data set>`.
        model: that predicts.
        masks: set of pseudo masks.
    """
    layout, seed = Layout(run.parent, run.name), config.seeds[0]
    measured: dict[str, Rate] = {}
    for stage, store in (("predict", layout.prediction), ("evaluate", layout.confusion)):
        stores = [store(seed, model, split) for split in ("val", "test")]
        took = [_took(config, layout, model, f"{stage}_{split}") for split in ("val", "test")]
        photos = [len(Store(path, KINDS)) for path in stores]
        unit = (took[0] - took[1]) / (photos[0] - photos[1])
        measured |= _measured_rates(stage, stores[0], took[0] - photos[0] * unit, unit)
    path, start = layout.pseudo_masks(seed, masks), measured["predict"].start_seconds
    unit = (_took(config, layout, "pseudo_masks", masks) - start) / len(Store(path, KINDS))
    measured |= _measured_rates("pseudo-masks", path, start, unit)
    entries = {rate_key(config, job): measured[job.task] for job in simulated_jobs(model, masks)}
    return Rates({"run": run.name, "clock": "processor seconds"}, entries)


def _took(config: Config, layout: Layout, *parts: str) -> float:
    """Processor seconds of a job, as a mean over the seeds."""
    paths = [layout.usage.joinpath(f"seed{seed}", *parts) for seed in config.seeds]
    return float(np.mean([Usage.read(path.with_name(f"{path.name}.json")).cpu_seconds for path in paths]))


def _measured_rates(stage: str, path: Path, start: float, unit: float) -> dict[str, Rate]:
    """Rates of a stage and of the merge of its shards."""
    whole = Store(path, KINDS)
    size = path.stat().st_size / len(whole)
    merge = f"merge {stage}"
    return {
        stage: Rate(stage, start, unit, 0, 0, 0.0, size, 0.0),
        merge: Rate(merge, 0.0, _merging(whole), 0, 0, 0.0, 0.0, 0.0),
    }


def _merging(whole: Store) -> float:
    """Processor seconds a record of merging two shards of a store."""
    with tempfile.TemporaryDirectory(prefix="rrm-cluster-") as name:
        folder = Path(name)
        for part in (1, 2):
            ids, attrs = own_share({"shard": f"{part}/2"}, whole.ids, whole.attrs)
            with StoreWriter(shard_path(folder, part, 2), whole.kind, whole.config, whole.code, attrs) as shard:
                for record in ids:
                    shard.copy(record, whole)
        begin = time.process_time()
        merge_shards(folder, 2, folder / "whole.h5")
        return (time.process_time() - begin) / len(whole)


def simulated_jobs(model: str, masks: str) -> list[Job]:
    """The stages of a model and of a set of pseudo masks, each followed by the merge of its shards."""
    scored = {"model": model, "split": "val"}
    stages = {"pseudo-masks": {"masks": masks}, "predict": scored, "evaluate": scored}
    return [Job(stage, names, 1, 1, "photo", merges) for stage, names in stages.items() for merges in (False, True)]


def loads(config: Config, rates: Rates, assumptions: Assumptions, model: str, masks: str) -> list[Load]:
    """The simulated stages by measured rates.

    Raises:
        RRMError: the rates hold no such stage, or no such merge, of this configuration.
    """
    measured: dict[str, Rate] = {}
    for job in simulated_jobs(model, masks):
        key = rate_key(config, job)
        if key not in rates.entries:
            raise RRMError(
                f"rates: expected those of {job.task} {job.name}, got none: measure this configuration, with --measure"
            )
        measured[job.task] = rates.entries[key]
    crf = measured["evaluate"].unit_seconds * max(1, config.runtime.crf_workers) / assumptions.crf_processes
    return [
        _load(measured[stage], measured[f"merge {stage}"].unit_seconds, assumptions, crf)
        for stage in ("pseudo-masks", "predict", "evaluate")
    ]


def _load(rate: Rate, merge: float, assumptions: Assumptions, crf: float) -> Load:
    """A stage as measured, or on GPUs of the assumed speed."""
    seconds = rate.unit_seconds
    if assumptions.gpu_tflops:
        seconds = max(rate.tflop_per_unit / assumptions.gpu_tflops + merge, 0.0 if rate.stage == "predict" else crf)
    opened = 3 if rate.stage == "evaluate" else 1  # photos, masks and probabilities; photos
    return Load(rate.stage, seconds, rate.start_seconds, rate.unit_bytes, merge, opened)


# ---- simulated ----


def simulate(work: Load, shards: int, assumptions: Assumptions, costs: StoreCosts, seed: int) -> Outcome:
    """Run the jobs of one stage.

    Args:
        work: what they take.
        shards: number of jobs.
        assumptions: about the cluster.
        costs: of stores; each job reads the index of every store that it opens.
        seed: of speeds and failures: the same one gives the same outcome.
    """
    random = np.random.default_rng(seed)
    takes = _durations(work, shards, assumptions, costs, random)
    failing = random.exponential(assumptions.mtbf_hours * HOUR, 4 * shards + 64).tolist()
    begin = assumptions.dag * shards
    waiting = [(begin + number / assumptions.submissions, number) for number in range(shards)]  # sorted: a heap
    free = [0.0] * min(assumptions.gpus, shards)
    last, lost, failures = begin, 0.0, 0
    while waiting:
        ready, number = heapq.heappop(waiting)
        start = max(ready, heapq.heappop(free))
        lives = failing.pop() if failing else float("inf")
        if lives < takes[number]:
            failures, lost = failures + 1, lost + lives
            heapq.heappush(free, start + lives + assumptions.repair)
            heapq.heappush(waiting, (start + lives + assumptions.notice, number))
            continue
        heapq.heappush(free, start + takes[number])
        last = max(last, start + takes[number])
    return Outcome((last + assumptions.poll) / HOUR, failures, lost / HOUR, max(takes) / HOUR)


def _durations(
    work: Load, shards: int, assumptions: Assumptions, costs: StoreCosts, random: np.random.Generator
) -> list[float]:
    """Seconds that each job takes if nothing fails."""
    edges = np.arange(shards + 1) * assumptions.photos // shards
    photos = np.diff(edges)
    slow = random.random(shards) < assumptions.slow_share
    speed = np.exp(random.normal(0, assumptions.spread, shards))
    speed = np.where(slow, random.uniform(1, assumptions.slow_factor, shards), speed)
    opened = costs.know * assumptions.photos * work.stores
    stored = photos * work.size / assumptions.disk
    seconds: list[float] = (work.start + opened + speed * photos * work.seconds + stored).tolist()
    return seconds


def merge_seconds(work: Load, assumptions: Assumptions) -> float:
    """Seconds of the one process that merges: as measured, and each byte from and to the cluster's disk."""
    return assumptions.photos * (work.merge + 2 * work.size / assumptions.disk)


def summary(
    work: Load, shards: int, assumptions: Assumptions, costs: StoreCosts, seeds: Sequence[int]
) -> dict[str, Any]:
    """A stage in so many shards: means over the seeds, and what the hours are beside those of busy GPUs alone."""
    runs = [simulate(work, shards, assumptions, costs, seed) for seed in seeds]
    means = {field.name: float(np.mean([getattr(run, field.name) for run in runs])) for field in fields(Outcome)}
    return {
        "stage": work.stage,
        "shards": shards,
        "busy_hours": assumptions.photos * work.seconds / assumptions.gpus / HOUR,
        **means,
        "worst_hours": max(run.hours for run in runs),
        "merge_hours": merge_seconds(work, assumptions) / HOUR,
        "submission_hours": shards * (assumptions.dag + 1 / assumptions.submissions) / HOUR,
        "opening_gpu_hours": shards * costs.know * assumptions.photos * work.stores / HOUR,
        "store_bytes": assumptions.photos * work.size,
    }


def limits(works: Sequence[Load], assumptions: Assumptions, costs: StoreCosts) -> list[dict[str, Any]]:
    """At how many photos each part breaks, the first one first; None: never.

    A merge breaks when it takes longer than all GPUs take for the photos: with any number of photos or with none. The
    indexes break when they do not fit a job's memory.
    """
    opened = max(work.stores for work in works)
    found: list[dict[str, Any]] = [
        {"what": "indexes that a job opens", "photos": assumptions.node_memory / (opened * costs.memory)}
    ]
    for work in works:
        ratio = merge_seconds(work, assumptions) * assumptions.gpus / (assumptions.photos * work.seconds)
        breaks = {"what": f"one process merges {work.stage}", "photos": 0.0 if ratio > 1 else None}
        found.append(breaks | {"merge_to_compute": ratio})
    return sorted(found, key=lambda each: (each["photos"] is None, each["photos"], -each.get("merge_to_compute", 0.0)))


# ---- told ----


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The results as Markdown: hours of busy GPUs alone, until the last shard and until the merge, and what is lost."""
    head = ("stage", "shards", "busy GPUs, h", "shards, h", "worst, h", "merge, h", "failures", "GPU h lost", "TB")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        hours = [
            row[name] for name in ("busy_hours", "hours", "worst_hours", "merge_hours", "failures", "lost_gpu_hours")
        ]
        cells = [row["stage"], str(row["shards"]), *(f"{value:.3g}" for value in [*hours, row["store_bytes"] / 1e12])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Hours of shards and of the merge, and GPU hours lost, over the number of shards."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.6), layout="constrained")
    hours, lost = figure.subplots(1, 2)
    for number, stage in enumerate(dict.fromkeys(row["stage"] for row in rows)):
        mine = [row for row in rows if row["stage"] == stage]
        x, color = [row["shards"] for row in mine], f"C{number}"
        hours.plot(x, [row["hours"] for row in mine], "o-", color=color, label=stage)
        hours.plot(x, [row["merge_hours"] for row in mine], "--", color=color, label=f"merge {stage}")
        hours.axhline(mine[0]["busy_hours"], color=color, alpha=0.3, label=f"busy GPUs, {stage}")
        lost.plot(x, [row["lost_gpu_hours"] for row in mine], "o-", color=color, label=f"failures, {stage}")
        lost.plot(x, [row["opening_gpu_hours"] for row in mine], ":", color=color, label=f"opening stores, {stage}")
    for axes, what in ((hours, "hours"), (lost, "GPU hours")):
        axes.set(xscale="log", xlabel="shards", ylabel=what)
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3 if axes is hours else 2)
    hours.set_yscale("log")
    lost.set_yscale("symlog", linthresh=1)  # nothing may be lost
    lost.set_ylim(bottom=0)
    figure.savefig(path, dpi=150)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, nargs="+", required=True, help="config file(s) of the rates")
    parser.add_argument(
        "--rates", type=Path, required=True, help="of rrm plan --measure; with --measure or --run: to write"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--measure", action="store_true", help="measure the simulated stages on this machine")
    how.add_argument("--run", type=Path, help="take the rates from this run, a folder results/<data set>")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to measure")
    parser.add_argument("--threads", type=int, default=1, help="threads of each job that is measured")
    parser.add_argument("--model", default="one_step", help="that predicts")
    parser.add_argument("--masks", default="one_step", help="set of pseudo masks")
    parser.add_argument("--shards", type=int, nargs="+", default=SHARDS, help="numbers of shards to compare")
    parser.add_argument("--records", type=int, default=20_000, help="records by which stores are measured, and a tenth")
    parser.add_argument("--seeds", type=int, default=10, help="runs of each number of shards")
    for field in fields(Assumptions):
        kind = int if isinstance(field.default, int) else float
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--plot", type=Path, help="the picture to write")
    return parser


def _measure(config: Config, options: argparse.Namespace) -> None:
    if options.run:
        rates = rates_of_run(config, options.run, options.model, options.masks)
    else:
        jobs = simulated_jobs(options.model, options.masks)
        rates = measure_rates(config, jobs, pick_device(options.device), options.threads)
    with atomic_path(options.rates) as temporary:
        temporary.write_text(rates.to_json(), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the stores, simulate, print and write."""
    options = _parser().parse_args(arguments)
    assumptions = replace(Assumptions(), **{f.name: getattr(options, f.name) for f in fields(Assumptions)})
    config = load(*options.config)
    if options.measure or options.run:
        _measure(config, options)
    rates = Rates.read(options.rates)
    works = loads(config, rates, assumptions, options.model, options.masks)
    with tempfile.TemporaryDirectory(prefix="rrm-cluster-") as folder:
        stores = [store_costs(Path(folder), records) for records in (options.records // 10, options.records)]
    costs, seeds = stores[-1], range(options.seeds)
    rows = [summary(each, count, assumptions, costs, seeds) for each in works for count in options.shards]
    content = {
        "machine": dict(rates.machine),
        "assumed": asdict(assumptions),
        "stores": [asdict(each) for each in stores],
        "loads": [asdict(each) for each in works],
        "results": rows,
        "breaks_first": limits(works, assumptions, costs),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1) + "\n")
    print(table(rows))
    for each in content["breaks_first"]:
        print(
            ", ".join(
                f"{name}: {value if isinstance(value, str) else f'{value:.3g}'}"
                for name, value in each.items()
                if value is not None
            )
        )
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
