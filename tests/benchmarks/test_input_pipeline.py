"""Crops a second: both sides deliver crops, and what is written fits the schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from benchmarks import input_pipeline
from rrm.datasets.augmentation import TrainTransform
from rrm.datasets.loading import train_loader


@pytest.fixture(autouse=True)
def _few_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_pipeline, "PHOTOS", 4)


def test_both_sides_make_crops_of_the_same_photos(tmp_path: Path, folder: Path) -> None:
    files, store = input_pipeline.prepare(tmp_path, folder)
    theirs = input_pipeline.JpegCrops(files, 2)[1]
    assert theirs.shape == (3, 321, 321)
    assert theirs.dtype == torch.uint8
    transform = TrainTransform(crop=321, scale=(1, 1), scale_per="image")
    (ours,) = train_loader(store, None, "train", transform, batch_size=4, seed=0, start_step=0, steps=1)
    assert ours["images"].shape == (4, 3, 321, 321)
    assert sorted(ours["ids"]) == sorted(file.stem for file in files)


@pytest.mark.parametrize("workers", [0, 1])
def test_figures_fit_the_schema(workers: int, tmp_path: Path, folder: Path, schema: dict[str, Any]) -> None:
    out = tmp_path / "out.json"
    few = ["--workers", str(workers), "--batches", "1", "--repeats", "2", "--photos", str(folder)]
    input_pipeline.main([*few, "--out", str(out)])
    written = json.loads(out.read_text())
    jsonschema.validate(written, schema)
    (result,) = written["results"]
    assert all(side["per_second"]["crops"] > 0 for side in result["sides"].values())
