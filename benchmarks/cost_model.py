"""`rrm plan` against a run: hours of each stage by measured rates, and as the workflow measured its jobs.

    rrm plan --config config.yaml --measure --rates rates.json
    snakemake --cores 2 all
    python -m benchmarks.cost_model --config config.yaml --rates rates.json --results results --out FILE

Both on the same machine, as many jobs at a time. Only jobs that the run has are compared.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from rrm.config import Config, load
from rrm.cost import planned_jobs
from rrm.pipeline import Layout
from rrm.plan import cost_row
from rrm.rates import Rates
from rrm.usage import Usage


def measured_seconds(config: Config, results: Path) -> dict[tuple[str, str, str], list[float]]:
    """Seconds of the workflow's jobs, one a seed, by stage, name and split."""
    layout = Layout(results, config.dataset.name)
    found: dict[tuple[str, str, str], list[float]] = {}
    for job in planned_jobs(config):
        split = job.wildcards.get("split", "")
        for seed in config.seeds:
            path = _usage(layout, seed, job.stage, job.name, split)
            if Usage.is_written(path):
                seconds = Usage.read(path).seconds
                found.setdefault((job.stage, job.name, split), []).append(seconds)
    return found


def _usage(layout: Layout, seed: int, stage: str, name: str, split: str) -> Path:
    folder = layout.usage / f"seed{seed}"
    if stage in ("predict", "evaluate"):
        return folder / name / f"{stage}_{split}.json"
    return folder / {"pseudo-masks": f"pseudo_masks/{name}.json", "affinity": f"affinity/{name}.json"}.get(
        stage, f"{name or stage}.json"
    )


def compared(config: Config, rates: Rates, results: Path) -> pd.DataFrame:
    """A row a stage: number of jobs, planned and measured seconds, and their ratio."""
    measured = measured_seconds(config, results)
    table = pd.DataFrame(list(_rows(config, rates, measured)), columns=["stage", "jobs", "planned", "measured"])
    sums = table.groupby("stage", sort=False).sum()
    sums.loc["all"] = sums.sum()
    return sums.assign(ratio=sums["planned"] / sums["measured"]).reset_index()


def _rows(
    config: Config, rates: Rates, measured: dict[tuple[str, str, str], list[float]]
) -> Iterator[tuple[str, int, float, float]]:
    for job in planned_jobs(config):
        seconds = measured.get((job.stage, job.name, job.wildcards.get("split", "")))
        row = cost_row(config, [job], rates)
        if seconds and "hours" in row:
            share = len(seconds) / job.count
            yield job.stage, len(seconds), 3600 * row["hours"] * share, sum(seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, nargs="+", required=True, help="config file(s) of the run")
    parser.add_argument("--rates", type=Path, required=True, help="rates of the machine")
    parser.add_argument("--results", type=Path, default=Path("results"), help="the run's folder of results")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    options = parser.parse_args(arguments)
    rates = Rates.read(options.rates)
    table = compared(load(*options.config), rates, options.results)
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": dict(rates.machine), "stages": table.to_dict(orient="records")}
    options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
