"""The command that measures on a GPU: its parts run on a CPU with tiny sizes, it survives faults and goes on."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from benchmarks import gpu, gpu_parts

ROOT = Path(__file__).resolve().parents[2]
ABSENT = ("pydantic", "defusedxml", "pycocotools", "snakemake", "pydensecrf", "numba", "llvmlite", "tensorboard")
MACHINE = {"gpu": None, "processor": "x", "packages": {}, "time": "", "cores": 1, "python": "3", "threads": 1,
           "busy_processes": 0, "load": 0.0}  # fmt: skip


def test_parts_run_where_few_packages_are_installed(tmp_path: Path, folder: Path, schema: dict[str, Any]) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({ABSENT}))\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    how = ["--device", "cpu", "--quick", "--workers", "0", "--parts", "one_step", "evaluation"]
    command = [sys.executable, "-m", "benchmarks.gpu", *how, "--photos", str(folder), "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "gpu.json").read_text())
    jsonschema.validate(written, schema)
    training, evaluation = written["results"]
    assert training["facts"]["part"] == "one_step", training
    (side,) = training["sides"].values()
    assert {"cam", "mining", "forward", "energy", "backward", "optimizer", "rest"} <= set(side["stages"])
    assert training["facts"]["images_per_second"] == pytest.approx(2 * training["facts"]["steps_per_second"], rel=0.01)
    assert training["facts"]["network_tflop_per_step"] > 0
    assert evaluation["facts"]["minutes_for_1449_photos"] > 0, evaluation
    assert "| evaluation of 1,449 photos, minutes | at most 5 |" in done.stdout


def test_the_other_parts_run(folder: Path) -> None:
    asked = gpu_parts.Asked("cpu", quick=True, photos=folder, workers=0, seconds=60)
    (step_two,) = gpu_parts.step_two(asked)
    assert step_two["facts"]["minutes_for_20000_steps"] > 0
    *alike, energy = gpu_parts.parity(asked)
    assert [each["facts"]["same_labels"] for each in alike] == [1, 1, 1]
    assert energy["facts"]["difference_of_gradient"] == 0
    (left_out,) = gpu_parts.kernels(asked)
    assert left_out["facts"] == {"left_out": "needs a GPU"}
    assert set(gpu.PARTS) <= set(dir(gpu_parts))


def test_union_of_intervals() -> None:
    assert gpu_parts.covered([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4


def _asked(out: Path, **changes: Any) -> argparse.Namespace:
    given = {"device": "cpu", "quick": True, "workers": 0, "photos": None, "parts": list(gpu.PARTS), "seconds": 100.0}
    return argparse.Namespace(out=out, again=False, **(given | changes))


def test_it_goes_on_with_what_failed_or_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def part(name: str, limit: float, asked: argparse.Namespace) -> list[dict[str, Any]]:
        done.append(name)
        failed = {"failed": "it ended with 1"} if name == "parity" and done.count("parity") == 1 else {}
        return [{"case": name, "facts": failed, "sides": {}}]

    monkeypatch.setattr(gpu, "run_part", part)
    monkeypatch.setattr(gpu, "machine", lambda asked: MACHINE)
    gpu.measure(_asked(tmp_path, seconds=1.0))
    assert done == []
    gpu.measure(_asked(tmp_path, parts=["one_step", "parity"]))
    gpu.measure(_asked(tmp_path, parts=["one_step", "parity", "tests"]))
    assert done == ["one_step", "parity", "parity", "tests"]
    monkeypatch.setattr(gpu, "machine", lambda asked: MACHINE | {"gpu": "another"})
    gpu.measure(_asked(tmp_path, parts=["one_step"]))
    assert done[4:] == ["one_step"]
    assert [each["case"] for each in json.loads((tmp_path / "gpu.json").read_text())["results"]] == ["one_step"]


def test_a_part_that_hangs_or_fails_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "log").open("wb") as log:
        assert gpu.ended_within(["sleep", "60"], 0.1, log) == "not done after 0 s"
        assert gpu.ended_within(["false"], 10, log) == "it ended with 1"
        assert gpu.ended_within(["true"], 10, log) == ""
    monkeypatch.setattr(gpu, "ended_within", lambda command, limit, log: "it ended with -9")
    (failed,) = gpu.run_part("tests", 10, _asked(tmp_path))
    assert failed["facts"]["failed"] == "it ended with -9"


def test_targets_are_met_by_the_better_part() -> None:
    target = gpu.Target("rate", ("one", "two"), "per_second", least=15)
    assert target.reached({}).endswith("| not measured | |")
    assert target.reached({"one": {"per_second": 14.0}}).endswith("| 14.0 (one) | missed |")
    assert target.reached({"one": {"per_second": 14.0}, "two": {"per_second": 16}}).endswith("| 16 (two) | met |")
    assert gpu.Target("size", ("one",), "gib", most=11).reached({"one": {"gib": 9.5}}).endswith("| met |")
