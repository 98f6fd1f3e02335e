"""Times several sides of one comparison against each other, in one process, and writes what was measured.

The sides take turns, so that a change of the machine's load meets all of them; each has warm-up rounds that do not
count. Reported are the median and the quartiles of the wall time, and the ratio of the medians to the first side.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "numpy", "numba", "pydensecrf2", "triton")


def compare(
    case: str, sides: Mapping[str, Callable[[], Any]], *, repeats: int, warmup: int = 2, **facts: Any
) -> dict[str, Any]:
    """Time each side; the first one is what the others are compared with.

    Returns:
        `case`, `facts`, and per side `median_ms`, `q1_ms`, `q3_ms`, `repeats` and `speedup` (of the medians, above 1 is
        faster than the first side).
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(warmup + repeats):
        for name, run in sides.items():
            elapsed = _timed(run)
            if turn >= warmup:
                times[name].append(1e3 * elapsed)
    reference = statistics.median(next(iter(times.values())))
    return {"case": case, "facts": facts, "sides": {name: _summary(each, reference) for name, each in times.items()}}


def _timed(run: Callable[[], Any]) -> float:
    _synchronize()
    start = time.perf_counter()
    run()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _summary(times: list[float], reference: float) -> dict[str, float]:
    q1, median, q3 = statistics.quantiles(times, n=4, method="inclusive")
    return {
        "median_ms": round(median, 3),
        "q1_ms": round(q1, 3),
        "q3_ms": round(q3, 3),
        "repeats": len(times),
        "speedup": round(reference / median, 3),
    }


def metadata(threads: int, busy: int) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "threads": threads,
        "busy_processes": busy,
        "load": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _spin() -> None:
    while True:
        pass


@contextmanager
def busy_machine(processes: int) -> Iterator[None]:
    """Keep so many processors busy meanwhile."""
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_spin, daemon=True) for _ in range(processes)]
    for other in others:
        other.start()
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.join()


def markdown(results: list[dict[str, Any]]) -> str:
    """The results as a table, one row a side."""
    lines = ["| case | side | median ms | quartiles | times faster |", "|---|---|---|---|---|"]
    for result in results:
        for name, side in result["sides"].items():
            quartiles = f"{side['q1_ms']:.1f} to {side['q3_ms']:.1f}"
            lines.append(
                f"| {result['case']} | {name} | {side['median_ms']:.1f} | {quartiles} | {side['speedup']:.2f} |"
            )
    return "\n".join(lines)


def write(path: Path, results: list[dict[str, Any]], facts: Mapping[str, Any]) -> None:
    """Write results as JSON (`schema.json`) and print them."""
    print(markdown(results), flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps({"format": 1, "machine": facts, "results": results}, indent=1) + "\n")
    os.replace(temporary, path)
