"""What `rrm segment` does: photos of files, folders, patterns and videos, segmented into a folder.

Photos are read in one thread, segmented in batches in another, and their results are written in the caller's: neither
waits for another one. A call that was stopped goes on where it was: what is there is not made again
(`rrm.segment_files`).
"""

from __future__ import annotations

import glob
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from rrm.datasets.image_labels import match_images, read_image_labels
from rrm.datasets.voc import collect_faults, raise_faults
from rrm.errors import RRMError, memory_fault
from rrm.inference import PASS_PIXELS
from rrm.parallel import filled, map_in_threads, prefetched
from rrm.photos import FORMAT_NAMES, MAX_PIXELS, SUFFIXES, UNREAD_SUFFIXES, Photo, read_photo
from rrm.progress import tracked
from rrm.provenance import file_digest, module_hash
from rrm.segment_files import KINDS, MANIFEST, Folder, Output, Source, outputs_of
from rrm.segmenter import Prediction, Segmenter, Views
from rrm.videos import check_every, expected_frames, frames, is_video

BATCH_PIXELS = {"cpu": 4 * PASS_PIXELS["cpu"], "cuda": PASS_PIXELS["cuda"]}
"""Pixels of photos that are segmented at a time, by device; on the CPU two of VOC's size: a CRF for each thread."""
_LEAST_PIXELS = 4096  # that a photo counts for: no batch has too many
_WRITERS = 16  # threads that write files of a batch; they wait for the disk


@dataclass(frozen=True)
class Options(Views):
    """How photos are segmented, and what is written.

    Attributes:
        crf, scales, flip, merge, long_side, tile: see `Views`; `crf` is True or False.
        write: some of `rrm.segment_files.KINDS`.
        max_pixels: most pixels of a photo.
        labels: file with the image-level labels of every photo (`ImageLabels`), or None.
        overlay_format: "jpg" or "png".
        every: of a video, frames 0, n, 2n and so on.

    Raises:
        RRMError: scales, merge, long_side, tile or every out of range.
    """

    write: tuple[str, ...] = ("masks", "overlays")
    max_pixels: int = MAX_PIXELS
    labels: Path | None = None
    overlay_format: str = "jpg"
    every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_every(self.every)

    def identity(self) -> dict[str, Any]:
        """All that the content of a file depends on, beside the model and the photo."""
        views = {field.name: getattr(self, field.name) for field in fields(Views)}
        labels = None if self.labels is None else file_digest(self.labels)
        return {**views, "scales": list(self.scales), "labels": labels, "overlay_format": self.overlay_format}


def find_photos(inputs: Sequence[str], out: Path, faults: list[str], *, videos: bool = True) -> list[Source]:
    """Photos and videos: files, all in and below folders, what patterns match; each once, in the order of the inputs.

    Args:
        inputs: paths and patterns.
        out: folder of results; those that are in it are left out, as are hidden files and folders.
        faults: messages are appended on inputs that are not there, on files that cannot be read or written under their
            names, and on photos whose outputs would have the same name; these are left out.
        videos: False: they are passed over.
    """
    found: dict[Path, Source] = {}
    for text in inputs:
        sources = list(_matching(text, out))
        if not sources:
            faults.append(f"{text}: expected a photo, a folder with photos or a pattern, got none: check the path")
        for source in sources:
            if videos or not is_video(source.path):
                found.setdefault(source.path.resolve(), source)
    return _with_own_names(_readable(found.values(), faults), faults)


def _readable(sources: Iterable[Source], faults: list[str]) -> list[Source]:
    """Those whose names can be written, and whose formats are read; a raw file beside its photo is passed over."""
    named = []
    for source in sources:
        try:
            str(source.path).encode()
        except UnicodeEncodeError:
            faults.append(f"{str(source.path)!a}: expected a name in UTF-8, got other bytes: rename it")
        else:
            named.append(source)
    read = [source for source in named if source.path.suffix.lower() not in UNREAD_SUFFIXES]
    names = {source.name for source in read if not is_video(source.path)}
    faults += [
        f"{source.path}: expected {FORMAT_NAMES}, got {source.path.suffix}: save it as JPEG"
        for source in named
        if source.path.suffix.lower() in UNREAD_SUFFIXES and source.name not in names
    ]
    return read


def _with_own_names(sources: Sequence[Source], faults: list[str]) -> list[Source]:
    """Those whose outputs have names of their own: a video's lie in a folder of its name, beside a photo's."""
    paths: dict[tuple[str, bool], list[str]] = defaultdict(list)
    videos = {source.name: source.path for source in sources if is_video(source.path)}
    for source in sources:
        same = paths[_key(source)]
        same.append(str(source.path))
        folder, _, last = source.name.rpartition("/")
        if folder in videos and last.isdecimal():
            same.append(f"a frame of {videos[folder]}")
    faults += [
        f"{name}: expected one photo of this name, got {', '.join(same)}: rename them, or use several folders"
        for (name, _), same in paths.items()
        if len(same) > 1
    ]
    return [source for source in sources if len(paths[_key(source)]) == 1]


def _key(source: Source) -> tuple[str, bool]:
    return source.name, is_video(source.path)


def _matching(text: str, out: Path) -> Iterator[Source]:
    path = Path(text)
    results = [(out / kind).resolve() for kind in KINDS] if (out / MANIFEST).exists() else []
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            below = file.relative_to(path)
            hidden = any(part.startswith(".") for part in below.parts)
            known = file.suffix.lower() in SUFFIXES + UNREAD_SUFFIXES or is_video(file)
            if known and not hidden and not _is_below(file, results):
                yield Source(below.with_suffix("").as_posix(), file)
    elif path.exists():
        yield Source(path.stem, path)
    elif glob.has_magic(text):
        files = map(Path, sorted(glob.glob(text, recursive=True)))  # noqa: PTH207 - patterns may be absolute
        yield from (Source(file.stem, file) for file in files if file.is_file() and not _is_below(file, results))


def _is_below(file: Path, folders: Sequence[Path]) -> bool:
    resolved = file.resolve() if folders else file
    return any(resolved.is_relative_to(folder) for folder in folders)


class ImageLabels:
    """Image-level labels of photos, from whatever `rrm.datasets.image_labels` reads.

    Args:
        path: CSV file `image,labels`, or an export; names of images need neither suffixes nor all folders.
        classes: names of the foreground classes.
        sources: photos and videos whose labels are asked for; others in the file do not matter.

    Raises:
        RRMError: the file is missing or of no known form. RRMErrors: all its faulty lines.
    """

    def __init__(self, path: Path, classes: Sequence[str], sources: Sequence[Source]) -> None:
        self.path, self.classes = path, tuple(classes)
        self._told = read_image_labels(path, self.classes).labels
        self._photos, self._videos = (
            match_images(self._told, {each.name: each.path for each in sources if is_video(each.path) == videos}, [])
            for videos in (False, True)
        )

    def of(self, source: Source) -> list[str]:
        """Names of the classes of a photo; a frame has its own, or those of its video.

        Raises:
            RRMError: nothing is told of the photo, or of several that have its name; a class that the network has not.
        """
        if source.number is None:
            names = self._photos.get(source.name)
        elif source.name in self._told:
            names = [source.name]
        else:
            names = self._videos.get(source.name.rpartition("/")[0])
        if names is None:
            raise RRMError(
                f"{self.path}: expected a line that means {source.name!r} and no other, got none: add it with its "
                "folders, or leave labels out"
            )
        present = {label for name in names for label in self._told[name]}
        if unknown := sorted(present - set(self.classes)):
            raise RRMError(
                f"{self.path}: {source.name}: expected classes among {', '.join(self.classes)}, got "
                f"{', '.join(unknown)}: correct the line"
            )
        return [each for each in self.classes if each in present]


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
    labels = None if options.labels is None else ImageLabels(options.labels, segmenter.classes, sources)
    if not sources:
        raise_faults("rrm segment", faults)
    identity = {
        "model": digest, "classes": list(segmenter.classes), "code": module_hash("rrm.segment_files"),
        "options": options.identity(),
    }  # fmt: skip
    folder = Folder(out, identity, overwrite)
    outputs = outputs_of(folder, identity, segmenter, options.write, options.overlay_format)
    work = _Work(segmenter, options, labels, outputs)
    todo = [source for source in sources if is_video(source.path) or not work.has(source)]
    made, there = 0, len(sources) - len(todo)
    for item in tracked(work.done(todo), "segment", work.expected(todo), log_seconds):
        faults += item.faults
        if not item.faults:
            made, there = made + (item.seen is not None), there + (item.seen is None)
    for output in outputs:
        output.finish()
    raise_faults(f"{made} photos segmented, {there} were there already; of the others", faults)
    return made, there


@dataclass(frozen=True)
class _Item:
    """A photo on its way; one that nothing was seen in has faults, or nothing was to be done for it."""

    source: Source
    photo: Photo | None = None
    labels: Sequence[str] | None = None
    seen: Prediction | None = None
    faults: tuple[str, ...] = ()


def _size(item: _Item) -> int:
    return max(_LEAST_PIXELS, 0 if item.photo is None else item.photo[..., 0].size)


@dataclass(frozen=True)
class _Work:
    """What is done with a photo, step by step; a step that fails makes faults of that photo."""

    segmenter: Segmenter
    options: Options
    labels: ImageLabels | None
    outputs: Sequence[Output]

    def has(self, source: Source) -> bool:
        """True if all outputs of a photo are there."""
        return all(output.has(source.name) for output in self.outputs)

    def done(self, sources: Iterable[Source]) -> Iterator[_Item]:
        """All photos and frames, in order, once their results are written."""
        batches = prefetched(filled(self.read(sources), _size, BATCH_PIXELS[self.segmenter.device]))
        for batch in prefetched(map(self.segmented, batches)):
            yield from map_in_threads(self.written, batch, _WRITERS)

    def expected(self, sources: Sequence[Source]) -> int:
        """About how many photos and frames there are."""
        videos = [source.path for source in sources if is_video(source.path)]
        counts = [collect_faults([], expected_frames, path, self.options.every) or 1 for path in videos]
        return len(sources) - len(videos) + sum(counts)

    def read(self, sources: Iterable[Source]) -> Iterator[_Item]:
        """Photos, and frames of videos, with their pixels where something is to be done."""
        for source in sources:
            if is_video(source.path):
                yield from self._frames(source)
            else:
                yield self._item(source, partial(read_photo, source.path, self.options.max_pixels))

    def _frames(self, video: Source) -> Iterator[_Item]:
        faults: list[str] = []
        found = frames(video.path, self.options.every, self.options.max_pixels)
        while (frame := collect_faults(faults, next, found, None)) is not None:
            source = video.frame(frame[0])
            yield _Item(source) if self.has(source) else self._item(source, frame[1])
        if faults:
            yield _Item(video, faults=tuple(faults))

    def _item(self, source: Source, photo: Callable[[], Photo]) -> _Item:
        faults: list[str] = []
        return collect_faults(faults, self._with_pixels, source, photo) or _Item(source, faults=tuple(faults))

    def _with_pixels(self, source: Source, photo: Callable[[], Photo]) -> _Item:
        with _enough_memory(source):
            return _Item(source, photo(), None if self.labels is None else self.labels.of(source))

    def segmented(self, batch: Sequence[_Item]) -> list[_Item]:
        """The items of a batch with what the network sees in them."""
        ready = iter(self._seen([item for item in batch if item.photo is not None]))
        return [item if item.photo is None else next(ready) for item in batch]

    def _seen(self, items: Sequence[_Item]) -> list[_Item]:
        faults: list[str] = []
        found = collect_faults(faults, self._predicted, items) if items else []
        if found is not None:
            return [replace(item, seen=seen) for item, seen in zip(items, found, strict=True)]
        if len(items) == 1:
            return [replace(items[0], photo=None, faults=tuple(faults))]
        return [seen for item in items for seen in self._seen([item])]  # whose fault it is, and the others

    def _predicted(self, items: Sequence[_Item]) -> list[Prediction]:
        with _enough_memory(items[0].source):
            return self.segmenter.predict_batch(
                [item.photo for item in items if item.photo is not None],
                [item.labels for item in items],
                self.options,
                probabilities="probabilities" in self.options.write,
                max_pixels=self.options.max_pixels,
            )

    def written(self, item: _Item) -> _Item:
        """The item once what was missing is written."""
        faults: list[str] = []
        if item.seen is not None:
            collect_faults(faults, self._write, item.source, item.photo, item.seen)
        return replace(item, faults=(*item.faults, *faults))

    def _write(self, source: Source, photo: Photo, seen: Prediction) -> None:
        with _enough_memory(source):
            for output in self.outputs:
                if not output.has(source.name):
                    output.write(source, photo, seen)


@contextmanager
def _enough_memory(source: Source) -> Iterator[None]:
    """Too little memory for one photo as that photo's fault."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        first = memory_fault(error)
        if first is None:
            raise
        raise RRMError(
            f"{source.path}: expected enough memory, got {first}: use a smaller tile, or fewer scales"
        ) from None
