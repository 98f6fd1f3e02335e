"""What `rrm segment` does: photos of files, folders and patterns, segmented one after the other into a folder.

The folder holds `segment.json`, which says by which model and options its files were made. A call that was stopped goes
on where it was: files that are there, and not older than `segment.json`, are not made again.
"""

from __future__ import annotations

import glob
import io
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from rrm.annotations import coco_dataset, coco_regions, labelme
from rrm.datasets.voc import VocLayout, collect_faults, encode_mask, raise_faults
from rrm.errors import RRMError
from rrm.inference import for_storage
from rrm.photos import MAX_PIXELS, SUFFIXES, Photo, read_photo
from rrm.progress import tracked
from rrm.provenance import file_digest, module_hash
from rrm.segmenter import TILE, Prediction, Segmenter
from rrm.store import Store, StoreWriter, atomic_path

WRITE = ("masks", "overlays", "probabilities", "polygons", "rle")
MANIFEST = "segment.json"


@dataclass(frozen=True)
class Source:
    """A photo to segment: where it is, and the name of its outputs, without a suffix."""

    name: str
    path: Path


@dataclass(frozen=True)
class Options:
    """How photos are segmented, and what is written.

    Attributes:
        write: some of `WRITE`.
        crf, scales, flip, merge, tile, max_pixels: as for `Segmenter.predict`.
        labels: CSV file `image,labels` with the image-level labels of every photo, or None.
        overlay_format: "jpg" or "png".
    """

    write: tuple[str, ...] = ("masks", "overlays")
    crf: bool = True
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    merge: str = "mean"
    tile: int | None = TILE
    max_pixels: int = MAX_PIXELS
    labels: Path | None = None
    overlay_format: str = "jpg"

    def views(self) -> dict[str, Any]:
        """The options of `Segmenter.predict` that change its result."""
        return {
            "crf": self.crf, "scales": list(self.scales), "flip": self.flip, "merge": self.merge, "tile": self.tile,
        }  # fmt: skip

    def identity(self) -> dict[str, Any]:
        """All that the content of a file depends on, beside the model and the photo."""
        labels = None if self.labels is None else file_digest(self.labels)
        return {**self.views(), "labels": labels, "overlay_format": self.overlay_format}


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
        sources = list(_matching(text, out))
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
            if file.suffix.lower() in SUFFIXES and not hidden and not file.resolve().is_relative_to(out.resolve()):
                yield Source(below.with_suffix("").as_posix(), file)
    elif path.exists():
        yield Source(path.stem, path)
    elif glob.has_magic(text):
        files = (Path(match) for match in sorted(glob.glob(text, recursive=True)))  # noqa: PTH207 - an absolute pattern too
        yield from (Source(file.stem, file) for file in files if file.is_file())


class Folder:
    """The folder of results: what made it, and which of its files count.

    Args:
        path: the folder; it is made when it is missing.
        identity: of model and options, JSON-serialisable.
        overwrite: let the folder be of this identity from now on; files of before do not count any more.

    Raises:
        RRMError: the folder holds results of another identity, or a damaged `segment.json`.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], overwrite: bool) -> None:
        self.path, self.manifest = path, path / MANIFEST
        if overwrite or not self.manifest.exists():
            with atomic_path(self.manifest) as temporary:
                temporary.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
        else:
            self._compare(identity)
        self._since = self.manifest.stat().st_mtime_ns

    def _compare(self, identity: Mapping[str, Any]) -> None:
        try:
            before = dict(json.loads(self.manifest.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise RRMError(f"{self.manifest}: expected JSON of rrm segment, got {error}: use --overwrite") from error
        different = [key for key in {**identity, **before} if before.get(key) != identity.get(key)]
        if different:
            changes = "; ".join(f"{key} {before.get(key)!r}, now {identity.get(key)!r}" for key in different)
            raise RRMError(
                f"{self.path}: expected a new folder or one of the same model and options, got results of others "
                f"({changes}): choose another --out, or make all again with --overwrite"
            )

    def counts(self, path: Path) -> bool:
        """True if a file is there and was made by this model and these options."""
        return path.is_file() and path.stat().st_mtime_ns >= self._since


class Output(Protocol):
    """One kind of output."""

    def has(self, name: str) -> bool:
        """True if a photo needs nothing more."""

    def write(self, source: Source, photo: Photo, seen: Prediction) -> None:
        """Write what belongs to one photo."""

    def finish(self) -> None:
        """Write what belongs to all."""


@dataclass(frozen=True)
class Files:
    """A file a photo, in a folder of its own."""

    folder: Folder
    kind: str
    suffix: str
    encode: Callable[[Source, Photo, Prediction], bytes]

    def path(self, name: str) -> Path:
        """The file of a photo."""
        return self.folder.path / self.kind / f"{name}{self.suffix}"

    def has(self, name: str) -> bool:
        return self.folder.counts(self.path(name))

    def write(self, source: Source, photo: Photo, seen: Prediction) -> None:
        with atomic_path(self.path(source.name)) as temporary:
            temporary.write_bytes(self.encode(source, photo, seen))

    def finish(self) -> None:
        """Nothing: each photo has its file."""


@dataclass(frozen=True)
class RunLengths:
    """COCO's run lengths: a file a photo below `rle/`, and all photos of the folder in `rle.json`."""

    files: Files
    classes: tuple[str, ...]

    def has(self, name: str) -> bool:
        return self.files.has(name)

    def write(self, source: Source, photo: Photo, seen: Prediction) -> None:
        self.files.write(source, photo, seen)

    def finish(self) -> None:
        folder = self.files.folder
        parts = [path for path in sorted((folder.path / self.files.kind).rglob("*.json")) if folder.counts(path)]
        records = (json.loads(path.read_text(encoding="utf-8")) for path in parts)
        dataset = coco_dataset({record["file_name"]: record for record in records}, self.classes)
        with atomic_path(folder.path / "rle.json") as temporary:
            temporary.write_bytes(_json(dataset))


@dataclass(frozen=True)
class Probabilities:
    """Probabilities of all photos of the folder in one store; until the end those of each photo in a store of its own.

    Record: `probabilities` (C+1,H,W) float16. A store has the attributes `classes` and `trained`, as that of the stage
    `predict`.
    """

    folder: Folder
    identity: Mapping[str, Any]
    attrs: Mapping[str, Any]

    @property
    def store(self) -> Path:
        """The file of all photos."""
        return self.folder.path / "probabilities.h5"

    def _part(self, name: str) -> Path:
        return self.folder.path / "probabilities" / f"{name}.h5"

    def _writer(self, path: Path) -> StoreWriter:
        return StoreWriter(path, "probabilities", self.identity, str(self.identity["code"]), self.attrs)

    @cached_property
    def _before(self) -> Store | None:
        return Store(self.store, "probabilities") if self.folder.counts(self.store) else None

    def has(self, name: str) -> bool:
        return self.folder.counts(self._part(name)) or (self._before is not None and name in self._before)

    def write(self, source: Source, photo: Photo, seen: Prediction) -> None:
        with self._writer(self._part(source.name)) as writer:
            writer.add(source.name, {"probabilities": for_storage(seen.probabilities)})

    def finish(self) -> None:
        parts = [
            part for part in sorted((self.folder.path / "probabilities").rglob("*.h5")) if self.folder.counts(part)
        ]
        if not parts:
            return
        new = {store.ids[0]: store for store in (Store(part, "probabilities") for part in parts)}
        before = () if self._before is None else self._before.ids
        with self._writer(self.store) as writer:
            for name in sorted({*before, *new}):
                store = new.get(name, self._before)
                assert store is not None
                writer.add(name, store[name])
                store.close()
        for part in parts:
            part.unlink()


def _outputs(folder: Folder, segmenter: Segmenter, options: Options, identity: Mapping[str, Any]) -> list[Output]:
    classes = segmenter.classes

    def polygons(source: Source, photo: Photo, seen: Prediction) -> bytes:
        del photo
        below = (folder.path / "polygons" / source.name).parent.resolve()
        return _json(labelme(seen.labels, classes, os.path.relpath(source.path.resolve(), below)))

    def regions(source: Source, photo: Photo, seen: Prediction) -> bytes:
        file_name = f"{source.name}{source.path.suffix}"
        return _json({"file_name": file_name, "size": list(photo.shape[:2]), "regions": coco_regions(seen.labels)})

    def overlay(source: Source, photo: Photo, seen: Prediction) -> bytes:
        del source
        buffer = io.BytesIO()
        kind, how = {"jpg": ("JPEG", {"quality": 90}), "png": ("PNG", {})}[options.overlay_format]
        Image.fromarray(seen.overlay(photo)).save(buffer, kind, **how)
        return buffer.getvalue()

    makers: dict[str, Callable[[], Output]] = {
        "masks": lambda: Files(folder, "masks", ".png", lambda _source, _photo, seen: encode_mask(seen.labels)),
        "overlays": lambda: Files(folder, "overlays", f".{options.overlay_format}", overlay),
        "polygons": lambda: Files(folder, "polygons", ".json", polygons),
        "rle": lambda: RunLengths(Files(folder, "rle", ".json", regions), classes),
        "probabilities": lambda: Probabilities(
            folder, identity, {"classes": list(classes), "trained": dict(segmenter.facts)}
        ),
    }
    return [makers[kind]() for kind in WRITE if kind in options.write]


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()


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
        "model": digest, "classes": list(segmenter.classes), "code": module_hash("rrm.segmenter"),
        "options": options.identity(),
    }  # fmt: skip
    folder = Folder(out, identity, overwrite)
    outputs = _outputs(folder, segmenter, options, identity)
    todo = [source for source in sources if not all(output.has(source.name) for output in outputs)]

    def done(source: Source) -> bool:
        known = None if labels is None else labels.of(source)
        _segment_one(segmenter, source, known, options, outputs)
        return True

    made = sum(
        bool(collect_faults(faults, done, source)) for source in tracked(todo, "segment", len(todo), log_seconds)
    )
    for output in outputs:
        output.finish()
    raise_faults(f"{made} photos segmented, {len(sources) - len(todo)} were there already; of the others", faults)
    return made, len(sources) - len(todo)


def _segment_one(
    segmenter: Segmenter, source: Source, labels: Sequence[str] | None, options: Options, outputs: Sequence[Output]
) -> None:
    photo = read_photo(source.path, options.max_pixels)
    keep = any(isinstance(output, Probabilities) for output in outputs)
    with _enough_memory(source):
        seen = segmenter.predict(
            photo, image_labels=labels, probabilities=keep, max_pixels=options.max_pixels, **options.views()
        )
        for output in outputs:
            if not output.has(source.name):
                output.write(source, photo, seen)


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
