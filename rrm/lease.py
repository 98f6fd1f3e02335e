"""Leases of GPUs: jobs on one machine never share a card by accident, whoever started them.

Each card has a file in a folder that all jobs of the machine know, and a job has a card while its process holds an
exclusive lock (flock) on that file. The kernel frees it when the process ends, whatever ended it, so no lease outlives
its job and there is nothing to clean up. One more lock, the choice, is held by the process that picks cards, until it
has as many as it wants: jobs that want several cards never wait for one another's, and none is passed by those that
want fewer.

The lock says nothing to the driver: programs that do not ask here can use the card all the same.
"""

from __future__ import annotations

import fcntl
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rrm.errors import RRMError
from rrm.progress import say

FOLDER = Path("/tmp/rrm-gpus")  # noqa: S108 (the same one for all users and jobs, so not TMPDIR; nothing secret is in it)
"""Where the files lie; containers that share cards must share it too."""
_CHOICE = "choice"
_POLL = 0.5  # seconds
_SHOWN = 160  # characters of a command
_HELD: dict[Path, int] = {}  # files that this process has locked, and their descriptors


def lease(cards: Sequence[str], wanted: int = 1, folder: Path = FOLDER, log_seconds: float = 60.0) -> list[int]:
    """Wait until enough of these cards are free, and hold them until this process ends.

    While it waits, a line on standard error says which processes hold them. Cards that this process holds already are
    given at once; it must not ask for more of them, for two that do could wait for one another.

    Args:
        cards: names, the same for the same card in each process, such as UUIDs.
        wanted: how many of them.
        folder: where the lock files lie.
        log_seconds: least seconds between two lines.

    Returns:
        Places of the leased cards in `cards`, in ascending order.

    Raises:
        RRMError: there are fewer cards than wanted, or the folder cannot be used.

    Example:
        >>> import tempfile
        >>> lease(["first", "second", "third"], 2, Path(tempfile.mkdtemp()))
        [0, 1]
    """
    held = [place for place, card in enumerate(cards) if folder / _file_name(card) in _HELD]
    if wanted <= len(held):
        return held[:wanted]
    with choosing(cards, wanted, folder, log_seconds) as places:
        return places


@contextmanager
def choosing(
    cards: Sequence[str], wanted: int, folder: Path = FOLDER, log_seconds: float = 60.0
) -> Iterator[list[int]]:
    """Hold the cards as `lease` does, and the choice until the block ends: nobody else can take a card meanwhile.

    So the block can give cards to other processes: `give_back` here, `hold` there.
    """
    if len(cards) < wanted:
        raise too_few_gpus(len(cards), wanted)
    _wait(lambda: _lock(folder / _CHOICE), lambda: f"the choice of GPUs, {_holder(folder / _CHOICE)}", log_seconds)
    files = [folder / _file_name(card) for card in cards]
    try:
        _wait(lambda: _enough(files, wanted), lambda: _taken(files, wanted), log_seconds)
        yield [place for place, path in enumerate(files) if path in _HELD][:wanted]
    finally:
        _release(folder / _CHOICE)


def too_few_gpus(found: int, wanted: int) -> RRMError:
    """The message of a training with more processes than GPUs."""
    return RRMError(
        f"processes: expected a GPU for each of the {wanted} processes, torch sees {found}: lower "
        "runtime.processes (torchrun's --nproc-per-node), or set runtime.device to cpu"
    )


def hold(card: str, folder: Path = FOLDER) -> None:
    """Hold a card that the process which has the choice has given back for this one.

    Raises:
        RRMError: another process holds it.
    """
    path = folder / _file_name(card)
    if not _lock(path):
        raise RRMError(f"device: expected the GPU that was leased for this process, got one {_holder(path)}: run again")


def give_back(card: str, folder: Path = FOLDER) -> None:
    """Free a card that this process holds."""
    _release(folder / _file_name(card))


def _file_name(card: str) -> str:
    return re.sub(r"[^\w.-]", "_", card) + ".lock"


def _enough(files: Sequence[Path], wanted: int) -> bool:
    """Lock what is free, up to the number that is wanted, and keep it."""
    for path in files:
        if sum(each in _HELD for each in files) >= wanted:
            break
        _lock(path)
    return sum(each in _HELD for each in files) >= wanted


def _wait(ready: Callable[[], bool], what: Callable[[], str], log_seconds: float) -> None:
    told = float("-inf")
    while not ready():
        if time.monotonic() - told >= log_seconds:
            told = time.monotonic()
            say(f"waiting for {what()}")
        time.sleep(_POLL)


def _taken(files: Sequence[Path], wanted: int) -> str:
    others = "; ".join(f"{path.stem} {_holder(path)}" for path in files if path not in _HELD)
    return f"{wanted} of {len(files)} GPU(s): {others}"


# ---- locked files ----


def _lock(path: Path) -> bool:
    """Lock a file if nobody else has; true where this process has it now."""
    if path in _HELD:
        return True
    try:
        descriptor = _opened(path)
    except OSError as error:
        raise RRMError(
            f"{path}: expected a file to lock, got {error.strerror}: let all users of the GPUs write in {path.parent}"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise FileNotFoundError  # it was removed meanwhile, and others lock another one
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
        return False
    _HELD[path] = descriptor
    _sign(descriptor)
    return True


def _opened(path: Path) -> int:
    """A descriptor of a file that every user may lock; never of one that a link leads to."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    usual = os.umask(0)
    try:
        path.parent.mkdir(mode=0o1777, parents=True, exist_ok=True)
        return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:  # Linux lets nobody create what is there and another user's
        return os.open(path, flags)
    finally:
        os.umask(usual)


def _release(path: Path) -> None:
    descriptor = _HELD.pop(path, None)
    if descriptor is not None:
        os.close(descriptor)


def _sign(descriptor: int) -> None:
    """Write who holds the lock; a reader trusts it only while the lock is held."""
    text = f"held by process {os.getpid()} (rrm {' '.join(sys.argv[1:])[:_SHOWN]})"
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(errors="replace"), 0)


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace") or "held by another process"
    except OSError:
        return "held by another process"


def _let_go() -> None:
    """A forked child has copies of the descriptors, which would keep a lock of its parent's."""
    for descriptor in _HELD.values():
        os.close(descriptor)
    _HELD.clear()


os.register_at_fork(after_in_child=_let_go)
