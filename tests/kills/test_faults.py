"""Single stages and drivers: lost workers, full disks, folders that may not be written to, drivers that are killed."""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
import yaml

from tests.kills.processes import below, processes_in, workers
from tests.kills.session import LAYERS, small_project
from tests.kills.training import LONG, classifier, resumed_step, steps_done
from tests.waiting import until
from tests.workflow.project import REPOSITORY, Project

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc (Linux)"),
    pytest.mark.timeout(900),
]


# ---- workers ----


def test_a_killed_dataloader_worker_ends_the_training_with_one_message(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "classifier.pth"
    process = subprocess.Popen(classifier(photos, out, LONG), cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    until(lambda: steps_done(tmp_path) > 6 or process.poll() is not None, "steps")
    found = below(process.pid)
    helpers = [each for each in found.values() if each.parent == process.pid]
    os.kill(helpers[0].pid, signal.SIGKILL)
    _, told = process.communicate(timeout=600)
    assert process.returncode == 1
    lines = [line for line in told.splitlines() if line.startswith("rrm classifier: ")]
    assert lines == [line for line in lines if "one died (killed, or out of memory)" in line] and len(lines) == 1
    assert "Traceback" not in told and not out.exists()
    assert {each.pid for each in helpers}.isdisjoint(each.pid for each in processes_in(REPOSITORY).values())
    done = steps_done(tmp_path)
    assert resumed_step(tmp_path) == done - done % 5  # what is lost is less than one interval
    again = subprocess.Popen(classifier(photos, out, LONG), cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    until(lambda: steps_done(tmp_path) > done + 12 or again.poll() is not None, "more steps")
    again.kill()
    again.wait()
    lost = steps_done(tmp_path) - resumed_step(tmp_path)
    assert 0 <= lost < 5 + 5  # an interval, and what was done while a checkpoint was being written: less than another


@pytest.mark.parametrize("preloaded", [False, True])
def test_sigterm_saves_the_state_of_a_training_whose_messages_nobody_reads(
    photos: Path, tmp_path: Path, preloaded: bool, request: pytest.FixtureRequest
) -> None:
    if preloaded:
        request.getfixturevalue("driver")
    chatty = LONG.replace("every: 5", "every: 100000").replace("{workers", "{log_seconds: 0.01, workers")
    command = classifier(photos, tmp_path / "classifier.pth", chatty)
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE)
    until(lambda: steps_done(tmp_path) > 3 or process.poll() is not None, "steps")
    assert process.stderr is not None
    assert any(b"images/s" in line for line in process.stderr)
    process.stderr.close()
    done = steps_done(tmp_path)
    until(lambda: steps_done(tmp_path) > done + 3 or process.poll() is not None, "more steps")
    process.terminate()
    assert process.wait(timeout=120) == 143
    assert resumed_step(tmp_path) == steps_done(tmp_path) > done + 3


def test_a_fault_in_a_worker_ends_the_training_with_one_message(photos: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "photos.h5"
    shutil.copyfile(photos, damaged)
    with h5py.File(damaged, "r+") as file:
        file["00000002.image"][...] = 0
    command = classifier(damaged, tmp_path / "classifier.pth", LONG)
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("rrm classifier: "))
    assert line.startswith(f"rrm classifier: {damaged}: expected") and line.endswith(
        "delete it and run the stage that writes it again"
    )


_POOL = """
import multiprocessing, os, signal, sys, threading, time
from rrm.errors import RRMError
from rrm.parallel import WorkerPool

def work(item):
    time.sleep(1000 if item == 2 else 0)
    return item

def kill_one(which):
    while len(multiprocessing.active_children()) < 2:
        time.sleep(0.01)
    time.sleep(0.5)
    os.kill(sorted(each.pid for each in multiprocessing.active_children())[which], signal.SIGKILL)

if __name__ == "__main__":
    try:
        with WorkerPool(2) as pool:
            for item in pool.map(work, range(3)):
                if item == 1:
                    threading.Thread(target=kill_one, args=(int(sys.argv[1]),), daemon=True).start()
    except RRMError as error:
        sys.exit(str(error))
"""


@pytest.mark.parametrize("which", [0, 1])
def test_a_killed_crf_worker_ends_the_stage_whatever_the_others_do(tmp_path: Path, which: int) -> None:
    script = tmp_path / "pool.py"  # one of its workers is busy for ever, the other has nothing to do
    script.write_text(_POOL)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(script), str(which)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("workers: expected all processes to live, one died")


# ---- drivers ----


def test_stages_end_with_a_killed_driver_and_the_message_says_how_to_unlock(tmp_path: Path) -> None:
    project = small_project(tmp_path / "project")
    config = yaml.safe_load((project.root / "config.yaml").read_text())
    config["classifier"]["train"] |= {"steps": 100000, "checkpoint_every": 10000}
    project.configure(config)
    target = "results/tiny/seed0/classifier.pth"
    command = [sys.executable, "-m", "snakemake", "--cores", "2", target]
    with (project.root / "driver.log").open("wb") as log:
        driver = subprocess.Popen(command, cwd=project.root, stdout=log, stderr=log)
    until(lambda: steps_done(project.root) > 3 or driver.poll() is not None, "steps")
    assert workers(below(driver.pid))
    driver.kill()
    driver.wait()
    until(lambda: not processes_in(project.root), "the end of the driver's stages", 600)
    assert resumed_step(project.root / "results/tiny/seed0") == steps_done(project.root)  # saved before it ended
    told = project.snakemake(target)
    assert told.returncode == 1
    expected = f"this folder is locked: process {driver.pid} was killed and left its lock: type `snakemake --unlock`"
    assert expected in told.stderr
    assert project.snakemake("--unlock").returncode == 0
    assert project.planned(target) == {"tiny/seed0/classifier.pth"}


# ---- disks ----


def _on_a_full_disk(folder: Path, size: str, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command twice: on a disk of `size` bytes at `folder`, then with more room; prints what lies there."""
    quoted = shlex.join(command)
    script = (
        f"mount -t tmpfs -o size={size} tmpfs {folder} && cd {REPOSITORY} || exit 99\n"
        f"{quoted}; echo first $?; find {folder} -type f\n"
        f"mount -o remount,size=64m {folder}; {quoted}; echo second $?; find {folder} -type f\n"
    )
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=600, check=False
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Callable[[str, list[str]], subprocess.CompletedProcess[str]]:
    """Runs a command on a small disk, and again with more room. Mounting takes root."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def run(size: str, command: list[str]) -> subprocess.CompletedProcess[str]:
        if os.geteuid() != 0 or shutil.which("unshare") is None:
            pytest.skip("mounting a small disk takes root and unshare; the tests with a limit on files run everywhere")
        done = _on_a_full_disk(folder, size, command)
        if "\nfirst" not in f"\n{done.stdout}":
            pytest.skip(f"no disk can be mounted here: {done.stderr}")
        return done

    return run


def _check_full(told: str, listed: str, path: Path) -> None:
    assert f"{path}: expected room to write it, got " in told
    assert "Traceback" not in told
    assert str(path) not in listed.split() and ".tmp-" not in listed


def test_a_full_disk_ends_packing_with_one_message(photos: Path, tmp_path: Path, small_disk: Callable) -> None:
    out = tmp_path / "disk" / "photos.h5"
    manifest = photos.parent / "voc" / "manifest.json"
    given = ("--config", *map(str, LAYERS), "--in", f"manifest={manifest}", "--out", str(out))
    done = small_disk("64k", [sys.executable, "-m", "rrm", "pack-photos", *given])
    first, second = done.stdout.split("second ")
    assert first.startswith("first 1\n") and second.startswith("0\n") and str(out) in second.split()
    _check_full(done.stderr, first, out)


def test_a_full_disk_stops_a_training_that_goes_on_when_there_is_room(
    photos: Path, tmp_path: Path, small_disk: Callable
) -> None:
    out = tmp_path / "disk" / "classifier.pth"
    done = small_disk("4m", classifier(photos, out))  # room for one checkpoint, and not for a second one beside it
    first, second = done.stdout.split("second ")
    checkpoint = next(Path(line) for line in first.splitlines() if line.endswith("last.pth"))
    assert first.startswith("first 1\n") and second.startswith("0\n") and str(out) in second.split()
    _check_full(done.stderr, first.replace(str(checkpoint), ""), checkpoint)


@pytest.mark.parametrize("size", [20_000, 1_000_000])
def test_files_over_a_limit_are_refused_as_a_full_disk_is(photos: Path, tmp_path: Path, size: int) -> None:
    """A quota and RLIMIT_FSIZE meet the same code, without mounting: everywhere."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    folder = tmp_path / "limited"
    if size < 100_000:
        out = folder / "photos.h5"
        manifest = photos.parent / "voc" / "manifest.json"
        given = ("--config", *map(str, LAYERS), "--in", f"manifest={manifest}", "--out", str(out))
        command, path = [sys.executable, "-m", "rrm", "pack-photos", *given], str(out)
    else:
        command, path = classifier(photos, folder / "classifier.pth"), "last.pth"
    done = subprocess.run(
        command, cwd=REPOSITORY, preexec_fn=limited, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 1
    assert f"{path}: expected room to write it, got 'File too large'" in done.stderr and "Traceback" not in done.stderr
    assert [each.name for each in folder.rglob("*.h5")] == [] and list(folder.rglob(".*.tmp-*")) == []


def _read_only(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run snakemake while `results` may not be written to, by whoever this is."""
    results = project.root / "results"
    if os.geteuid() != 0:
        results.chmod(0o555)
        try:
            return project.snakemake(*arguments)
        finally:
            results.chmod(0o755)
    command = shlex.join([sys.executable, "-m", "snakemake", "--cores", "2", *arguments])
    mounts = f"mount --bind {results} {results} && mount -o remount,ro,bind {results} || exit 99"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{mounts}; cd {project.root} && {command}"],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    if done.returncode == 99:
        pytest.skip(f"nothing can be mounted here: {done.stderr}")
    return done


def test_a_read_only_results_folder_is_named(tmp_path: Path) -> None:
    project = small_project(tmp_path / "project")
    (project.root / "results").mkdir()
    target = "results/tiny/photos.h5"
    done = _read_only(project, target)
    told = done.stdout + done.stderr
    assert done.returncode == 1
    assert "results: expected a folder that may be written to" in told and "Traceback" not in told
    again = project.snakemake(target)
    assert again.returncode == 0, again.stderr
