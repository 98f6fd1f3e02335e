"""Every reader on 2,000 inputs, and the proof that the harness sees what it looks for.

python -m tests.fuzz --inputs 100000 --seed 7    # a night's worth
"""

from __future__ import annotations

import ctypes
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rrm.errors import RRMError
from tests.fuzz import engine
from tests.fuzz.readers import READERS, Reader

INPUTS, SEED = 2000, 20


@pytest.mark.timeout(900)
def test_every_reader_passes() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--inputs", str(INPUTS), "--seed", str(SEED)]
    where = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    passed = re.findall(rf"^(\S+): {INPUTS} passed, 0 failed", done.stdout, re.MULTILINE)
    assert passed == list(READERS), done.stdout + done.stderr
    assert done.returncode == 0


class _Loaded:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("unpickled",)


def _raises_otherwise(folder: Path) -> None:
    raise KeyError("x")


def _loops(folder: Path) -> None:
    while True:
        pass


def _takes_memory(folder: Path) -> None:
    bytearray(engine.MEMORY + (50 << 20))[:] = b"x" * (engine.MEMORY + (50 << 20))


def _crashes(folder: Path) -> None:
    ctypes.string_at(0)


def _leaves(folder: Path) -> None:
    Path("/etc/hostname").read_bytes()


def _leaves_by_a_link(folder: Path) -> None:
    (folder / "link").unlink(missing_ok=True)
    (folder / "link").symlink_to("/etc")
    (folder / "link" / "hostname").read_bytes()


def _writes_elsewhere(folder: Path) -> None:
    (folder.parent / "escaped").write_text("x")


def _unpickles(folder: Path) -> None:
    pickle.loads(pickle.dumps(_Loaded()))


def _starts_a_process(folder: Path) -> None:
    subprocess.run(["true"], check=True)


def _exits(folder: Path) -> None:
    os._exit(3)


def _says_little(folder: Path) -> None:
    raise RRMError("it does not work")


@pytest.mark.parametrize(
    ("misbehaves", "seen"),
    [
        (_raises_otherwise, "KeyError"),
        (_loops, "took too much processor time"),
        (_takes_memory, "memory: "),
        (_crashes, "SIGSEGV"),
        (_leaves, "outside the folder: /etc/hostname"),
        (_leaves_by_a_link, "outside the folder: /etc/hostname"),
        (_writes_elsewhere, "outside the folder"),
        (_unpickles, "pickle.find_class"),
        (_starts_a_process, "subprocess.Popen"),
        (_exits, "exit code 3"),
        (_says_little, "message"),
    ],
)
def test_misbehaviour_is_seen(misbehaves: Callable[[Path], None], seen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(folder: Path) -> Callable[[], None]:
        def read() -> None:
            if (folder / "file").read_bytes() != b"good":
                misbehaves(folder)

        return read

    monkeypatch.setattr(engine, "SECONDS", 1)
    monkeypatch.setattr(engine, "MEMORY", 20 << 20)
    monkeypatch.setitem(engine.READERS, "odd", Reader("odd", "file", lambda: [b"good"], prepare))
    monkeypatch.setattr(engine, "generated", lambda _reader, _seed, number: b"bad" if number in (3, 5) else b"good")
    failures = list(engine.fuzz("odd", 0, 0, 8))
    assert [(failure.number, failure.data) for failure in failures] == [(3, b"bad"), (5, b"bad")]
    assert [failure.what for failure in failures if seen not in failure.what] == []


def test_inputs_are_a_function_of_seed_and_number() -> None:
    reader = READERS["labels"]
    assert engine.generated(reader, 1, 5) == engine.generated(reader, 1, 5)
    assert len({engine.generated(reader, seed, number) for seed in (1, 2) for number in range(20)}) > 30
