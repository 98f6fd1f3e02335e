"""The benchmarks' harness and what it writes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from benchmarks.harness import busy_machine, compare, markdown, memory_summary, metadata, write


def test_slower_side_is_slower_and_rounds_alternate() -> None:
    turns: list[str] = []

    def side(name: str, seconds: float) -> None:
        turns.append(name)
        time.sleep(seconds)

    result = compare(
        "sleep",
        {"long": lambda: side("long", 0.02), "short": lambda: side("short", 0.002)},
        repeats=3,
        warmup=1,
        fact=1,
    )
    assert turns == ["long", "short"] * 4
    assert result["sides"]["long"]["speedup"] == 1
    assert result["sides"]["short"]["speedup"] > 2
    assert result["sides"]["long"]["q1_ms"] <= result["sides"]["long"]["median_ms"] <= result["sides"]["long"]["q3_ms"]
    assert result["facts"] == {"fact": 1}
    assert "| sleep | short |" in markdown([result])


def test_file_has_the_schema(tmp_path: Path, schema: dict[str, Any]) -> None:
    with busy_machine(1):
        results = [compare("nothing", {"one": lambda: sum(range(1000))}, repeats=2)]
    results.append({"case": "memory", "facts": {}, "sides": {"one": memory_summary([3.0, 2.0, 4.0], 6.0)}})
    write(tmp_path / "folder" / "out.json", results, metadata(threads=1, busy=1))
    written = json.loads((tmp_path / "folder" / "out.json").read_text())
    jsonschema.validate(written, schema)
    del written["machine"]["processor"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(written, schema)


def test_times_and_memory_have_tables_of_their_own() -> None:
    timed = compare("a", {"one": lambda: None}, repeats=2)
    held = {"case": "b", "facts": {}, "sides": {"two": memory_summary([1.0], 2.0)}}
    first, second = markdown([timed, held]).split("\n\n")
    assert "| a | one |" in first
    assert second.splitlines()[-1] == "| b | two | 1.0 | 1.0 to 1.0 | 0.50 |"
    assert markdown([held]) == second


def test_cases_run_and_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schema: dict[str, Any]) -> None:
    from benchmarks import filtering

    out = tmp_path / "out.json"
    arguments = ["filtering", "--threads", "1", "--repeats", "2", "--only", "crf-3", "--out", str(out)]
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.setattr(filtering, "prepare_process", lambda threads: None)
    filtering.main()
    written = json.loads(out.read_text())
    jsonschema.validate(written, schema)
    assert written["results"][0]["facts"]["largest_difference"] < 1e-4
