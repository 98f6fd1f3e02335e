"""The page of the stored figures (`benchmarks/measured/*.json`), with all that they depend on.

make bench PHOTOS=folder BENCH=benchmarks/measured
python -m benchmarks.measured > docs/measured.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness import markdown

STORED = Path(__file__).parent / "measured"
HEAD = """# Measured

What `make bench` measured and stored, as it stands in `benchmarks/measured/`: one file a benchmark
([what each compares](benchmarks.md)). The page is made of the files by `python -m benchmarks.measured`. Times are
medians and quartiles of sides that took turns; "times faster" is against the first side of the case.
"""


def page() -> str:
    """The text of the page."""
    return "\n".join([HEAD, *map(section, sorted(STORED.glob("*.json")))])


def section(path: Path) -> str:
    """A stored file: the machine and the tables."""
    stored = json.loads(path.read_text())
    return f"## {path.stem}\n\n{told(stored['machine'])}\n\n{markdown(stored['results'])}\n"


def told(machine: Mapping[str, Any]) -> str:
    """What the figures of a file depend on, as a sentence."""
    where = machine["gpu"] or f"{machine['processor']}, {machine['cores']} core(s)"
    how = f"{machine['threads']} thread(s) and {machine['busy_processes']} other busy process(es)"
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    return f"{machine['time'][:10]}, {where}, {how}; Python {machine['python']}, {packages}."


if __name__ == "__main__":
    print(page(), end="")
