"""The table of `rrm plan`: number, steps and FLOPs of each kind of job, and what it takes by measured rates."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from rrm.config import Config
from rrm.cost import Job, photo_counts, photo_size, planned_jobs, tflop_per_unit
from rrm.rates import Rate, Rates, rate_key

COLUMNS = [
    "stage", "of", "jobs", "units", "unit", "tflop_per_unit", "seconds_per_unit", "hours", "memory_gib",
    "gpu_memory_gib", "disk_gib", "rate",
]  # fmt: skip
_GIB = 2.0**30


def plan_table(config: Config, rates: Rates | None = None) -> pd.DataFrame:
    """What a configuration takes.

    Args:
        config: the configuration.
        rates: of the machine in question; None: steps and FLOPs only.

    Returns:
        A row a kind of job, with the columns `COLUMNS`: `stage` (or `merge <stage>`), `of` (models or sets of masks),
        `jobs` (over all seeds), `units` (steps or photos of all of them), `hours` (of all of them, one after the
        other), `memory_gib` (peak of one, with its workers), `gpu_memory_gib` (peak of one), `disk_gib` (of all);
        `rate` is "measured", "by FLOPs" (the stage's measured rate, scaled) or "".
    """
    kinds: dict[str, list[Job]] = {}
    for job in planned_jobs(config):
        kinds.setdefault(rate_key(config, job), []).append(job)
    rows = [cost_row(config, jobs, rates) for jobs in kinds.values()]
    return pd.DataFrame(rows, columns=COLUMNS)


def cost_row(config: Config, jobs: Sequence[Job], rates: Rates | None) -> dict[str, Any]:
    """The row of jobs of one kind (`rrm.rates.rate_key`); what has no rate is left out."""
    tflop = tflop_per_unit(config, jobs[0])
    units = sum(job.count * job.units for job in jobs)
    count = sum(job.count for job in jobs)
    row = {
        "stage": jobs[0].task,
        "of": " ".join(dict.fromkeys(job.name for job in jobs)),
        "jobs": count,
        "units": units,
        "unit": jobs[0].unit,
        "tflop_per_unit": tflop,
    }
    rate, how = _rate(rate_key(config, jobs[0]), jobs[0].task, tflop, rates)
    return row | (_costs(rate, count, units) if rate else {}) | {"rate": how}


def _costs(rate: Rate, count: int, units: int) -> dict[str, float]:
    return {
        "seconds_per_unit": rate.unit_seconds,
        "hours": (count * rate.start_seconds + units * rate.unit_seconds) / 3600,
        "memory_gib": rate.memory / _GIB,
        "gpu_memory_gib": rate.gpu_memory / _GIB,
        "disk_gib": (count * rate.start_bytes + units * rate.unit_bytes) / _GIB,
    }


def _rate(key: str, stage: str, tflop: float, rates: Rates | None) -> tuple[Rate | None, str]:
    """The measured rate of a kind of job, or that of another network in its stage, scaled by FLOPs."""
    if rates is None:
        return None, ""
    if key in rates.entries:
        return rates.entries[key], "measured"
    alike = [rate for rate in rates.entries.values() if rate.stage == stage and rate.tflop_per_unit > 0]
    if not alike or not tflop:
        return None, ""
    nearest = min(alike, key=lambda rate: abs(rate.tflop_per_unit - tflop))
    return _scaled(nearest, tflop / nearest.tflop_per_unit), "by FLOPs"


def _scaled(rate: Rate, factor: float) -> Rate:
    return replace(rate, unit_seconds=rate.unit_seconds * factor, tflop_per_unit=rate.tflop_per_unit * factor)


def plan_notes(config: Config) -> list[str]:
    """What times, memory and disk of a table leave out, a line each."""
    pixels = sum(photo_counts(config).values()) * math.prod(photo_size(config))
    notes = [
        f"disk, not in these sums: {3 * pixels / _GIB:.3g} GiB of packed photos, packed masks, and a data set made here"
    ]
    if config.runtime.processes > 1:
        notes.append(
            f"trainings as of one process, not as of the {config.runtime.processes} of runtime.processes: those have a "
            "part of each step, workers and a GPU each"
        )
    return notes


def plan_text(table: pd.DataFrame, rates: Rates | None, parallel: int = 1, notes: Sequence[str] = ()) -> str:
    """The table for a terminal, with totals.

    Args:
        table: from `plan_table`.
        rates: whose machine is named.
        parallel: jobs that run at a time, for the total time.
        notes: of `plan_notes`, shown where there are rates.

    Returns:
        Lines; kinds of jobs without a rate are said to be missing from the total.
    """
    shown = table.copy()
    shown["of"] = [text if len(text) <= 34 else f"{text[:20]}… ({text.count(' ') + 1})" for text in shown["of"]]
    lines = [shown.to_string(index=False, na_rep="-", float_format=lambda value: f"{value:.3g}")]
    total = plan_totals(table, rates, parallel)
    lines.append(f"{total['jobs']} jobs, {total['pflop']:.3g} PFLOP in networks")
    if rates is None:
        return "\n".join([*lines, "times, memory and disk: measure them with --measure, or give --rates of a machine"])
    machine = ", ".join(f"{name} {value}" for name, value in rates.machine.items())
    lines.append(
        f"{total['hours']:.3g} hours with {parallel} job(s) at a time, {total['disk_gib']:.3g} GiB on disk ({machine})"
    )
    if total["kinds_without_rate"]:
        lines.append(
            f"{total['kinds_without_rate']} kind(s) of jobs without a rate are missing from these sums: measure them "
            "with --measure"
        )
    return "\n".join([*lines, *notes])


def plan_totals(table: pd.DataFrame, rates: Rates | None, parallel: int = 1) -> dict[str, Any]:
    """Sums over the table: `jobs` and `pflop`; with rates `hours`, `disk_gib` and `kinds_without_rate` too.

    Args:
        table: from `plan_table`.
        rates: None: sums of what has no rate are left out.
        parallel: jobs that run at a time, for `hours`.
    """
    pflop = float((table["units"] * table["tflop_per_unit"]).sum()) / 1000
    total: dict[str, Any] = {"jobs": int(table["jobs"].sum()), "pflop": pflop}
    if rates is None:
        return total
    hours, disk = float(table["hours"].sum()) / parallel, float(table["disk_gib"].sum())
    return total | {"hours": hours, "disk_gib": disk, "kinds_without_rate": int(table["hours"].isna().sum())}


def plan_json(table: pd.DataFrame, rates: Rates | None, parallel: int = 1, notes: Sequence[str] = ()) -> str:
    """The table for a script: `kinds` (rows of the table, null for what is not known), `total`, `machine` and `notes`.

    Args:
        table: from `plan_table`.
        rates: whose machine is named; None: `machine` is null.
        parallel: jobs that run at a time, for the total time.
        notes: of `plan_notes`; none without rates.
    """
    kinds, total = json.loads(table.to_json(orient="records")), plan_totals(table, rates, parallel)
    machine, left_out = (dict(rates.machine), list(notes)) if rates else (None, [])
    return json.dumps({"kinds": kinds, "total": total, "machine": machine, "notes": left_out})
