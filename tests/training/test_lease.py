"""Leases of GPUs by processes that are killed: no card has two jobs at a time, and none stays taken."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from rrm import lease as leases
from rrm.errors import RRMError
from rrm.lease import lease
from rrm.training import take_device
from tests.training.test_distributed import ROOT
from tests.waiting import until

LEASED = ROOT / "tests" / "training" / "leased.py"
JOB = """
import json, sys, time
from pathlib import Path
from rrm.lease import lease
out, cards, wanted, folder = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
places = lease(cards, wanted, folder, log_seconds=1)
out.with_suffix(".tmp").write_text(json.dumps([time.monotonic(), places]))
out.with_suffix(".tmp").rename(out)
{then}
"""
SLEEP, FORK = "time.sleep(600)", "import os; os.fork(); time.sleep(20)"


@dataclass
class Machine:
    """Processes that lease the same cards."""

    folder: Path
    cards: list[str]
    jobs: list[subprocess.Popen[bytes]]

    def job(self, wanted: int = 1, then: str = SLEEP) -> int:
        """Start a process that wants cards; gives its number."""
        number = len(self.jobs)
        command = [sys.executable, "-c", JOB.format(then=then), str(self._out(number)), json.dumps(self.cards)]
        with self.folder.joinpath(f"{number}.log").open("wb") as log:
            self.jobs.append(
                subprocess.Popen([*command, str(wanted), str(self.folder / "locks")], stderr=log, cwd=ROOT)
            )
        return number

    def _out(self, number: int) -> Path:
        return self.folder / f"{number}.json"

    def has(self, number: int) -> list[int] | None:
        """Places of the cards that a process has had; None: it waits."""
        return json.loads(self._out(number).read_text())[1] if self._out(number).exists() else None

    def since(self, number: int) -> float:
        """When it got them."""
        return float(json.loads(self._out(number).read_text())[0])

    def log(self, number: int) -> str:
        return self.folder.joinpath(f"{number}.log").read_text()

    def kill(self, number: int) -> None:
        self.jobs[number].kill()
        self.jobs[number].wait()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    found = Machine(tmp_path, ["GPU-a", "GPU-b", "GPU-c"], [])
    yield found
    for job in found.jobs:
        job.kill()
        job.wait()


def test_a_card_is_free_when_its_process_was_killed_and_who_waits_says_for_whom(machine: Machine) -> None:
    machine.cards = ["GPU-a"]
    first = machine.job()
    until(lambda: machine.has(first) == [0])
    second = machine.job()
    until(lambda: "waiting for" in machine.log(second))
    told = f"waiting for 1 of 1 GPU(s): GPU-a held by process {machine.jobs[first].pid} (rrm "
    assert machine.log(second).startswith(told)
    assert machine.has(second) is None
    killed = time.monotonic()
    machine.kill(first)
    until(lambda: machine.has(second) == [0])
    assert machine.since(second) > killed


def test_those_that_want_several_are_not_passed_and_wait_for_none_that_waits(machine: Machine) -> None:
    first = machine.job(2)
    until(lambda: machine.has(first) == [0, 1])
    several = machine.job(2)
    until(lambda: "waiting for 2 of 3" in machine.log(several))
    one = machine.job()
    until(lambda: f"the choice of GPUs, held by process {machine.jobs[several].pid}" in machine.log(one))
    machine.kill(first)
    until(lambda: machine.has(several) == [0, 2] and machine.has(one) == [1])


def test_a_process_killed_while_it_waits_leaves_nothing(machine: Machine) -> None:
    first = machine.job(2)
    until(lambda: machine.has(first) is not None)
    waiting = machine.job(2)
    until(lambda: "waiting for" in machine.log(waiting))
    machine.kill(waiting)
    third = machine.job()
    until(lambda: machine.has(third) == [2])


def test_a_child_that_outlives_its_parent_does_not_hold_its_card(machine: Machine) -> None:
    machine.cards = ["GPU-a"]
    parent = machine.job(then=FORK)
    until(lambda: machine.has(parent) is not None)
    children = Path(f"/proc/{machine.jobs[parent].pid}/task/{machine.jobs[parent].pid}/children")
    until(lambda: children.read_text().split())
    (child,) = map(int, children.read_text().split())
    machine.kill(parent)
    second = machine.job()
    until(lambda: machine.has(second) is not None, seconds=15)
    os.kill(child, signal.SIGKILL)  # it was there all the time


@pytest.mark.timeout(600)
def test_no_card_has_two_jobs_whatever_is_killed(machine: Machine) -> None:
    """Twelve jobs on three cards, killed in any order: the spans in which they had cards do not overlap."""
    draw = random.Random(0)
    wanted = [draw.choice([1, 1, 2, 3]) for _ in range(12)]
    for number in wanted:
        machine.job(number)
    ended: dict[int, float] = {}
    while len(ended) < len(wanted):
        until(lambda: any(machine.has(each) is not None for each in range(len(wanted)) if each not in ended))
        having = [each for each in range(len(wanted)) if each not in ended and machine.has(each) is not None]
        doomed = draw.choice(having)
        ended[doomed] = time.monotonic()
        machine.kill(doomed)
    spans = [(machine.since(each), ended[each], set(machine.has(each) or [])) for each in ended]
    assert [len(cards) for _, _, cards in spans] == [wanted[each] for each in ended]
    for (start, end, cards), (other_start, other_end, others) in itertools.combinations(spans, 2):
        assert not cards & others or end <= other_start or other_end <= start


@pytest.mark.timeout(600)
def test_a_training_in_several_processes_has_all_its_cards_at_once(machine: Machine) -> None:
    first = machine.job()
    until(lambda: machine.has(first) == [0])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, str(LEASED), str(machine.folder), json.dumps(machine.cards)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with machine.folder.joinpath("torchrun.log").open("wb") as log:
        machine.jobs.append(subprocess.Popen(command, stderr=log, env=environment))
    files = [machine.folder / f"process{number}.json" for number in range(2)]
    until(lambda: all(path.exists() for path in files), seconds=200)
    had = [json.loads(path.read_text()) for path in files]
    assert sorted(place for place, _ in had) == [1, 2]
    waiting = machine.job(2)
    until(lambda: all(f"held by process {pid}" in machine.log(waiting) for _, pid in had))
    with suppress(ProcessLookupError):
        os.kill(had[0][1], signal.SIGKILL)
    until(lambda: machine.has(waiting) == [1, 2])


def test_who_has_a_card_is_not_kept_waiting_by_those_that_wait_for_it(machine: Machine) -> None:
    locks = machine.folder / "locks"
    assert lease(["GPU-a"], folder=locks) == [0]
    machine.cards = ["GPU-a"]
    other = machine.job()
    until(lambda: "waiting for 1 of 1" in machine.log(other))
    assert lease(["GPU-a"], folder=locks) == [0]
    leases.give_back("GPU-a", locks)
    until(lambda: machine.has(other) == [0])


def test_what_cannot_be_leased_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RRMError, match="expected a GPU for each of the 2 processes, torch sees 1: lower"):
        lease(["GPU-a"], 2, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RRMError, match="expected a file to lock, got "):
        lease(["GPU-a"], 1, tmp_path / "file")
    (tmp_path / "GPU-a.lock").symlink_to(tmp_path / "file")
    with pytest.raises(RRMError, match=r"GPU-a\.lock: expected a file to lock"):
        lease(["GPU-a"], 1, tmp_path)
    assert (tmp_path / "file").read_text() == ""


def test_every_user_may_lock(tmp_path: Path) -> None:
    locks = tmp_path / "locks"
    lease(["GPU-a"], folder=locks)
    leases.give_back("GPU-a", locks)
    assert locks.stat().st_mode & 0o7777 == 0o1777
    assert {path.stat().st_mode & 0o777 for path in locks.iterdir()} == {0o666}


def test_no_lease_on_the_cpu() -> None:
    held = dict(leases._HELD)
    assert take_device({"device": "cpu"}) == "cpu"
    assert held == leases._HELD


@pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a GPU")
@pytest.mark.timeout(600)
def test_a_stage_waits_for_the_gpu_of_another_one(machine: Machine) -> None:
    code = "from rrm.training import take_device; import torch, time; take_device({'device': 'cuda'}); "
    command = [sys.executable, "-c", code + "print(torch.cuda.current_device(), flush=True); time.sleep(600)"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}
    pair = [subprocess.Popen(command, stdout=-1, stderr=-1, env=environment, cwd=ROOT)]
    assert pair[0].stdout is not None and pair[0].stdout.readline() == b"0\n"
    pair.append(subprocess.Popen(command, stdout=-1, stderr=-1, env=environment, cwd=ROOT))
    machine.jobs += pair
    assert pair[1].stderr is not None and f"held by process {pair[0].pid}".encode() in pair[1].stderr.readline()
    pair[0].kill()
    assert pair[1].stdout is not None and pair[1].stdout.readline() == b"0\n"
