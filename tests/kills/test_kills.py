"""Kills, flipped bits and wrong clocks between the stages of a whole workflow: the results are always the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import h5py
import pytest

from tests.kills.session import Session, left_over, results_of
from tests.workflow.project import Project

YEAR = 365 * 86400
ONE_STEP, STEP_TWO = "results/tiny/seed0/one_step", "results/tiny/seed0/step_two/vgg16"
SCORES = f"{STEP_TWO}/confusion_val.h5"


@pytest.fixture
def finished(session: Session, tmp_path: Path) -> Project:
    """A copy of the project in which all is done."""
    shutil.copytree(session.folder / "whole", tmp_path / "project")
    return Project(tmp_path / "project")


def _told(project: Project, targets: Sequence[str]) -> str:
    """Everything that a `snakemake` prints which has to fail."""
    done = project.snakemake(*targets)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout + done.stderr


def _all_done(project: Project, session: Session) -> None:
    done = project.snakemake(*session.targets)
    assert done.returncode == 0, done.stdout + done.stderr
    assert results_of(project) == session.expected and left_over(project) == []


@pytest.mark.timeout(1800)
def test_twenty_kills_leave_the_same_results(session: Session) -> None:
    outcomes = [outcome for round_ in session.rounds(20) for outcome in round_]
    assert len(outcomes) == 20
    assert {outcome.kill.victim for outcome in outcomes} == {"driver", "stage", "worker"}
    assert {str(outcome.kill): outcome.faults for outcome in outcomes if outcome.faults} == {}
    assert {".pth", ".h5", ".csv", ".jsonl", ".json"} <= {Path(name).suffix for name in session.expected}


def _flip(path: Path, at: int) -> None:
    """Flip a bit on the disk, which no time of change tells of."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _in_an_array(path: Path) -> int:
    """Where the first array of the first record lies in a store; between arrays HDF5 leaves bytes unused."""
    with h5py.File(path) as file:
        array = next(file[name] for name in sorted(file) if name.startswith("00000000."))
        stored = array.id.get_chunk_info(0).byte_offset if array.chunks else array.id.get_offset()
    return int(stored) + 1


def _in_a_tensor(path: Path) -> int:
    with zipfile.ZipFile(path) as archive:
        tensor = max(archive.infolist(), key=lambda member: member.file_size)
    return tensor.header_offset + tensor.file_size // 2 + 64  # after the member's header, which is padded to 64 bytes


@pytest.mark.timeout(900)
def test_flipped_bits_are_found_and_the_messages_say_what_to_delete(finished: Project, session: Session) -> None:
    store, weights = f"{ONE_STEP}/probabilities_val.h5", f"{STEP_TWO}/weights.pth"
    _flip(finished.root / store, _in_an_array(finished.root / store))
    _flip(finished.root / weights, _in_a_tensor(finished.root / weights))
    between = (f"{ONE_STEP}/confusion_val.h5", f"{STEP_TWO}/probabilities_val.h5")  # what reads the damaged files
    for gone in (*between, *session.targets):
        (finished.root / gone).unlink()
    told = _told(finished, session.targets)
    for damaged in (store, weights):
        (line,) = {line for line in told.splitlines() if f": {damaged}: expected " in line}
        assert "CRC-32 does not match" in line or "no readable array" in line  # gzip may notice it first
        assert "delete it and run the stage that writes it again" in line
        (finished.root / damaged).unlink()
    assert "Traceback" not in told
    _all_done(finished, session)


@pytest.mark.timeout(900)
def test_wrong_clocks_hold_nobody_up(finished: Project, session: Session) -> None:
    folder = finished.root / STEP_TWO
    weights, probabilities = folder / "weights.pth", folder / "probabilities_val.h5"
    later, earlier = time.time() + YEAR, time.time() - 10 * YEAR
    os.utime(probabilities, (later, later))
    (folder / "confusion_val.h5").unlink()
    _all_done(finished, session)
    assert probabilities.stat().st_mtime <= time.time()
    assert "Nothing to be done" in finished.snakemake("--dry-run", *session.targets).stdout
    os.utime(weights, (earlier, earlier))  # older than what they were made of
    checkpoint = next(weights.parent.glob("weights.checkpoints/*/last.pth"))
    written = checkpoint.stat().st_mtime_ns
    _all_done(finished, session)
    assert weights.stat().st_mtime == earlier  # the checksums of small inputs say that they are the same
    finished.snakemake("--max-checksum-file-size", "0", *session.targets)  # large ones: made again, without a step
    assert results_of(finished) == session.expected
    assert checkpoint.stat().st_mtime_ns == written and weights.stat().st_mtime > earlier + YEAR


@pytest.mark.timeout(900)
def test_a_second_run_in_the_folder_is_refused_and_the_first_goes_on(finished: Project, session: Session) -> None:
    (finished.root / SCORES).unlink()
    command = [sys.executable, "-m", "snakemake", "--cores", "1", *session.targets, "--quiet", "all"]
    first = subprocess.Popen(command, cwd=finished.root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    locks = finished.root / ".snakemake" / "locks"
    while first.poll() is None and not any(locks.glob("*")):
        time.sleep(0.02)
    told = _told(finished, session.targets)
    assert f"this folder is locked: process {first.pid} works here: wait until it has ended" in told
    assert first.wait(600) == 0
    assert results_of(finished) == session.expected and left_over(finished) == []
