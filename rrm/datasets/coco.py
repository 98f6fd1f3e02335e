"""COCO's annotations of objects as one folder in VOC layout: labels, masks and lists.

Image-level labels are the categories of all annotations of a photo, those of crowds included. In a mask, an object lies
above the larger ones (Lin et al., "Microsoft COCO", ECCV 2014, annotate objects that overlap); pixels that only a
crowd's region covers are 255, to be ignored, because the objects in it were not outlined one by one.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    Tag,
    ValidationError,
)

from rrm.datasets.assembly import is_assembled, named_size, new_folder, refuse_occupied, write_lists, write_manifest
from rrm.datasets.published import leaves_folder, link_or_copy
from rrm.datasets.voc import PHOTO_SUFFIXES, VocLayout, collect_faults, encode_mask, raise_faults
from rrm.errors import RRMError, RRMErrors
from rrm.labels import IGNORE
from rrm.limits import COCO_BYTES, Refused, read_file
from rrm.progress import tracked
from rrm.provenance import file_digest

_LONGEST_OUTLINE = 200  # times width and height of the photo; pycocotools keeps all pixels of an outline in memory
CLASSES_FILE, LABELS_FILE = "classes.txt", "labels.csv"
_LIST = re.compile(r"(?:instances_)?([A-Za-z][A-Za-z_-]*?)_?\d*")


def run_lengths(counts: Any) -> Any:
    """Run lengths of an RLE whose counts are compressed to a text; other counts as they are.

    Each number is the difference to the last but one, in groups of five bits, the lowest first. pycocotools reads such
    texts too, but checks nothing in them.

    Raises:
        ValueError: a text that ends within a number, or with other characters.

    Example:
        >>> run_lengths("0114")
        [0, 1, 1, 5]
    """
    if not isinstance(counts, str):
        return counts
    numbers: list[int] = []
    number = shift = 0
    for character in counts:
        group = ord(character) - 48
        if not 0 <= group < 64 or shift > 30:
            raise ValueError("expected the text of an RLE")
        number |= (group & 31) << shift
        shift += 5
        if not group & 32:
            number -= (group & 16) << (shift - 4)  # the sign
            numbers.append(number + (numbers[-2] if len(numbers) > 2 else 0))
            number = shift = 0
    if shift:
        raise ValueError("expected the text of an RLE, got one that is cut")
    return numbers


class _RLE(BaseModel):
    counts: Annotated[list[NonNegativeInt], BeforeValidator(run_lengths)]
    size: tuple[PositiveInt, PositiveInt]


Polygon = Annotated[list[FiniteFloat], Field(min_length=6)]
Segmentation = Annotated[
    Annotated[list[Polygon], Tag("polygons")] | Annotated[_RLE, Tag("RLE")],
    Discriminator(lambda value: "polygons" if isinstance(value, list) else "RLE"),
]


class _Photo(BaseModel):
    id: int
    file_name: Annotated[str, Field(min_length=1)]
    height: PositiveInt
    width: PositiveInt

    @property
    def name(self) -> str:
        return PurePosixPath(self.file_name).stem


class _Object(BaseModel):
    id: int
    image_id: int
    category_id: int
    segmentation: Segmentation
    iscrowd: Literal[0, 1] = 0


class _Category(BaseModel):
    id: int
    name: Annotated[str, Field(pattern=r"^[^;\r\n]*[^;\s][^;\r\n]*$")]


class _Instances(BaseModel):
    images: list[_Photo]
    annotations: list[_Object]
    categories: list[_Category]


@dataclass(frozen=True)
class _Split:
    """One annotation file: its list's name, its photos, their files and their objects."""

    source: Path
    name: str
    content: _Instances
    files: Mapping[int, Path]

    def objects(self) -> dict[int, list[_Object]]:
        found: dict[int, list[_Object]] = defaultdict(list)
        for each in self.content.annotations:
            found[each.image_id].append(each)
        return found


def semantic_mask(objects: Sequence[tuple[int, bool, Any]], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The mask of a photo from the regions of its objects.

    Args:
        objects: of each its label (1..C), whether it is a crowd, and its region as in COCO's JSON: polygons, or an
            RLE that is not compressed, of H x W pixels.
        size: (H, W) in pixels.

    Returns:
        (H, W) uint8: 0 = background, 1..C = the smallest object's class, 255 = a crowd and no object.

    Example:
        >>> square = lambda side: [[0, 0, side, 0, side, side, 0, side]]
        >>> semantic_mask([(2, False, square(1)), (1, False, square(2)), (3, True, square(3))], (3, 4)).tolist()
        [[2, 1, 255, 0], [1, 1, 255, 0], [255, 255, 255, 0]]
    """
    from pycocotools import mask as rle

    mask = np.zeros(size, np.uint8)
    regions = []
    for label, crowd, region in objects:
        coded = rle.frPyObjects(region, *size)
        coded = rle.merge(coded) if isinstance(coded, list) else coded
        regions.append((not crowd, -int(rle.area(coded)), label, coded))
    for single, _, label, coded in sorted(regions, key=lambda each: each[:2]):
        mask[rle.decode(coded).astype(bool)] = label if single else IGNORE
    return mask


def assemble_coco(out: Path, images: Path, annotations: Sequence[Path], *, background_images: bool = False) -> bool:
    """Make a folder in VOC layout (`rrm.datasets.voc`) of COCO's photos and annotations of objects.

    A list is called as its annotation file without `instances_` and the year: `instances_train2014.json` gives
    `train`. Labels are numbered in the order of the categories' ids. Beside lists, photos and masks the folder holds
    `labels.csv` and `classes.txt`, for `dataset.labels` and `dataset.classes` of a configuration.

    Args:
        out: the folder to make, new or empty.
        images: the photos' folder; a photo lies in it or in its folder `train2014`, called as the annotation file.
        annotations: annotation files in COCO's JSON, one a list.
        background_images: keep photos without objects in the list `train`; other lists keep them always.

    Returns:
        False where `out` was finished before, from the same files.

    Raises:
        RRMErrors: every fault of the files that there are, then of all photos: missing keys, ids twice, unknown ids,
            bad polygons and RLE, file names that leave the folder, missing photos, wrong sizes.
    """
    out = out.resolve()
    _require(images, annotations)
    sources = [named_size(images), *map(named_size, annotations)]
    made_of = {"kind": "coco", "sources": sources, "background_images": background_images}
    if is_assembled(out, made_of):
        return False
    refuse_occupied(out)
    faults: list[str] = []
    read = [collect_faults(faults, _read_split, path, images) for path in annotations]
    splits: list[_Split] = [split for split in read if split is not None]
    categories = _categories(splits, faults)
    faults += _doubles(splits)
    raise_faults("COCO", faults)
    with new_folder(out) as partial:
        facts = _fill(partial, splits, categories, background_images)
        checksums = {path.name: f"sha256:{file_digest(path)}" for path in annotations}
        write_manifest(partial, made_of, {"classes": list(categories.values()), "checksums": checksums, **facts})
    return True


# ---- reading ----


def _require(images: Path, annotations: Sequence[Path]) -> None:
    faults = [] if images.is_dir() else [f"{images}: expected the photos' folder, got none: correct the path"]
    faults += [
        f"{path}: expected an annotation file such as instances_train2014.json, got none: download "
        "http://images.cocodataset.org/annotations/annotations_trainval2014.zip (0.25 GB) and unpack it"
        for path in annotations
        if not path.is_file()
    ]
    raise_faults("COCO", faults)


def _read_split(path: Path, images: Path) -> _Split:
    """An annotation file, checked."""
    try:
        content = _Instances.model_validate_json(read_file(path, COCO_BYTES))
    except ValidationError as error:
        raise RRMErrors(str(path), _schema_faults(path, error)) from None
    except Refused as error:
        raise RRMError(
            f"{path}: expected COCO's annotations, got {error}: divide the file, or leave photos out"
        ) from None
    named = _LIST.fullmatch(path.stem)
    faults = [] if named else [f"{path}: expected a name such as instances_train2014.json, got another: rename it"]
    faults += [f"{path}: {fault}: correct it" for fault in _content_faults(content)]
    folders = (images, images / path.stem.removeprefix("instances_"))
    files = {photo.id: collect_faults(faults, _photo_file, photo, folders) for photo in content.images}
    raise_faults(str(path), faults)
    return _Split(path, named.group(1) if named else "", content, files)


def _schema_faults(path: Path, error: ValidationError) -> list[str]:
    return [
        f"{path}: {'.'.join(map(str, each['loc'])) or 'file'}: {each['msg']} (expected COCO's format), got "
        f"{json.dumps(each['input'], default=str)[:60]}: correct it"
        for each in error.errors(include_url=False)
    ]


def _photo_file(photo: _Photo, folders: Sequence[Path]) -> Path:
    if leaves_folder(photo.file_name) or "\n" in photo.file_name or not photo.file_name.endswith(PHOTO_SUFFIXES):
        raise RRMError(
            f"image {photo.id}: expected a JPEG or PNG file's name inside the photos' folder, got "
            f"{photo.file_name!r}: correct it"
        )
    for folder in folders:
        if (folder / photo.file_name).is_file():
            return folder / photo.file_name
    raise RRMError(
        f"image {photo.id}: expected {photo.file_name} in {' or '.join(map(str, folders))}, got no file: add it"
    )


def _content_faults(content: _Instances) -> Iterator[str]:
    entries: dict[str, Sequence[_Photo | _Object | _Category]] = {
        "images": content.images,
        "annotations": content.annotations,
        "categories": content.categories,
    }
    for kind, rows in entries.items():
        for number, count in Counter(row.id for row in rows).items():
            if count > 1:
                yield f"{kind}: expected id {number} once, got it {count} times"
    photos, known = {photo.id: photo for photo in content.images}, {each.id for each in content.categories}
    for each in content.annotations:
        if each.category_id not in known:
            yield f"annotation {each.id}: expected the id of a category, got {each.category_id}"
        if each.image_id not in photos:
            yield f"annotation {each.id}: expected the id of an image, got {each.image_id}"
        elif fault := _region_fault(each.segmentation, photos[each.image_id]):
            yield f"annotation {each.id}: {fault}"


def _region_fault(region: Any, photo: _Photo) -> str | None:
    """What is wrong with a region; pycocotools checks little of what it gets."""
    height, width = photo.height, photo.width
    if isinstance(region, _RLE):
        if region.size != (height, width):
            return f"expected an RLE of the image's size {(height, width)} (height, width), got {region.size}"
        pixels = sum(region.counts)
        return f"expected an RLE of {height * width} pixels, got {pixels}" if pixels != height * width else None
    if not region:
        return "expected at least one polygon, got none"
    for polygon in region:
        far = any(not -width <= x <= 2 * width for x in polygon[::2])
        far |= any(not -height <= y <= 2 * height for y in polygon[1::2])
        if far or len(polygon) % 2:
            return f"expected pairs of coordinates near the image of {width} x {height}, got {str(polygon)[:60]}"
    edges = (zip(polygon[axis::2], polygon[axis + 2 :: 2], strict=False) for polygon in region for axis in (0, 1))
    outline = sum(abs(first - second) for edge in edges for first, second in edge)
    if outline > _LONGEST_OUTLINE * (width + height):
        return f"expected an outline of at most {_LONGEST_OUTLINE} times width and height, got {outline:.0f} pixels"
    return None


def _categories(splits: Sequence[_Split], faults: list[str]) -> dict[int, str]:
    """Names of the categories in the order of their ids; all files must have the same."""
    found = [dict(sorted((each.id, each.name.strip()) for each in split.content.categories)) for split in splits]
    for split, names in zip(splits, found, strict=True):
        if names != found[0]:
            faults.append(f"{split.source}: expected the categories of {splits[0].source}, got others: correct them")
        if len(set(names.values())) < len(names):
            faults.append(f"{split.source}: expected each category's name once, got some twice: correct them")
        if not 1 <= len(names) <= 254:
            faults.append(f"{split.source}: expected 1 to 254 categories, got {len(names)}: correct them")
    return found[0] if found else {}


def _doubles(splits: Sequence[_Split]) -> Iterator[str]:
    for name, count in Counter(split.name for split in splits).items():
        if count > 1:
            yield f"list {name}: expected one annotation file, got {count}: rename one"
    names = Counter(photo.name for split in splits for photo in split.content.images)
    for name, count in names.items():
        if count > 1:
            yield f"photo {name}: expected one file of this name, got {count}: rename or remove the others"


# ---- writing ----


def _fill(
    partial: Path, splits: Sequence[_Split], categories: Mapping[int, str], background_images: bool
) -> dict[str, Any]:
    """Write all files but the manifest; gives facts for it."""
    labels = {number: label for label, number in enumerate(categories, 1)}
    names = tuple(categories.values())
    (partial / CLASSES_FILE).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    lists: dict[str, list[str]] = {}
    faults: list[str] = []
    left_out = 0
    with (partial / LABELS_FILE).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["image", "labels"])
        layout = VocLayout(partial, classes=names)
        layout.mask_path("a").parent.mkdir()
        for split in splits:
            objects = split.objects()
            kept = [
                photo
                for photo in split.content.images
                if objects[photo.id] or background_images or split.name != "train"
            ]
            left_out += len(split.content.images) - len(kept)
            lists[split.name] = [photo.name for photo in kept]
            for photo in tracked(kept, f"photos and masks of {split.name}", len(kept)):
                collect_faults(faults, _write_photo, layout, split, photo, objects[photo.id], labels)
                present = {labels[each.category_id] for each in objects[photo.id]}
                table.writerow([photo.name, ";".join(names[label - 1] for label in sorted(present))])
    raise_faults("COCO", [fault.replace(f"{partial}/", "") for fault in faults])
    write_lists(partial, lists)
    return {"left_out_without_objects": left_out}


def _write_photo(
    layout: VocLayout, split: _Split, photo: _Photo, objects: Sequence[_Object], labels: Mapping[int, int]
) -> None:
    """Put a photo into the folder and write its mask."""
    source = split.files[photo.id]
    link_or_copy(source, layout.root / "JPEGImages" / f"{photo.name}{source.suffix}")
    size = layout.photo_size(photo.name)
    if size != (photo.height, photo.width):
        raise RRMError(
            f"{source}: expected the size in {split.source.name}, {photo.width} x {photo.height} (width x height), got "
            f"{size[1]} x {size[0]}: give the photos of these annotations"
        )
    regions = [(labels[each.category_id], bool(each.iscrowd), _plain_region(each.segmentation)) for each in objects]
    layout.mask_path(photo.name).write_bytes(encode_mask(semantic_mask(regions, size)))


def _plain_region(region: Any) -> Any:
    return {"counts": region.counts, "size": list(region.size)} if isinstance(region, _RLE) else region
