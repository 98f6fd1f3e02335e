"""Times several sides of one comparison against each other, in one process, and writes what was measured.

The sides take turns, so that a change of the machine's load meets all of them; each has warm-up rounds that do not
count. Reported are the median and the quartiles of the wall time, and the ratio of the medians to the first side. All
benchmarks write files of one schema (`schema.json`), those of peak memory too.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from rrm.usage import processor

FORMAT = 2
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
    sides = {name: time_summary(each, reference) for name, each in times.items()}
    return {"case": case, "facts": facts, "sides": sides}


def _timed(run: Callable[[], Any]) -> float:
    _synchronize()
    start = time.perf_counter()
    run()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def time_summary(times: Sequence[float], reference: float) -> dict[str, float]:
    """Median and quartiles of times in ms, and how much faster than `reference` ms the median is."""
    spread = quartiles(times)
    return {**spread, "repeats": len(times), "speedup": round(reference / statistics.median(times), 3)}


def quartiles(times: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of at least two times in ms."""
    q1, median, q3 = statistics.quantiles(times, n=4, method="inclusive")
    return {"median_ms": round(median, 3), "q1_ms": round(q1, 3), "q3_ms": round(q3, 3)}


def memory_summary(peaks: Sequence[float], reference: float) -> dict[str, float]:
    """Median and range of peaks in MiB, and the median's ratio to `reference` MiB (below 1 is less)."""
    median = statistics.median(peaks)
    return {
        "peak_mib": round(median, 2),
        "lowest_mib": round(min(peaks), 2),
        "highest_mib": round(max(peaks), 2),
        "repeats": len(peaks),
        "ratio": round(median / reference, 3),
    }


def metadata(threads: int, busy: int) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "threads": threads,
        "busy_processes": busy,
        "load": round(os.getloadavg()[0], 2),
    }


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
    """The results as tables: times and memory with one row a side, and the parts of the times where there are any."""
    sides = [(result["case"], name, side) for result in results for name, side in result["sides"].items()]
    timed = [_row(case, name, _times(side), *_speed(side)) for case, name, side in sides if _is_timed(side)]
    held = [_row(case, name, *_peaks(side)) for case, name, side in sides if not _is_timed(side)]
    parts = [
        _row(case, f"{name}: {stage}", _times(part), f"{part['share']:.1%}")
        for case, name, side in sides
        for stage, part in side.get("stages", {}).items()
    ]
    return "\n\n".join(
        "\n".join([_row("case", "side", *columns), "|---" * rows[0].count(" | ") + "|---|", *rows])
        for columns, rows in (
            (("median ms | quartiles", "times faster", "a second"), timed),
            (("median ms | quartiles", "share"), parts),
            (("peak MiB | range", "ratio"), held),
        )
        if rows
    )


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _is_timed(side: Mapping[str, Any]) -> bool:
    return "median_ms" in side


def _times(side: Mapping[str, Any]) -> str:
    return f"{side['median_ms']:.1f} | {side['q1_ms']:.1f} to {side['q3_ms']:.1f}"


def _speed(side: Mapping[str, Any]) -> tuple[str, str]:
    done = ", ".join(f"{number:g} {what}" for what, number in side.get("per_second", {}).items())
    return f"{side['speedup']:.2f}", done


def _peaks(side: Mapping[str, Any]) -> tuple[str, str]:
    return f"{side['peak_mib']:.1f} | {side['lowest_mib']:.1f} to {side['highest_mib']:.1f}", f"{side['ratio']:.2f}"


def write(path: Path, results: list[dict[str, Any]], facts: Mapping[str, Any]) -> None:
    """Write results as JSON (`schema.json`) and print them."""
    put(path, results, facts)
    print(markdown(results), flush=True)


def put(path: Path, results: list[dict[str, Any]], facts: Mapping[str, Any]) -> None:
    """Write results as JSON (`schema.json`)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps({"format": FORMAT, "machine": facts, "results": results}, indent=1) + "\n")
    os.replace(temporary, path)
