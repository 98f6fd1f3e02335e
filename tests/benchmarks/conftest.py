"""The schema that all benchmarks' files have, and photos made quickly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def schema() -> dict[str, Any]:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "schema.json"
    return json.loads(path.read_text())


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(4):
        coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize((96, 80), Image.Resampling.BICUBIC).save(made / f"{number}.jpg")
    return made
