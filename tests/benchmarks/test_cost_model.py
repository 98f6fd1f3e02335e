"""A plan against a run: seconds are summed over the jobs that both have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import cost_model
from rrm.config import load
from rrm.cost import planned_jobs
from rrm.rates import Rate, Rates, rate_key
from rrm.usage import Usage
from tests.workflow.project import REPOSITORY

CONFIG = [REPOSITORY / "config.yaml", REPOSITORY / "tests" / "tiny.yaml"]


def test_seconds_are_summed_over_the_jobs_that_were_run(tmp_path: Path) -> None:
    config = load(*CONFIG)
    entries = {rate_key(config, job): Rate(job.stage, 1.0, 0.5, 0, 0, 0, 0, 0) for job in planned_jobs(config)}
    rates, folder = tmp_path / "rates.json", tmp_path / "results" / "tiny" / "usage" / "seed0"
    rates.write_text(Rates({"device": "none"}, entries).to_json())
    for name, seconds in {"classifier": 4, "step_two/vgg16": 3, "one_step/evaluate_val": 5, "other": 9}.items():
        Usage(seconds, seconds, 1, 0).write(folder / f"{name}.json")
    out = tmp_path / "out.json"
    files = [str(path) for path in CONFIG]
    cost_model.main(
        ["--config", *files, "--rates", str(rates), "--results", str(tmp_path / "results"), "--out", str(out)]
    )
    rows = {row["stage"]: row for row in json.loads(out.read_text())["stages"]}
    assert set(rows) == {"classifier", "step-two", "evaluate", "all"}
    assert rows["classifier"]["planned"] == rows["step-two"]["planned"] == pytest.approx(2)  # two steps
    assert rows["evaluate"]["planned"] == pytest.approx(3.5)  # five photos
    assert rows["all"] == {"stage": "all", "jobs": 3, "planned": 7.5, "measured": 12.0, "ratio": pytest.approx(0.625)}
