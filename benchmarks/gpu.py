"""Everything that this project wants measured on a GPU, in one command of 15 minutes at most.

    python -m benchmarks.gpu --out DIR [--photos FOLDER] [--seconds 840]

The parts of `PARTS`, most important first, each in a process of its own with a time limit: what fails, hangs or takes
too long costs that part alone. DIR/gpu.json (`schema.json`) is written anew after each part and DIR/gpu.log has what
the parts print. The same command goes on with the parts that are missing or failed; `--again` measures all anew. Last
comes a table of what was asked for and what was reached.

`--device cpu --quick` runs the same parts on tiny networks and photos, to see that they work before a GPU is there.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import FORMAT, markdown, metadata, put

PARTS = {
    "one_step": 200,
    "parity": 90,
    "one_step_compiled": 240,
    "step_two": 100,
    "evaluation": 240,
    "tests": 150,
    "step_two_compiled": 200,
    "kernels": 60,
}
"""Parts (functions of `benchmarks.gpu_parts`) and the most seconds that each may take."""
THREADS = max(1, len(os.sched_getaffinity(0)) // 2)  # of a part; DataLoader workers have the others
LEAST_SECONDS = 20  # that a part is started with
SHOWN = 15  # lines of a part that failed
RESULTS, LOG = "gpu.json", "gpu.log"


@dataclass(frozen=True)
class Target:
    """What is asked of a fact of a part, or of the better one of two parts."""

    what: str
    parts: Sequence[str]
    fact: str
    least: float | None = None
    most: float | None = None

    def reached(self, facts: Mapping[str, Mapping[str, Any]]) -> str:
        """A row of the table: the best of the parts that were measured."""
        found = {part: facts[part][self.fact] for part in self.parts if facts.get(part, {}).get(self.fact) is not None}
        asked = f"at least {self.least}" if self.least is not None else f"at most {self.most}"
        if not found:
            return f"| {self.what} | {asked} | not measured | |"
        part = (max if self.least is not None else min)(found, key=lambda name: found[name])
        value = found[part]
        met = value >= self.least if self.least is not None else value <= (self.most or 0)
        return f"| {self.what} | {asked} | {value} ({part}) | {'met' if met else 'missed'} |"


TARGETS = [
    Target("one-step training, steps a second", ("one_step", "one_step_compiled"), "steps_per_second", least=15),
    Target("one-step training, images a second", ("one_step", "one_step_compiled"), "images_per_second", least=60),
    Target("share of the time that the GPU is busy", ("one_step", "one_step_compiled"), "busy_share", least=0.9),
    Target("peak memory of one-step training, GiB", ("one_step", "one_step_compiled"), "peak_reserved_gib", most=11),
    Target("step two, 20,000 steps, minutes", ("step_two", "step_two_compiled"), "minutes_for_20000_steps", most=60),
    Target("evaluation of 1,449 photos, minutes", ("evaluation",), "minutes_for_1449_photos", most=5),
]


class Results:
    """DIR/gpu.json: results by part, those of another machine or another size left out."""

    def __init__(self, folder: Path, machine: Mapping[str, Any], again: bool) -> None:
        self._path, self._machine = folder / RESULTS, machine
        self._by_part: dict[str, list[dict[str, Any]]] = {}
        if self._path.is_file() and not again:
            self._take(json.loads(self._path.read_text()))

    def _take(self, written: Mapping[str, Any]) -> None:
        same = all(written["machine"][name] == self._machine[name] for name in ("gpu", "processor", "packages"))
        if written["format"] != FORMAT or not same:
            print(f"benchmarks.gpu: {self._path} is of another machine: measured anew", flush=True)
            return
        for each in written["results"]:
            self._by_part.setdefault(each["facts"]["part"], []).append(each)

    def __contains__(self, part: str) -> bool:
        return part in self._by_part and not any("failed" in each["facts"] for each in self._by_part[part])

    def add(self, part: str, found: list[dict[str, Any]]) -> None:
        """Keep a part's results and write the file."""
        self._by_part[part] = [{**each, "facts": {"part": part, **each["facts"]}} for each in found]
        results = [each for name in PARTS for each in self._by_part.get(name, [])]
        put(self._path, results, self._machine)

    def summary(self) -> str:
        """All tables, and what was asked for beside what was reached."""
        results = [each for found in self._by_part.values() for each in found]
        facts = {each["facts"]["part"]: each["facts"] for each in results}
        failed = [f"{part}: {each['failed']}" for part, each in facts.items() if "failed" in each]
        rows = ["| what | asked | reached | |", "|---|---|---|---|", *(target.reached(facts) for target in TARGETS)]
        return "\n\n".join(["\n".join(part) for part in ([markdown(results)], rows, failed) if part])


def run_part(part: str, limit: float, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Results of a part's process; its end by a signal, an error or the limit is a result too."""
    with tempfile.TemporaryDirectory() as folder, (asked.out / LOG).open("ab") as log:
        into = Path(folder) / "part.json"
        command = [sys.executable, "-m", "benchmarks.gpu", "--part", part, "--out", str(into), "--seconds", str(limit)]
        command += ["--device", asked.device, "--workers", str(asked.workers), *(["--quick"] if asked.quick else [])]
        command += ["--photos", str(asked.photos)] if asked.photos else []
        log.write(f"\n===== {part}, at most {limit:.0f} s\n".encode())
        log.flush()
        begin = log.tell()
        ended = ended_within(command, limit, log)
        if ended == "" and into.is_file():
            found: list[dict[str, Any]] = json.loads(into.read_text())["results"]
            return found
    lines = (asked.out / LOG).read_bytes()[begin:].decode(errors="replace").splitlines()[-SHOWN:]
    print("\n".join(lines), flush=True)
    return [{"case": part, "facts": {"failed": ended or "it wrote no results", "last_lines": lines}, "sides": {}}]


def ended_within(command: Sequence[str], limit: float, log: Any) -> str:
    """Run a process and all that it starts; gives what was wrong, nothing if it succeeded in time."""
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, process_group=0)
    try:
        status = process.wait(limit)
    except subprocess.TimeoutExpired:
        return f"not done after {limit:.0f} s"
    finally:
        _end_group(process)
    return "" if status == 0 else f"it ended with {status}"


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def measure(asked: argparse.Namespace) -> None:
    """All parts that were asked for and are not there yet."""
    deadline = time.monotonic() + asked.seconds
    asked.out.mkdir(parents=True, exist_ok=True)
    results = Results(asked.out, machine(asked), asked.again)
    for part in [name for name in PARTS if name in asked.parts]:
        left = deadline - time.monotonic()
        if part in results:
            print(f"benchmarks.gpu: {part} is there already", flush=True)
        elif left < LEAST_SECONDS:
            print(f"benchmarks.gpu: no time left for {part}: the same command goes on with it", flush=True)
        else:
            begin = time.monotonic()
            limit = left if asked.quick else min(left, PARTS[part])
            results.add(part, run_part(part, limit, asked))
            print(f"benchmarks.gpu: {part}, {time.monotonic() - begin:.0f} s", flush=True)
    print(results.summary(), flush=True)


def machine(asked: argparse.Namespace) -> dict[str, Any]:
    """What `metadata` says, from a process that ends: this one takes no memory of the GPU."""
    code = f"import json; from benchmarks.harness import metadata; print(json.dumps(metadata({THREADS}, 0)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if asked.device == "cuda" and facts["gpu"] is None:
        raise SystemExit("benchmarks.gpu: expected a GPU, torch sees none: --device cpu --quick shows that parts work")
    return facts


def measure_part(part: str, asked: argparse.Namespace) -> None:
    """One part, in its own process."""
    from benchmarks import gpu_parts
    from rrm.parallel import prepare_process

    prepare_process(THREADS)
    how = gpu_parts.Asked(asked.device, asked.quick, asked.photos, asked.workers, asked.seconds)
    work: Callable[[gpu_parts.Asked], list[dict[str, Any]]] = getattr(gpu_parts, part)
    put(asked.out, work(how), metadata(THREADS, 0))


def main(given: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu.json and gpu.log")
    parser.add_argument("--photos", type=Path, help="folder of JPEG files, at least 12; default: made photos")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny networks and photos")
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS), help="default: all")
    parser.add_argument("--seconds", type=float, default=840, help="for all parts together (default: 840)")
    workers = min(12, len(os.sched_getaffinity(0)) - 1)
    parser.add_argument("--workers", type=int, default=workers, help=f"DataLoader workers (default here: {workers})")
    parser.add_argument("--again", action="store_true", help="measure anew what is there")
    parser.add_argument("--part", choices=tuple(PARTS), help=argparse.SUPPRESS)
    asked = parser.parse_args(given)
    if asked.part:
        measure_part(asked.part, asked)
    else:
        measure(asked)


if __name__ == "__main__":
    main()
