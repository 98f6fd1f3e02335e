"""The simulated cluster: seeded, right where the answer is known, and written with all that was assumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import rrm.rates
from benchmarks import cluster
from benchmarks.cluster import (
    Assumptions,
    Load,
    StoreCosts,
    limits,
    merge_seconds,
    rates_of_run,
    simulate,
    simulated_jobs,
    store_costs,
)
from rrm.config import load
from rrm.errors import RRMError
from rrm.pipeline import Layout
from rrm.rates import Rate, Rates, rate_key
from rrm.store import StoreWriter
from rrm.usage import Usage
from tests.workflow.project import REPOSITORY

CONFIG = [REPOSITORY / "config.yaml", REPOSITORY / "tests" / "tiny.yaml"]
QUIET = Assumptions(
    photos=1000, gpus=4, mtbf_hours=1e12, spread=0, slow_share=0, submissions=1e9, poll=0, dag=0, disk=1e12
)
FREE = StoreCosts(1, write=0, know=0, memory=100, index=0, file=0)
WORK = Load("predict", seconds=3.6, start=0, size=0, merge=0)


def test_a_quiet_cluster_takes_what_its_photos_take() -> None:
    assert simulate(WORK, 8, QUIET, FREE, 0).hours == pytest.approx(0.25)  # 3600 s on four GPUs
    assert simulate(WORK, 1, QUIET, FREE, 0).hours == pytest.approx(1)
    started = replace(WORK, start=360.0)
    assert simulate(started, 8, QUIET, FREE, 0).hours == pytest.approx(0.25 + 2 * 0.1)
    slow = replace(QUIET, submissions=1 / 3600)
    assert simulate(WORK, 8, slow, FREE, 0).hours == pytest.approx(7 + 1 / 8)  # the last one waits for its submission


def test_failures_cost_what_was_done_since_the_start() -> None:
    failing = replace(QUIET, mtbf_hours=1.0, repair=0, notice=0)
    few, many = (simulate(replace(WORK, seconds=36), count, failing, FREE, 1) for count in (4, 100))
    assert few.failures > 0
    assert few.lost_gpu_hours > many.lost_gpu_hours
    assert few.hours > many.hours > 2.5
    assert simulate(WORK, 100, failing, FREE, 7) == simulate(WORK, 100, failing, FREE, 7)


def test_what_breaks_first_is_the_merge_where_it_is_slower_than_all_gpus() -> None:
    slow, quick = replace(WORK, merge=1.0), replace(WORK, merge=0.5)
    assert merge_seconds(slow, QUIET) == 1000
    memory = QUIET.node_memory / 100
    assert [(each["what"], each["photos"]) for each in limits([slow], QUIET, FREE)] == [
        ("one process merges predict", 0),
        ("indexes that a job opens", memory),
    ]
    assert limits([quick], QUIET, FREE)[0]["photos"] == memory


def test_costs_of_stores_are_measured(tmp_path: Path) -> None:
    costs = store_costs(tmp_path, 200)
    assert costs.records == 200
    assert min(costs.write, costs.know, costs.memory, costs.file) > 0
    assert 30 < costs.index < 60


def test_the_file_holds_results_and_all_that_was_assumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, files = load(*CONFIG), [str(path) for path in CONFIG]
    flops = {"predict": 2.0, "pseudo-masks": 2.0}
    entries = {
        rate_key(config, job): Rate(job.task, 1.0, 0.5 - 0.25 * job.merges, 0, 0, 0, 1e6, flops.get(job.task, 0.0))
        for job in simulated_jobs("one_step", "one_step")
    }
    rates, out, picture = (tmp_path / name for name in ("rates.json", "out.json", "picture.png"))
    rates.write_text(Rates({"device": "none"}, entries).to_json())
    command = ["--config", *files, "--rates", str(rates), "--out", str(out), "--plot", str(picture)]
    cluster.main(
        [*command, "--shards", "8", "32", "--records", "50", "--seeds", "2", "--photos", "5000", "--gpu-tflops", "4"]
    )
    content = json.loads(out.read_text())
    told = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line[1] for line in told] == ["shards", *["8", "32"] * 3]
    assert len({len(line) for line in told}) == 1
    assert content["assumed"]["photos"] == 5000
    assert [each["records"] for each in content["stores"]] == [5, 50]
    assert [(row["stage"], row["shards"]) for row in content["results"]] == [
        (stage, shards) for stage in ("pseudo-masks", "predict", "evaluate") for shards in (8, 32)
    ]
    assert [each["seconds"] for each in content["loads"]] == [0.75, 0.75, 0.25]  # 2 TFLOP at 4 a second, and 0.25
    assert [each["merge"] for each in content["loads"]] == [0.25] * 3
    assert all(row["hours"] >= row["busy_hours"] and row["merge_hours"] > 0 for row in content["results"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    rates.write_text(Rates({"device": "none"}, {}).to_json())
    with pytest.raises(RRMError, match="rates: expected those of pseudo-masks one_step"):
        cluster.main(command)


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("driver")
def test_rates_are_measured_where_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rrm.rates, "_LASTING", 0.1)
    monkeypatch.setattr(rrm.rates, "_MOST", {"step": 4, "photo": 10})
    monkeypatch.setattr(rrm.rates, "_MOST_MERGED", 40)
    rates, out = tmp_path / "rates.json", tmp_path / "out.json"
    command = ["--config", *map(str, CONFIG), "--rates", str(rates), "--measure", "--device", "cpu", "--out", str(out)]
    cluster.main([*command, "--shards", "4", "--records", "50", "--seeds", "1", "--photos", "100"])
    entries = Rates.read(rates).entries
    assert set(entries) == {rate_key(load(*CONFIG), job) for job in simulated_jobs("one_step", "one_step")}
    for load_, stage in zip(json.loads(out.read_text())["loads"], ("pseudo-masks", "predict", "evaluate"), strict=True):
        (rate,) = (each for each in entries.values() if each.stage == stage)
        (merge,) = (each for each in entries.values() if each.stage == f"merge {stage}")
        assert (load_["seconds"], load_["size"], load_["merge"]) == (
            rate.unit_seconds,
            rate.unit_bytes,
            merge.unit_seconds,
        )
        assert rate.unit_bytes > 0 == merge.unit_bytes


def test_rates_are_taken_from_a_run(tmp_path: Path) -> None:
    config, layout, took = load(*CONFIG), Layout(tmp_path, "tiny"), {"val": 4.0, "test": 2.5}
    for split, photos in (("val", 4), ("test", 2)):
        for path, kind in (
            (layout.prediction(0, "one_step", split), "probabilities"),
            (layout.confusion(0, "one_step", split), "confusion"),
            (layout.pseudo_masks(0, "one_step"), "pseudo_masks"),
        ):
            with StoreWriter(path, kind, {}, "") as writer:
                for number in range(photos):
                    writer.add(f"{number}", {"a": np.zeros((64, 64), np.float32)})
        for stage in ("predict", "evaluate"):
            usage = Usage(9.0, took[split], 1, 0)
            usage.write(layout.usage / "seed0" / "one_step" / f"{stage}_{split}.json")
    Usage(9.0, 2.0, 1, 0).write(layout.usage / "seed0" / "pseudo_masks" / "one_step.json")
    entries = rates_of_run(config, layout.run, "one_step", "one_step").entries
    rates = {rate.stage: rate for rate in entries.values()}
    assert (rates["predict"].unit_seconds, rates["predict"].start_seconds) == (0.75, 1.0)
    assert rates["evaluate"].unit_seconds == 0.75
    assert rates["pseudo-masks"].unit_seconds == pytest.approx((2.0 - 1.0) / 2)
    assert all(rates[f"merge {stage}"].unit_seconds > 0 for stage in ("predict", "evaluate", "pseudo-masks"))
    assert set(entries) == {rate_key(config, job) for job in simulated_jobs("one_step", "one_step")}
