"""The folder that a run starts in: a lock that a killed driver left there, and results with times in the future."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from rrm.alive import has_ended, name_of, number_of
from rrm.errors import RRMError

_DRIVER = Path(".snakemake", "driver")  # named when a run starts, and looked at when another one finds a lock


def note_driver(folder: Path) -> None:
    """Write down which process holds the folder's lock, or is about to take it."""
    with suppress(OSError):  # a dry run may work where nothing can be written
        (folder / _DRIVER).parent.mkdir(exist_ok=True)
        (folder / _DRIVER).write_text(name_of(), encoding="ascii")


def refuse_read_only(folder: Path) -> None:
    """Refuse a folder of results in which nothing can be written, before any job ends on that.

    Raises:
        RRMError: the folder is there and may not be written to.
    """
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        raise RRMError(
            f"{folder}: expected a folder that may be written to, got one that may not: allow that, or work in another"
        )


def lock_found(folder: Path) -> str:
    """What to do about a lock in the folder; empty where there is none.

    Snakemake refuses a locked folder. A driver that ends by itself, or is told to by SIGTERM or SIGINT, takes its lock
    away; one that is killed cannot.
    """
    locks = folder / ".snakemake" / "locks"
    if not locks.is_dir() or not any(locks.iterdir()):
        return ""
    driver = (folder / _DRIVER).read_text(encoding="ascii") if (folder / _DRIVER).is_file() else ""
    ended = has_ended(driver)
    number = number_of(driver)
    if ended is False:
        return f"{locks}: this folder is locked: process {number} works here: wait until it has ended"
    known = f"process {number} was killed and left its lock" if ended else "if no snakemake works here on any machine"
    action = "type `snakemake --unlock` (or `make unlock`), then the same command again"
    return f"{locks}: this folder is locked: {known}: {action}"


def settle_times(paths: Iterable[Path]) -> int:
    """Give files whose time of change lies in the future one in the past; the order of all files stays as it was.

    A clock was wrong when they were written, or is now. What a job makes of such a file is older than the file at once:
    Snakemake would refuse it, hours later, and do it anew with every call.

    Args:
        paths: results; those that are not there are left out.

    Returns:
        Number of files that were given another time.
    """
    now = time.time_ns()
    times = {path: path.stat().st_mtime_ns for path in paths if path.is_file()}
    past = max((each for each in times.values() if each <= now), default=now - 10**9)
    future = sorted((each, path) for path, each in times.items() if each > now)
    for place, (_, path) in enumerate(future, 1):
        moment = past + (now - past) * place // len(future)
        os.utime(path, ns=(moment, moment))
    return len(future)
