"""Peak memory: what is measured, and that each side runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from benchmarks import memory


def test_peak_counts_what_a_run_takes_and_nothing_before() -> None:
    before = np.ones(1 << 24)  # 128 MiB that are gone again, as after imports
    del before
    held = np.ones(1 << 22)

    def work() -> Any:
        temporary = np.ones(1 << 23)  # 64 MiB
        temporary = np.add(temporary, held[0])  # and again, before the first go
        return temporary[:1].copy()

    assert memory.peak_of(work, "cpu") == pytest.approx(128, abs=8)
    assert memory.peak_of(lambda: None, "cpu") < 8


def test_figures_are_of_fresh_processes(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, schema: dict[str, Any]
) -> None:
    small = memory.Case("CRF", 64, 56, 3)
    sides = {name: work for name, work in memory.cases("cpu")["crf-3"][1].items() if name == "pydensecrf"}
    monkeypatch.setattr(memory, "cases", lambda device: {"crf": (small, sides)})
    out = tmp_path / "out.json"
    memory.main(["--threads", "1", "--repeats", "1", "--photos", str(folder), "--out", str(out)])
    written = json.loads(out.read_text())
    jsonschema.validate(written, schema)
    (result,) = written["results"]
    assert 0 < result["sides"]["pydensecrf"]["peak_mib"] < 50
    assert result["sides"]["pydensecrf"]["ratio"] == 1


@pytest.mark.parametrize("name", ["crf-3", "crf-21", "energy"])
def test_every_side_runs(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.torch, "set_num_threads", lambda threads: None)
    case, sides = memory.cases("cpu")[name]
    small = memory.Case(case.name, 40, 33, case.classes, case.count)
    for work, device in sides.values():
        assert memory.measure(folder, small, work, 1, device) >= 0


def test_pydensecrf_alone_gives_what_ours_gives(folder: Path) -> None:
    image = memory.photos(folder, 1, 40, 33)
    scores = [memory.probabilities(3, 33, 40, 0)]
    (theirs,) = memory.crf_by_pydensecrf(image, scores, "psa", "cpu")()
    (ours,) = memory.crf_by_rrm(image, scores, "psa", "cpu")()
    np.testing.assert_allclose(theirs.reshape(ours.shape), ours, atol=1e-4)
