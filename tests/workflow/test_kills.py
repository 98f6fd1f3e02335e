"""SIGKILL of a stage's process, then the same command: the table ends up the same, byte for byte."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from rrm.config import merge
from tests.workflow.project import REPOSITORY, Project, clone_into

TABLE = "results/table5.csv"
KILLED = (
    "demo-data",
    "pack-photos",
    "classifier",
    "one-step",
    "pseudo-masks",
    "step-two",
    "predict",
    "evaluate",
    "table5",
)


def _tiny(root: Path) -> Project:
    files = (REPOSITORY / "config.yaml", REPOSITORY / "tests" / "tiny.yaml")
    demo, tiny = (yaml.safe_load(path.read_text()) for path in files)
    config = merge(demo, tiny)
    config["step_two"] = {"vgg16": config["step_two"]["vgg16"]}
    config["bounds"] = {}
    root.mkdir()
    project = clone_into(root)
    project.configure(config)
    return project


def _stage_process(root: Path, stage: str) -> int | None:
    """Process id of `python -m rrm <stage>` that runs in `root`."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            if command[1:4] == [b"-m", b"rrm", stage.encode()] and (entry / "cwd").resolve() == root:
                return int(entry.name)
        except OSError:
            continue
    return None


def _kill_during(project: Project, stage: str) -> int:
    """Start the workflow, kill the stage's process when it appears; gives Snakemake's exit code."""
    command = [sys.executable, "-m", "snakemake", "--cores", "2", TABLE, "--quiet", "all"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=project.root, **quiet)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        victim = _stage_process(project.root.resolve(), stage)
        if victim is not None:
            time.sleep(0.3)
            os.kill(victim, signal.SIGKILL)
            break
        time.sleep(0.01)
    return process.wait(timeout=300)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for the stages' processes in /proc (Linux)")
@pytest.mark.timeout(900)
def test_a_stage_killed_anywhere_leaves_the_same_table(tmp_path: Path) -> None:
    whole, killed = _tiny(tmp_path / "whole"), _tiny(tmp_path / "killed")
    undisturbed = whole.snakemake(TABLE, "--quiet", "all")
    assert undisturbed.returncode == 0, undisturbed.stderr
    for stage in KILLED:
        assert _kill_during(killed, stage) != 0, stage
        assert not (killed.root / TABLE).exists()
    resumed = killed.snakemake(TABLE, "--quiet", "all")
    assert resumed.returncode == 0, resumed.stderr
    assert (killed.root / TABLE).read_bytes() == (whole.root / TABLE).read_bytes()
