"""The workflow on a real Slurm: what jobs ask for, jobs and drivers that end early, and the same results as without.

Uses the Slurm that answers here, or with RRM_START_SLURM=1 starts one of one node with two GPUs that are pretended, so
that its jobs run on the CPU but ask as they would with cards. It is stopped afterwards.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rrm.config import merge
from tests.conftest import SHARED
from tests.workflow.project import REPOSITORY, Project, clone_into
from tests.workflow.test_profiles import NETWORKS

DATA, SEED = "results/tiny", "results/tiny/seed0"
TABLE = "results/table5.csv"
WEIGHTS, SCORES = f"{SEED}/one_step/weights.pth", f"{SEED}/one_step/confusion_val.h5"
STEPS = 400  # of the training that is interrupted: some seconds
WAIT = 1200.0
CONFIGURATION = Path("/etc/slurm/slurm.conf")


def _told(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _answers() -> bool:
    return shutil.which("scontrol") is not None and "is UP" in _told("scontrol", "ping")


def _start() -> None:
    """Start a Slurm, or skip saying why there is none."""
    start = SHARED / "slurm" / "slurm_up.sh"
    if not start.exists():
        pytest.skip(f"no Slurm answers here (`scontrol ping`), and there is no {start} to start one (RRM_SHARED)")
    if not os.environ.get("RRM_START_SLURM"):
        pytest.skip("no Slurm answers here (`scontrol ping`); RRM_START_SLURM=1 installs and starts one")
    if os.geteuid() or shutil.which("apt-get") is None:
        pytest.skip("no Slurm answers here (`scontrol ping`), and one is started by root on Debian only")
    knobs = os.environ | {"SLURM_FAKE_GPUS": "2", "SLURM_CPUS": "4"}
    up = subprocess.run([start], env=knobs, capture_output=True, text=True, check=False)
    if up.returncode:
        pytest.skip(f"Slurm could not be started: {(up.stderr or up.stdout).strip().splitlines()[-1]}")


def _stop() -> None:
    """Stop the daemons, and take their configuration away: with it, each call of Snakemake would wait for them."""
    subprocess.run([SHARED / "slurm" / "slurm_down.sh", "--purge"], check=True, capture_output=True)
    if "slurm_up.sh" in CONFIGURATION.read_text():
        CONFIGURATION.unlink()


@pytest.fixture(scope="module")
def slurm() -> Iterator[None]:
    """A Slurm that answers; one test session at a time starts and stops one."""
    with Path(tempfile.gettempdir(), "rrm-test-slurm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _answers():
            yield
            return
        _start()
        try:
            yield
        finally:
            _stop()


def _tiny(root: Path, **sections: Any) -> Project:
    files = (REPOSITORY / "config.yaml", REPOSITORY / "tests" / "tiny.yaml")
    demo, tiny = (yaml.safe_load(path.read_text()) for path in files)
    config = merge(merge(demo, tiny), {"runtime": {"device": "cpu"}} | sections)
    root.mkdir()
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


class _Cluster:
    """A project whose jobs go to Slurm, and what Slurm knows of them."""

    def __init__(self, project: Project, log: Path) -> None:
        self.project, self.log = project, log
        self.command = [sys.executable, "-m", "snakemake", "--nocolor", "--workflow-profile", _profile(project)]
        self._before = set(self._all())
        self._ended: set[str] = set()

    def drive(self, *targets: str) -> subprocess.Popen[Any]:
        """Start Snakemake."""
        with self.log.open("a") as file:
            command = [*self.command, *targets]
            return subprocess.Popen(command, cwd=self.project.root, stdout=file, stderr=subprocess.STDOUT)

    @staticmethod
    def _all() -> dict[str, dict[str, str]]:
        lines = _told("scontrol", "--oneliner", "show", "job").splitlines()
        jobs = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines if line.startswith("JobId=")]
        return {job["JobId"]: job | {"Rule": _rule(job)} for job in jobs if _rule(job)}

    def jobs(self, rule: str = "") -> dict[str, dict[str, str]]:
        """Jobs by id, in the order of their submission: `scontrol`'s facts and the rule."""
        jobs = {name: job for name, job in self._all().items() if name not in self._before}
        return {name: jobs[name] for name in sorted(jobs, key=int) if rule in ("", jobs[name]["Rule"])}

    def training(self, driver: subprocess.Popen[Any]) -> str:
        """Id of a new job of the one-step training, once its step runs."""

        def found() -> str:
            states = {name: job["JobState"] for name, job in self.jobs("one_step").items()}
            running, steps = [name for name, state in states.items() if state == "RUNNING"], _told("squeue", "-h", "-s")
            return min((name for name in running if f" {name}.0 " in steps and name not in self._ended), default="")

        job: str = self.until(found, driver)
        self._ended.add(job)
        return job

    def until(self, ready: Callable[[], Any], driver: subprocess.Popen[Any] | None = None) -> Any:
        """What `ready` gives once it gives anything."""
        end = time.monotonic() + WAIT
        while not (found := ready()):
            stopped = driver is not None and driver.poll() is not None
            assert not stopped and time.monotonic() < end, self.log.read_text()[-3000:]
            time.sleep(0.2)
        return found

    def goes_on(self, after: int, driver: subprocess.Popen[Any] | None = None) -> None:
        """Wait until the training has done some steps more than `after`."""
        histories = f"{SEED}/one_step/**/history.jsonl"
        self.until(lambda: sum(map(_lines, self.project.root.glob(histories))) > after + 2, driver)

    def state(self, job: str) -> str:
        """State of a job that has ended, once it has."""

        def ended() -> str:
            state = self.jobs()[job]["JobState"]
            return "" if state in ("RUNNING", "STOPPED", "COMPLETING") else state

        return str(self.until(ended))

    def checkpoint(self) -> int:
        """Step of the checkpoint of the one-step training."""
        (path,) = self.project.root.glob(f"{SEED}/one_step/**/last.pth")
        return int(torch.load(path, map_location="cpu", weights_only=True)["step"])


def _rule(job: dict[str, str]) -> str:
    return job.get("Comment", "").removeprefix("rule_").split("_wildcards")[0] if "Comment" in job else ""


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def _hang(job: str) -> None:
    """Stop the job's processes, as if they waited for a disk, and let it run out of time."""
    subprocess.run(["scancel", "--signal=STOP", job], check=True)
    subprocess.run(["scontrol", "update", f"JobId={job}", "EndTime=now"], check=True)


@pytest.mark.timeout(3600)
def test_jobs_and_drivers_that_end_early_go_on_and_results_are_the_same(slurm: None, tmp_path: Path) -> None:
    less: dict[str, Any] = {"methods": {}, "step_two": {}, "bounds": {}}
    less["one_step"] = {"train": {"steps": STEPS, "checkpoint_every": STEPS}}  # none but that of a SIGTERM
    local, remote = _tiny(tmp_path / "local", **less), _tiny(tmp_path / "remote", **less)
    begun = local.snakemake("--quiet", "all", "--", f"{SEED}/classifier.pth")
    assert begun.returncode == 0, begun.stderr
    shutil.copytree(local.root / DATA, remote.root / DATA)
    cluster = _Cluster(remote, tmp_path / "log")

    driver = cluster.drive(WEIGHTS)
    cancelled = cluster.training(driver)
    cluster.goes_on(0, driver)
    subprocess.run(["scancel", cancelled], check=True)
    assert cluster.state(cancelled) == "CANCELLED"
    first = cluster.checkpoint()

    late = cluster.training(driver)  # submitted again
    _hang(late)
    assert cluster.state(late) == "TIMEOUT"

    left = cluster.training(driver)  # and again
    cluster.goes_on(first, driver)
    driver.kill()
    driver.wait()
    cluster.goes_on(first + 5)  # without its driver
    subprocess.run(["scancel", left], check=True)
    cluster.state(left)
    second = cluster.checkpoint()
    assert 0 < first < second < STEPS

    subprocess.run([*cluster.command, "--unlock"], cwd=remote.root, check=True, capture_output=True)
    assert cluster.drive(SCORES).wait(WAIT) == 0, cluster.log.read_text()[-3000:]
    told = (remote.root / DATA / "logs/seed0/one_step.log").read_text()
    assert re.findall(r"goes on after step (\d+)", told) == [str(second)]
    _asked_for_what_they_need(cluster.jobs())

    undisturbed = local.snakemake("--quiet", "all", "--", SCORES)
    assert undisturbed.returncode == 0, undisturbed.stderr
    _are_the_same(local, remote, WEIGHTS, SCORES, f"{SEED}/one_step/probabilities_val.h5", f"{DATA}/masks_val.h5")


@pytest.mark.timeout(3600)
def test_a_table_made_in_shards_is_that_of_a_local_run(slurm: None, tmp_path: Path) -> None:
    local = _tiny(tmp_path / "local")
    remote = _tiny(tmp_path / "remote", runtime={"device": "cpu", "shards": {"pseudo_masks": 3, "predict": 2}})
    cluster = _Cluster(remote, tmp_path / "log")
    assert cluster.drive(TABLE).wait(2 * WAIT) == 0, cluster.log.read_text()[-3000:]
    _show(cluster.jobs())
    assert {job["JobState"] for job in cluster.jobs().values()} == {"COMPLETED"}
    assert len(cluster.jobs("step_two")) == 2 and len(cluster.jobs("pseudo_masks")) == 3
    undisturbed = local.snakemake("--quiet", "all", "--", TABLE)
    assert undisturbed.returncode == 0, undisturbed.stderr
    masks = f"{SEED}/pseudo_masks/one_step.h5"
    _are_the_same(
        local, remote, TABLE, masks, *(f"{SEED}/step_two/{name}/weights.pth" for name in ("vgg16", "resnet101"))
    )


def _are_the_same(local: Project, remote: Project, *results: str) -> None:
    for result in results:
        digests = {hashlib.sha256((each.root / result).read_bytes()).hexdigest() for each in (local, remote)}
        assert len(digests) == 1, result


def _show(jobs: dict[str, dict[str, str]]) -> None:
    facts = ("JobId", "Rule", "Partition", "TRES", "TimeLimit", "RunTime", "JobState")
    print(*(" ".join(job[fact] for fact in facts) for job in jobs.values()), sep="\n")


def _asked_for_what_they_need(jobs: dict[str, dict[str, str]]) -> None:
    _show(jobs)
    by_rule: dict[str, list[dict[str, str]]] = {}
    for job in jobs.values():
        by_rule.setdefault(job["Rule"], []).append(job)
    assert set(by_rule) == {"one_step", "predict", "pack_masks", "evaluate"}
    for rule, each in by_rule.items():
        network = rule in NETWORKS
        assert {job["Partition"] for job in each} == {"gpu" if network else "cpu"}
        assert all(("gpu" in job.get("TresPerJob", "") + job["TRES"]) == network for job in each), rule
        assert {job["TimeLimit"] for job in each} - {"00:01:00"} == {"00:45:00" if network else "00:30:00"}
        assert [job["JobState"] for job in each[-1:]] == ["COMPLETED"]
    attempts = [(job["JobState"], job["MinMemoryNode"]) for job in by_rule["one_step"]]
    assert [memory for _, memory in attempts] == ["1500M", "3000M", "4500M", "1500M"]
    assert [state for state, _ in attempts[:2]] == ["CANCELLED", "TIMEOUT"]
