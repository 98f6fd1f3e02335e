"""The order of the modules follows the data: none imports a later one."""

from __future__ import annotations

import ast
from pathlib import Path

import rrm

PACKAGE = Path(rrm.__file__).parent
ORDER = [
    "errors",
    "limits",
    "labels",
    "recipes",
    "config",
    "key_page",
    "provenance",
    "pipeline",
    "progress",
    "alive",
    "store",
    "usage",
    "torch_files",
    "parallel",
    "shards",
    "lease",
    "distributed",
    "datasets",
    "networks",
    "gaussian",
    "crf",
    "cam",
    "regions",
    "terms",
    "losses",
    "em_adapt",
    "seeds",
    "sec",
    "affinity",
    "schedules",
    "training",
    "tasks",
    "method_tasks",
    "inference",
    "export",
    "logistic",
    "metrics",
    "significance",
    "reported",
    "tables",
    "figures",
    "submission",
    "pages",
    "gallery",
    "stages",
    "photos",
    "videos",
    "tiling",
    "annotations",
    "segmenter",
    "segment_files",
    "segmenting",
    "photo_checks",
    "own_project",
    "own_data",
    "own_masks",
    "cost",
    "rates",
    "plan",
    "doctor",
    "cli",
    "preload",
    "__main__",
    "__init__",
]


def _first_parts(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "rrm" else [f"rrm.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("rrm.")}
    return found


def test_every_module_has_a_place() -> None:
    names = {
        path.stem if path.is_file() else path.name
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert names == set(ORDER)


def test_no_module_imports_a_later_one() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        later = [other for other in _first_parts(path) if ORDER.index(other) > ORDER.index(name)]
        wrong += [f"{path.name} imports rrm.{other}" for other in later]
    assert wrong == []
