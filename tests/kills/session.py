"""Rounds of kills: one run is killed again and again until it is done, then its results are compared.

A round begins with nothing. Its command, a plain `snakemake`, is given again whenever kills have ended it, and after
the unlocking that its message asks for. The moments are drawn from (seed, number of the kill), in units of what an
undisturbed run takes on this machine: the same seed, and the number of a round's first kill, try the same kills again.
After each command what is there has to be the undisturbed run's, byte by byte; at the end of a round all is there.
"""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

from rrm.config import merge
from tests.kills.processes import Process, below, forked, processes_in, send, stages, workers
from tests.workflow.project import REPOSITORY, Project, clone_into

CORES = 2
KILLS_A_ROUND = 20
LAYERS = (REPOSITORY / "config.yaml", REPOSITORY / "tests" / "tiny.yaml", Path(__file__).with_name("workflow.yaml"))
"""Config files of the smallest complete workflow, later ones over earlier ones."""
_POLL = 0.04  # seconds
_NOT_COMPARED = ("logs", "usage")  # they tell of the run, not of its results
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
    paths = (path for path in results.rglob("*") if path.is_file() and ".tmp-" not in path.name)
    named = {path.relative_to(results): path for path in paths}
    passing = (".checkpoints", ".shards")  # gone, or of no matter, once the result is there
    kept = (each for each in named if not any(part in _NOT_COMPARED or part.endswith(passing) for part in each.parts))
    return {each.as_posix(): named[each].read_bytes() for each in kept}


def left_over(project: Project) -> list[str]:
    """Temporary files, in the folders of checkpoints too."""
    return sorted(str(path.relative_to(project.root)) for path in (project.root / "results").rglob(".*.tmp-*"))


@dataclass(frozen=True)
class Kill:
    """One kill: whom, with which signal, and when.

    Attributes:
        number: which of its seed.
        victim: "driver" (snakemake), "stage" or "worker" (of a DataLoader, or one that runs CRFs).
        kind: the signal.
        after: how many stages run before it, from the command or the kill before on; 0: the driver is still starting.
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
    return Kill(number, victim, kind, dice.randint(0 if victim == "driver" else 1, 3), dice.random())


@dataclass
class Usual:
    """What an undisturbed run takes, in seconds: until its first stage begins, and each stage."""

    start: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)


@dataclass
class Outcome:
    """How it went on after a kill: `faults` is empty where all was well."""

    kill: Kill
    victim: str
    faults: list[str] = field(default_factory=list)


class Session:
    """Kills in one folder, compared with what an undisturbed run makes in another.

    Args:
        folder: where both are made; an undisturbed run that is there already is taken as it is.
        seed: of the kills.
        targets: what Snakemake is asked for.
        patience: seconds after which a command that does not end counts as hung.
        tell: takes a line on each kill.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        targets: Sequence[str] = ("all",),
        patience: float = 900,
        tell: Callable[[str], None] = print,
    ) -> None:
        self.folder, self.seed, self.targets, self.patience, self.tell = folder, seed, targets, patience, tell
        self.usual = Usual()
        self.expected: dict[str, bytes] = {}

    def prepare(self) -> None:
        """Run the workflow undisturbed."""
        noted = self.folder / "usual.json"
        if not noted.is_file():
            self._run_undisturbed(small_project(self.folder / "whole"))
            noted.write_text(json.dumps(asdict(self.usual)))
        self.usual = Usual(**json.loads(noted.read_text()))
        self.expected = results_of(Project(self.folder / "whole"))

    def _run_undisturbed(self, project: Project) -> None:
        begun: dict[int, tuple[str, float]] = {}
        start = time.monotonic()
        process, log = self._command(project)
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

    def rounds(self, kills: int, first: int = 0) -> Iterator[list[Outcome]]:
        """Place the kills `first` to `first + kills - 1`; gives the outcomes of each round."""
        number = first
        while number < first + kills:
            outcomes = self._round(number, min(KILLS_A_ROUND, first + kills - number))
            number += len(outcomes)
            yield outcomes

    def _round(self, first: int, count: int) -> list[Outcome]:
        """Kill a run that begins with nothing until it is done, or `count` times; then let it end."""
        project = small_project(self.folder / f"round{first}", self.folder / "whole")
        outcomes: list[Outcome] = []
        done = False
        while not done and len(outcomes) < count:
            placed, done = self._killed_command(project, first + len(outcomes), count - len(outcomes))
            if not (placed or done):
                raise RuntimeError(f"{project.root}: the command failed and nobody killed it, see its last log")
            outcomes += placed
        faults = self._faults_at_the_end(project, done)
        for outcome in outcomes:
            outcome.faults += faults
        return outcomes

    def _killed_command(self, project: Project, number: int, most: int) -> tuple[list[Outcome], bool]:
        """One command and its kills; gives them, and whether the command did all that there was to do."""
        process, log = self._command(project)
        outcomes: list[Outcome] = []
        try:
            while len(outcomes) < most and (placed := self._place(process, draw(self.seed, number + len(outcomes)))):
                outcomes.append(placed)
            faults = self._hung(process) + self._processes_left(project)
        finally:
            process.kill()
            process.wait()
        faults += _faults_told([outcome.kill for outcome in outcomes], log.read_text(errors="replace"))
        faults += self._wrong(project) + self._unlock(project)
        for outcome in outcomes:
            outcome.faults += faults
            self.tell(f"{outcome.kill} ({outcome.victim}), command {log.stem}{': ' * bool(faults)}{'; '.join(faults)}")
        return outcomes, process.returncode == 0

    def _place(self, process: subprocess.Popen[bytes], kill: Kill) -> Outcome | None:
        """Wait for the moment of the kill, then send its signal; None where the command ends before."""
        seen = set[int]()
        when = time.monotonic() + kill.share * self.usual.start * 1.2 if kill.after == 0 else None
        while process.poll() is None:
            found = below(process.pid)
            running = stages(found)
            seen |= {each.pid for each in running}
            if when is None and len(seen) >= kill.after and running:
                when = time.monotonic() + kill.share * self.usual.stages.get(running[-1].stage, 1.0)
            if when is not None and time.monotonic() >= when:
                victims = {
                    "driver": [Process(process.pid, 0, ("snakemake",))],
                    "stage": (kill.number % 2 and forked(found)) or running,  # the call, or what runs for it
                    "worker": workers(found),
                }[kill.victim]
                if victims and send(victims[-1].pid, kill.kind):
                    return Outcome(kill, _name(victims[-1], found))
            time.sleep(_POLL)
        return None

    def _hung(self, process: subprocess.Popen[bytes]) -> list[str]:
        try:
            process.wait(self.patience)
        except subprocess.TimeoutExpired:
            return [f"the command hung for {self.patience:.0f} s"]
        return []

    def _processes_left(self, project: Project) -> list[str]:
        deadline = time.monotonic() + self.patience
        while processes_in(project.root) and time.monotonic() < deadline:
            time.sleep(0.1)
        left = processes_in(project.root)
        for each in left.values():
            send(each.pid, signal.SIGKILL)
        return [f"process left: {' '.join(each.arguments)[:200]}" for each in left.values()]

    def _wrong(self, project: Project) -> list[str]:
        """Results that are there and not what the undisturbed run has."""
        found = results_of(project)
        return [
            f"{name}: differs from the undisturbed run's"
            for name, content in found.items()
            if content != self.expected.get(name)
        ]

    def _unlock(self, project: Project) -> list[str]:
        """Where a killed driver left its lock: do what the message of the same command says, and nothing else."""
        if not any((project.root / ".snakemake" / "locks").glob("*")):
            return []
        process, log = self._command(project)
        refused = process.wait(self.patience)
        said = _UNLOCK.search(log.read_text(errors="replace"))
        if not refused or said is None:
            return [f"a locked folder: exit code {refused}, no word on what to type"]
        command = [sys.executable, "-m", *said[1].split()]
        done = subprocess.run(command, cwd=project.root, capture_output=True, timeout=self.patience, check=False)
        return [f"{said[1]}: exit code {done.returncode}"] if done.returncode else []

    def _faults_at_the_end(self, project: Project, done: bool) -> list[str]:
        if not done:
            process, log = self._command(project)
            if process.wait(self.patience):
                return [f"the undisturbed command at the end failed, see {log}"]
        missing = [f"{name}: missing" for name in sorted(self.expected.keys() - results_of(project).keys())]
        return missing + self._wrong(project) + [f"{name}: left over" for name in left_over(project)]

    def _command(self, project: Project) -> tuple[subprocess.Popen[bytes], Path]:
        """Start the command that is given again and again; its output goes to a file."""
        logs = project.root / "commands"
        logs.mkdir(exist_ok=True)
        log = logs / f"{len(list(logs.iterdir())):03}.log"
        command = [sys.executable, "-m", "snakemake", "--cores", str(CORES), "--nocolor", *self.targets]
        with log.open("wb") as output:
            return subprocess.Popen(command, cwd=project.root, stdout=output, stderr=output), log


def _name(process: Process, found: dict[int, Process]) -> str:
    if process.parent in found and found[process.parent].stage:
        return f"worker of {found[process.parent].stage}"
    return process.stage or process.arguments[0]


def _faults_told(kills: Sequence[Kill], output: str) -> list[str]:
    """What a user should not have to read: a stage that lost a worker, or is stopped, says so in one line."""
    whom = {(kill.victim, kill.kind) for kill in kills}
    lost = ("worker", signal.SIGKILL)
    if not whom or not whom <= {lost, ("stage", signal.SIGTERM), ("stage", signal.SIGKILL)}:
        return []
    silent = whom == {lost} and "Error in rule" in output and "workers: expected" not in output
    return ["a traceback"] * ("Traceback (most recent call last)" in output) + ["no word on the lost worker"] * silent
