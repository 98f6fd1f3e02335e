"""Stages that are forked from a process that has the libraries loaded: as if they had been started alone."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rrm import preload
from tests.kills.processes import Process, below, forked, workers
from tests.kills.training import LONG, classifier, resumed_step, steps_done
from tests.waiting import until
from tests.workflow.project import REPOSITORY

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="stages are forked so on Linux only"),
    pytest.mark.timeout(600),
]


def _waiting(driver: subprocess.Popen[str]) -> Process:
    (process,) = (each for each in below(driver.pid).values() if each.parent == driver.pid)
    return process


def _training(driver: subprocess.Popen[str], photos: Path, folder: Path) -> tuple[subprocess.Popen[str], Process]:
    """A call of a long training, and the process that runs it."""
    command = classifier(photos, folder / "classifier.pth", LONG)
    call = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    until(lambda: steps_done(folder) > 6 or call.poll() is not None, "steps")
    assert call.poll() is None
    (process,) = forked(below(driver.pid))
    return call, process


def _gone(process: Process) -> bool:
    path = Path(f"/proc/{process.pid}/cmdline")
    return not (path.exists() and path.read_bytes())  # one that nobody waits for has no arguments


def _called(*arguments: str, cwd: Path, preloaded: bool) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if preloaded or name != preload.ADDRESS}
    command = [sys.executable, "-m", "rrm", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("predict", "--in", "photos=none.h5", "--in", "model=none.pth", "--out", "p.h5", "--options", "{}"), 1),
        (("predict", "--out"), 2),
        (("predict", "--help"), 0),
    ],
)
def test_a_forked_stage_says_and_returns_what_one_alone_does(
    driver: subprocess.Popen[str], tmp_path: Path, arguments: tuple[str, ...], status: int
) -> None:
    there, alone = (_called(*arguments, cwd=tmp_path, preloaded=preloaded) for preloaded in (True, False))
    assert (there.returncode, there.stdout, there.stderr) == (status, alone.stdout, alone.stderr)
    assert alone.returncode == status and there.stdout + there.stderr


def test_a_forked_training_writes_the_same_bytes_where_it_was_called(
    driver: subprocess.Popen[str], photos: Path, tmp_path: Path
) -> None:
    contents = []
    for preloaded in (True, False):
        folder = tmp_path / str(preloaded)
        folder.mkdir()
        arguments = classifier(photos, Path("classifier.pth"))[3:]
        done = _called(*arguments, cwd=folder, preloaded=preloaded)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        contents.append((folder / "classifier.pth").read_bytes())
    assert contents[0] == contents[1]
    assert len(below(driver.pid)) == 1  # nothing runs but the process that waits


@pytest.mark.parametrize("stage_first", [True, False])
def test_a_call_and_its_stage_may_end_at_once(monkeypatch: pytest.MonkeyPatch, stage_first: bool) -> None:
    monkeypatch.setattr(preload.selectors, "DefaultSelector", selectors.SelectSelector)  # also of what is no pipe
    ours, theirs = socket.socketpair()
    server = preload._Server(socket.socketpair()[0])
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", ""], os.environ)
    running, handle = preload._Running(pid, ours), os.pidfd_open(pid)
    server._running[handle] = running
    keys = [
        server._events.register(handle, selectors.EVENT_READ),
        server._events.register(ours, selectors.EVENT_READ, running),
    ]
    theirs.close()
    monkeypatch.setattr(server._events, "select", lambda: [(key, 0) for key in (keys if stage_first else keys[::-1])])
    server._going = False
    assert server.serve() is None and not server._running


@pytest.mark.parametrize(("kind", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_to_the_call_reach_the_stage_once(
    driver: subprocess.Popen[str], photos: Path, tmp_path: Path, kind: signal.Signals, status: int
) -> None:
    call, process = _training(driver, photos, tmp_path)
    call.send_signal(kind)
    _, told = call.communicate(timeout=120)
    assert call.returncode == status and "Traceback" not in told and told.count("the same command goes on") == 1
    assert _gone(process)
    if kind == signal.SIGTERM:
        assert resumed_step(tmp_path) == steps_done(tmp_path)  # its state is saved


def test_a_killed_call_takes_its_stage_along(driver: subprocess.Popen[str], photos: Path, tmp_path: Path) -> None:
    call, process = _training(driver, photos, tmp_path)
    helpers = workers(below(driver.pid))
    assert len(helpers) == 2
    call.kill()
    call.communicate()
    until(lambda: all(map(_gone, (process, *helpers))), "the stage to end", seconds=20)


def test_a_killed_stage_ends_its_call_by_the_same_signal(
    driver: subprocess.Popen[str], photos: Path, tmp_path: Path
) -> None:
    call, process = _training(driver, photos, tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    call.communicate(timeout=60)
    assert call.returncode == -signal.SIGKILL


def test_stages_end_with_the_process_that_waits_and_go_on_without_it(
    driver: subprocess.Popen[str], photos: Path, tmp_path: Path
) -> None:
    call, process = _training(driver, photos, tmp_path)
    os.kill(_waiting(driver).pid, signal.SIGKILL)
    _, told = call.communicate(timeout=60)
    assert call.returncode == 1 and "the process that ran it has ended: repeat the command" in told
    until(lambda: _gone(process), "the stage to end", seconds=60)
    assert resumed_step(tmp_path) == steps_done(tmp_path)  # its state is saved
    done = _called("predict", "--help", cwd=tmp_path, preloaded=True)
    assert done.returncode == 0 and "usage: rrm predict" in done.stdout


def test_the_process_that_waits_ends_with_its_driver(
    driver: subprocess.Popen[str], photos: Path, tmp_path: Path
) -> None:
    call, process = _training(driver, photos, tmp_path)
    waiting = _waiting(driver)
    driver.kill()
    driver.wait()
    time.sleep(1)
    assert not _gone(waiting) and not _gone(process)  # a stage is not its driver's child: it says itself when it ends
    call.terminate()
    call.communicate(timeout=60)
    assert call.returncode == 143
    until(lambda: _gone(waiting), "the process that waits to end", seconds=20)


def test_processes_of_torchrun_run_themselves_and_end_with_it(
    driver: subprocess.Popen[str], photos: Path, tmp_path: Path
) -> None:
    command = classifier(photos, tmp_path / "classifier.pth", LONG.replace("runtime: {", "runtime: {device: cpu, "))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command[1:]]
    call = subprocess.Popen(torchrun, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    until(lambda: steps_done(tmp_path) > 3 or call.poll() is not None, "steps")
    processes = [each for each in below(call.pid).values() if each.parent == call.pid and "rrm" in each.arguments]
    assert len(processes) == 2 and not forked(below(driver.pid))
    call.kill()
    call.wait()
    until(lambda: all(map(_gone, processes)), "the processes of torchrun to end", seconds=20)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_other_users_get_nothing_run(driver: subprocess.Popen[str], tmp_path: Path) -> None:
    address = os.environ[preload.ADDRESS]
    program = [
        "import os, socket",
        "caller = socket.socket(socket.AF_UNIX)",
        "os.setresuid(65534, 65534, 65534)",
        f"caller.connect('\\0{address}')",
        "print(caller.recv(8))",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(program)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.strip() == "b''", done.stderr
    assert _called("predict", "--help", cwd=tmp_path, preloaded=True).returncode == 0  # it goes on


def test_half_a_request_holds_nobody_up(driver: subprocess.Popen[str], tmp_path: Path) -> None:
    for content in (b"", b"\0\0\0\0\0\0\0\x05{", b"\0\0\0\0\0\0\0\x02{}", b"\0\0\0\0\0\0\0\x01["):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(f"\0{os.environ[preload.ADDRESS]}")
            connection.sendall(content)
    assert _called("predict", "--help", cwd=tmp_path, preloaded=True).returncode == 0


def test_what_is_loaded_before_a_fork_leaves_gpus_alone() -> None:
    program = [
        "import sys, torch",
        "from rrm import preload",
        "from rrm.pipeline import STAGES",
        "def asked(*_): raise SystemExit('asked for a GPU')",
        "torch._C._cuda_init = torch._C._cuda_getDeviceCount = asked  # after either, no forked process can use one",
        "[preload.load(stage) for stage in STAGES]",
        "print('loaded', flush=True)",
        "torch.cuda.init() if torch.backends.cuda.is_built() else asked()",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(program)], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("loaded\n", "asked for a GPU\n")
