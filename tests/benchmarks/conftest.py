"""The schema that all benchmarks' files have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def schema() -> dict[str, Any]:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "schema.json"
    return json.loads(path.read_text())
