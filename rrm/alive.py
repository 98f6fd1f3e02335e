"""Which processes still live: the writer of a temporary file, and the driver that started a stage.

A process id alone says little: another machine on the same file system has processes of the same numbers, and so has
another container. So each is named together with its machine (host, boot and process namespace).
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
"""Environment variable: the process that started this one and waits for it, as `this_process` names it."""


@cache
def this_machine() -> str:
    """Eight hexadecimal digits that differ between machines, and on Linux between boots and containers too."""
    facts = [platform.node()]
    with suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        facts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:8]


def this_process() -> str:
    """Name of this process: its machine and its number.

    Example:
        >>> has_ended(this_process())
        False
    """
    return f"{this_machine()}-{os.getpid()}"


def has_ended(process: str) -> bool | None:
    """Whether a process has ended; None where it belongs to another machine and nobody here knows.

    Args:
        process: as `this_process` named it.

    Example:
        >>> has_ended("0123abcd-1") is None
        True
    """
    machine, _, number = process.partition("-")
    if machine != this_machine() or not number.isdecimal():
        return None
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


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
        handle = os.pidfd_open(int(process.partition("-")[2]))
    except ProcessLookupError:
        return
    except (AttributeError, OSError):  # neither Linux 5.3 or newer, nor allowed to ask
        while not has_ended(process):
            time.sleep(1)
        return
    try:
        ended = select.poll()
        ended.register(handle, select.POLLIN)
        ended.poll()
    finally:
        os.close(handle)
