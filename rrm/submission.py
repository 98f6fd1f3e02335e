"""Archives for an evaluation server in PASCAL VOC's format: masks of photos whose true masks are not public.

The server takes a `.tar.gz` with one PNG file a photo of the list, below `FOLDER`: a palette image of 8 bits whose
values are class ids, of the photo's size, without the value 255. `write_archive` gives the same bytes for the same
masks; `check_archive` trusts nothing in the archive that it reads.
"""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rrm.datasets.published import TAR_DAMAGE, Member, is_plain, leaves_folder
from rrm.datasets.voc import raise_faults, voc_palette
from rrm.errors import RRMError

FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"
"""Where the masks lie. comp5 is for methods that used nothing but the challenge's own training data, comp6 for all
others: start weights from ImageNet, photos or labels from elsewhere are more than that."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOURS = {0: "grey", 2: "RGB", 3: "a palette", 4: "grey with alpha", 6: "RGB with alpha"}
_HEADERS = 8192  # bytes that names and padding of one file may take
_KEPT_IN_MEMORY = 64 << 20
_DAMAGE = (*TAR_DAMAGE, Image.DecompressionBombError)  # Pillow raises the same kinds and this one


def member_name(name: str) -> str:
    """Path of a photo's mask in the archive.

    Example:
        >>> member_name("2008_000006")
        'results/VOC2012/Segmentation/comp6_test_cls/2008_000006.png'
    """
    return f"{FOLDER}/{name}.png"


def write_archive(path: str | os.PathLike[str], masks: Iterable[tuple[str, bytes]]) -> None:
    """Write an archive; its bytes depend on the masks and their order only.

    Args:
        path: the file to write, `.tar.gz`.
        masks: photo ids and the bytes of their PNG files (`rrm.datasets.voc.encode_mask`).

    Example:
        >>> from rrm.datasets.voc import encode_mask
        >>> path = Path(tempfile.mkdtemp()) / "submission.tar.gz"
        >>> write_archive(path, [("cat", encode_mask(np.zeros((2, 3), np.uint8)))])
        >>> check_archive(path, ["cat"], {"cat": (2, 3)}, num_classes=20)
    """
    with (
        Path(path).open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for name, data in masks:
            member = tarfile.TarInfo(member_name(name))  # its time, owner and group are 0
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def check_archive(
    path: str | os.PathLike[str], ids: Sequence[str], sizes: Mapping[str, tuple[int, int]], num_classes: int
) -> None:
    """Check an archive against the list of photos; nothing is unpacked to a place that the archive names.

    Args:
        path: the archive.
        ids: ids of the photos, each of which must have one file.
        sizes: original (H, W) of each photo in pixels, by id.
        num_classes: foreground classes; values must be 0..num_classes.

    Raises:
        RRMErrors: every fault: compression, files that are missing, twice or not asked for, paths that leave the
            folder, links and devices, and of each PNG file its mode, palette, size and values.
        RRMError: an id without a size.

    Example:
        >>> from rrm.datasets.voc import encode_mask
        >>> path = Path(tempfile.mkdtemp()) / "submission.tar.gz"
        >>> write_archive(path, [("cat", encode_mask(np.full((2, 3), 255, np.uint8)))])
        >>> try:
        ...     check_archive(path, ["cat", "dog"], {"cat": (2, 3), "dog": (2, 3)}, num_classes=20)
        ... except RRMError as error:
        ...     print(len(error.faults))
        2
    """
    unknown = [name for name in ids if name not in sizes]
    if unknown:
        raise RRMError(f"sizes: expected one of each id, got none of {unknown[:5]}: give them")
    expected = {member_name(name): sizes[name] for name in ids}
    limit = (1 << 20) + sum(_HEADERS + 2 * height * width for height, width in expected.values())
    faults: list[str] = []
    try:
        with _unpacked(Path(path), limit) as unpacked:
            faults += _archive_faults(unpacked, expected, num_classes)
    except RRMError as error:
        faults.append(str(error))
    raise_faults(str(path), faults)


@contextmanager
def _unpacked(path: Path, limit: int) -> Iterator[IO[bytes]]:
    """The tar file in a gzip file, decompressed to its end and so checked, in a nameless temporary file."""
    with tempfile.SpooledTemporaryFile(_KEPT_IN_MEMORY) as unpacked:
        try:
            with path.open("rb") as raw:
                if raw.read(2) != b"\x1f\x8b":
                    raise RRMError("compression: expected gzip, got something else: make a .tar.gz")
            with gzip.open(path, "rb") as packed:
                while block := packed.read(1 << 20):
                    unpacked.write(block)
                    if unpacked.tell() > limit:
                        raise RRMError(
                            f"size: expected at most {limit} bytes when unpacked, got more: leave out what is too much"
                        )
        except (OSError, EOFError, zlib.error) as error:
            raise RRMError(
                f"compression: expected a readable gzip file, got {type(error).__name__} ({error}): make it again"
            ) from None
        unpacked.seek(0)
        yield unpacked


def _archive_faults(unpacked: IO[bytes], expected: Mapping[str, tuple[int, int]], num_classes: int) -> list[str]:
    folders = {str(folder) for name in expected for folder in PurePosixPath(name).parents}
    faults: list[str] = []
    seen: set[str] = set()
    for member, data in _members(unpacked, faults):
        if member.isdir() and member.name in folders:
            continue
        fault = _place_fault(member, expected, seen)
        seen.add(member.name)
        if fault is None:
            faults += [f"{member.name}: {each}" for each in _mask_faults(data, expected[member.name], num_classes)]
        else:
            faults.append(f"{member.name!r}: {fault}")
    missing = [name for name in expected if name not in seen]
    return faults + [f"{name}: expected a file, got none: add the photo's mask" for name in missing]


def _members(unpacked: IO[bytes], faults: list[str]) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Members and the bytes of regular files; damage, and bytes behind the end, go to `faults`."""
    damage = "tar: expected a readable archive, got {}: make it again"
    last = -1
    try:
        with tarfile.open(fileobj=unpacked, mode="r:", tarinfo=Member) as archive:
            for member in archive:
                if member.offset <= last or member.size < 0:
                    faults.append(damage.format("a member that points backwards"))
                    return
                last = member.offset
                file = archive.extractfile(member) if is_plain(member) else None
                yield member, file.read() if file else b""
            unpacked.seek(archive.offset)
            if unpacked.read().strip(b"\0"):
                faults.append(damage.format("bytes behind its last file"))
    except _DAMAGE as error:
        faults.append(damage.format(f"{type(error).__name__} ({' '.join(str(error).split())[:120]})"))


def _place_fault(member: tarfile.TarInfo, expected: Mapping[str, Any], seen: set[str]) -> str | None:
    """What is wrong with a member before it is looked into."""
    if leaves_folder(member.name):
        return "expected a path inside the archive, got one that leaves it: remove it"
    if member.name in seen:
        return "expected one file of this name, got another: remove the double"
    if not is_plain(member):
        kind = "a link" if member.issym() or member.islnk() else "a folder" if member.isdir() else "a special file"
        return f"expected regular files only, got {kind}: put the file itself there or remove it"
    if member.name not in expected:
        return "expected no such file, got one: its photo is not on the list, or it lies in a wrong folder"
    return None


def _mask_faults(data: bytes, size: tuple[int, int], num_classes: int) -> Iterator[str]:
    """What is wrong with the bytes of a mask; pixels are decoded only where the header says the right size."""
    if data[:8] != _SIGNATURE or data[12:16] != b"IHDR" or len(data) < 33:
        yield "expected a PNG file, got another format: save it as PNG"
        return
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    if (depth, colour) != (8, 3):
        got = f"{depth} bits with {_COLOURS.get(colour, f'colour type {colour}')}"
        yield f"mode: expected 8 bits with a palette, got {got}: save class ids with the VOC palette"
    if (height, width) != size:
        wanted = f"{size[1]} x {size[0]} (width x height)"
        yield f"size: expected the photo's, {wanted}, got {width} x {height}: resize probabilities before the arg max"
        return
    try:
        Image.open(io.BytesIO(data), formats=("PNG",)).verify()  # checksums of all chunks, to the last one
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            labels = np.array(image)
            palette = image.getpalette("RGB") or [] if image.mode == "P" else None
    except _DAMAGE as error:
        yield f"expected a readable PNG file, got {type(error).__name__} ({str(error)[:80]}): write it again"
        return
    yield from _value_faults(labels, palette, num_classes)


def _value_faults(labels: NDArray[Any], palette: list[int] | None, num_classes: int) -> Iterator[str]:
    if palette is not None and palette[: 3 * num_classes + 3] != voc_palette()[: num_classes + 1].ravel().tolist():
        yield f"palette: expected VOC's colours for 0..{num_classes}, got others: save it with the VOC palette"
    if labels.ndim == 2:
        wrong = [int(value) for value in np.unique(labels) if value > num_classes]
        if wrong:
            yield f"values: expected 0..{num_classes}, got {wrong[:20]}: every pixel needs a class"
