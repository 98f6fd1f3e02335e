"""Pages of the site: those that the navigation names and that are there, then all others."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def on_config(config: Any) -> None:
    """Called by MkDocs once it has read its configuration; `nav` is a list of pages and of mappings by title."""
    folder = Path(config.docs_dir)
    named: set[str] = set()
    kept = _existing(config.nav, folder, named)
    rest = sorted(page for path in folder.rglob("*.md") if (page := path.relative_to(folder).as_posix()) not in named)
    config.nav = [*kept, *[{"More": rest}] * bool(rest)]


def _existing(entries: list[Any], folder: Path, named: set[str]) -> list[Any]:
    """The entries whose pages are there; their names go to `named`."""
    kept = []
    for entry in entries:
        title, target = next(iter(entry.items()))
        if isinstance(target, list):
            kept.append({title: _existing(target, folder, named)})
        elif (folder / target).is_file():
            named.add(target)
            kept.append(entry)
    return kept
