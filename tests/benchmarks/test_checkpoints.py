"""What checkpoints cost is measured with the loop that trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from benchmarks import checkpoints

TINY = ["--network", '{"width": 0.0625, "head_dilation": 2}', "--crop", "32", "--batch-size", "2"]


def test_checkpoints_are_timed_beside_the_steps_they_cover(
    tmp_path: Path, schema: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "prepare_process", lambda threads: None)
    out = tmp_path / "out.json"
    checkpoints.main(["--threads", "1", "--repeats", "2", "--warmup", "1", "--out", str(out), *TINY])
    written = json.loads(out.read_text())
    jsonschema.validate(written, schema)
    (result,) = written["results"]
    steps, waited, on_disk, read = result["sides"].values()
    assert next(iter(result["sides"])) == "200 steps"
    assert 0 < waited["median_ms"] < on_disk["median_ms"] and read["median_ms"] > 0
    share = on_disk["median_ms"] / steps["median_ms"]
    assert result["facts"]["share_written"] == pytest.approx(share, rel=0.01, abs=1e-6)
    assert result["facts"]["bytes"] > 4 * 2 * 1000  # weights and momentum
