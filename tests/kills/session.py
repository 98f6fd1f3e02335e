"""Rounds of kills: one run is killed again and again until it is done, then its results are compared.

A round begins with nothing. Its command, a plain `snakemake`, is given again after each kill, and after the unlocking
that its message asks for. The moments are drawn from (seed, number of the kill), in units of what an undisturbed run
takes on this machine: the same seed, and the number of a round's first kill, try the same kills again.
"""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from rrm.config import merge
from tests.kills.processes import Process, below, processes_in, send, stages, workers
from tests.workflow.project import REPOSITORY, Project, clone_into

CORES = 2
KILLS_A_ROUND = 20
LAYERS = (REPOSITORY / "config.yaml", REPOSITORY / "tests" / "tiny.yaml", Path(__file__).with_name("workflow.yaml"))
"""Config files of the smallest complete workflow, later ones over earlier ones."""
_POLL = 0.03  # seconds
_NOT_COMPARED = ("logs", "benchmarks")  # they tell of the run, not of its results
_UNLOCK = re.compile(r"type `([^`]+)`")


def small_project(root: Path, source: Path = REPOSITORY) -> Project:
    """A copy of the project in a new folder, with the smallest complete workflow."""
    config: dict[str, object] = {}
    for layer in LAYERS:
        config = merge(config, yaml.safe_load(layer.read_text()))
    root.mkdir(parents=True)
    project = clone_into(root.resolve(), source)
    project.configure(config)
    return project


def results_of(project: Project) -> dict[str, bytes]:
    """Content of each result by its path: tables, figures, stores, weights, training histories and the data set."""
    results = project.root / "results"
    paths = (path.relative_to(results) for path in results.rglob("*") if path.is_file())
    kept = (path for path in paths if not any(part in _NOT_COMPARED or ".checkpoints" in part for part in path.parts))
    return {path.as_posix(): (results / path).read_bytes() for path in kept}


def left_over(project: Project) -> list[str]:
    """Temporary files, in the folders of checkpoints too."""
    return sorted(str(path.relative_to(project.root)) for path in (project.root / "results").rglob(".*.tmp-*"))


@dataclass(frozen=True)
class Kill:
    """One kill: whom, with which signal, and when.

    Attributes:
        number: of the session.
        victim: "driver" (snakemake), "stage" or "worker" (of a DataLoader, or one that runs CRFs).
        kind: the signal.
        after: how many stages begin before it, 0: the driver is still starting.
        share: of the usual duration of what is under way then.
    """

    number: int
    victim: str
    kind: signal.Signals
    after: int
    share: float

    def __str__(self) -> str:
        return f"kill {self.number}: {self.kind.name} to the {self.victim} at {self.after + self.share:.2f} stages"


def draw(seed: int, number: int) -> Kill:
    """The kill of a number: half of them of stages, a quarter each of the driver and of workers.

    Workers leave SIGTERM and SIGINT to the stage: most of theirs are SIGKILL.
    """
    dice = random.Random(f"{seed}/{number}")
    victim = dice.choices(("driver", "stage", "worker"), weights=(1, 2, 1))[0]
    weights = (8, 1, 1) if victim == "worker" else (2, 1, 1)
    kind = dice.choices((signal.SIGKILL, signal.SIGTERM, signal.SIGINT), weights=weights)[0]
    return Kill(number, victim, kind, dice.randint(0 if victim == "driver" else 1, 4), dice.random())


@dataclass
class Usual:
    """What an undisturbed run takes, in seconds: until its first stage begins, and each stage."""

    start: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)


@dataclass
class Outcome:
    """How a command went on after a kill."""

    kill: Kill
    placed: bool = False
    victim: str = ""
    faults: list[str] = field(default_factory=list)


class Session:
    """Kills in one folder, compared with what an undisturbed run makes in another.

    Args:
        folder: where both are made.
        seed: of the kills.
        patience: seconds after which a command that does not end counts as hung.
        tell: takes a line on each kill.
    """

    def __init__(self, folder: Path, seed: int, patience: float = 900, tell: Callable[[str], None] = print) -> None:
        self.folder, self.seed, self.patience, self.tell = folder, seed, patience, tell
        self.usual = Usual()
        self.expected: dict[str, bytes] = {}

    def prepare(self) -> None:
        """Run the workflow undisturbed."""
        whole = small_project(self.folder / "whole")
        begun: dict[int, tuple[str, float]] = {}
        start = time.monotonic()
        process, log = self._command(whole)
        while process.poll() is None:
            found = {each.pid: each for each in stages(below(process.pid))}
            now = time.monotonic()
            self.usual.start = self.usual.start or (now - start if found else 0.0)
            for pid in begun.keys() - found.keys():
                name, since = begun.pop(pid)
                self.usual.stages[name] = now - since
            begun |= {pid: (each.stage, now) for pid, each in found.items() if pid not in begun}
            time.sleep(_POLL)
        if process.returncode:
            raise RuntimeError(f"the undisturbed run failed, see {log}\n{log.read_text()[-3000:]}")
        self.expected = results_of(whole)

    def rounds(self, kills: int, first: int = 0) -> Iterator[list[Outcome]]:
        """Place the kills `first` to `first + kills - 1`; gives the outcomes of each round."""
        number = first
        while number < first + kills:
            count = min(KILLS_A_ROUND, first + kills - number)
            outcomes = self._round(number, count)
            number += len(outcomes)
            yield outcomes

    def _round(self, first: int, count: int) -> list[Outcome]:
        """Kill a run that begins with nothing until it is done, or `count` times; then let it end."""
        project = small_project(self.folder / f"round{first}", self.folder / "whole")
        outcomes: list[Outcome] = []
        done = False
        while not done and len(outcomes) < count:
            outcome = Outcome(draw(self.seed, first + len(outcomes)))
            done = self._kill_once(project, outcome)
            if outcome.placed:
                outcomes.append(outcome)
                self.tell(f"{outcome.kill} ({outcome.victim}){'' if not outcome.faults else f': {outcome.faults}'}")
        faults = self._faults_at_the_end(project, done)
        for outcome in outcomes:
            outcome.faults += faults
        return outcomes

    def _kill_once(self, project: Project, outcome: Outcome) -> bool:
        """One command and one kill; gives whether the command did all that there was to do."""
        process, log = self._command(project)
        try:
            self._place(project, process, outcome)
            try:
                process.wait(self.patience)
            except subprocess.TimeoutExpired:
                outcome.faults.append(f"the command hung for {self.patience:.0f} s")
            outcome.faults += self._processes_left(project)
        finally:
            process.kill()
            process.wait()
        outcome.faults += _faults_told(outcome, log.read_text(errors="replace"))
        if outcome.placed:
            outcome.faults += self._unlock(project)
        return process.returncode == 0

    def _place(self, project: Project, process: subprocess.Popen[bytes], outcome: Outcome) -> None:
        """Wait for the moment of the kill, then send its signal, unless the command ends before."""
        kill, seen = outcome.kill, set[int]()
        when = time.monotonic() + kill.share * self.usual.start * 1.2 if kill.after == 0 else None
        while process.poll() is None:
            found = below(process.pid)
            running = stages(found)
            seen |= {each.pid for each in running}
            if when is None and len(seen) >= kill.after and running:
                usual = self.usual.stages.get(running[-1].stage, 1.0)
                when = time.monotonic() + kill.share * usual
            if when is not None and time.monotonic() >= when:
                victims = {
                    "driver": [Process(process.pid, 0, ("snakemake",))],
                    "stage": running,
                    "worker": workers(found),
                }[kill.victim]
                if victims and send(victims[-1].pid, kill.kind):
                    outcome.placed, outcome.victim = True, _name(victims[-1], found)
                    return
            time.sleep(_POLL)

    def _processes_left(self, project: Project) -> list[str]:
        deadline = time.monotonic() + self.patience
        while processes_in(project.root) and time.monotonic() < deadline:
            time.sleep(0.1)
        left = processes_in(project.root)
        for each in left.values():
            send(each.pid, signal.SIGKILL)
        return [f"process left: {' '.join(each.arguments)[:200]}" for each in left.values()]

    def _unlock(self, project: Project) -> list[str]:
        """Where a killed driver left its lock: do what the message of the same command says, and nothing else."""
        if not any((project.root / ".snakemake" / "locks").glob("*")):
            return []
        process, log = self._command(project)
        refused = process.wait(self.patience)
        said = _UNLOCK.search(log.read_text(errors="replace"))
        if not refused or said is None:
            return [f"a locked folder: exit code {refused}, no word on what to type"]
        done = subprocess.run(
            [sys.executable, "-m", *said[1].split()],
            cwd=project.root,
            capture_output=True,
            timeout=self.patience,
            check=False,
        )
        return [f"{said[1]}: exit code {done.returncode}"] if done.returncode else []

    def _faults_at_the_end(self, project: Project, done: bool) -> list[str]:
        if not done:
            process, log = self._command(project)
            if process.wait(self.patience):
                return [f"the undisturbed command at the end failed, see {log}"]
        got, expected = results_of(project), self.expected
        names = sorted(got.keys() | expected.keys())
        faults = [
            f"{name}: differs from the undisturbed run's" for name in names if got.get(name) != expected.get(name)
        ]
        return faults + [f"{name}: left over" for name in left_over(project)]

    def _command(self, project: Project) -> tuple[subprocess.Popen[bytes], Path]:
        """Start the command that is given again and again; its output goes to a file."""
        logs = project.root / "commands"
        logs.mkdir(exist_ok=True)
        log = logs / f"{len(list(logs.iterdir())):03}.log"
        command = [sys.executable, "-m", "snakemake", "--cores", str(CORES), "--nocolor", "all"]
        with log.open("wb") as output:
            return subprocess.Popen(command, cwd=project.root, stdout=output, stderr=output), log


def _name(process: Process, found: dict[int, Process]) -> str:
    if process.parent in found and found[process.parent].stage:
        return f"worker of {found[process.parent].stage}"
    return process.stage or process.arguments[0]


def _faults_told(outcome: Outcome, output: str) -> list[str]:
    """What a user should not have to read: a stage that lost a worker, or is stopped, says so in one line."""
    whom = (outcome.kill.victim, outcome.kill.kind)
    if not outcome.placed or whom not in {("worker", signal.SIGKILL), ("stage", signal.SIGTERM)}:
        return []
    silent = whom[0] == "worker" and "Error in rule" in output and "workers: expected" not in output
    return ["a traceback"] * ("Traceback (most recent call last)" in output) + ["no word on the lost worker"] * silent
