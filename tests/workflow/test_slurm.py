"""The workflow on a real Slurm: what jobs ask for, jobs that are cancelled or run out of time, and the same results.

Uses the Slurm that answers here, or starts one of one node with two GPUs that are pretended, so that its jobs run on
the CPU but ask as they would with cards.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rrm.config import merge
from tests.conftest import SHARED
from tests.workflow.project import REPOSITORY, Project, clone_into
from tests.workflow.test_profiles import NETWORKS

SEED = "results/tiny/seed0"
TARGETS = (f"{SEED}/one_step/confusion_val.h5", f"{SEED}/step_two/vgg16/weights.pth")
STEPS = 400  # of the training that is interrupted: some seconds
WAIT = 1200.0


def _told(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _answers() -> bool:
    return shutil.which("scontrol") is not None and "is UP" in _told("scontrol", "ping")


@pytest.fixture(scope="module")
def slurm() -> Iterator[None]:
    """A Slurm that answers, or why there is none."""
    if _answers():
        yield
        return
    start = SHARED / "slurm" / "slurm_up.sh"
    if not start.exists():
        pytest.skip("no Slurm answers on this machine (`scontrol ping`)")
    if os.geteuid():
        pytest.skip("no Slurm answers on this machine, and only root may start one")
    knobs = os.environ | {"SLURM_FAKE_GPUS": "2", "SLURM_CPUS": "4"}
    up = subprocess.run([start], env=knobs, capture_output=True, text=True, check=False)
    if up.returncode:
        pytest.skip(f"Slurm could not be started: {(up.stderr or up.stdout).strip().splitlines()[-1]}")
    yield
    subprocess.run([SHARED / "slurm" / "slurm_down.sh"], check=True, capture_output=True)


def _tiny(root: Path) -> Project:
    files = (REPOSITORY / "config.yaml", REPOSITORY / "tests" / "tiny.yaml")
    demo, tiny = (yaml.safe_load(path.read_text()) for path in files)
    config = merge(merge(demo, tiny), {"runtime": {"device": "cpu", "shards": {"evaluate": 2}}, "methods": {}})
    config["step_two"], config["bounds"] = {"vgg16": config["step_two"]["vgg16"]}, {}
    config["one_step"]["train"] |= {"steps": STEPS, "checkpoint_every": STEPS}  # none but that of a SIGTERM
    project = clone_into(root)
    project.configure(config)
    return project


def _profile(project: Project) -> str:
    """The Slurm profile with less memory and time, quick looks at states, and a GPU for what runs a network."""
    content: dict[str, Any] = yaml.safe_load((project.root / "profiles/slurm/config.yaml").read_text())
    content |= {"slurm-init-seconds-before-status-checks": 2, "latency-wait": 20}
    content["default-resources"] |= {"mem_mb": "900 * attempt", "runtime": 30}
    for rule in content["set-resources"]:
        less = {"mem_mb": "1500 * attempt", "runtime": 45} | ({"gpu": 1} if rule in NETWORKS else {})
        content["set-resources"][rule] |= less
    folder = project.root / "profiles" / "small"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return str(folder.relative_to(project.root))


def _jobs(name: str = "") -> dict[str, dict[str, str]]:
    """What Slurm knows of the jobs that it was given: by id, `scontrol`'s facts, of one rule or all."""
    lines = _told("scontrol", "--oneliner", "show", "job").splitlines()
    jobs = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines if line.startswith("JobId=")]
    return {job["JobId"]: job for job in jobs if job.get("Comment", "").startswith(f"rule_{name}")}


def _until(ready: Callable[[], Any], process: subprocess.Popen[Any], log: Path) -> Any:
    end = time.monotonic() + WAIT
    while not (found := ready()):
        assert process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.2)
    return found


def _checkpoint(project: Project) -> int:
    """Step of the checkpoint of the one-step training."""
    for path in project.root.glob(f"{SEED}/one_step/**/last.pth"):
        return int(torch.load(path, map_location="cpu", weights_only=True)["step"])
    return 0


def _steps(project: Project) -> int:
    """Steps of the one-step training that are done."""
    return sum(len(path.read_text().splitlines()) for path in project.root.glob(f"{SEED}/one_step/**/history.jsonl"))


def _running(known: set[str]) -> str:
    """A job of the one-step training that runs and is not among these."""
    jobs = {name for name, job in _jobs("one_step").items() if job["JobState"] == "RUNNING"} - known
    return min(jobs, default="")


def _end_of(job: str) -> str:
    state = _jobs("one_step")[job]["JobState"]
    return "" if state in ("RUNNING", "COMPLETING") else state


def _cancel(job: str) -> None:
    subprocess.run(["scancel", job], check=True)


def _hang(job: str) -> None:
    """Stop the job's processes, as if they waited for a disk, and let it run out of time."""
    subprocess.run(["scancel", "--signal=STOP", job], check=True)
    subprocess.run(["scontrol", "update", f"JobId={job}", "TimeLimit=1"], check=True)


@pytest.mark.timeout(3600)
def test_jobs_that_are_cancelled_or_run_out_of_time_go_on_and_results_are_the_same(slurm: None, tmp_path: Path) -> None:
    local, remote = _tiny(tmp_path / "local"), _tiny(tmp_path / "remote")
    before, log = set(_jobs()), tmp_path / "log"
    command = [sys.executable, "-m", "snakemake", "--workflow-profile", _profile(remote), "--nocolor", *TARGETS]
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=remote.root, stdout=file, stderr=subprocess.STDOUT)
    steps: list[int] = []
    ended, told = set(before), []
    for end in (_cancel, _hang):
        job = _until(lambda: _running(ended), process, log)
        ended.add(job)
        _until(lambda: _steps(remote) > max(steps, default=0) + 1, process, log)
        end(job)
        told.append(_until(partial(_end_of, job), process, log))
        steps.append(_checkpoint(remote))
    assert process.wait(WAIT) == 0, log.read_text()[-3000:]
    assert told == ["CANCELLED", "TIMEOUT"]
    _asked_for_what_they_need({name: job for name, job in _jobs().items() if name not in before})
    told_last = (remote.root / "results/tiny/logs/seed0/one_step.log").read_text()
    gone_on = re.findall(r"goes on after step (\d+)", told_last)
    assert [int(step) for step in gone_on] == [steps[0]]
    assert STEPS > steps[1] == steps[0] > 0
    undisturbed = local.snakemake("--quiet", "all", "--", *TARGETS)
    assert undisturbed.returncode == 0, undisturbed.stderr
    for target in (*TARGETS, f"{SEED}/one_step/weights.pth", f"{SEED}/one_step/probabilities_val.h5"):
        digests = {hashlib.sha256((each.root / target).read_bytes()).hexdigest() for each in (local, remote)}
        assert len(digests) == 1, target


def _asked_for_what_they_need(jobs: dict[str, dict[str, str]]) -> None:
    by_rule: dict[str, list[dict[str, str]]] = {}
    for job in jobs.values():
        rule = job["Comment"].removeprefix("rule_").split("_wildcards")[0]
        by_rule.setdefault(rule, []).append(job)
    assert {"make_data", "classifier", "one_step", "predict", "evaluate", "merge_evaluate", "step_two"} <= set(by_rule)
    assert (len(by_rule["one_step"]), len(by_rule["evaluate"])) == (3, 2)
    for rule, each in by_rule.items():
        network = rule in NETWORKS
        assert {job["Partition"] for job in each} == {"gpu" if network else "cpu"}
        assert all(("gpu" in job.get("TresPerJob", "") + job["TRES"]) == network for job in each), rule
        limits = {job["TimeLimit"] for job in each} - {"00:01:00"}
        assert limits == {"00:45:00" if network or rule.endswith("evaluate") else "00:30:00"}
    attempts = [job["MinMemoryNode"] for job in sorted(by_rule["one_step"], key=lambda job: int(job["JobId"]))]
    assert attempts == ["1500M", "3000M", "4500M"]
