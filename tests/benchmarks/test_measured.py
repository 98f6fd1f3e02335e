"""The stored figures: of the benchmarks that there are, of the schema, and shown as they are."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import jsonschema
import pytest

from benchmarks import measured
from tests.workflow.project import REPOSITORY

FILES = sorted(measured.STORED.glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_stored_files_are_of_a_benchmark_and_of_the_schema(path: Any, schema: dict[str, Any]) -> None:
    stored = json.loads(path.read_text())
    jsonschema.validate(stored, schema)
    assert find_spec(f"benchmarks.{path.stem.rstrip('_0123456789')}")
    assert "/" not in json.dumps(stored["machine"])  # no folder of the machine where it was measured


def test_the_page_shows_the_stored_figures() -> None:
    assert FILES
    assert (REPOSITORY / "docs" / "measured.md").read_text() == measured.page(), (
        "python -m benchmarks.measured > docs/measured.md"
    )
