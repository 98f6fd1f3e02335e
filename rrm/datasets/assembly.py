"""The folder that a data set is assembled into: whole or not there, with a manifest that says what it is made of.

Files are written to a folder of another name beside it, which is renamed at the end. A run that was killed leaves
that one behind; the same command removes it and starts afresh.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rrm.errors import RRMError
from rrm.provenance import file_digest

MANIFEST = "manifest.json"
FORMAT = 1
LISTS = "ImageSets/Segmentation"
_MARK = ".assembled"  # stays where a workflow removes the manifest


def named_size(path: Path) -> dict[str, Any]:
    """What a source is recognised by, without reading it: name and, of a file, its size in bytes.

    Example:
        >>> named_size(Path("/data/VOCdevkit"))
        {'name': 'VOCdevkit'}
    """
    return {"name": path.resolve().name} | ({"bytes": path.stat().st_size} if path.is_file() else {})


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of an assembled data set; None where there is none that can be read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return manifest if isinstance(manifest, dict) else None


def is_assembled(folder: Path, made_of: Mapping[str, Any]) -> bool:
    """Whether the folder holds the data set made of exactly this, with the lists that it was made with.

    Args:
        folder: where it is or will be.
        made_of: sources and options, JSON-serialisable.
    """
    manifest = read_manifest(folder) or {}
    lists = manifest.get("lists")
    if manifest.get("format") != FORMAT or manifest.get("made_of") != made_of or not isinstance(lists, dict):
        return False
    paths = {name: folder / LISTS / f"{name}.txt" for name in lists}
    return all(path.is_file() and file_digest(path) == lists[name]["sha256"] for name, path in paths.items())


def refuse_occupied(folder: Path, *, replace: bool = False) -> None:
    """Refuse to write into a folder that holds anything.

    Args:
        folder: where a data set is to be made.
        replace: allow a folder that this module made, whatever became of its manifest.

    Raises:
        RRMError: it is a file, or a folder with something in it.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    ours = (folder / _MARK).is_file()
    if not (replace and ours):
        holds = "a data set made of other sources or changed since" if ours else "something else"
        raise RRMError(f"{folder}: expected a new or an empty folder, got {holds}: remove it or name another folder")


@contextmanager
def new_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give an empty folder beside `folder`; it takes its place when the block ends well, else it is removed.

    Args:
        folder: a path without links and dots, new or empty.
        replace: remove a folder that this module made.

    Raises:
        RRMError: `refuse_occupied`, when the block has ended.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "data"
        >>> with new_folder(folder) as partial:
        ...     _ = (partial / "a.txt").write_text("a")
        >>> [path.name for path in folder.parent.iterdir()], sorted(path.name for path in folder.iterdir())
        (['data'], ['.assembled', 'a.txt'])
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        (partial / _MARK).touch()
        yield partial
        refuse_occupied(folder, replace=replace)
        if replace:
            shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_lists(folder: Path, lists: Mapping[str, Sequence[str]]) -> None:
    """Write `ImageSets/Segmentation/<name>.txt`, one id a line."""
    (folder / LISTS).mkdir(parents=True, exist_ok=True)
    for name, ids in lists.items():
        (folder / LISTS / f"{name}.txt").write_text("".join(f"{each}\n" for each in ids), encoding="utf-8")


def write_manifest(folder: Path, made_of: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write the manifest: what the data set is made of, facts about it, its lists, and a digest of its files.

    Args:
        folder: the data set, all of whose other files are there.
        made_of: sources and options (`is_assembled`).
        facts: what else is worth knowing, JSON-serialisable.
    """
    lists = {
        path.stem: {"photos": len(path.read_text(encoding="utf-8").split("\n")) - 1, "sha256": file_digest(path)}
        for path in sorted((folder / LISTS).iterdir())
    }
    files = sorted((path.relative_to(folder).as_posix(), path.stat().st_size) for path in _files(folder))
    digest = hashlib.sha256("".join(f"{name} {size}\n" for name, size in files).encode()).hexdigest()
    manifest = {
        "format": FORMAT,
        "made_of": made_of,
        **facts,
        "lists": lists,
        "files": {"number": len(files), "names_and_sizes_sha256": digest},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())
