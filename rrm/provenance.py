"""What made a file: a content hash of the code of a stage, and digests of its inputs.

The hash of a stage covers the module `rrm.stages.<stage>` and every module of the package that it imports, directly or
not, with the tables and pages that lie beside such a module. It is taken over the syntax trees without docstrings, so
that comments, docs and layout change nothing. Modules that only carry values already in a stage's options
(configuration, recipes) or only report (errors) are left out.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_DATA = {".css", ".csv", ".html", ".js"}
PACKAGE = Path(__file__).resolve().parent
_NOT_CODE_OF_A_STAGE = {"rrm", "rrm.config", "rrm.recipes", "rrm.errors", "rrm.provenance", "rrm.cli"}


def _file_of(module: str) -> Path | None:
    base = PACKAGE.parent.joinpath(*module.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@cache
def _tree(path: Path) -> ast.Module:
    """Syntax tree of a module, without docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return tree


@cache
def _source(path: Path) -> str:
    """What of a module counts: its syntax tree in one layout."""
    return ast.unparse(_tree(path))


@cache
def _imports(path: Path) -> tuple[str, ...]:
    """What a module imports, anywhere in it."""
    return tuple(_imported(_tree(path)))


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules_of(module: str) -> list[str]:
    """The package's modules that `module` imports, itself included, sorted.

    Example:
        >>> modules_of("rrm.schedules")
        ['rrm.schedules']
    """
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _file_of(name) if name == "rrm" or name.startswith("rrm.") else None
        if name in found or name in _NOT_CODE_OF_A_STAGE or path is None:
            continue
        found.add(name)
        waiting.extend(_imports(path))
    return sorted(found)


@cache
def code_hash(stage: str) -> str:
    """Content hash of a stage's code, 16 hexadecimal digits.

    Args:
        stage: name of a module of `rrm.stages`, such as `"one_step"`.
    """
    return module_hash(f"rrm.stages.{stage}")


@cache
def module_hash(name: str) -> str:
    """Content hash of a module and all that it imports from the package, 16 hexadecimal digits.

    Args:
        name: of the module, such as `"rrm.segmenter"`.
    """
    digest = hashlib.sha256()
    for module in modules_of(name):
        path = _file_of(module)
        assert path is not None
        digest.update(f"{module}\n{_source(path)}\n".encode())
        for data in _data_of(path):
            digest.update(f"{data.name}\n{file_digest(data)}\n".encode())
    return digest.hexdigest()[:16]


def _data_of(path: Path) -> list[Path]:
    """The files that a package below this one ships beside its modules: tables, pages."""
    if path.name != "__init__.py" or path.parent == PACKAGE:
        return []
    return sorted(file for file in path.parent.iterdir() if file.suffix in _DATA)


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
