"""`rrm plan`: the jobs are those that Snakemake plans, FLOPs are right, rates are measured and used where they fit."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

import rrm.rates
from rrm.cli import main
from rrm.config import Config, load
from rrm.cost import Job, num_classes, photo_counts, planned_jobs, tflop_per_unit
from rrm.errors import RRMError
from rrm.pipeline import STAGES
from rrm.plan import plan_notes, plan_table, plan_text
from rrm.rates import Rate, Rates, _Bench, measure_rates, rate_key
from rrm.stages.call import Call
from rrm.store import Store
from tests.workflow.project import REPOSITORY, Project, small_config

pytestmark = pytest.mark.timeout(900)  # rates take minutes where other tests run beside them
DEMO, TINY = REPOSITORY / "config.yaml", REPOSITORY / "tests" / "tiny.yaml"
TRAINED = {"classifier", "one_step", "method", "affinity", "step_two", "bound"}
SHARED = {"pseudo_masks", "predict", "evaluate"}
VAL = ("one_step", "val")
COUNTED = TRAINED | SHARED | {f"merge_{stage}" for stage in SHARED}


def overlaid(folder: Path, text: str, *below: Path) -> Config:
    own = folder / "own.yaml"
    own.write_text(text)
    return load(*below, own)


@pytest.mark.parametrize("shards", [1, 3, {"predict": 7, "pseudo_masks": 2}], ids=str)
def test_the_jobs_are_those_that_snakemake_plans(shards: Any, clone: Project) -> None:
    clone.configure(small_config() | {"runtime": {"shards": shards}})
    summary = clone.snakemake("--dry-run", "all")
    assert summary.returncode == 0, summary.stderr
    planned = {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", summary.stdout, flags=re.MULTILINE)}
    jobs: Counter[str] = Counter()
    for job in planned_jobs(load(clone.root / "config.yaml")):
        jobs[re.sub("[ -]", "_", job.task)] += job.count
    assert dict(jobs) == {rule: number for rule, number in planned.items() if rule in COUNTED}


def test_shards_share_the_photos_and_a_merge_has_them_all(tmp_path: Path) -> None:
    def of(config: Config, task: str) -> list[tuple[int, int]]:
        jobs = planned_jobs(config)
        return [(j.count, j.units) for j in jobs if (j.task, j.name, j.wildcards.get("split")) == (task, *VAL)]

    whole, parted = load(DEMO), overlaid(tmp_path, "runtime: {shards: {predict: 7}}", DEMO)
    assert of(whole, "predict") == of(parted, "merge predict") == [(3, 240)]
    assert sorted(of(parted, "predict")) == [(3 * 2, 35), (3 * 5, 34)]
    assert of(whole, "merge predict") == of(parted, "merge evaluate") == []


def test_flop_of_resnet38_are_those_of_its_layers(tmp_path: Path) -> None:
    """0.43 TFLOP forward at 321x321, 0.06 for the segmentation branch; 0.10, 0.94 and 1.66 at the other CAM scales."""
    config = overlaid(
        tmp_path,
        """
        one_step:
          network: {options: {width: 1, units: [3, 3, 6, 3], output_stride: 8, dilations: null, batch_norm: frozen}}
          train: {crop: 321, batch_size: 1}
          cam: {scales: [0.5, 1.5, 2.0]}
        """,
        DEMO,
    )
    job = next(job for job in planned_jobs(config) if job.name == "one_step" and job.stage == "one-step")
    assert tflop_per_unit(config, job) == pytest.approx(3 * (0.43 + 0.06) + 0.10 + 0.94 + 1.66, rel=0.03)


SMALL = """
runtime: {crf_workers: 0}
one_step:
  network: {options: {batch_norm: frozen}}
  train: {accumulate: PARTS}
  cam: {scales: [0.5, 1.0, 1.5], average: feature, dropout: true}
  energy: {weight: 0}
classifier: {train: {accumulate: PARTS}}
methods:
  em_adapt: {train: {accumulate: PARTS}}
  sec: {train: {batch_size: 4, crop: 48, accumulate: PARTS}}
  dsrg: null
pseudo_masks:
  affinitynet: {cam_scales: [0.7, 1.0], random_walk: {steps: 0, train: {batch_size: 4, crop: 48, accumulate: PARTS}}}
  one_step: {source: average}
step_two:
  vgg16: null
  resnet101: {loss_scales: [0.7, 1.0], views: {scales: [0.7, 1.0]}, train: {accumulate: PARTS}}
  affinitynet:
    network: {options: {width: 0.03125, layers: [1, 1, 1, 1]}}
    train: {batch_size: 4, crop: 48, accumulate: PARTS}
bounds: {kernel_cut: null, boxes: null}
"""


def _shape(photos: Store, name: str, _: Config) -> tuple[int, ...]:
    return photos.read(name, "image").shape[:2]


class Counting(_Bench):
    """Runs jobs in this process, and counts the FLOP of each."""

    flop = 0

    def _call(self, job: Job, inputs: Mapping[str, Path], output: Path, units: int) -> tuple[float, int, int]:
        output.parent.mkdir(parents=True, exist_ok=True)
        stage = STAGES[job.stage].module
        call = Call(stage, inputs, output, self._options(job, units), self.runtime, "code")
        with FlopCounterMode(display=False) as counter:
            import_module(f"rrm.stages.{stage}").run(call)
        self.flop = counter.get_total_flops()
        return 0.0, 0, 0

    def done(self, job: Job) -> float:
        """FLOP of one step, or of five photos."""
        output = self.folder / "out" / f"{job.task}-{job.name.replace('/', '-')}"
        self._call(job, self._inputs(job, 5), output, 1)
        return self.flop

    def planned(self, job: Job) -> float:
        """The same as it is planned, for photos of their own sizes."""
        if job.unit == "step":
            return 1e12 * tflop_per_unit(self.config, job)
        photos, flop = Store(self._data(5).photos, "photos"), 0.0
        for name in photos.attrs["splits"][job.wildcards.get("split", "train")]:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("rrm.cost.photo_size", partial(_shape, photos, name))
                flop += 1e12 * tflop_per_unit(self.config, job)
        return flop


@pytest.mark.parametrize("parts", [1, 2])
def test_flop_are_those_of_the_stages(parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels of batches in parts are mined before them, and what has no counts of its own computes its loss twice."""
    monkeypatch.setattr("rrm.parallel.prefetched", iter)  # in this thread, whose FLOP are counted
    methods = REPOSITORY / "configs" / "demo_methods.yaml"
    config = overlaid(tmp_path, SMALL.replace("PARTS", str(parts)), DEMO, methods, TINY)
    jobs = [job for job in planned_jobs(config) if job.stage != "evaluate" and job.wildcards.get("split") != "test"]
    jobs = [job for job in jobs if parts == 1 or job.unit == "step"]
    bench = Counting(config, tmp_path, "cpu", 1)
    done = {f"{job.stage} {job.name}": bench.done(job) for job in jobs}
    assert {stage.partition(" ")[0] for stage in done} >= {"classifier", "one-step", "method", "affinity", "step-two"}
    assert {f"{job.stage} {job.name}": bench.planned(job) for job in jobs} == pytest.approx(done)


def test_the_map_of_the_training_pass_is_mined_from(tmp_path: Path) -> None:
    """By the authors' recipe: 3 units for forward and backward, 0.25 + 2.25 + 4 for other scales, else 1 more."""
    recipe = "one_step: {network: {options: {batch_norm: frozen}}, cam: {scales: [0.5, 1.0, 1.5, 2.0]}}"
    job = Job("one-step", {"model": "one_step"}, 1, 1, "step")
    saved, whole = (
        tflop_per_unit(overlaid(tmp_path, text, DEMO), job) for text in (recipe, recipe.replace("frozen", "train"))
    )
    assert saved / whole == pytest.approx(9.5 / 10.5, rel=0.02)


def test_a_larger_batch_counts_and_the_energy_does_not(tmp_path: Path) -> None:
    small, large = load(DEMO), overlaid(tmp_path, "one_step: {train: {batch_size: 24}, energy: {weight: 9}}", DEMO)
    job = Job("one-step", {"model": "one_step"}, 1, 1, "step")
    assert tflop_per_unit(large, job) == pytest.approx(2 * tflop_per_unit(small, job))


def test_counts_of_photos(tmp_path: Path) -> None:
    voc = f"dataset: {{kind: voc, root: {tmp_path}, name: x, train: train_aug, submission: test}}"
    assert photo_counts(overlaid(tmp_path, voc, DEMO)) == {"train": 10_582, "val": 1449, "submission": 1456}
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train_aug.txt").write_text("a\n\nb\n")
    assert photo_counts(overlaid(tmp_path, voc, DEMO))["train"] == 2
    with pytest.raises(RRMError, match=r"mine\.txt: expected the list, or a name of train"):
        photo_counts(overlaid(tmp_path, voc.replace("train_aug", "mine"), DEMO))


def test_classes_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\ntraffic light\n")
    voc = f"dataset: {{kind: voc, root: {tmp_path}, name: x, classes: classes.txt}}"
    assert num_classes(overlaid(tmp_path, voc, DEMO)) == 2


@pytest.fixture(scope="module")
def measured() -> tuple[Config, Rates]:
    """Rates of three kinds of jobs of the tiny configuration."""
    config = load(DEMO, TINY)
    wanted = [job for job in planned_jobs(config) if job.name in ("", "bounds/resnet38") and job.stage != "evaluate"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rrm.rates, "_LASTING", 0.1)
        return config, measure_rates(config, wanted, "cpu", 1, lambda _: None)


def test_measured_rates_are_those_of_whole_jobs(measured: tuple[Config, Rates]) -> None:
    config, rates = measured
    table = plan_table(config, rates).set_index("stage")
    known = table[table["rate"] == "measured"]
    assert set(known.index) == {"classifier", "bound", "predict"}
    assert (known["seconds_per_unit"] > 0).all()
    assert (known["memory_gib"] > 0.1).all()
    assert (known["disk_gib"] > 0).all()
    classifier = next(rate for rate in rates.entries.values() if rate.stage == "classifier")
    hours = (classifier.start_seconds + 2 * classifier.unit_seconds) / 3600
    assert known.loc["classifier", "hours"] == pytest.approx(hours)


def test_rates_hold_for_more_steps_and_are_scaled_for_other_networks(
    measured: tuple[Config, Rates], tmp_path: Path
) -> None:
    config, rates = measured
    job = Job("bound", {"model": "bounds/resnet38"}, 1, 1, "step")
    longer = overlaid(tmp_path, "bounds: {resnet38: {train: {steps: 99}}}", DEMO, TINY)
    wider = overlaid(tmp_path, "bounds: {resnet38: {network: {options: {width: 0.125}}}}", DEMO, TINY)
    assert rate_key(longer, job) == rate_key(config, job) != rate_key(wider, job)
    row = plan_table(wider, rates).set_index("of").loc["bounds/resnet38"].iloc[0]
    entry = rates.entries[rate_key(config, job)]
    factor = tflop_per_unit(wider, job) / tflop_per_unit(config, job)
    assert row["rate"] == "by FLOPs"
    assert row["seconds_per_unit"] == pytest.approx(entry.unit_seconds * factor)
    assert factor > 2


def test_steps_of_a_walk_cost_and_those_of_its_training_are_another_job(tmp_path: Path) -> None:
    def key(walk: str) -> str:
        text = f"pseudo_masks: {{affinitynet: {{random_walk: {walk}}}}}"
        methods = REPOSITORY / "configs" / "demo_methods.yaml"
        config = overlaid(tmp_path, text, DEMO, methods)
        return rate_key(config, Job("pseudo-masks", {"masks": "affinitynet"}, 1, 1, "photo"))

    assert key("{steps: 17}") != key("{steps: 16}") == key("{train: {steps: 7}}")


def test_a_rates_file_is_read_as_written(measured: tuple[Config, Rates], tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    path.write_text(measured[1].to_json())
    assert Rates.read(path) == measured[1]
    assert "hours with 2 job(s) at a time" in plan_text(plan_table(*measured), measured[1], parallel=2)


@pytest.mark.parametrize("text", ["", "[]", '{"machine": {}, "entries": {"a": {"stage": "predict"}}}', "\x00"])
def test_another_file_is_no_rates(text: str, tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    path.write_text(text)
    with pytest.raises(RRMError, match="expected rates written by"):
        Rates.read(path)


def test_the_command_without_rates(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "plan.csv"
    assert main(["plan", "--config", str(DEMO), str(TINY), "--out", str(out)]) == 0
    assert "measure them with --measure" in capsys.readouterr().out
    assert out.read_text().startswith("stage,of,jobs,units,unit,tflop_per_unit")
    assert main(["plan", "--config", str(DEMO), str(TINY), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["machine"] is None and told["notes"] == [] and "hours" not in told["total"]
    assert told["total"]["jobs"] == sum(kind["jobs"] for kind in told["kinds"]) > 0
    assert {kind["hours"] for kind in told["kinds"]} == {None}


def test_sums_name_what_they_lack() -> None:
    config = load(DEMO, TINY)
    entry = Rate("evaluate", 1.0, 0.5, 2**30, 0, 0.0, 2.0**20, 0.0)
    job = Job("evaluate", {"model": "one_step", "split": "val"}, 1, 1, "photo")
    rates = Rates({"device": "none"}, {rate_key(config, job): entry})
    table = plan_table(config, rates)
    row: Any = table.set_index("stage").loc["evaluate"]
    assert row["hours"] == pytest.approx((row["jobs"] * 1.0 + row["units"] * 0.5) / 3600)
    assert row["disk_gib"] == pytest.approx(row["units"] / 1024)
    assert "without a rate are missing" in plan_text(table, rates)
    json.loads(rates.to_json())


def test_notes_say_what_is_left_out(tmp_path: Path) -> None:
    config = overlaid(tmp_path, "runtime: {processes: 2}", DEMO)
    packed, trainings = plan_notes(config)
    demo = config.dataset.demo
    pixels = (demo.train + demo.val + demo.test) * demo.size**2
    assert f"{3 * pixels / 2**30:.3g} GiB of packed photos" in packed
    assert "the 2 of runtime.processes" in trainings
    assert plan_notes(load(DEMO)) == [packed]
    assert plan_text(plan_table(config, Rates({})), Rates({}), 1, [packed]).endswith(f"\n{packed}")


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").is_file(), reason="needs Linux's /proc")
def test_memory_of_a_job_is_that_of_its_workers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rrm.rates, "_LOOK", 0.1)
    worker = "import sys, time; held = b'x' * (64 << 20); time.sleep(1); sys.exit('ended')"
    code = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {worker!r}]).returncode)"
    status, told, held = rrm.rates._watched([sys.executable, "-c", code], os.environ)
    assert (status, told) == (1, "ended\n")
    assert 64 << 20 < held < 128 << 20
