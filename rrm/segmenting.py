"""What `rrm segment` does: photos of files, folders and patterns, segmented one after the other into a folder.

A call that was stopped goes on where it was: what is there is not made again (`rrm.segment_files`).
"""

from __future__ import annotations

import glob
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rrm.datasets.voc import VocLayout, collect_faults, raise_faults
from rrm.errors import RRMError
from rrm.photos import MAX_PIXELS, SUFFIXES, read_photo
from rrm.progress import tracked
from rrm.provenance import file_digest, module_hash
from rrm.segment_files import Folder, Output, Probabilities, Source, outputs_of
from rrm.segmenter import TILE, Segmenter, check_long_side, checked_views
from rrm.tiling import check_tile


@dataclass(frozen=True)
class Options:
    """How photos are segmented, and what is written.

    Attributes:
        write: some of `rrm.segment_files.KINDS`.
        crf, scales, flip, merge, long_side, tile, max_pixels: as for `Segmenter.predict`.
        labels: CSV file `image,labels` with the image-level labels of every photo, or None.
        overlay_format: "jpg" or "png".

    Raises:
        RRMError: scales, merge, long_side or tile out of range.
    """

    write: tuple[str, ...] = ("masks", "overlays")
    crf: bool = True
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    merge: str = "mean"
    long_side: int | None = None
    tile: int | None = TILE
    max_pixels: int = MAX_PIXELS
    labels: Path | None = None
    overlay_format: str = "jpg"

    def __post_init__(self) -> None:
        checked_views(self.scales, self.flip, self.merge)
        check_long_side(self.long_side)
        check_tile(self.tile)

    def views(self) -> dict[str, Any]:
        """The options of `Segmenter.predict` that change its result."""
        names = ("crf", "scales", "flip", "merge", "long_side", "tile")
        return {name: getattr(self, name) for name in names}

    def identity(self) -> dict[str, Any]:
        """All that the content of a file depends on, beside the model and the photo."""
        labels = None if self.labels is None else file_digest(self.labels)
        return {**self.views(), "scales": list(self.scales), "labels": labels, "overlay_format": self.overlay_format}


def find_photos(inputs: Sequence[str], out: Path, faults: list[str]) -> list[Source]:
    """Photos of files, of folders and all below them, and of patterns, each once, in the order of the inputs.

    Args:
        inputs: paths and patterns.
        out: a folder that is left out, with hidden files and folders.
        faults: messages on inputs that are not there are appended.

    Raises:
        RRMErrors: photos whose outputs would have the same name.
    """
    found: dict[Path, Source] = {}
    for text in inputs:
        sources = list(_matching(text, out.resolve()))
        if not sources:
            faults.append(f"{text}: expected a photo, a folder with photos or a pattern, got none: check the path")
        for source in sources:
            found.setdefault(source.path.resolve(), source)
    paths: dict[str, list[str]] = defaultdict(list)
    for source in found.values():
        paths[source.name].append(str(source.path))
    raise_faults(
        "names of photos",
        [
            f"{name}: expected one photo of this name, got {', '.join(same)}: rename them, or use several folders"
            for name, same in paths.items()
            if len(same) > 1
        ],
    )
    return list(found.values())


def _matching(text: str, out: Path) -> Iterator[Source]:
    path = Path(text)
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            below = file.relative_to(path)
            hidden = any(part.startswith(".") for part in below.parts)
            if file.suffix.lower() in SUFFIXES and not hidden and not file.resolve().is_relative_to(out):
                yield Source(below.with_suffix("").as_posix(), file)
    elif path.exists():
        yield Source(path.stem, path)
    elif glob.has_magic(text):
        files = map(Path, sorted(glob.glob(text, recursive=True)))  # noqa: PTH207 - patterns may be absolute
        yield from (Source(file.stem, file) for file in files if file.is_file())


class ImageLabels:
    """Image-level labels of photos from a CSV file `image,labels`.

    Args:
        path: the file; an image is named as its outputs are, or by its file's name.
        classes: names of the foreground classes.

    Raises:
        RRMErrors: every fault of the file's lines.
    """

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        if not path.is_file():
            raise RRMError(f"labels: expected a CSV file `image,labels`, got none at {path}: check the path")
        self.path, self.classes = path, tuple(classes)
        self._layout = VocLayout(path.parent, self.classes, labels=path.name)
        raise_faults(f"labels {path}", self._layout.list_faults(()))

    def of(self, source: Source) -> list[str]:
        """Names of the classes of a photo.

        Raises:
            RRMError: the photo has no line. RRMErrors: names that are no classes.
        """
        for name in (source.name, source.path.name):
            present = self._layout.present(name)
            if present is not None:
                return [each for each, there in zip(self.classes, present, strict=True) if there]
        raise RRMError(f"{self.path}: expected a line for {source.name!r}, got none: add it, or leave labels out")


def segment(
    segmenter: Segmenter,
    digest: str,
    inputs: Sequence[str],
    out: Path,
    options: Options,
    *,
    overwrite: bool = False,
    log_seconds: float = 10.0,
) -> tuple[int, int]:
    """Segment photos into a folder; see the module.

    Args:
        segmenter: of `rrm.load`.
        digest: of its file, SHA-256.
        inputs: paths of photos and folders, and patterns.
        out: the folder of results.
        options: how, and what to write.
        overwrite: make all again, also what another model or other options made.
        log_seconds: least time between two lines of progress where there is no terminal.

    Returns:
        Photos segmented now, and photos whose results were there.

    Raises:
        RRMErrors: photos that could not be segmented; all others are done then.
        RRMError: no photos, results of another model or other options, faulty options.
    """
    faults: list[str] = []
    sources = find_photos(inputs, out, faults)
    labels = None if options.labels is None else ImageLabels(options.labels, segmenter.classes)
    if not sources:
        raise_faults("rrm segment", faults)
    identity = {
        "model": digest, "classes": list(segmenter.classes), "code": module_hash("rrm.segment_files"),
        "options": options.identity(),
    }  # fmt: skip
    folder = Folder(out, identity, overwrite)
    outputs = outputs_of(folder, identity, segmenter, options.write, options.overlay_format)
    todo = [source for source in sources if not all(output.has(source.name) for output in outputs)]
    there = len(sources) - len(todo)
    made = 0
    for source in tracked(todo, "segment", len(todo), log_seconds):
        made += collect_faults(faults, _segment_one, segmenter, source, labels, options, outputs) is not None
    for output in outputs:
        output.finish()
    raise_faults(f"{made} photos segmented, {there} were there already; of the others", faults)
    return made, there


def _segment_one(
    segmenter: Segmenter, source: Source, labels: ImageLabels | None, options: Options, outputs: Sequence[Output]
) -> Source:
    known = None if labels is None else labels.of(source)
    missing = [output for output in outputs if not output.has(source.name)]
    keep = any(isinstance(output, Probabilities) for output in missing)
    with _enough_memory(source):
        photo = read_photo(source.path, options.max_pixels)
        seen = segmenter.predict(
            photo, image_labels=known, probabilities=keep, max_pixels=options.max_pixels, **options.views()
        )
        for output in missing:
            output.write(source, photo, seen)
    return source


@contextmanager
def _enough_memory(source: Source) -> Iterator[None]:
    """Too little memory for one photo as that photo's fault."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        first = (str(error).splitlines() or ["MemoryError"])[0][:120]
        raise RRMError(
            f"{source.path}: expected enough memory, got {first}: use a smaller tile, or fewer scales"
        ) from None
