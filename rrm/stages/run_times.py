"""Stage `run-times`: time and peak memory of the jobs, as each wrote them (`rrm.usage`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from rrm.stages.call import Call
from rrm.tables import write_table
from rrm.usage import Usage

COLUMNS = ["seed", "job", "model", "seconds", "cpu_seconds", "peak_memory_mib", "peak_gpu_memory_mib"]
_MIB = 2**20
_OF_A_MODEL = ("predict_", "evaluate_", "submission")


def job_of(path: Path) -> tuple[str, str]:
    """Job and model of a file of usage, from its path below its seed's folder.

    Example:
        >>> job_of(Path("step_two/vgg16.json")), job_of(Path("one_step/predict_val.json"))
        (('train', 'step_two/vgg16'), ('predict_val', 'one_step'))
        >>> job_of(Path("pseudo_masks/one_step.json")), job_of(Path("affinity/walk.json"))
        (('pseudo_masks', 'pseudo_masks/one_step'), ('train', 'affinity/walk'))
        >>> job_of(Path("one_step/predict_val.shards/0123456789abcdef/3of7.json"))
        ('predict_val 3of7', 'one_step')
    """
    whole = _whole(path)
    if whole != path:
        job, model = job_of(whole)
        return f"{job} {path.stem}", model
    name = path.with_suffix("").as_posix()
    if name == "classifier":
        return name, ""
    if name.startswith("pseudo_masks/"):
        return "pseudo_masks", name
    if path.stem.startswith(_OF_A_MODEL):
        return path.stem, path.parent.as_posix()
    return "train", name


def _whole(path: Path) -> Path:
    """The file of a job: of a shard's or a merge's, where it would lie without shards."""
    folder = next((each for each in path.parents if each.suffix == ".shards"), None)
    return path if folder is None else folder.with_suffix(".json")


def last_done(paths: Iterable[Path]) -> Iterator[Path]:
    """Files of the way in which each job was done last: as a whole, or in shards of one key and number."""
    jobs: dict[Path, list[Path]] = {}
    for path in paths:
        jobs.setdefault(_whole(path), []).append(path)
    for whole, files in jobs.items():
        merge = whole.with_suffix(".shards") / "merge.json"
        done = [path for path in files if path != merge]
        ways = {path: (path.parent, "" if path == whole else path.stem.partition("of")[2]) for path in done}
        last = max(done, key=lambda path: path.stat().st_mtime_ns, default=merge)
        yield from (path for path in done if ways[path] == ways[last])
        yield from (path for path in files if path == merge and last != whole)


def _rows(folder: Path, seed: int) -> Iterator[dict[str, Any]]:
    for path in last_done(filter(Usage.is_written, sorted(folder.rglob("*.json")))):
        job, model = job_of(path.relative_to(folder))
        usage = Usage.read(path)
        yield {
            "seed": seed,
            "job": job,
            "model": model,
            "seconds": round(usage.seconds, 1),
            "cpu_seconds": round(usage.cpu_seconds, 1),
            "peak_memory_mib": round(usage.peak_memory / _MIB),
            "peak_gpu_memory_mib": round(usage.peak_gpu_memory / _MIB),
        }


def run(call: Call) -> None:
    """Write the table, from the folder `usage` beside the output; jobs of other configurations are left out."""
    folder = call.output.parent / "usage"
    known = {"", *call.options["models"]}
    rows = [
        row for seed in call.options["seeds"] for row in _rows(folder / f"seed{seed}", seed) if row["model"] in known
    ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    write_table(call.output, table.sort_values(["seed", "job", "model"], kind="stable"))
