"""Both sides run the same workflow, and what is written fits the schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from benchmarks import small_jobs


def test_figures_fit_the_schema(tmp_path: Path, schema: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[bool] = []
    monkeypatch.setattr(small_jobs, "run", lambda folder, files, cores, preload: ran.append(preload))
    out = tmp_path / "out.json"
    small_jobs.main(["--repeats", "2", "--out", str(out)])
    written = json.loads(out.read_text())
    jsonschema.validate(written, schema)
    (result,) = written["results"]
    assert list(result["sides"]) == list(small_jobs.SIDES) == list(result["facts"]["processor_seconds"])
    assert ran == [False, True] * 3


@pytest.mark.timeout(600)
def test_the_workflow_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only = {**small_jobs.SMALL, "step_two": {"vgg16": None, "resnet101": None, "cam_resnet101": None}}
    config = tmp_path / "small.yaml"
    config.write_text(json.dumps({**only, "bounds": dict.fromkeys(("resnet38", "resnet101", "vgg16"))}))
    small_jobs.run(tmp_path / "run", [small_jobs.ROOT / "config.yaml", config], 2, True)
    assert (tmp_path / "run" / "results" / "table5.csv").is_file()
