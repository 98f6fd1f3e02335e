"""`python -m tests.fuzz --inputs 100000 --seed 7`: fuzz readers, and say of each how many inputs it passed."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

_GUIDING = ["rrm", "PIL", "yaml", "tarfile", "zipfile", "gzip", "csv", "xml", "defusedxml"]
_READING = [
    "rrm.photos",
    "rrm.datasets.coco",
    "rrm.datasets.voc2012",
    "rrm.submission",
    "rrm.rates",
    "rrm.stages.trained",
]


def _instrumented(guided: bool) -> Any:
    """A context in which modules are imported so that they tell which of their lines run; needs atheris."""
    if not guided:
        return nullcontext()
    import atheris

    return atheris.instrument_imports(include=_GUIDING)


def _processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> int:
    """Fuzz; the exit code says whether all readers passed."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # processes are forked
    guided = "--guided" in sys.argv
    with _instrumented(guided):
        for name in _READING if guided else ():
            importlib.import_module(name)
        from tests.fuzz.engine import fuzz
        from tests.fuzz.readers import READERS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "--reader", nargs="+", choices=list(READERS), default=list(READERS), metavar="NAME", help=", ".join(READERS)
    )
    parser.add_argument(
        "--guided", action="store_true", help="mutate what reached new code (pip install -r requirements-fuzz.txt)"
    )
    parser.add_argument("--inputs", type=int, default=2000, help="inputs a reader (default 2,000)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="default: the time")
    parser.add_argument("--first", type=int, default=0, help="number of the first input, to repeat one")
    parser.add_argument("--keep", type=Path, help="folder for inputs that failed")
    asked = parser.parse_args()
    failed = 0
    for name in asked.reader:
        begin, failures = _processor_seconds(), []
        for failure in fuzz(name, asked.seed, asked.first, asked.inputs, guided=guided):
            failures.append(failure)
            print(f"FAILED {name} {failure.number}: {failure.what}")
            if asked.keep:
                asked.keep.mkdir(parents=True, exist_ok=True)
                (asked.keep / f"{name}-{asked.seed}-{failure.number}").write_bytes(failure.data)
        failed += len(failures)
        result = f"{asked.inputs - len(failures)} passed, {len(failures)} failed"
        print(f"{name}: {result}, seed {asked.seed}, {_processor_seconds() - begin:.1f} s of a processor", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
