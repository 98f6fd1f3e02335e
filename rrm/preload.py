"""A process that has the libraries loaded, from which the stages of one Snakemake run are forked.

To load torch takes a stage two seconds of a processor, and one that trains or runs CRFs two or three more: on small
data most of its time. So the driver may start such a process (`start`), and `python -m rrm STAGE` hands it its
arguments, folder, environment and standard streams, passes signals on and ends as the forked process ends
(`run_there`). What a stage needs is loaded when the first such stage comes. Where nobody answers, the stage loads
everything itself.

Whoever dies takes along what would have no use: the stage ends with its caller (SIGKILL) and with this process
(SIGTERM, so that a training saves its state), and this process with its driver. Linux only. No implementation of an
equation lives here.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rrm.alive import name_of

ADDRESS = "RRM_PRELOADED"
"""Environment variable: the socket where a process waits that has the libraries loaded."""
_LENGTH = 8  # bytes that say how long a request is
_STREAMS = 3  # standard ones
_PATIENCE = 10.0  # seconds for a request to arrive, once it has begun
_SET_PARENT_DEATH_SIGNAL, _SET_NAME = 1, 15  # prctl(2)


def start() -> None:
    """Let a process wait for stages until this one ends; `run_there` finds it by the environment.

    Elsewhere than on Linux nothing happens.
    """
    if not hasattr(os, "pidfd_open"):
        return
    address = f"rrm-{name_of()}"
    with _address(address) as listener:
        listener.listen(128)
        command = [sys.executable, "-m", "rrm.preload", str(listener.fileno())]
        waiting = subprocess.Popen(  # noqa: S603 (no shell, no word from outside)
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[listener.fileno()]
        )
    atexit.register(waiting.communicate)  # the pipe closes then, or when this process is killed, which is the end of it
    os.environ[ADDRESS] = address


def _address(name: str) -> socket.socket:
    """A socket at a name that has no file, so that nothing stays of it."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0{name}")
    return listener


# ---- the caller ----


def run_there(arguments: Sequence[str]) -> int | None:
    """Run a command in a forked process, and wait for it.

    Args:
        arguments: of `rrm`, the stage first.

    Returns:
        Its exit status, -N where signal N ended it; None where nobody answers, and nothing has been done. So it is in
        a process that torchrun has started: each one has to be its child, to end with it.
    """
    address = os.environ.get(ADDRESS)
    if not (address and arguments) or "WORLD_SIZE" in os.environ:
        return None
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(f"\0{address}")
        except OSError:
            return None
        return _Caller(connection).run(arguments)


class _Caller:
    """Hands a command over and passes signals on."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._pid = connection, 0
        self._came: list[int] = []

    def run(self, arguments: Sequence[str]) -> int | None:
        """Wait for the process's end, as `run_there`; signals that nobody took come again."""
        before = {kind: signal.signal(kind, self._pass_on) for kind in (signal.SIGINT, signal.SIGTERM)}
        try:
            status = self._status(arguments)
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)
        for number in self._came:
            os.kill(os.getpid(), number)
        return status

    def _status(self, arguments: Sequence[str]) -> int | None:
        environment = {name: value for name, value in os.environ.items() if name != ADDRESS}
        asked = {"arguments": list(arguments), "folder": str(Path.cwd()), "environment": environment}
        request = json.dumps(asked).encode()
        status = ""
        with suppress(OSError):  # the other side has ended
            socket.send_fds(self._connection, [len(request).to_bytes(_LENGTH)], list(range(_STREAMS)))
            self._connection.sendall(request)
            with self._connection.makefile("r") as answers:
                self._pid = int(answers.readline() or 0)
                while self._pid and self._came:
                    self._pass_on(self._came.pop(0), None)
                status = answers.readline() if self._pid else ""
        if status or not self._pid:
            return int(status) if status else None
        print(f"rrm {arguments[0]}: the process that ran it has ended: repeat the command", file=sys.stderr)
        return 1

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if not self._pid:
            self._came.append(number)
            return
        with suppress(ProcessLookupError):
            os.kill(self._pid, number)


def end_as(status: int) -> None:
    """End this process as another one ended, by the same signal if it was one."""
    if status < 0:
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status if status >= 0 else 128 - status)


# ---- the process that waits ----


@dataclass
class _Request:
    """What a forked process is to do, and where its streams go."""

    arguments: list[str]
    folder: str
    environment: dict[str, str]
    streams: list[int]


class _Server:
    """Forks a process a request; at the driver's end it waits for those that run, and ends."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._events = selectors.DefaultSelector()
        self._events.register(self._listener, selectors.EVENT_READ)
        self._events.register(0, selectors.EVENT_READ)  # the driver's end of it closes with the driver
        self._running: dict[int, _Running] = {}  # by the handle of the process
        self._going = True

    def serve(self) -> _Request | None:
        """Wait for requests: gives one in each forked process, None at the end in this one."""
        while self._going or self._running:
            for key, _ in self._events.select():
                if key.fileobj is self._listener:
                    if (request := self._take()) is not None:
                        return request
                elif key.fd == 0:
                    self._end()
                elif key.fd in self._running:
                    self._tell_end(key.fd)
                elif isinstance(key.data, _Running) and not key.data.ended:
                    self._kill(key.data)
        return None

    def _take(self) -> _Request | None:
        connection, _ = self._listener.accept()
        try:
            request = _received(connection)
        except (OSError, ValueError, TypeError):  # the caller has ended meanwhile, or is another user's
            connection.close()
            return None
        load(request.arguments[0])
        parent = os.getpid()
        if not (pid := os.fork()):
            self._forget(connection, parent)
            return request
        for stream in request.streams:
            os.close(stream)
        running = _Running(pid, connection)
        handle = os.pidfd_open(pid)
        self._running[handle] = running
        self._events.register(handle, selectors.EVENT_READ)
        self._events.register(connection, selectors.EVENT_READ, running)
        _tell(connection, pid)
        return None

    def _tell_end(self, handle: int) -> None:
        """Tell the caller how its process has ended."""
        running = self._running.pop(handle)
        running.ended = True  # its caller may have ended too, among the events of the same look
        self._events.unregister(handle)
        os.close(handle)
        status = os.waitstatus_to_exitcode(os.waitpid(running.pid, 0)[1])
        _tell(running.connection, status)
        if not running.left:
            self._events.unregister(running.connection)
        running.connection.close()

    def _kill(self, running: _Running) -> None:
        """The caller has ended: so does its process."""
        running.left = True
        self._events.unregister(running.connection)
        os.kill(running.pid, signal.SIGKILL)  # it has not been waited for, so the number is its own

    def _end(self) -> None:
        self._going = False
        self._events.unregister(0)
        self._events.unregister(self._listener)
        self._listener.close()

    def _forget(self, connection: socket.socket, parent: int) -> None:
        """In a forked process: what belongs to the others is closed, for they look at who holds it."""
        _end_with(parent)
        connection.close()
        self._events.close()
        self._listener.close()
        for handle, running in self._running.items():
            os.close(handle)
            running.connection.close()


@dataclass
class _Running:
    pid: int
    connection: socket.socket
    left: bool = False  # by its caller
    ended: bool = False


def _received(connection: socket.socket) -> _Request:
    if struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1] != os.geteuid():
        raise OSError(errno.EPERM, "another user's")
    connection.settimeout(_PATIENCE)
    head, streams, _, _ = socket.recv_fds(connection, _LENGTH, _STREAMS)
    try:
        with connection.makefile("rb") as content:
            asked = json.loads(content.read(int.from_bytes(head)))
        connection.settimeout(None)
        if len(streams) != _STREAMS:
            raise ValueError("streams: expected three")
        return _Request(**asked, streams=streams)
    except (OSError, ValueError, TypeError):
        for stream in streams:
            os.close(stream)
        raise


def _tell(connection: socket.socket, number: int) -> None:
    with suppress(OSError):  # the caller has ended: the next event says so
        connection.sendall(f"{number}\n".encode())


def load(command: str) -> None:
    """Load what a stage needs, so that processes forked after that have it."""
    from rrm.pipeline import STAGES

    if command not in STAGES:
        return
    modules = [f"rrm.stages.{STAGES[command].module}"]
    if STAGES[command].trains:
        modules.append("torch._dynamo")  # which the first optimiser of a process loads
    if STAGES[command].trains or command in ("evaluate", "pseudo-masks"):
        modules.append("rrm.gaussian.lattice_cpu")  # of the CRF
    for module in modules:
        with suppress(ImportError):  # the stage says what is missing
            importlib.import_module(module)  # noqa: TID251 (of STAGES)
    gc.freeze()  # what is there stays, and is shared with the forked processes


def _end_with(parent: int) -> None:
    """Let SIGTERM come when the parent ends, which it may have done already."""
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, int(signal.SIGTERM))
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def _become(request: _Request) -> None:
    """Take over what a new process would have: streams, folder, environment, arguments and its name."""
    os.setpgid(0, 0)  # signals of a terminal come from the caller, once
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, stream in enumerate(request.streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.environment)
    sys.argv[1:] = request.arguments
    ctypes.CDLL(None).prctl(_SET_NAME, request.arguments[0].encode())


def main() -> int:
    """Wait at the address that is named; in a forked process, run its command."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's affair
    request = _Server(socket.socket(fileno=int(sys.argv[1]))).serve()
    if request is None:
        return 0
    _become(request)
    from rrm.cli import main as run

    return run(request.arguments)


if __name__ == "__main__":
    sys.exit(main())
