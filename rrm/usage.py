"""What a job took: seconds, processor seconds and peak memory, in a small JSON file that it writes once it succeeded.

Of a job of several processes, the first counts with the workers that it started; its memory without them, which
`tree_memory` adds where somebody watches from outside.
"""

from __future__ import annotations

import json
import platform
import re
import resource
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from glob import glob
from pathlib import Path

from rrm.errors import RRMError
from rrm.store import atomic_path

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss


@dataclass(frozen=True)
class Usage:
    """What a job took.

    Attributes:
        seconds: from reading its arguments on.
        cpu_seconds: of all its threads and of its workers that have ended.
        peak_memory: resident bytes of its main process.
        peak_gpu_memory: bytes that torch held on the GPU; 0 without one.
    """

    seconds: float
    cpu_seconds: float
    peak_memory: int
    peak_gpu_memory: int

    @classmethod
    def since(cls, begin: float) -> Usage:
        """Give the usage of this process.

        Args:
            begin: of the job, by `time.monotonic()`.

        Example:
            >>> Usage.since(time.monotonic()).peak_gpu_memory
            0
        """
        own, workers = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        cpu_seconds = own.ru_utime + own.ru_stime + workers.ru_utime + workers.ru_stime
        return cls(time.monotonic() - begin, cpu_seconds, own.ru_maxrss * _RSS_UNIT, _gpu_memory())

    def write(self, path: Path) -> None:
        """Write the file."""
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(asdict(self)) + "\n")

    @staticmethod
    def is_written(path: Path) -> bool:
        """Whether a job has written the file: `snakemake --touch` leaves an empty one.

        Example:
            >>> Usage.is_written(Path("missing.json"))
            False
        """
        return path.is_file() and path.stat().st_size > 0

    @classmethod
    def read(cls, path: Path) -> Usage:
        """Read a file.

        Raises:
            RRMError: it does not hold a job's usage.
        """
        try:
            return cls(**json.loads(path.read_text()))
        except (ValueError, TypeError, OSError) as error:
            raise RRMError(f"{path}: expected what a job took, as JSON, got {error}: delete the file") from None


def tree_memory(pid: int) -> int:
    """Bytes that a process and all that it started hold now; pages that several of them share count once.

    Args:
        pid: of the process.

    Returns:
        Sum of the proportional set sizes; 0 where it has ended, and where there is no `/proc` to ask.

    Example:
        >>> import os
        >>> tree_memory(os.getpid()) >= 0
        True
    """
    held = 0
    for number in process_tree(pid):
        with suppress(OSError):  # it has ended meanwhile
            rollup = Path(f"/proc/{number}/smaps_rollup").read_text()
            shares = re.search(r"^Pss:\s+(\d+) kB$", rollup, flags=re.MULTILINE)
            held += int(shares[1]) << 10 if shares else 0
    return held


def process_tree(pid: int) -> list[int]:
    """Numbers of a process and of all that it has started, directly or not, itself first; quick to ask for.

    Those that end meanwhile may be among them or not; where there is no `/proc`, the process is alone.

    Example:
        >>> import os
        >>> process_tree(os.getpid())[0] == os.getpid()
        True
    """
    found, waiting = list[int](), [pid]
    while waiting:
        found.append(waiting.pop())
        for task in glob(f"/proc/{found[-1]}/task/*/children"):  # noqa: PTH207 (raises where one ends meanwhile)
            with suppress(OSError):
                waiting += map(int, Path(task).read_text().split())
    return found


def processor() -> str:
    """Name of this machine's processor."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else ""
    found = re.search(r"model name\s*:\s*(.+)", text)
    return found[1].strip() if found else platform.processor()


def _gpu_memory() -> int:
    torch = sys.modules.get("torch")  # a job that has not loaded it used no GPU
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.max_memory_allocated())
