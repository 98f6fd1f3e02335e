"""Inputs one after the other through a reader, in a process of its own with limits, which is watched from outside.

A reader passes an input when it returns or raises `RRMError` with a message that says what was expected. It fails
when it raises anything else, takes more than `SECONDS` of processor time or `MEMORY` above what the process had before,
ends the process, opens a file outside its folder, unpickles, or starts a process.
"""

from __future__ import annotations

import itertools
import mmap
import os
import random
import resource
import signal
import struct
import sys
import sysconfig
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rrm.errors import RRMError
from tests.fuzz.mutations import LARGEST
from tests.fuzz.readers import READERS, Reader

SECONDS = 5
_INSTRUMENTED = 10  # times as long for code that tells which of its lines run
WALL_SECONDS = 300  # for what waits without working; generous, as other work may have the processors
MEMORY = 256 << 20
MESSAGE = 100_000  # characters
_ENOUGH = 78  # exit code of a process whose peak of memory hides what later inputs take
_FOLDERS = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # in memory: a disk would be slower than the readers
_ADDRESSES = 16 << 30  # no process gets more than this above what it had, whatever it asks for
_HARD_SIGNALS = {signal.SIGPROF: "took too much processor time", signal.SIGALRM: f"waited for {WALL_SECONDS} s"}
_PROCESSES = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen")
_FORBIDDEN = (*_PROCESSES, "pickle.find_class", "socket.connect", "ctypes.dlopen")
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree")


@dataclass(frozen=True)
class Failure:
    """An input that a reader did not pass, and where it lies."""

    reader: str
    number: int
    what: str
    data: bytes


class Guard:
    """Notes of what no reader may do, from Python's audit events; on while an input is being read."""

    def __init__(self) -> None:
        self.on = False
        self.noted: list[str] = []
        self.folder = "/"
        code = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
        self._readable = (
            *code,
            sys.prefix,
            str(Path(__file__).resolve().parents[2]),
            "/dev/null",
            "/proc/self",
            "/usr/share/zoneinfo",
        )
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            self._opened(arguments)
        elif event in _CHANGES:
            for path in arguments[: 2 if event in ("os.rename", "os.link") else 1]:
                self._inside(event, path)
        elif event in _FORBIDDEN:
            self.noted.append(f"{event} {arguments[:2]!r}"[:200])

    def _opened(self, arguments: tuple[Any, ...]) -> None:
        path, _, flags = arguments
        if isinstance(path, int):
            return
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        name = os.path.realpath(os.fsdecode(path))
        if writes or not name.startswith(self._readable):
            self._inside("open", path)

    def _inside(self, event: str, path: Any) -> None:
        name = os.path.realpath(os.fsdecode(path)) if not isinstance(path, int) else self.folder
        if not f"{name}/".startswith(f"{self.folder}/"):
            self.noted.append(f"{event} outside the folder: {name[:150]}")


class Process:
    """A process that reads inputs: its guard, folder and processor time for each, and what memory it had at first."""

    def __init__(self, reader: Reader, folder: Path, seconds: float) -> None:
        self.reader, self.guard, self.seconds = reader, Guard(), seconds
        folder.mkdir()
        self.folder = folder.resolve()
        self.guard.folder = str(self.folder)
        os.chdir(self.folder)  # names that are relative to an open folder look so
        os.environ["TMPDIR"] = tempfile.tempdir = str(self.folder)
        warnings.simplefilter("ignore")
        self._read = reader.prepare(self.folder)
        for seed in reader.seeds[:3]:  # what is imported and set up once is no input's memory
            self._attempt(seed)
        Path("/proc/self/clear_refs").write_text("5")  # the peak of memory is what is resident now
        self._resident, addresses = _peaks()
        resource.setrlimit(resource.RLIMIT_AS, (addresses + _ADDRESSES,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def check(self, data: bytes) -> str | None:
        """What is wrong with how the reader takes an input; None where it passes."""
        signal.setitimer(signal.ITIMER_PROF, self.seconds)  # ends the process, whatever it does
        signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
        fault = self._attempt(data)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        took = _peaks()[0] - self._resident
        return f"memory: {took >> 20} MiB" if took > MEMORY else fault

    def _attempt(self, data: bytes) -> str | None:
        (self.folder / self.reader.file).write_bytes(data)
        self.guard.noted.clear()
        self.guard.on = True
        try:
            self._read()
            fault = None
        except RRMError as error:
            fault = _message_fault(error)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            fault = f"{type(error).__name__}: {str(error)[:200]!r} at {Path(where.filename).name}:{where.lineno}"
        finally:
            self.guard.on = False
        return "; ".join(self.guard.noted[:3]) or fault


def _message_fault(error: BaseException) -> str | None:
    text = str(error)
    if "expected" not in text or len(text) > MESSAGE or not text.replace("\n", "").isprintable():
        return f"message of {len(text)} characters: {text[:200]!r}"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) and "code -9" not in str(cause):
            return f"memory: more than {_ADDRESSES >> 30} GiB asked for"
        cause = cause.__cause__ or cause.__context__
    return None


def _peaks() -> tuple[int, int]:
    """Largest resident memory and address space of the process so far, bytes."""
    with open("/proc/self/status", "rb") as file:  # noqa: PTH123
        fields = dict(line.split(b":") for line in file.read().splitlines()[:24] if b":" in line)
    return tuple(int(fields[name].split()[0]) << 10 for name in (b"VmHWM", b"VmPeak"))  # type: ignore[return-value]


def generated(reader: Reader, seed: int, number: int) -> bytes:
    """Input `number` of a seed: always the same."""
    return reader.mutated(random.Random(f"{seed}/{reader.name}/{number}"))


def fuzz(name: str, seed: int, first: int, count: int, *, guided: bool = False) -> Iterator[Failure]:
    """Inputs `first` to `first + count - 1` of a reader; yields those that fail, also when they end the process.

    Args:
        name: of the reader.
        seed: of the inputs.
        first, count: which of them.
        guided: let coverage choose what is mutated; inputs then depend on all before, so keep those that fail.
    """
    reader, session = READERS[name], _guided_session if guided else _session
    done = first
    assert reader.seeds  # made once, not by each process
    while done < first + count:
        with tempfile.TemporaryDirectory(prefix="rrm-fuzz-", dir=_FOLDERS) as made:
            folder = Path(made)
            progress = mmap.mmap(-1, 8)
            progress[:] = struct.pack("q", done)
            status = _child(folder, partial(session, reader, folder, seed, range(done, first + count), progress))
            (reached,) = struct.unpack("q", progress[:])
            yield from _failures(folder, name)
            if (folder / "harness.txt").exists():
                raise RuntimeError((folder / "harness.txt").read_text())
            if status == 0:
                return
            if not (os.WIFEXITED(status) and os.WEXITSTATUS(status) == _ENOUGH):
                yield Failure(name, reached, _death(status), (folder / "work" / reader.file).read_bytes())
        done = reached + 1


def _session(reader: Reader, folder: Path, seed: int, numbers: range, progress: mmap.mmap) -> None:
    process = Process(reader, folder / "work", SECONDS)
    for number in numbers:
        _take(process, progress, number, generated(reader, seed, number))


def _guided_session(reader: Reader, folder: Path, seed: int, numbers: range, progress: mmap.mmap) -> None:
    import atheris

    process, count = Process(reader, folder / "work", _INSTRUMENTED * SECONDS), itertools.count(numbers.start)
    (folder / "corpus").mkdir()
    for number, data in enumerate(reader.seeds):
        (folder / "corpus" / str(number)).write_bytes(data)

    def mutate(data: bytes, largest: int, number: int) -> bytes:
        return reader.mutate(random.Random(number), data)[:largest]

    signals = [
        f"-handle_{name}=0" for name in ("abrt", "bus", "fpe", "ill", "int", "segv", "term", "usr1", "usr2", "xfsz")
    ]
    limits = [f"-runs={len(numbers)}", f"-max_len={LARGEST}", "-timeout=0", "-rss_limit_mb=0"]
    arguments = ["fuzz", *signals, *limits, f"-seed={(seed + numbers.start) % 2**31 or 1}", str(folder / "corpus")]
    atheris.Setup(arguments, lambda data: _take(process, progress, next(count), data), custom_mutator=mutate)
    atheris.Fuzz()


def _take(process: Process, progress: mmap.mmap, number: int, data: bytes) -> None:
    progress[:] = struct.pack("q", number)
    if fault := process.check(data):
        (process.folder.parent / f"{number}.failed").write_bytes(
            fault.encode("utf-8", "backslashreplace") + b"\n" + data
        )
        if fault.startswith("memory"):
            os._exit(_ENOUGH)


def _failures(folder: Path, name: str) -> Iterator[Failure]:
    for path in sorted(folder.glob("*.failed"), key=lambda each: int(each.stem)):
        fault, _, data = path.read_bytes().partition(b"\n")
        yield Failure(name, int(path.stem), fault.decode(), data)


def _death(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return _HARD_SIGNALS.get(signal.Signals(number), f"ended the process by {signal.Signals(number).name}")
    return f"ended the process with exit code {os.WEXITSTATUS(status)}"


def _child(folder: Path, work: Callable[[], None]) -> int:
    """Run something in a forked process; gives its wait status. What it raises is a fault of this harness."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            for stream in (1, 2):  # libraries in C write warnings of their own
                os.dup2(null, stream)
            work()
        except BaseException:
            (folder / "harness.txt").write_text(traceback.format_exc())
        finally:
            os._exit(0)
    return os.waitpid(pid, 0)[1]
