"""Files of `torch.save`: written atomically, the same content to the same bytes, and read with their checksums.

torch writes a CRC-32 with every tensor and does not look at it when it reads: a flipped bit would become a weight.
Nothing is unpickled but tensors and plain values.
"""

from __future__ import annotations

import io
import mmap
import os
import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rrm.errors import RRMError
from rrm.store import Sink, atomic_path

_NAMES = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(?:tensor|tensor_v2|parameter)|torch\.nn\.parameter Parameter"
    r"|torch (?:\w+Storage|Size|device|b?float\w*|u?int\d+|bool|half|double|long|complex\w+)"
)
"""What tensors and plain values are made of. torch allows more in a file, and calls it with what the file says."""
_COPIES = 4  # tensors of a file may share their numbers, few of them do


def save_torch(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write tensors and plain values, atomically.

    Args:
        path: the file.
        content: what `load_torch` will give; tensors stay on their device.

    Raises:
        RRMError: no room or no right to write the file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "net.pth"
        >>> save_torch(path, {"step": 3, "weight": torch.ones(2)})
        >>> load_torch(path)["step"]
        3
    """
    with atomic_path(path) as temporary, Sink(temporary) as sink:  # given a path, torch would store its name
        torch.save(dict(content), sink)
        sink.check()


def load_torch(path: str | os.PathLike[str]) -> Any:
    """Read what `torch.save` wrote, onto the CPU, once its checksums are right.

    Args:
        path: a file of `save_torch`, or any other in one of torch's formats; old ones have no checksums.

    Raises:
        RRMError: a missing, foreign or truncated file, bytes that do not match their CRC-32, names no tensor needs,
            or tensors that are larger than the file.

    Example:
        >>> load_torch("missing.pth")
        Traceback (most recent call last):
        ...
        rrm.errors.RRMError: missing.pth: expected a file that torch.save wrote, got No such file or directory
    """
    try:
        with Path(path).open("rb") as file:
            archived = file.read(4) == b"PK\x03\x04"
        _refuse_what_grows(Path(path), archived)
        wrong = zipfile.ZipFile(path).testzip() if archived else None
        content = None if wrong else torch.load(path, map_location="cpu", weights_only=True)
        if _bytes_of_tensors(content) > _COPIES * Path(path).stat().st_size + _COPIES * 4096:
            raise ValueError("tensors that are larger than the file")
    except OSError as error:
        raise _fault(path, str(error.strerror or error)) from None
    except Exception as error:  # damage and foreign files show in many ways
        raise _fault(path, (str(error).splitlines() or [type(error).__name__])[0][:160]) from None
    if wrong:
        raise _fault(path, f"changed bytes in {wrong} (CRC-32 does not match)")
    return content


def _refuse_what_grows(path: Path, archived: bool) -> None:
    """Refuse other names than those of tensors, and records that unpack to more than the file has; nothing is built.

    Raises:
        ValueError: what was found.
    """
    if not archived:  # the old format: four texts of pickle before the objects' last one, then numbers
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for _ in range(5):
                _check_names(content)
        return
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        packed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
        if packed or sum(record.file_size for record in records) > path.stat().st_size:
            raise ValueError("records that are larger than the file")
        for record in records:
            if record.filename.endswith(".pkl"):
                _check_names(io.BytesIO(archive.read(record)))


def _check_names(content: io.BytesIO | mmap.mmap) -> None:
    """Check one pickle; of content that is all there, no more is read than there is, whatever a length in it says."""
    for operation, argument, _ in pickletools.genops(content):  # type: ignore[arg-type]
        if operation.name in ("GLOBAL", "INST", "STACK_GLOBAL") and not _NAMES.fullmatch(str(argument)):
            raise ValueError(f"the name {argument!r}, which no tensor needs")


def _bytes_of_tensors(content: Any) -> int:
    """Bytes that all tensors in nested content have when each of them is copied."""
    total, todo, seen = 0, [content], set[int]()
    while todo:
        value = todo.pop()
        if isinstance(value, Tensor):
            total += value.numel() * value.element_size()
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))  # one that holds others many times, and these others, is small
            todo += value.values() if isinstance(value, Mapping) else value
    return total


def _fault(path: str | os.PathLike[str], got: str) -> RRMError:
    return RRMError(f"{path}: expected a file that torch.save wrote, got {got}")
