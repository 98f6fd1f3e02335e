"""Image-level labels as people have them: CSV files, and what annotation tools export.

Of boxes, polygons and masks only the names of the classes are taken: the method needs no more. What is told of a photo
in several places is joined.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring as parse_xml

from rrm.datasets.voc import collect_faults, raise_faults, xml_names
from rrm.errors import RRMError, RRMErrors
from rrm.limits import TEXT_BYTES, read_file, read_text

Found = dict[str, set[str]]
KINDS = (
    "a CSV file (columns image and labels, or a column of 0 and 1 for each class), a folder of VOC's XML files, "
    "COCO's JSON, JSON of Label Studio, XML of CVAT (CVAT for images)"
)
_IMAGE = ("image", "images", "img", "file", "filename", "file_name", "path", "photo", "name", "image_id", "id")
_LABELS = ("labels", "label", "classes", "class", "tags", "tag", "categories", "category", "choice", "choices")
_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True, "no": False, "yes": True,
          "": False}  # fmt: skip
_SEPARATORS = re.compile(r"[;|,]")
_UPLOAD = re.compile(r"^[0-9a-f]{8}-(?=.)")
"""What Label Studio puts before the names of files that are uploaded to it."""


@dataclass(frozen=True)
class ImageLabels:
    """What a source says.

    Attributes:
        kind: of the source, in words.
        labels: the names of the classes of each image, sorted; images are called as in the source.
    """

    kind: str
    labels: Mapping[str, tuple[str, ...]]


def read_image_labels(source: Path, classes: Sequence[str] = ()) -> ImageLabels:
    r"""Read image-level labels from any source that is known (`KINDS`); its content says which it is.

    Args:
        source: a file, or the folder of VOC's XML files.
        classes: names of all classes, where they are known: a text that is one of them is never divided at spaces.

    Raises:
        RRMError: missing, unreadable, or nothing that is known. RRMErrors: all faulty rows or files.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "labels.csv"
        >>> _ = path.write_text("image,labels\na.jpg,cat dog\nb.jpg,\na.jpg,bird\n")
        >>> read_image_labels(path).labels
        {'a.jpg': ('bird', 'cat', 'dog'), 'b.jpg': ()}
    """
    if source.is_dir():
        kind, found = "VOC's XML", _from_voc(source)
    elif not source.is_file():
        raise RRMError(f"{source}: expected {KINDS}, got nothing: check the path")
    elif source.suffix.lower() == ".json":
        kind, found = _from_json(source)
    elif source.suffix.lower() == ".xml":
        kind, found = "CVAT", _from_cvat(source)
    elif source.suffix.lower() in (".csv", ".tsv", ".txt"):
        kind, found = "CSV", _from_csv(source, classes)
    else:
        raise RRMError(
            f"{source}: expected {KINDS}, got a file {source.suffix or 'without a suffix'}: export or unpack it"
        )
    raise_faults(str(source), _name_faults(found))
    return ImageLabels(kind, {name: tuple(sorted(labels)) for name, labels in found.items()})


def _name_faults(found: Found) -> list[str]:
    """Names that cannot be those of classes; `background` is what is left of a photo."""
    names = {label: image for image, labels in found.items() for label in sorted(labels)}
    return [
        f"{image}: expected names of classes without ';' and line breaks, and none that means background, got "
        f"{label!r}: rename it"
        for label, image in sorted(names.items())
        if re.search(r"[;\r\n]", label) or label.lower() in ("background", "__background__", "_background_")
    ]


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
        text = unquote(text.partition("?d=")[2] or text.partition("?")[0])
    return PurePosixPath(text)


def _rank(wanted: PurePosixPath, name: PurePosixPath, suffix: str) -> tuple[bool, int, bool]:
    """Whether it is the photo's whole name, how many folders before the names agree, and whether the suffixes do."""
    same = 0
    for ours, theirs in zip(reversed(name.parts[:-1]), reversed(wanted.parts[:-1]), strict=False):
        if ours != theirs:
            break
        same += 1
    return name in (wanted, wanted.with_suffix("")), same, wanted.suffix.lower() == suffix.lower()


# ---- CSV ----


def _from_csv(source: Path, classes: Sequence[str]) -> Found:
    try:
        text = read_text(source, TEXT_BYTES)
        head = text.split("\n", 1)[0]
        delimiter = "\t" if "\t" in head else ";" if ";" in head and "," not in head else ","
        rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines(), delimiter=delimiter) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise RRMError(
            f"{source}: expected a CSV file in UTF-8, got {type(error).__name__} ({error}): save it so"
        ) from None
    if len(rows) < 2 or len(rows[0]) < 2:
        raise RRMError(
            f"{source}: expected a header such as `image,labels` and a line for each photo, got "
            f"{str(rows[:1])[:80]}: write it"
        )
    columns = [name.lower() for name in rows[0]]
    image = next((columns.index(name) for name in _IMAGE if name in columns), 0)
    named = next((columns.index(name) for name in _LABELS if name in columns and columns.index(name) != image), None)
    if named is None and len(columns) == 2:
        named = 1 - image
    faults: list[str] = []
    if named is None:
        found = _from_flags(source, rows, image, faults)
    else:
        found = _from_names(source, rows, (image, named), classes, faults)
    raise_faults(str(source), faults)
    return found


def _from_flags(source: Path, rows: Sequence[Sequence[str]], image: int, faults: list[str]) -> Found:
    """A column of 0 and 1 for each class."""
    header, found = rows[0], Found()
    for number, row in enumerate(rows[1:], 2):
        flags = {name: _FLAGS.get(cell.lower()) for place, (name, cell) in enumerate(zip(header, row, strict=False))
                 if place != image}  # fmt: skip
        if len(row) != len(header) or None in flags.values():
            faults.append(
                f"{source}: row {number}: expected a column `labels`, or 0 or 1 for each of {len(header) - 1} classes, "
                f"got {','.join(row)[:60]!r}: correct it"
            )
        else:
            found.setdefault(row[image], set()).update(name for name, flag in flags.items() if flag)
    return found


def _from_names(
    source: Path, rows: Sequence[Sequence[str]], places: tuple[int, int], classes: Sequence[str], faults: list[str]
) -> Found:
    """A column with the names of the classes; a photo may have several rows."""
    image, named = places
    width, texts = len(rows[0]), []
    for number, row in enumerate(rows[1:], 2):
        if len(row) < width or not row[image] or (len(row) > width and named != width - 1):
            faults.append(f"{source}: row {number}: expected {width} cells, got {len(row)}: correct it")
        else:  # commas between labels that nobody put into quotes
            texts.append((row[image], ";".join(row[named:]) if named == width - 1 else row[named]))
    spaced = not any(_SEPARATORS.search(text) for _, text in texts if not text.startswith(("[", "{")))
    found = Found()
    for name, text in texts:
        found.setdefault(name, set()).update(_names_in(text, spaced and text not in classes))
    return found


def _names_in(text: str, spaced: bool) -> set[str]:
    """Names of classes in a cell; Label Studio writes JSON where there are several."""
    if text.startswith(("[", "{")):
        try:
            return set(_texts(json.loads(text)))
        except (ValueError, RecursionError):  # a name that begins with a bracket
            pass
    return {part.strip() for part in (text.split() if spaced else _SEPARATORS.split(text)) if part.strip()}


# ---- XML ----


def _from_voc(folder: Path) -> Found:
    files = sorted(folder.rglob("*.xml"))
    if not files:
        raise RRMError(
            f"{folder}: expected VOC's XML files in it, got none: give {KINDS}; photos in a folder for each class need "
            "no labels: leave them out"
        )
    faults: list[str] = []
    found = {
        path.relative_to(folder).with_suffix("").as_posix(): collect_faults(faults, xml_names, path) for path in files
    }
    raise_faults(str(folder), faults)
    return {name: {each for each in names if each} for name, names in found.items()}


def _from_cvat(source: Path) -> Found:
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
    found = Found()
    for image in images:
        names = {each.get("label", "").strip() for each in image if each.get("outside", "0") == "0"}
        found.setdefault(image.get("name", ""), set()).update(names - {""})
    return found


# ---- JSON ----


def _from_json(source: Path) -> tuple[str, Found]:
    try:
        content = json.loads(read_text(source, TEXT_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise RRMError(f"{source}: expected JSON, got {type(error).__name__} ({error}): export it again") from None
    try:
        if isinstance(content, Mapping) and {"images", "annotations", "categories"} <= set(content):
            return "COCO", _from_coco(content)
        if isinstance(content, Sequence) and content and all(isinstance(task, Mapping) for task in content):
            return "Label Studio", _from_label_studio(content)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise RRMError(f"{source}: expected {KINDS}, got JSON without {str(error)[:80]}: export it again") from None
    except RRMErrors as error:
        raise RRMErrors(str(source), error.faults) from None
    raise RRMError(
        f"{source}: expected COCO's images, annotations and categories, or Label Studio's list of tasks, got "
        "other JSON: export it in one of these forms"
    )


def _from_coco(content: Mapping[str, Any]) -> Found:
    names = {each["id"]: str(each["name"]).strip() for each in content["categories"]}
    files = {each["id"]: str(each["file_name"]) for each in content["images"]}
    found: Found = {file: set() for file in files.values()}
    faults = []
    for each in content["annotations"]:
        if each["image_id"] not in files or each["category_id"] not in names:
            faults.append(
                f"annotation {each.get('id')}: expected ids of an image and a category, got "
                f"{str([each['image_id'], each['category_id']])[:80]}: correct it"
            )
        else:
            found[files[each["image_id"]]].add(names[each["category_id"]])
    raise_faults("COCO", faults)
    return found


def _from_label_studio(tasks: Sequence[Mapping[str, Any]]) -> Found:
    """Tasks of the export JSON, or of JSON-MIN, whose tasks have their fields beside each other."""
    found = Found()
    faults = []
    for number, task in enumerate(tasks, 1):
        whole = "annotations" in task
        image = _image_of(task["data"] if whole else task)
        if image is None:
            faults.append(
                f"task {number}: expected the name of an image file among its data, got none: export it again"
            )
            continue
        done = [each for each in task["annotations"] if not each.get("was_cancelled")] if whole else [task]
        values = [result["value"] for each in done for result in each.get("result", ())] if whole else done
        if done:
            found.setdefault(image, set()).update(name for value in values for name in _chosen(value))
    raise_faults("Label Studio", faults)
    return found


def _image_of(data: Mapping[str, Any]) -> str | None:
    """The field of a task that names its image: `image`, or the first that ends as an image file does."""
    texts = [data.get("image"), *data.values()]
    ends = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
    return next(
        (text for text in texts if isinstance(text, str) and text.lower().partition("&")[0].endswith(ends)), None
    )


def _chosen(value: Mapping[str, Any]) -> Iterator[str]:
    """Names of classes in a result: `choices`, `rectanglelabels`, `polygonlabels`, `brushlabels`, `taxonomy` and so on.

    JSON-MIN has a field for each tool, with a text, a list of results or a mapping with such a list.
    """
    for key, content in value.items():
        if key == "taxonomy":
            yield from (str(way[-1]) for way in content if way)
        elif key.endswith("labels") or key in ("choices", "choice"):
            yield from _texts(content)
        elif isinstance(content, Sequence) and not isinstance(content, str):
            yield from (name for each in content if isinstance(each, Mapping) for name in _chosen(each))


def _texts(content: Any) -> Iterator[str]:
    """All texts in a text, a list or the values of a mapping."""
    if isinstance(content, str):
        yield from filter(None, [content.strip()])
    elif isinstance(content, Mapping):
        for each in content.values():
            yield from _texts(each)
    elif isinstance(content, Sequence):
        for each in content:
            yield from _texts(each)
