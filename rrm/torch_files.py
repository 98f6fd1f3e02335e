"""Files of `torch.save`: written atomically, the same content to the same bytes, and read with their checksums.

torch writes a CRC-32 with every tensor and does not look at it when it reads: a flipped bit would become a weight.
Nothing is unpickled but tensors and plain values.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rrm.errors import RRMError
from rrm.store import Sink, atomic_path


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
        RRMError: a missing, foreign or truncated file, or bytes that do not match their CRC-32.

    Example:
        >>> load_torch("missing.pth")
        Traceback (most recent call last):
        ...
        rrm.errors.RRMError: missing.pth: expected a file that torch.save wrote, got No such file or directory
    """
    try:
        with Path(path).open("rb") as file:
            archived = file.read(4) == b"PK\x03\x04"
        wrong = zipfile.ZipFile(path).testzip() if archived else None
        content = None if wrong else torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise _fault(path, str(error.strerror or error)) from None
    except Exception as error:  # damage and foreign files show in many ways
        raise _fault(path, (str(error).splitlines() or [type(error).__name__])[0][:160]) from None
    if wrong:
        raise _fault(path, f"changed bytes in {wrong} (CRC-32 does not match)")
    return content


def _fault(path: str | os.PathLike[str], got: str) -> RRMError:
    return RRMError(f"{path}: expected a file that torch.save wrote, got {got}")
