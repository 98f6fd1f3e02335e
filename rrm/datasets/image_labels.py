"""Image-level labels as people have them: CSV files, and what annotation tools export.

Of boxes, polygons and masks only the names of the classes are taken: the method needs no more. What is told of a photo
in several places is joined. All faults of a source are found in one pass; an image with a fault has no labels then.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring as parse_xml

from rrm.datasets.voc import collect_faults, raise_faults, xml_names
from rrm.errors import RRMError
from rrm.limits import TEXT_BYTES, read_file, read_text

KINDS = (
    "a CSV file (columns image and labels, or a column of 0 and 1 for each class), a folder of VOC's XML files, "
    "COCO's JSON, JSON of Label Studio, XML of CVAT (CVAT for images)"
)
_IMAGE = ("image", "images", "img", "file", "filename", "file_name", "path", "photo", "name", "image_id", "id")
_LABELS = ("labels", "label", "classes", "class", "tags", "tag", "categories", "category", "choice", "choices")
_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True, "no": False, "yes": True,
          "": False}  # fmt: skip
_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".heic", ".heif", ".avif"
)  # fmt: skip
_BACKGROUND = ("background", "__background__", "_background_")
_SEPARATORS = re.compile(r"[;|,]")
_Rows = list[tuple[int, list[str]]]
_UPLOAD = re.compile(r"^[0-9a-f]{8}-(?=.)")
"""What Label Studio puts before the names of files that are uploaded to it."""
_NOT_THERE = (KeyError, TypeError, AttributeError, ValueError, RecursionError)
"""What JSON of another form raises where it is looked into."""


@dataclass(frozen=True)
class ImageLabels:
    """What a source says.

    Attributes:
        kind: of the source, in words.
        labels: the names of the classes of each image, sorted; images are called as in the source.
    """

    kind: str
    labels: Mapping[str, tuple[str, ...]]


@dataclass
class _Reading:
    """What a reader has found so far.

    Attributes:
        faults: messages.
        found: names of classes of each image.
        faulty: images with a fault: what is left of their labels would say that other classes are not there.
    """

    faults: list[str]
    found: dict[str, set[str]] = field(default_factory=dict)
    faulty: set[str] = field(default_factory=set)

    def add(self, image: str, names: Iterable[str]) -> None:
        """Join names with what was told of the image before."""
        self.found.setdefault(image, set()).update(names)

    def refuse(self, fault: str, *images: str) -> None:
        """Note a fault, of these images where it is known of which."""
        self.faults.append(fault)
        self.faulty.update(images)

    def labels(self) -> dict[str, tuple[str, ...]]:
        """Names of the classes of each image without a fault, sorted."""
        return {image: tuple(sorted(names)) for image, names in self.found.items() if image not in self.faulty}


def read_image_labels(source: Path, classes: Sequence[str] = (), faults: list[str] | None = None) -> ImageLabels:
    r"""Read image-level labels from any source that is known (`KINDS`); its content says which it is.

    Args:
        source: a file, or the folder of VOC's XML files.
        classes: names of all classes, where they are known: a text that is one of them is never divided at spaces.
        faults: messages on faulty rows, files and names are appended, and images without a fault are returned; None:
            they are raised, all at once.

    Raises:
        RRMError: missing, unreadable, or nothing that is known. RRMErrors: all faulty rows or files.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "labels.csv"
        >>> _ = path.write_text("image,labels\na.jpg,cat dog\nb.jpg,\na.jpg,bird\n")
        >>> read_image_labels(path).labels
        {'a.jpg': ('bird', 'cat', 'dog'), 'b.jpg': ()}
    """
    reading = _Reading([] if faults is None else faults)
    kind = _read(source, classes, reading)
    for fault, images in name_faults(reading.found).items():
        reading.refuse(fault, *images)
    if faults is None:
        raise_faults(str(source), reading.faults)
    return ImageLabels(kind, reading.labels())


def _read(source: Path, classes: Sequence[str], reading: _Reading) -> str:
    """Read with the reader that the source asks for; the kind of source in words."""
    suffix = source.suffix.lower()
    if source.is_dir():
        return _from_voc(source, reading)
    if not source.is_file():
        raise RRMError(f"{source}: expected {KINDS}, got nothing: check the path")
    if suffix == ".json":
        return _from_json(source, reading)
    if suffix == ".xml":
        return _from_cvat(source, reading)
    if suffix in (".csv", ".tsv", ".txt"):
        return _from_csv(source, classes, reading)
    raise RRMError(f"{source}: expected {KINDS}, got a file {source.suffix or 'without a suffix'}: export or unpack it")


def name_faults(labels: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """Messages on names that cannot be those of classes, each with the images that have the name.

    Names stand in a list, one a line, and with `;` between in a table; `background` is what is left of a photo.

    Example:
        >>> for fault, images in name_faults({"a": ["cat", "a;b"], "b": ["a;b"]}).items():
        ...     print(fault, images)
        a: expected names of classes without ';' and line breaks, and none that means background, got 'a;b': rename it
        ['a', 'b']
    """
    wrong: dict[str, list[str]] = {}
    for image, names in labels.items():
        for name in set(names):
            if not _is_class(name):
                wrong.setdefault(name, []).append(image)
    return {
        f"{images[0]}: expected names of classes without ';' and line breaks, and none that means background, got "
        f"{name!r}: rename it": images
        for name, images in sorted(wrong.items())
    }


def _is_class(name: str) -> bool:
    written = name.encode(errors="ignore").decode()
    return written.splitlines() == [name.strip()] and ";" not in name and name.lower() not in _BACKGROUND


def match_images(labels: Iterable[str], photos: Mapping[str, Path], faults: list[str]) -> dict[str, list[str]]:
    """Which photo is meant by each name of an image in a source of labels.

    Suffixes and folders may be missing or others: of several photos with the name, the one with most of the folders
    at the end of its path is meant. `/data/upload/1/1a2b3c4d-cat.jpg` of Label Studio is `cat.jpg`.

    Args:
        labels: names in the source.
        photos: names without a suffix, with the folders below that of all photos, and the files.
        faults: messages on names that no photo has, or several, are appended.

    Returns:
        The source's names of each photo that is named.

    Example:
        >>> photos = {"a/cat": Path("a/cat.jpg"), "b/cat": Path("b/cat.png")}
        >>> match_images(["photos/b/cat.jpg"], photos, []), match_images(["1a2b3c4d-cat.png"], photos, [])
        ({'b/cat': ['photos/b/cat.jpg']}, {'b/cat': ['1a2b3c4d-cat.png']})
    """
    by_stem: dict[str, list[str]] = {}
    for name, path in photos.items():
        for stem in {PurePosixPath(name).name, path.name}:
            by_stem.setdefault(stem, []).append(name)
    found: dict[str, list[str]] = {}
    for label in labels:
        nearest = _nearest(label, by_stem, photos)
        if len(nearest) == 1:
            found.setdefault(nearest[0], []).append(label)
        else:
            what = f"several: {', '.join(nearest)}" if nearest else "none"
            faults.append(f"{label}: expected one photo of this name, got {what}: correct the labels or add the photo")
    return found


def _nearest(label: str, by_stem: Mapping[str, Sequence[str]], photos: Mapping[str, Path]) -> list[str]:
    """Photos that a name can mean."""
    path = _path_of(label)
    told = [name for text in (path.name, path.stem) for name in by_stem.get(text, ())]
    uploaded = [name for text in (path.name, path.stem) for name in by_stem.get(_UPLOAD.sub("", text), ())]
    candidates = dict.fromkeys(told or uploaded)
    ranks = {name: _rank(path, PurePosixPath(name), photos[name].suffix) for name in candidates}
    return [name for name, rank in ranks.items() if rank == max(ranks.values())]


def _path_of(label: str) -> PurePosixPath:
    """The path in a name: that of an address, and what Label Studio writes of local files behind `?d=`."""
    text = label.replace("\\", "/")
    if "://" in text or text.startswith("/data/"):
        path, _, query = text.partition("?")
        text = unquote(query[2:].partition("&")[0] if query.startswith("d=") else path)
    return PurePosixPath(text)


def _is_image(text: str) -> bool:
    """Whether a text ends as an image file does, or the path in an address."""
    return _path_of(text).suffix.lower() in _SUFFIXES


def _rank(wanted: PurePosixPath, name: PurePosixPath, suffix: str) -> tuple[bool, int, bool]:
    """Whether it is the photo's whole name, how many folders before the names agree, and whether the suffixes do."""
    same = 0
    for ours, theirs in zip(reversed(name.parts[:-1]), reversed(wanted.parts[:-1]), strict=False):
        if ours != theirs:
            break
        same += 1
    return name in (wanted, wanted.with_suffix("")), same, wanted.suffix.lower() == suffix.lower()


# ---- CSV ----


def _from_csv(source: Path, classes: Sequence[str], reading: _Reading) -> str:
    header, rows = _table(source)
    columns = [name.lower() for name in header]
    image = next((columns.index(name) for name in _IMAGE if name in columns), 0)
    named = next((columns.index(name) for name in _LABELS if name in columns and columns.index(name) != image), None)
    if named is None and len(columns) == 2:
        named = 1 - image
    if named is None:
        _from_flags(source, header, rows, image, reading)
    else:
        _from_names(source, len(header), rows, (image, named), classes, reading)
    return "CSV"


def _table(source: Path) -> tuple[list[str], _Rows]:
    """The header of a CSV file and the rows below it; a file of images and labels alone may do without a header."""
    rows = _rows(source)
    first = rows[0][1] if rows else []
    known = {name.lower() for name in first} & {*_IMAGE, *_LABELS}
    if len(first) > 1 and not known and any(map(_is_image, first[:2])):
        if len(first) > 2:
            raise RRMError(
                f"{source}: expected a header that names the {len(first)} columns, such as `image,labels`, got "
                f"{','.join(first)[:60]!r}: write it above"
            )
        return ["image", "labels"] if _is_image(first[0]) else ["labels", "image"], rows
    if len(rows) < 2 or len(first) < 2:
        raise RRMError(
            f"{source}: expected a header such as `image,labels` and a line for each photo, got "
            f"{str([first] if rows else [])[:80]}: write it"
        )
    return first, rows[1:]


def _rows(source: Path) -> _Rows:
    """Rows that are not empty, with their numbers."""
    try:
        text = read_text(source, TEXT_BYTES)
        head = text.split("\n", 1)[0]
        delimiter = "\t" if "\t" in head else ";" if ";" in head and "," not in head else ","
        reader = csv.reader(text.splitlines(), delimiter=delimiter)
        return [(reader.line_num, cells) for row in reader if any(cells := [cell.strip() for cell in row])]
    except (OSError, ValueError, csv.Error) as error:
        raise RRMError(
            f"{source}: expected a CSV file in UTF-8, got {type(error).__name__} ({error}): save it so"
        ) from None


def _from_flags(source: Path, header: Sequence[str], rows: _Rows, image: int, reading: _Reading) -> None:
    """A column of 0 and 1 for each class."""
    for number, row in rows:
        flags = {name: _FLAGS.get(cell.lower()) for place, (name, cell) in enumerate(zip(header, row, strict=False))
                 if place != image}  # fmt: skip
        if len(row) != len(header) or None in flags.values():
            reading.refuse(
                f"{source}: row {number}: expected a column `labels`, or 0 or 1 for each of {len(header) - 1} classes, "
                f"got {','.join(row)[:60]!r}: correct it",
                *row[image : image + 1],
            )
        else:
            reading.add(row[image], (name for name, flag in flags.items() if flag))


def _from_names(
    source: Path, width: int, rows: _Rows, places: tuple[int, int], classes: Sequence[str], reading: _Reading
) -> None:
    """A column with the names of the classes; a photo may have several rows."""
    image, named = places
    texts = []
    for number, row in rows:
        if len(row) < width or not row[image] or (len(row) > width and named != width - 1):
            got = len(row) if len(row) != width else "none for the image"
            fault = f"{source}: row {number}: expected {width} cells, got {got}: correct it"
            reading.refuse(fault, *row[image : image + 1])
        else:  # commas between labels that nobody put into quotes
            texts.append((row[image], ";".join(row[named:]) if named == width - 1 else row[named]))
    spaced = not any(_SEPARATORS.search(text) for _, text in texts if not text.startswith(("[", "{")))
    for name, text in texts:
        reading.add(name, _names_in(text, spaced and text not in classes))


def _names_in(text: str, spaced: bool) -> set[str]:
    """Names of classes in a cell; Label Studio writes JSON where there are several."""
    if text.startswith(("[", "{")):
        try:
            return set(_texts(json.loads(text)))
        except (ValueError, RecursionError):  # a name that begins with a bracket
            pass
    return {part.strip() for part in (text.split() if spaced else _SEPARATORS.split(text)) if part.strip()}


# ---- XML ----


def _from_voc(folder: Path, reading: _Reading) -> str:
    files = sorted(folder.rglob("*.xml"))
    if not files:
        raise RRMError(
            f"{folder}: expected VOC's XML files in it, got none: give {KINDS}; photos in a folder for each class need "
            "no labels: leave them out"
        )
    for path in files:
        names = collect_faults(reading.faults, xml_names, path)
        if names is not None:
            reading.add(path.relative_to(folder).with_suffix("").as_posix(), filter(None, names))
    return "VOC's XML"


def _from_cvat(source: Path, reading: _Reading) -> str:
    try:
        root: Element = parse_xml(read_file(source, TEXT_BYTES))
    except (OSError, ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise RRMError(
            f"{source}: expected XML of CVAT, got {type(error).__name__} ({error}): export it again"
        ) from None
    images = root.findall("image")
    if root.tag != "annotations" or not images:
        raise RRMError(
            f"{source}: expected `annotations` with an `image` in it, as CVAT for images writes them, got {root.tag!r} "
            f"with {len(images)}: export in that format; VOC's XML files go by their folder"
        )
    for image in images:
        names = {each.get("label", "").strip() for each in image if each.get("outside", "0") == "0"}
        reading.add(image.get("name", ""), names - {""})
    return "CVAT"


# ---- JSON ----


def _from_json(source: Path, reading: _Reading) -> str:
    try:
        content = json.loads(read_text(source, TEXT_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise RRMError(f"{source}: expected JSON, got {type(error).__name__} ({error}): export it again") from None
    try:
        if isinstance(content, Mapping) and {"images", "annotations", "categories"} <= set(content):
            return _from_coco(source, content, reading)
        if isinstance(content, list) and content and all(isinstance(task, Mapping) for task in content):
            return _from_label_studio(source, content, reading)
    except _NOT_THERE as error:
        raise RRMError(f"{source}: expected {KINDS}, got JSON without {str(error)[:80]}: export it again") from None
    raise RRMError(
        f"{source}: expected COCO's images, annotations and categories, or Label Studio's list of tasks, got "
        "other JSON: export it in one of these forms"
    )


def _from_coco(source: Path, content: Mapping[str, Any], reading: _Reading) -> str:
    names = {each["id"]: str(each["name"]).strip() for each in content["categories"]}
    files = {each["id"]: str(each["file_name"]) for each in content["images"]}
    for file in files.values():
        reading.add(file, ())
    for each in content["annotations"]:
        ids = each.get("image_id"), each.get("category_id")
        images = [files[ids[0]]] if ids[0] in files else []
        if images and ids[1] in names:
            reading.add(images[0], [names[ids[1]]])
        else:
            reading.refuse(
                f"{source}: annotation {each.get('id')}: expected ids of an image and a category, got "
                f"{str(list(ids))[:80]}: correct it",
                *images,
            )
    return "COCO"


def _from_label_studio(source: Path, tasks: Sequence[Mapping[str, Any]], reading: _Reading) -> str:
    """Tasks of the export JSON, or of JSON-MIN, whose tasks have their fields beside each other."""
    fields = _class_fields(source, [task for task in tasks if "annotations" not in task])
    for number, task in enumerate(tasks, 1):
        try:
            image, names = _told(task, fields)
        except _NOT_THERE as error:
            got = f"JSON without {str(error)[:80]}"
            reading.refuse(f"{source}: task {number}: expected `data` and `annotations`, got {got}: export it again")
            continue
        if image is None:
            reading.refuse(
                f"{source}: task {number}: expected the name of an image file among its data, got none: export it again"
            )
        elif names is not None:
            reading.add(image, names)
    return "Label Studio"


def _told(task: Mapping[str, Any], fields: Collection[str]) -> tuple[str | None, set[str] | None]:
    """The name of a task's image, and those of its classes; None for an image that nobody has looked at."""
    if "annotations" not in task:
        return _image_of(task), set(_chosen(task, fields))
    done = [each for each in task["annotations"] if not each.get("was_cancelled")]
    values = [result.get("value") or {} for each in done for result in each.get("result", ())]  # relations have none
    names = {name for value in values for name in _chosen(value)}
    return _image_of(task["data"]), names if done else None


def _class_fields(source: Path, tasks: Sequence[Mapping[str, Any]]) -> set[str]:
    """Fields of JSON-MIN whose texts are classes: a single choice is a text there, as a note is.

    A field that holds choices in one task has those of all tasks; without any, a name such as `label` says it.

    Raises:
        RRMError: tasks, and no class in any of them.
    """
    keys = {key for task in tasks for key in task}
    chosen = {key for task in tasks for key, content in task.items() if any(_chosen({key: content}, ("choice",)))}
    fields = chosen or {key for key in keys if key.lower() in _LABELS}
    if tasks and not any(any(_chosen(task, fields)) for task in tasks):
        raise RRMError(
            f"{source}: expected classes in JSON-MIN of Label Studio, as `choices`, `rectanglelabels` and so on or in "
            f"a field `choice`, got {len(tasks)} tasks with {', '.join(sorted(keys))[:200]}: export as JSON, not "
            "JSON-MIN, or call the field with the classes `choice`"
        )
    return fields


def _image_of(data: Mapping[str, Any]) -> str | None:
    """The field of a task that names its image: `image`, or the first that ends as an image file does."""
    texts = [data.get("image"), *data.values()]
    return next((text for text in texts if isinstance(text, str) and _is_image(text)), None)


def _chosen(value: Mapping[str, Any], fields: Collection[str] = ()) -> Iterator[str]:
    """Names of classes in a result: `choices`, `rectanglelabels`, `polygonlabels`, `brushlabels`, `taxonomy` and so on.

    JSON-MIN has a field for each tool, with a text, a list of results or a mapping with such a list; of `fields` the
    texts are taken too.
    """
    for key, content in value.items():
        if key == "taxonomy":
            yield from _texts([way[-1:] if isinstance(way, list) else way for way in _listed(content)])
        elif key in fields or key == "choices" or key.endswith("labels"):
            yield from _texts(content)
        else:
            yield from _texts([each for each in _listed(content) if isinstance(each, Mapping)])


def _listed(content: Any) -> list[Any]:
    return content if isinstance(content, list) else [content]


def _texts(content: Any) -> Iterator[str]:
    """All texts in a text or a list; of a mapping those of classes."""
    if isinstance(content, str):
        yield from filter(None, [content.strip()])
    elif isinstance(content, Mapping):
        yield from _chosen(content)
    elif isinstance(content, list):
        for each in content:
            yield from _texts(each)
