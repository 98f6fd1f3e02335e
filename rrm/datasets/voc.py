"""Read a data set in the folder layout of PASCAL VOC 2012, and find all its faults in one pass.

```
root/ImageSets/Segmentation/<list>.txt    one image id a line
root/JPEGImages/<id>.jpg                  photos (.jpeg and .png too)
root/Annotations/<id>.xml                 object lists: the image-level labels; or one CSV file `image,labels`
root/SegmentationClass/<id>.png           masks: 0 = background, 1..C = class, 255 = ignore; only where masks
are needed ```

Photos are used as their raw pixels are stored: an EXIF orientation is not applied, because VOC masks match
the raw pixels. No implementation of an equation lives here; this is the input of the whole method
("image-level labels in").
"""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Any
from xml.etree.ElementTree import ParseError

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rrm.errors import RRMError, RRMErrors
from rrm.labels import IGNORE
from rrm.limits import ANNOTATION_BYTES, SCANS, TEXT_BYTES, Refused, checked_id, read_file, read_text, require_regular

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car",
    "cat", "chair", "cow", "diningtable", "dog", "horse", "motorbike",
    "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
_PHOTO_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
_DEFAULT_LISTS: Mapping[str, str | None] = MappingProxyType({"train": "train", "val": "val", "test": None})


def voc_palette() -> NDArray[np.uint8]:
    """Colours of the PASCAL VOC palette.

    The bits of a label are dealt in threes to red, green and blue, from the highest bit of the colour
    downwards.

    Returns:
        (256, 3) uint8, RGB, row k = colour of label k. Source: the PASCAL VOC development kit's colour map.

    Example:
        >>> voc_palette()[[0, 1, 15, 255]].tolist()
        [[0, 0, 0], [128, 0, 0], [192, 128, 128], [224, 224, 192]]
    """
    labels = np.arange(256)
    palette = np.zeros((256, 3), dtype=np.int64)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= ((labels >> channel) & 1) << (7 - bit)
        labels = labels >> 3
    return palette.astype(np.uint8)


def read_classes(path: Path) -> tuple[str, ...]:
    r"""Class names in label order from a text file, one a line.

    Raises:
        RRMError: the file is missing, unreadable or empty.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "classes.txt"
        >>> _ = path.write_text("cat\ntraffic light\n")
        >>> read_classes(path)
        ('cat', 'traffic light')
    """
    try:
        names = tuple(filter(None, map(str.strip, read_text(path, TEXT_BYTES).splitlines())))
    except (OSError, ValueError) as error:
        raise RRMError(f"{path}: expected class names, one a line, got {_short(error)}: write the file") from error
    if not names:
        raise RRMError(f"{path}: expected class names, one a line, got an empty file: fill it")
    return names


def encode_mask(labels: NDArray[np.uint8]) -> bytes:
    """A mask as a PNG file of 8 bits with the VOC palette.

    Args:
        labels: (H, W) uint8, class ids, 0 = background.

    Returns:
        The file's bytes; the same for the same labels. At Pillow's compression level 6: level 9 takes five times as
        long for files that are a seventh smaller.

    Raises:
        RRMError: another shape or dtype.

    Example:
        >>> data = encode_mask(np.array([[0, 2]], np.uint8))
        >>> Image.open(io.BytesIO(data)).mode, np.array(Image.open(io.BytesIO(data))).tolist()
        ('P', [[0, 2]])
    """
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise RRMError(f"labels: expected (H, W) uint8, got {labels.shape} {labels.dtype}: convert them")
    image = Image.fromarray(labels)
    image.putpalette(voc_palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


@dataclass(frozen=True)
class VocLayout:
    """A data set in VOC layout: paths, image-level labels, photos and masks by image id.

    Args:
        root: the data set's folder.
        classes: names of the foreground classes; the class at index k has label k + 1.
        labels: "xml" for `Annotations/<id>.xml`, or the path of a CSV file (relative to `root`, or absolute)
            with the header `image,labels` and class names separated by a space or `;`. Class names with
            spaces need `;`.
        lists: file name (without .txt) in `ImageSets/Segmentation` for each split; None where there is no
            such split.
        background_images: allow training images that show none of the classes.
        max_pixels: largest photo or mask, in pixels; a larger file is refused before it is decoded.

    Raises:
        RRMError: the folder is missing, or `classes` is empty, too long, has doubles, or names the
            background.

    Example:
        >>> VocLayout(Path("no/such/folder"))
        Traceback (most recent call last):
        ...
        rrm.errors.RRMError: no/such/folder: expected the folder of a data set, got nothing: check the path
    """

    root: Path
    classes: tuple[str, ...] = VOC_CLASSES
    labels: str = "xml"
    lists: Mapping[str, str | None] = field(default_factory=lambda: _DEFAULT_LISTS)
    background_images: bool = False
    max_pixels: int = 50_000_000

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))
        object.__setattr__(self, "classes", tuple(self.classes))
        if not self.root.is_dir():
            raise RRMError(f"{self.root}: expected the folder of a data set, got nothing: check the path")
        if not 1 <= len(self.classes) <= 254 or len(set(self.classes)) < len(self.classes):
            raise RRMError(f"classes: expected 1 to 254 different names, got {list(self.classes)}: correct the list")
        if reserved := {"", "background", "__background__"} & set(self.classes):
            raise RRMError(f"classes: expected foreground names only, got {reserved.pop()!r}: leave it out")

    # ---- lists ----

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that have a list."""
        return tuple(split for split, name in self.lists.items() if name is not None)

    def list_path(self, split: str) -> Path:
        """The list file of a split.

        Raises:
            RRMError: there is no such split.
        """
        name = self.lists.get(split)
        if name is None:
            raise RRMError(f"{self.root}: expected a split of {', '.join(self.splits)}, got {split!r}: add its list")
        return self._inside("ImageSets/Segmentation", f"{name}.txt")

    def ids(self, split: str) -> tuple[str, ...]:
        """Image ids of a split, in the order of its list; blank lines are left out.

        Raises:
            RRMErrors: the list is missing, unreadable or empty, has ids twice or ids that leave the folder.
        """
        faults: list[str] = []
        ids = collect_faults(faults, self._read_list, split, faults) or ()
        raise_faults(f"list of {split} in {self.root}", faults)
        return tuple(ids)

    def usable_ids(self, split: str) -> tuple[str, ...]:
        """Like `ids`, but leaves out what is faulty instead of raising: to look for further faults."""
        return tuple(collect_faults([], self._read_list, split, []) or ())

    def _read_list(self, split: str, faults: list[str]) -> list[str]:
        """The different ids of a list that stay in the data set's folder; the others go to `faults`."""
        path = self.list_path(split)
        try:
            lines = read_text(path, TEXT_BYTES).splitlines()
        except (OSError, ValueError) as error:
            raise RRMError(
                f"{path}: expected a list of image ids, got {_short(error)}: write it, one id a line"
            ) from error
        counts = Counter(line.strip() for line in lines if line.strip())
        if not counts:
            raise RRMError(
                f"{path}: expected at least one image id, got an empty list: fill it or set the split to null"
            )
        faults += [
            f"{path}: expected each id once, got {name!r} {count} times: remove the doubles"
            for name, count in counts.items()
            if count > 1
        ]
        return [name for name in counts if collect_faults(faults, self._inside, "JPEGImages", name)]

    def list_faults(self, splits: Sequence[str]) -> list[str]:
        """Faults of the lists of `splits`, ids that are in another list too, faults of a CSV of labels."""
        faults: list[str] = []
        for split in splits:
            collect_faults(faults, self.ids, split)
        for first, second in combinations(dict.fromkeys([*splits, *self.splits]), 2):
            shared = set(self.usable_ids(first)) & set(self.usable_ids(second))
            if first in splits or second in splits:
                faults += [
                    f"{self.root}: image {name!r}: expected it in one of the lists {first} and {second}, "
                    "got it in both: remove it from one"
                    for name in sorted(shared)
                ]
        if self.labels != "xml":
            collect_faults(faults, lambda: self._table)
        return faults

    # ---- files of one image ----

    def _inside(self, folder: str, name: str) -> Path:
        """A path below `root`, whatever its parts or symbolic links say."""
        path = self.root / folder / checked_id(name)
        odd = "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts
        if odd or not _resolved(path).is_relative_to(self.root.resolve()):
            raise RRMError(
                f"{self.root}: {folder}/{name!r}: expected a path inside the data set's folder, "
                "got one that leaves it: rename the image, or copy the file instead of linking it"
            )
        return path

    def photo_path(self, name: str) -> Path:
        """Path of a photo: the first of `PHOTO_SUFFIXES` that exists.

        Raises:
            RRMError: there is none, or the path leaves `root`.
        """
        for suffix in PHOTO_SUFFIXES:
            path = self._inside("JPEGImages", name + suffix)
            if path.is_file():
                return path
        path = self._inside("JPEGImages", name + ".jpg")
        raise RRMError(f"{path}: expected a photo (.jpg or .png), got no file: add it or take its id off the list")

    def mask_path(self, name: str) -> Path:
        """Path of a mask, which need not exist; it never leaves `root`."""
        return self._inside("SegmentationClass", f"{name}.png")

    def read_photo(self, name: str) -> NDArray[np.uint8]:
        """Decode a photo completely; other colour modes become RGB, EXIF orientation is not applied.

        Returns:
            (H, W, 3) uint8, RGB.

        Raises:
            RRMError: missing, oversized, truncated or otherwise unreadable, or more than 8 bits a channel.
        """
        path = self.photo_path(name)
        with opened_image(path, ("JPEG", "PNG"), self.max_pixels) as image:
            if image.mode not in _PHOTO_MODES:
                raise RRMError(f"{path}: expected a photo of 8 bits a channel, got mode {image.mode}: convert it")
            return np.array(image.convert("RGB"), dtype=np.uint8)

    def photo_size(self, name: str) -> tuple[int, int]:
        """(H, W) of a photo in pixels, from its header."""
        with opened_image(self.photo_path(name), ("JPEG", "PNG"), self.max_pixels) as image:
            return image.height, image.width

    def read_mask(self, name: str) -> NDArray[np.uint8]:
        """Decode a mask and check it against its photo's size and the number of classes.

        Returns:
            (H, W) uint8: 0 = background, 1..C = class, 255 = ignore.

        Raises:
            RRMError: missing, unreadable, painted in RGB, of another size than the photo, or with other
                values.
        """
        path = self.mask_path(name)
        if not path.is_file():
            raise RRMError(f"{path}: expected a mask, got no file: add it or take its id off the list")
        with opened_image(path, ("PNG",), self.max_pixels) as image:
            if image.mode not in {"P", "L"}:
                raise RRMError(
                    f"{path}: expected a palette or grey PNG whose values are class ids, "
                    f"got mode {image.mode}: "
                    "replace its colours by class ids (0 = background, 1..C, 255 = ignore)"
                )
            mask = np.array(image, dtype=np.uint8)
        size = self.photo_size(name)
        if mask.shape != size:
            raise RRMError(
                f"{path}: expected the photo's size {_by(size)}, "
                f"got {_by(mask.shape)}: export the mask at the photo's size"
            )
        self._check_values(path, mask)
        return mask

    def _check_values(self, path: Path, mask: NDArray[np.uint8]) -> None:
        values = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
        wrong = [int(value) for value in values if len(self.classes) < value < IGNORE]
        if wrong:
            raise RRMError(
                f"{path}: expected class ids 0..{len(self.classes)} and {IGNORE}, got {wrong}: "
                "correct the mask or the list of classes"
            )

    # ---- image-level labels ----

    def present(self, name: str) -> NDArray[np.uint8] | None:
        """Image-level labels.

        Returns:
            (C,) uint8, 1 where the class is in the image; None where the image has no annotation file or CSV
            row.

        Raises:
            RRMError: unreadable annotation. RRMErrors: unknown class names, all of them.
        """
        if self.labels == "xml":
            source = self._inside("Annotations", f"{name}.xml")
            names = xml_names(source) if source.is_file() else None
        else:
            source, row = self._table_path, self._table.get(name)
            names = None if row is None else self._split_names(row)
        if names is None:
            return None
        unknown = sorted(set(names) - set(self.classes))
        if unknown:
            raise RRMError(
                f"{source}: image {name!r}: expected class names of the {len(self.classes)} configured, "
                f"got {unknown}: "
                "correct them or add them to the classes"
            )
        return np.array([label in names for label in self.classes], dtype=np.uint8)

    def training_labels(self, name: str) -> NDArray[np.uint8]:
        """Like `present`, for an image that must be labelled.

        Raises:
            RRMError: the image has no annotation, or shows no class and `background_images` is off.
        """
        present = self.present(name)
        if present is None:
            source = self._inside("Annotations", f"{name}.xml") if self.labels == "xml" else self._table_path
            raise RRMError(f"{source}: image {name!r}: expected image-level labels, got none: add them")
        if not present.any() and not self.background_images:
            raise RRMError(
                f"{self.root}: image {name!r}: expected at least one class, "
                "got none: label it, take it off the training "
                "list, or set background_images"
            )
        return present

    @property
    def _table_path(self) -> Path:
        return self.root / self.labels

    @cached_property
    def _table(self) -> dict[str, str]:
        """Rows of the CSV file: image id to its text of labels."""
        path = self._table_path
        try:
            file = io.StringIO(read_text(path, TEXT_BYTES), newline="")
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
        except (OSError, ValueError, csv.Error) as error:
            raise RRMError(f"{path}: expected a CSV file `image,labels`, got {_short(error)}: correct it") from error
        if not rows or rows[0] != ["image", "labels"]:
            raise RRMError(
                f"{path}: expected the header `image,labels`, got {','.join(rows[0] if rows else [])!r}: add it"
            )
        faults = [
            f"{path}: row {number}: expected 2 cells, got {len(row)}: separate labels by a space or ;"
            for number, row in enumerate(rows[1:], 2)
            if len(row) != 2
        ]
        counts = Counter(row[0] for row in rows[1:])
        faults += [
            f"{path}: expected one row for image {name!r}, got {count}: join them"
            for name, count in counts.items()
            if count > 1
        ]
        if faults:
            raise RRMErrors(f"{path}", faults)
        return {row[0]: row[1] for row in rows[1:]}

    def _split_names(self, text: str) -> list[str]:
        parts = text.split(";") if ";" in text or text in self.classes else text.split()
        return [part.strip() for part in parts if part.strip()]

    # ---- everything ----

    def check(self, splits: Sequence[str], masks: Sequence[str] = ()) -> None:
        """Read all photos and labels of `splits` and all masks of the splits `masks`.

        A weakly supervised run leaves "train" out of `masks`: then no training mask is opened.

        Raises:
            RRMErrors: all faults of the data set, one line each: file, expected, got, what to do.
        """
        faults = self.list_faults(splits)
        for split in splits:
            for name in self.usable_ids(split):
                collect_faults(faults, self.read_photo, name)
                collect_faults(faults, self.training_labels if split == "train" else self.present, name)
        for split in masks:
            for name in self.usable_ids(split):
                collect_faults(faults, self.read_mask, name)
        raise_faults(f"data set {self.root}", faults)


def raise_faults(title: str, faults: Sequence[str]) -> None:
    """Raise `RRMErrors` with each different fault once; do nothing when there is none."""
    if faults:
        raise RRMErrors(title, list(dict.fromkeys(faults)))


def collect_faults(faults: list[str], function: Callable[..., Any], *arguments: Any) -> Any:
    """The value of a call, or None with its fault(s) appended to `faults`."""
    try:
        return function(*arguments)
    except RRMErrors as error:
        faults.extend(error.faults)
    except RRMError as error:
        faults.append(str(error))
    return None


@contextmanager
def opened_image(path: Path, formats: tuple[str, ...], max_pixels: int) -> Iterator[Image.Image]:
    """An open image of an allowed format and size; a failure to decode it in the block becomes one `RRMError`.

    Args:
        path: the file.
        formats: Pillow's names of formats, such as "JPEG".
        max_pixels: most pixels; a larger image is refused by its header, before it is decoded.

    Raises:
        RRMError: missing, foreign, truncated or too large.

    Example:
        >>> with opened_image(Path("none.png"), ("PNG",), 100): pass
        Traceback (most recent call last):
        ...
        rrm.errors.RRMError: none.png: expected a readable PNG file, got no file: replace the file
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            require_regular(path)
            with Image.open(path, formats=formats) as image:
                if image.width * image.height > max_pixels:
                    raise Image.DecompressionBombError(f"{image.width} x {image.height}")
                _refuse_slow(image, path)
                yield image
    except Image.DecompressionBombError as error:
        text = f"{path}: expected at most {max_pixels} pixels, got {_short(error)}: make it smaller or raise max_pixels"
        raise RRMError(text) from error
    except RRMError:
        raise
    except Exception as error:  # Pillow's readers of formats raise what they happen to meet
        kinds = " or ".join(formats)
        raise RRMError(f"{path}: expected a readable {kinds} file, got {_short(error)}: replace the file") from error


_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")


def _refuse_slow(image: Image.Image, path: Path) -> None:
    """Refuse a JPEG of a few bytes that takes minutes: each of its scans goes over the whole photo."""
    if image.format not in {"JPEG", "MPO"}:
        return
    data, place, scans = path.read_bytes(), 2, 0
    while (found := _MARKER.search(data, place)) and data[found.end() - 1] != 0xD9:
        scans += data[found.end() - 1] == 0xDA
        place = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    if scans > SCANS:
        raise Refused(f"{scans} scans, more than {SCANS}")


def _resolved(path: Path) -> Path:
    """Where a path leads; nowhere for links in a circle."""
    try:
        return path.resolve()
    except RuntimeError:
        return Path("/")


def xml_names(path: Path) -> list[str]:
    """Names of the annotated objects (not of their parts), those marked difficult included."""
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import fromstring as parse_xml

    try:
        root = parse_xml(read_file(path, ANNOTATION_BYTES))
    except (OSError, ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise RRMError(f"{path}: expected a VOC annotation in XML, got {_short(error)}: correct the file") from error
    return [(item.findtext("name") or "").strip() for item in root.iterfind("object")]


def _short(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "no file"
    if isinstance(error, Refused):
        return str(error)
    return f"{type(error).__name__} ({' '.join(str(error).split())[:120]})"


def _by(shape: Sequence[int]) -> str:
    return f"{shape[1]} x {shape[0]} (width x height)"
