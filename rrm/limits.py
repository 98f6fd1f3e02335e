"""Limits on what a file may ask for, in one place; that of pixels is `dataset.max_pixels` of a configuration.

None comes near what real data sets have. `docs/hostile_input.md` says what each of them guards.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from rrm.errors import RRMError

CONFIG_BYTES = 1 << 20
CONFIG_NODES = 100_000
"""Values in a configuration file, each alias (`*name`) counted with all that it stands for."""
CONFIG_DEPTH = 50
"""Of values in each other in a configuration file: PyYAML looks through all open brackets at each word."""
ANNOTATION_BYTES = 1 << 20
TEXT_BYTES = 256 << 20
"""Of a list of photos, a table of labels, a list of classes, a file of rates."""
COCO_BYTES = 2 << 30
"""Of one of COCO's annotation files; those of 2017's training photos have 0.47 GB."""
MEMBER_BYTES = 64 << 20
"""Of one file of a published data set, packed or not."""
MEMBERS = 250_000
"""Of an archive."""
HEADER_BYTES = 1 << 20
"""Of the name of a member of an archive and what else is said of it."""
SCANS = 64
"""Passes over a JPEG; progressive ones have about ten, each takes as long as a whole photo may."""
ID_PART_BYTES = 200
"""Of each part of an image id, between slashes: file systems allow 255 for a name with its suffix."""
ID_BYTES = 1000
"""Of an image id: systems allow 4,096 for a path."""


def checked_id(name: str) -> str:
    """An image id, if it is not too long for files.

    Raises:
        RRMError: a part, or the whole, has too many bytes.
    """
    if len(os.fsencode(name)) > ID_BYTES or any(len(os.fsencode(part)) > ID_PART_BYTES for part in name.split("/")):
        raise RRMError(
            f"{name!r}: expected at most {ID_PART_BYTES} bytes between slashes and {ID_BYTES} in all, got more: rename "
            "the image"
        )
    return name


class Refused(ValueError):
    """A file that is not read, and why."""


def read_file(path: str | os.PathLike[str], largest: int) -> bytes:
    """The content of a regular file that is not too large.

    Args:
        path: the file; a pipe or a device would never end.
        largest: most bytes.

    Raises:
        Refused: a larger file, or none that is regular.
        OSError: no file, or no right to read it.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "list.txt"
        >>> _ = path.write_text("abc")
        >>> read_file(path, 3)
        b'abc'
        >>> read_file(path, 2)
        Traceback (most recent call last):
        ...
        rrm.limits.Refused: more than 2 bytes
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise Refused("a folder, pipe or device")
        if status.st_size > largest:
            raise Refused(f"more than {largest} bytes")
        content = file.read(status.st_size + 1)  # room is taken for all that is asked for
        while len(content) <= largest and (more := file.read(1 << 16)):  # it has grown
            content += more
    if len(content) > largest:
        raise Refused(f"more than {largest} bytes")
    return content


def read_text(path: str | os.PathLike[str], largest: int) -> str:
    """The text of a file in UTF-8, with or without a byte order mark; `read_file`.

    Raises:
        UnicodeDecodeError: another encoding.
    """
    return read_file(path, largest).decode("utf-8-sig")


def require_regular(path: Path) -> None:
    """Refuse what is no regular file.

    Raises:
        Refused: a folder, pipe or device.
        OSError: no file.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise Refused("a folder, pipe or device")
