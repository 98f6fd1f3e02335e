"""The profile of a training step measures the step that trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from benchmarks import training_step
from rrm import tasks, training
from rrm.config import load

PARTS = {"transfer", "cam", "mining", "forward", "cross_entropy", "classification", "energy", "backward", "optimizer"}
TINY = ["--network", '{"width": 0.0625, "head_dilation": 2}', "--crop", "32", "--batch-size", "2"]


@pytest.fixture
def unprepared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_step, "prepare_process", lambda threads: None)


@pytest.mark.usefixtures("unprepared")
def test_parts_make_up_the_step(tmp_path: Path, folder: Path, schema: dict[str, Any]) -> None:
    out = tmp_path / "out.json"
    common = ["--threads", "1", "--repeats", "2", "--warmup", "1", "--photos", str(folder), "--out", str(out)]
    training_step.main([*common, *TINY])
    written = json.loads(out.read_text())
    jsonschema.validate(written, schema)
    (result,) = written["results"]
    assert list(result["sides"]) == ["mining with 4 pydensecrf calls (cpu)", "rrm (cpu)"]
    for side in result["sides"].values():
        assert set(side["stages"]) == PARTS | {"rest"}
        assert sum(stage["share"] for stage in side["stages"].values()) == pytest.approx(1, abs=0.02)
        assert side["stages"]["rest"]["share"] < 0.3
        assert side["per_second"]["steps"] == pytest.approx(1e3 / side["median_ms"], rel=1e-3)
        assert side["per_second"]["images"] == pytest.approx(2 * side["per_second"]["steps"], rel=1e-3)
    assert tasks.record_function is training.record_function is torch.profiler.record_function


@pytest.mark.usefixtures("unprepared")
@pytest.mark.parametrize("found", [True, False])
def test_one_side_without_a_crf_or_without_pydensecrf(found: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_step, "find_spec", lambda name: found or None)
    mining = {"rule": "cam"} if found else {}
    values = training_step.options("paper", "small", [], {"mining": mining})
    assert list(training_step.tasks(values)) == ["rrm"]


def test_scopes_are_seen_by_profilers(folder: Path) -> None:
    changes = {"train": {"crop": 32, "batch_size": 1}, "network": {"options": {"width": 1 / 16, "head_dilation": 2}}}
    task = training_step.tasks(training_step.options("reference", "small", [], changes))["rrm"]
    batch = training_step.batch_of(folder, 1, 32, pinned=False)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        task.losses(task.prepare(batch), 0.0)
    names = {event.key.removeprefix("rrm.") for event in seen.key_averages() if event.key.startswith("rrm.")}
    assert names == PARTS - {"transfer", "backward", "optimizer"}


def test_config_files_give_the_options() -> None:
    root = Path(__file__).resolve().parents[2]
    values = training_step.options("reference", "paper", [root / "config.yaml"], {"train": {"crop": 48}})
    assert values.train.crop == 48
    assert values.mining.rule == "paper"
    assert values.network.options["width"] == load(root / "config.yaml").one_step.network.options["width"] < 1


def test_clock_on_a_gpu_reads_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(100))

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.tick = next(ticks)

        def elapsed_time(self, later: Event) -> float:
            return float(later.tick - self.tick)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    clock = training_step.Clock("cuda")
    for _ in range(2):
        with clock.scope("rrm.step"):
            for name in ("rrm.cam", "rrm.mining", "rrm.cam"):
                with clock.scope(name):
                    pass
    assert clock.steps() == [{"step": 7.0, "cam": 2.0, "mining": 1.0, "rest": 4.0}] * 2
