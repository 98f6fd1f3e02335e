"""Which processes still live: the writer of a temporary file, and the driver that started a stage.

A process id alone says little: another machine on the same file system has processes of the same numbers, so has
another container, and numbers come again. So each is named together with its machine (host, boot and process namespace)
and the moment it was started.
"""

from __future__ import annotations

import hashlib
import os
import platform
import select
import signal
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

DRIVER = "RRM_DRIVER"
"""Environment variable: the process that started this one and waits for it, as `name_of` names it."""
PATTERN = "[0-9a-f]{8}-[0-9]+-[0-9]+"
"""Regular expression of these names."""


@cache
def this_machine() -> str:
    """Eight hexadecimal digits that differ between machines, and on Linux between boots and containers too."""
    facts = [platform.node()]
    with suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        facts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:8]


def name_of(number: int | None = None) -> str:
    """Name of a process of this machine: the machine, its number, and when it was started (0 where nobody knows).

    Args:
        number: of the process; None: this one's.

    Example:
        >>> has_ended(name_of())
        False
    """
    number = os.getpid() if number is None else number
    return f"{this_machine()}-{number}-{_started(number)}"


def number_of(process: str) -> int:
    """Number of a named process; 0 where the name is none."""
    number = process.partition("-")[2].partition("-")[0]
    return int(number) if number.isdecimal() else 0


def _started(number: int) -> int:
    """Clock ticks from the boot to the start of a process; 0 where it has ended or /proc does not say."""
    try:
        fields = Path(f"/proc/{number}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def has_ended(process: str) -> bool | None:
    """Whether a process has ended; None where it belongs to another machine and nobody here knows.

    Args:
        process: as `name_of` named it.

    Example:
        >>> has_ended("0123abcd-1-2") is None
        True
    """
    machine, _, rest = process.partition("-")
    number, _, started = rest.partition("-")
    if machine != this_machine() or not number.isdecimal():
        return None
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return str(_started(int(number))) != started  # else another one has its number now


def stop_with_driver() -> None:
    """Send this process SIGTERM once its driver has ended, whatever ended that; nothing where none is named."""
    driver = os.environ.get(DRIVER, "")
    if has_ended(driver) is not None:
        threading.Thread(target=_stop_after, args=(driver,), daemon=True).start()


def _stop_after(driver: str) -> None:
    _wait_for_end(driver)
    os.kill(os.getpid(), signal.SIGTERM)


def _wait_for_end(process: str) -> None:
    try:
        handle = os.pidfd_open(number_of(process))
    except ProcessLookupError:
        return
    except (AttributeError, OSError):  # neither Linux 5.3 or newer, nor allowed to ask
        while not has_ended(process):
            time.sleep(1)
        return
    try:
        ended = select.poll()
        ended.register(handle, select.POLLIN)
        if not has_ended(process):  # else the handle may be of another one, which has its number now
            ended.poll()
    finally:
        os.close(handle)
