"""A cluster simulated: pseudo masks, prediction and evaluation in shards, how long, what fails, what breaks first.

    rrm plan --config config.yaml --measure --rates rates.json
    python -m benchmarks.cluster --config config.yaml --rates rates.json --out cluster.json --plot cluster.png

Measured are seconds and bytes a photo of each stage (the rates file), and what a record costs a store here: to write,
to merge and to know (`store_costs`). All else is assumed, and stands in the file that is written (`Assumptions`). Each
job of a stage is an event: it waits for its submission and a free GPU, opens its stores, works through its photos at
its node's speed, and begins anew if the node fails before it has ended. The merge starts after the last job.
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
from rrm.rates import Rates, rate_key
from rrm.shards import merge_shards, own_share, shard_path
from rrm.store import Store, StoreWriter

HOUR = 3600.0
SHARDS = (256, 1024, 4096, 16384)


@dataclass(frozen=True)
class Assumptions:
    """What is not measured. Times in seconds unless the name says hours.

    Attributes:
        photos: of the data set.
        gpus: jobs that run at a time, one a GPU.
        gpu_tflops: speed that networks reach (TFLOP/s), for rates that were measured on another device: counted FLOPs
            become seconds, and CRFs run in `crf_processes` beside them. 0 takes the measured seconds as they are.
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
        write, merge, know: seconds a record to write it, to merge it from shards, and to open a store that has it.
        memory: bytes a record of an open store; a writer's are of the same kind.
        index: bytes a record of the index in the file.
        file: bytes a record beside its array, of links, headers and index.
        byte: seconds that merging takes for a byte of a large array.
    """

    records: int
    write: float
    merge: float
    know: float
    memory: float
    index: float
    file: float
    byte: float


@dataclass(frozen=True)
class Load:
    """A stage: seconds and bytes a photo, seconds a job, and stores of all photos that each job opens."""

    stage: str
    seconds: float
    start: float
    size: float
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
    """Measure what records cost a store; writes a few files there.

    Args:
        folder: for the files.
        records: at least 2.
    """
    small, large = np.zeros(1, np.uint8), np.random.default_rng(0).random((21, 64, 64)).astype(np.float16)
    begin = time.perf_counter()
    _write_shards(folder / "small", records, small)
    write = (time.perf_counter() - begin) / records
    merged, merge = _merged(folder / "small", records)
    begin = time.perf_counter()
    store = Store(merged, "probabilities")
    know = (time.perf_counter() - begin) / records
    _write_shards(folder / "large", 64, large)
    byte = max(0.0, _merged(folder / "large", 64)[1] - merge) / large.nbytes
    index = len(json.dumps(store.ids)) + len(json.dumps([{"probabilities": 2**31}] * records))
    return StoreCosts(
        records, write, merge, know, _memory(merged) / records, index / records, merged.stat().st_size / records, byte
    )


def _write_shards(folder: Path, records: int, array: np.ndarray) -> None:
    ids = [f"{number:012d}" for number in range(records)]
    for part in (1, 2):
        share, attrs = own_share({"shard": f"{part}/2"}, ids, {})
        with StoreWriter(shard_path(folder, part, 2), "probabilities", {}, "", attrs) as writer:
            for name in share:
                writer.add(name, {"probabilities": array})


def _merged(folder: Path, records: int) -> tuple[Path, float]:
    """The merged store and the seconds that a record took."""
    begin = time.perf_counter()
    merge_shards(folder, 2, folder / "merged.h5", log_seconds=1e9)
    return folder / "merged.h5", (time.perf_counter() - begin) / records


def _memory(path: Path) -> int:
    """Bytes that Python holds for an open store, at its highest."""
    tracemalloc.start()
    store = Store(path, "probabilities")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    store.close()
    return peak


def loads(config: Config, rates: Rates, assumptions: Assumptions, model: str, masks: str) -> list[Load]:
    """The stages of a model and of a set of pseudo masks, by measured rates.

    Raises:
        RRMError: the rates hold no such stage of this configuration.
    """
    scored = {"model": model, "split": "val"}
    jobs = [Job("pseudo-masks", {"masks": masks}, 1, 1, "photo")]
    jobs += [Job(stage, scored, 1, 1, "photo") for stage in ("predict", "evaluate")]
    keys = {job.stage: rate_key(config, job) for job in jobs}
    for job in jobs:
        if keys[job.stage] not in rates.entries:
            raise RRMError(f"rates: expected those of {job.stage} {job.name}, got none: measure this configuration")
    measured = {stage: rates.entries[key] for stage, key in keys.items()}
    seconds = {stage: rate.unit_seconds for stage, rate in measured.items()}
    if assumptions.gpu_tflops:
        crf = seconds["evaluate"] * max(1, config.runtime.crf_workers) / assumptions.crf_processes
        networks = {stage: rate.tflop_per_unit / assumptions.gpu_tflops for stage, rate in measured.items()}
        seconds = {stage: max(networks[stage], crf if stage != "predict" else 0.0) for stage in measured}
    opened = {"evaluate": 3}  # photos, masks and probabilities
    return [
        Load(stage, seconds[stage], rate.start_seconds, rate.unit_bytes, opened.get(stage, 1))
        for stage, rate in measured.items()
    ]


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
    stored = photos * (costs.write + work.size / assumptions.disk)
    seconds: list[float] = (work.start + opened + speed * photos * work.seconds + stored).tolist()
    return seconds


def merge_seconds(work: Load, assumptions: Assumptions, costs: StoreCosts) -> float:
    """Seconds of the one process that merges: records and bytes, each byte read and written."""
    return assumptions.photos * (costs.merge + work.size * (costs.byte + 2 / assumptions.disk))


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
        "merge_hours": merge_seconds(work, assumptions, costs) / HOUR,
        "submission_hours": shards * (assumptions.dag + 1 / assumptions.submissions) / HOUR,
        "opening_gpu_hours": shards * costs.know * assumptions.photos * work.stores / HOUR,
        "store_bytes": assumptions.photos * (work.size or costs.file),
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
        ratio = merge_seconds(work, assumptions, costs) * assumptions.gpus / (assumptions.photos * work.seconds)
        breaks = {"what": f"one process merges {work.stage}", "photos": 0.0 if ratio > 1 else None}
        found.append(breaks | {"merge_to_compute": ratio})
    return sorted(found, key=lambda each: (each["photos"] is None, each["photos"], -each.get("merge_to_compute", 0.0)))


# ---- told ----


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Hours of shards and of the merge, and GPU hours lost, over the number of shards."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    hours, lost = figure.subplots(1, 2)
    for number, stage in enumerate(dict.fromkeys(row["stage"] for row in rows)):
        mine = [row for row in rows if row["stage"] == stage]
        x, color = [row["shards"] for row in mine], f"C{number}"
        hours.plot(x, [row["hours"] for row in mine], "o-", color=color, label=stage)
        hours.plot(x, [row["merge_hours"] for row in mine], "--", color=color, label=f"merge {stage}")
        hours.axhline(mine[0]["busy_hours"], color=color, alpha=0.3)
        lost.plot(x, [row["lost_gpu_hours"] for row in mine], "o-", color=color, label=f"failures, {stage}")
        lost.plot(x, [row["opening_gpu_hours"] for row in mine], ":", color=color, label=f"opening stores, {stage}")
    for axes, what in ((hours, "hours"), (lost, "GPU hours")):
        axes.set(xscale="log", yscale="log", xlabel="shards", ylabel=what)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=150)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, nargs="+", required=True, help="config file(s) of the rates")
    parser.add_argument("--rates", type=Path, required=True, help="from rrm plan --measure")
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the stores, simulate, print and write."""
    options = _parser().parse_args(arguments)
    assumptions = replace(Assumptions(), **{f.name: getattr(options, f.name) for f in fields(Assumptions)})
    rates = Rates.read(options.rates)
    works = loads(load(*options.config), rates, assumptions, options.model, options.masks)
    with tempfile.TemporaryDirectory(prefix="rrm-cluster-") as folder:
        stores = [
            store_costs(Path(folder, str(records)), records) for records in (options.records // 10, options.records)
        ]
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
    for row in rows:
        print("  ".join(f"{name} {value:.3g}" if name != "stage" else value for name, value in row.items()))
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
