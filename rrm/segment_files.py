"""What `rrm segment` writes: a folder that knows what made it, and the kinds of files in it.

A file is written under a temporary name first, so it is whole or not there. Files count if they are not older than
`segment.json`, which is written when the folder is made and when it is overwritten.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from rrm.annotations import coco_dataset, coco_regions, geojson, labelme
from rrm.datasets.voc import encode_mask
from rrm.errors import RRMError
from rrm.inference import for_storage
from rrm.photos import Photo
from rrm.segmenter import Prediction, Segmenter
from rrm.store import Store, StoreWriter, atomic_path

KINDS = ("masks", "overlays", "polygons", "geojson", "rle", "photos", "probabilities")
MANIFEST = "segment.json"
_COLLECTED = ("rle.json", "probabilities.h5")
_LARGEST_RECORD = 2**32  # bytes; HDF5 compresses an array in one piece


@dataclass(frozen=True)
class Source:
    """A photo to segment, a video, or a frame of one.

    Attributes:
        name: of its outputs, without a suffix.
        path: of the file.
        number: of the frame, from 0 on; None: the file is a photo, or a whole video is meant.

    Example:
        >>> Source("sub/clip", Path("sub/clip.mp4")).frame(25)
        Source(name='sub/clip/000025', path=PosixPath('sub/clip.mp4'), number=25)
    """

    name: str
    path: Path
    number: int | None = None

    def frame(self, number: int) -> Source:
        """A frame of this video."""
        return Source(f"{self.name}/{number:06d}", self.path, number)

    @property
    def file_name(self) -> str:
        """Of the photo, seen from the folder that was segmented; of a frame, of its photo below `photos`."""
        return f"{self.name}{self.path.suffix if self.number is None else '.png'}"


class Folder:
    """The folder of results: what made it, and which of its files count.

    Args:
        path: the folder; it is made when it is missing.
        identity: of model and options, JSON-serialisable.
        overwrite: let the folder be of this identity from now on; files of before do not count any more.

    Raises:
        RRMError: the folder holds results of another identity, a damaged `segment.json`, or files of others in the
            places of results.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], overwrite: bool) -> None:
        self.path, self.manifest = path, path / MANIFEST
        if self.manifest.exists() and not overwrite:
            self._compare(identity)
        else:
            if not overwrite:
                self._spare_files_of_others()
            with atomic_path(self.manifest) as temporary:
                temporary.write_bytes(_json(identity))
        self._since = self.manifest.stat().st_mtime_ns

    def _spare_files_of_others(self) -> None:
        found = [name for name in (*KINDS[:-1], *_COLLECTED) if (self.path / name).exists()]
        if found:
            raise RRMError(
                f"{self.path}: expected a new folder or one of rrm segment, got {', '.join(found)} and no {MANIFEST}: "
                "choose another --out, or replace such files with --overwrite"
            )

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
class RunLengths(Files):
    """COCO's run lengths: a file a photo, and all photos of the folder in `rle.json`."""

    classes: tuple[str, ...] = ()

    def finish(self) -> None:
        parts = [path for path in sorted((self.folder.path / self.kind).rglob("*.json")) if self.folder.counts(path)]
        records = (json.loads(path.read_text(encoding="utf-8")) for path in parts)
        dataset = coco_dataset({record["file_name"]: record for record in records}, self.classes)
        with atomic_path(self.folder.path / "rle.json") as temporary:
            temporary.write_bytes(_json(dataset))


@dataclass(frozen=True)
class Probabilities:
    """Probabilities of all photos of the folder in one store; until the end those of each photo in one of its own.

    Record: `probabilities` (C+1,H,W) float16. The store has the attributes `classes` and `trained`, the latter as that
    of the stage `predict`.
    """

    folder: Folder
    identity: Mapping[str, Any]
    attrs: Mapping[str, Any]

    @property
    def store(self) -> Path:
        """The file of all photos."""
        return self.folder.path / "probabilities.h5"

    @property
    def parts(self) -> Path:
        """The folder of those that are not in it yet."""
        return self.folder.path / ".parts"

    def _writer(self, path: Path) -> StoreWriter:
        return StoreWriter(path, "probabilities", self.identity, str(self.identity["code"]), self.attrs)

    @cached_property
    def _before(self) -> Store | None:
        return Store(self.store, "probabilities") if self.folder.counts(self.store) else None

    def has(self, name: str) -> bool:
        return self.folder.counts(self.parts / f"{name}.h5") or (self._before is not None and name in self._before)

    def write(self, source: Source, photo: Photo, seen: Prediction) -> None:
        scores = for_storage(seen.probabilities)
        if scores.nbytes >= _LARGEST_RECORD:
            raise RRMError(
                f"{source.path}: expected probabilities below 4 GiB, got {scores.nbytes} bytes ({len(scores)} x "
                f"{photo.shape[0]} x {photo.shape[1]}): make the photo smaller, or leave them out"
            )
        with self._writer(self.parts / f"{source.name}.h5") as writer:
            writer.add(source.name, {"probabilities": scores})

    def finish(self) -> None:
        found = {path.relative_to(self.parts).with_suffix("").as_posix(): path for path in self.parts.rglob("*.h5")}
        new = {name: path for name, path in found.items() if self.folder.counts(path)}
        if not new:
            return
        with self._writer(self.store) as writer:
            for name in sorted({*new, *(self._before.ids if self._before else ())}):
                writer.add(name, self._record(name, new.get(name)))
        shutil.rmtree(self.parts)

    def _record(self, name: str, part: Path | None) -> dict[str, Any]:
        if part is None:
            assert self._before is not None
            return self._before[name]
        with closing(Store(part, "probabilities")) as store:
            return store[name]


def outputs_of(
    folder: Folder, identity: Mapping[str, Any], segmenter: Segmenter, kinds: Sequence[str], overlay_format: str
) -> list[Output]:
    """The outputs that are wanted.

    Args:
        folder: of results.
        identity: that it was made with.
        segmenter: whose classes are named.
        kinds: some of `KINDS`.
        overlay_format: "jpg" or "png".

    Example:
        >>> import tempfile
        >>> segmenter = Segmenter(None, ["cat"])
        >>> folder = Folder(Path(tempfile.mkdtemp()), {"code": "-"}, overwrite=False)
        >>> (masks,) = outputs_of(folder, {"code": "-"}, segmenter, ["masks"], "jpg")
        >>> masks.has("photo")
        False
    """
    classes = segmenter.classes

    def polygons(source: Source, photo: Photo, seen: Prediction) -> bytes:
        del photo
        below = (folder.path / "polygons" / source.name).parent.resolve()
        image = source.path if source.number is None else folder.path / "photos" / source.file_name
        return _json(labelme(seen.labels, classes, os.path.relpath(image.resolve(), below)))

    def features(source: Source, photo: Photo, seen: Prediction) -> bytes:
        del photo
        return _json(geojson(seen.labels, classes, source.file_name))

    def regions(source: Source, photo: Photo, seen: Prediction) -> bytes:
        size = list(photo.shape[:2])
        return _json({"file_name": source.file_name, "size": size, "regions": coco_regions(seen.labels)})

    def overlay(source: Source, photo: Photo, seen: Prediction) -> bytes:
        del source
        how: dict[str, Any] = {"quality": 90} if overlay_format == "jpg" else {}
        return _picture(seen.overlay(photo), {"jpg": "JPEG", "png": "PNG"}[overlay_format], **how)

    makers: dict[str, Callable[[], Output]] = {
        "masks": lambda: Files(folder, "masks", ".png", lambda _source, _photo, seen: encode_mask(seen.labels)),
        "overlays": lambda: Files(folder, "overlays", f".{overlay_format}", overlay),
        "polygons": lambda: Files(folder, "polygons", ".json", polygons),
        "geojson": lambda: Files(folder, "geojson", ".geojson", features),
        "rle": lambda: RunLengths(folder, "rle", ".json", regions, classes),
        "photos": lambda: Files(
            folder, "photos", ".png", lambda _source, photo, _seen: _picture(photo, "PNG", compress_level=1)
        ),
        "probabilities": lambda: Probabilities(
            folder, identity, {"classes": list(classes), "trained": dict(segmenter.facts)}
        ),
    }
    return [makers[kind]() for kind in KINDS if kind in kinds]


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()


def _picture(pixels: Photo, kind: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **how)
    return buffer.getvalue()
