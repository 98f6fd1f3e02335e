"""The processes of a project's folder, as /proc shows them: the driver, its stages and their workers."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rrm.usage import process_tree

PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """A process, as it was when it was looked at."""

    pid: int
    parent: int
    arguments: tuple[str, ...]
    name: str = ""

    @property
    def stage(self) -> str:
        """Name of the stage that it runs, waits for or works for, empty for others."""
        if self.forked:
            return self.name
        return self.arguments[3] if self.arguments[1:3] == ("-m", "rrm") and len(self.arguments) > 3 else ""

    @property
    def forked(self) -> bool:
        """Whether it was forked from the process that has the libraries loaded: it has that one's arguments."""
        return self.arguments[1:3] == ("-m", "rrm.preload") and not self.name.startswith("python")


def processes_in(root: Path) -> dict[int, Process]:
    """All that work in a folder, by number, orphans too; those that are dead but not yet waited for are left out."""
    return _read(entry for entry in PROC.iterdir() if entry.name.isdigit() and _works_in(entry, root))


def below(pid: int) -> dict[int, Process]:
    """All that a process has started, directly or not, by number. Cheap enough to be asked for again and again."""
    return _read(PROC / str(number) for number in process_tree(pid)[1:])


def _works_in(entry: Path, root: Path) -> bool:
    try:
        return (entry / "cwd").readlink() == root
    except OSError:  # it has ended meanwhile, or is another user's
        return False


def _read(entries: Iterable[Path]) -> dict[int, Process]:
    found = {}
    for entry in entries:
        with suppress(OSError):
            found[int(entry.name)] = _process(entry)
    return {pid: process for pid, process in found.items() if process.arguments}


def _process(entry: Path) -> Process:
    before, _, after = (entry / "stat").read_text().rpartition(")")
    status, name = after.split(), before.partition("(")[2]
    arguments = tuple((entry / "cmdline").read_text(errors="replace").split("\0")[:-1])
    return Process(int(entry.name), int(status[1]), () if status[0] in "ZX" else arguments, name)


def stages(found: dict[int, Process]) -> list[Process]:
    """The calls of stages; workers that were forked from one have the same arguments."""
    return [each for each in found.values() if each.stage and not each.forked and not _for_a_stage(each, found)]


def forked(found: dict[int, Process]) -> list[Process]:
    """The processes that run stages for their calls."""
    return [each for each in found.values() if each.forked and not _for_a_stage(each, found)]


def workers(found: dict[int, Process]) -> list[Process]:
    """Those that work for a stage: they prepare batches, or run CRFs."""
    tracker = "resource_tracker"  # multiprocessing's own
    return [each for each in found.values() if _for_a_stage(each, found) and tracker not in " ".join(each.arguments)]


def _for_a_stage(process: Process, found: dict[int, Process]) -> bool:
    return process.parent in found and bool(found[process.parent].stage)


def send(pid: int, kind: int) -> bool:
    """Send a signal; gives whether the process was there."""
    try:
        os.kill(pid, kind)
    except ProcessLookupError:
        return False
    return True
