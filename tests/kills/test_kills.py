"""Kills, flipped bits and wrong clocks between the stages of a whole workflow: the results are always the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.kills.session import Session, left_over, results_of
from tests.workflow.project import Project

YEAR = 365 * 86400
CONFUSION = "results/tiny/seed0/one_step/confusion_val.h5"


@pytest.fixture
def finished(session: Session, tmp_path: Path) -> Project:
    """A copy of the project in which all is done."""
    shutil.copytree(session.folder / "whole", tmp_path / "project")
    return Project(tmp_path / "project")


def _told(project: Project) -> str:
    """Everything that a `snakemake` prints which has to fail."""
    done = project.snakemake("all")
    assert done.returncode == 1
    return done.stdout + done.stderr


def _all_done(project: Project) -> None:
    done = project.snakemake("all")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(1800)
def test_twenty_kills_leave_the_same_results(session: Session) -> None:
    outcomes = [outcome for round_ in session.rounds(20) for outcome in round_]
    assert len(outcomes) == 20
    assert {outcome.kill.victim for outcome in outcomes} == {"driver", "stage", "worker"}
    assert {str(outcome.kill): outcome.faults for outcome in outcomes if outcome.faults} == {}


def test_weights_and_stores_are_the_same_bytes_each_time(session: Session) -> None:
    names = {Path(name).suffix for name in session.expected}
    assert {".pth", ".h5", ".csv", ".png", ".jsonl"} <= names  # all of which the comparison of bytes covers


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("damaged", "gone", "reason"),
    [
        ("results/tiny/seed0/one_step/probabilities_val.h5", CONFUSION, "CRC-32 does not match"),
        ("results/tiny/seed0/one_step/weights.pth", "results/tiny/seed0/one_step/probabilities_val.h5", "CRC-32"),
    ],
)
def test_a_flipped_bit_is_found_and_the_message_says_what_to_delete(
    finished: Project, session: Session, damaged: str, gone: str, reason: str
) -> None:
    path = finished.root / damaged
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    (finished.root / gone).unlink()
    told = _told(finished)
    assert f"{damaged}: expected" in told and reason in told and "delete it and run the stage that writes it" in told
    assert "Traceback" not in told
    path.unlink()
    _all_done(finished)
    assert results_of(finished) == session.expected


@pytest.mark.timeout(900)
def test_times_in_the_future_hold_nobody_up(finished: Project, session: Session) -> None:
    photos = finished.root / "results/tiny/photos.h5"
    later = time.time() + YEAR
    os.utime(photos, (later, later))
    (finished.root / CONFUSION).unlink()
    _all_done(finished)
    assert photos.stat().st_mtime <= time.time()
    assert results_of(finished) == session.expected
    assert "Nothing to be done" in finished.snakemake("--dry-run", "all").stdout


@pytest.mark.timeout(900)
def test_results_of_a_clock_that_was_behind_are_made_again_from_checkpoints(
    finished: Project, session: Session
) -> None:
    weights = finished.root / "results/tiny/seed0/step_two/vgg16/weights.pth"
    earlier = time.time() - 10 * YEAR
    os.utime(weights, (earlier, earlier))
    photos = finished.root / "results/tiny/photos.h5"
    photos.write_bytes(photos.read_bytes())  # newer than all that came of it, with the same content
    checkpoint = next(weights.parent.glob("weights.checkpoints/*/last.pth"))
    written = checkpoint.stat().st_mtime_ns
    _all_done(finished)
    assert results_of(finished) == session.expected
    assert checkpoint.stat().st_mtime_ns == written  # no step of the training was done again


@pytest.mark.timeout(900)
def test_a_second_run_in_the_folder_is_refused_and_the_first_goes_on(finished: Project, session: Session) -> None:
    (finished.root / CONFUSION).unlink()
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "all", "--quiet", "all"]
    first = subprocess.Popen(command, cwd=finished.root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    locks = finished.root / ".snakemake" / "locks"
    while first.poll() is None and not any(locks.iterdir()):
        time.sleep(0.02)
    while first.poll() is None and _driver_of(finished) != first.pid:
        time.sleep(0.02)
    told = _told(finished)
    assert f"this folder is locked: process {first.pid} works here: wait until it has ended" in told
    assert first.wait(600) == 0
    assert results_of(finished) == session.expected and left_over(finished) == []


def _driver_of(project: Project) -> int:
    return int((project.root / ".snakemake" / "driver").read_text().partition("-")[2])
