"""Photos a second: all sides segment the same photos, and what is written fits the schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from benchmarks import segmenting

TINY = segmenting.Case(2, (40, 24), 4, {"kind": "rrm", "backbone": "resnet38", "width": 1 / 16, "units": (1, 1, 1, 1)})


def test_figures_fit_the_schema(
    tmp_path: Path, folder: Path, schema: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmenting, "CASES", {"tiny": TINY})
    monkeypatch.setattr(segmenting, "MADE", 4)
    monkeypatch.setattr(segmenting, "prepare_process", lambda threads: None)
    out = tmp_path / "out.json"
    segmenting.main(["--threads", "1", "--repeats", "2", "--photos", str(folder), "--out", str(out)])
    written = json.loads(out.read_text())
    jsonschema.validate(written, schema)
    (result,) = written["results"]
    assert tuple(result["sides"]) == segmenting.SIDES
    assert all(side["per_second"]["photos"] > 0 for side in result["sides"].values())


def test_batches_hold_all_photos_in_order() -> None:
    images = [np.full((2, 5, 3), number, np.uint8) for number in range(5)]
    found = list(segmenting.batches(images, 20))
    assert [len(batch) for batch in found] == [2, 2, 1]
    assert [int(image[0, 0, 0]) for batch in found for image in batch] == [0, 1, 2, 3, 4]
