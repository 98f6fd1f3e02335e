"""One array out of a MATLAB 5 file, trusting nothing in it.

`scipy.io.loadmat` reads these files too, but not safely: 830 of 6,000 files with a few bytes changed ended the process
(SciPy 1.17). Format: The MathWorks, "MAT-File Format", level 5.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rrm.errors import RRMError
from rrm.limits import MEMBER_BYTES

_HEADER = 128  # bytes; the last two say the byte order
_VARIABLES, _PARTS = 16, 1000  # most variables of a file that are looked at, most parts of a struct; SBD has one and 8
_COMPRESSED, _MATRIX, _STRUCT = 15, 14, 2
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = range(6, 16)  # arrays of numbers


def read_field(data: bytes, variable: str, field: str) -> NDArray[Any]:
    """The array in a field of a variable that is a single struct.

    Args:
        data: the file.
        variable, field: names.

    Returns:
        The numbers as they are stored, which may be a smaller type than MATLAB's own for the array.

    Raises:
        RRMError: not such a file, or damaged: what was wrong.

    Example:
        >>> import io
        >>> from scipy.io import savemat
        >>> file = io.BytesIO()
        >>> savemat(file, {"a": {"b": np.array([[1, 2]], np.uint8), "c": "text"}}, do_compression=True)
        >>> read_field(file.getvalue(), "a", "b").tolist()
        [[1, 2]]
    """
    try:
        order = {b"IM": "<", b"MI": ">"}[data[_HEADER - 2 : _HEADER]]
        for kind, content in islice(_elements(memoryview(data)[_HEADER:], order), _VARIABLES):
            if kind == _COMPRESSED:
                ((kind, content),) = _elements(_decompressed(content), order)  # noqa: PLW2901
            parts = list(islice(_elements(content, order), _PARTS)) if kind == _MATRIX else []
            if len(parts) > 2 and parts[2][1] == variable.encode():
                return _numbers(_field(parts, field, order), order)
        raise ValueError(f"no variable {variable}")
    except (ValueError, KeyError, IndexError, TypeError, struct.error, zlib.error) as error:
        got = f"{type(error).__name__} ({' '.join(str(error).split())[:80]})"
        raise RRMError(f"expected a MATLAB 5 file with {variable}.{field}, got {got}") from None


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Type and content of each element in a row of them; nothing is copied."""
    place = 0
    while place < len(data):
        (kind,) = struct.unpack_from(f"{order}I", data, place)
        if kind >> 16:  # a small one: its size and type share four bytes, four more hold what it has
            start, size, step = place + 4, kind >> 16, 8
        else:
            (size,) = struct.unpack_from(f"{order}I", data, place + 4)
            start, step = place + 8, 8 + (size if kind == _COMPRESSED else -(-size // 8) * 8)
        if start + size > len(data) or (step == 8 and size > 4):
            raise ValueError(f"an element of {size} bytes, where fewer are left")
        yield kind & 0xFFFF, data[start : start + size]
        place += step


def _decompressed(data: memoryview) -> memoryview:
    """The bytes of a compressed element, checksum verified."""
    unpacker = zlib.decompressobj()
    content = unpacker.decompress(data, MEMBER_BYTES)
    if not unpacker.eof:
        raise ValueError("a compressed element that is cut or too large")
    return memoryview(content)


def _field(parts: list[tuple[int, memoryview]], field: str, order: str) -> memoryview:
    """The matrix in a field of a struct, whose parts are flags, size, name, length of names, names and matrices."""
    if parts[0][1][0 if order == "<" else 3] != _STRUCT:
        raise ValueError("no struct")
    (length,) = struct.unpack(f"{order}i", parts[3][1])
    names = bytes(parts[4][1])
    starts = range(0, len(names), length)
    if len(starts) != len(parts) - 5:
        raise ValueError(f"{len(starts)} fields and {len(parts) - 5} values")
    fields = [names[start : start + length].split(b"\0")[0] for start in starts]
    return parts[5 + fields.index(field.encode())][1]


def _numbers(matrix: memoryview, order: str) -> NDArray[Any]:
    (_, flags), (_, size), _, (kind, content) = _elements(matrix, order)
    shape = np.frombuffer(size, f"{order}i4").tolist()
    numbers = np.frombuffer(content, f"{order}{_NUMBERS[kind]}")
    if flags[0 if order == "<" else 3] not in _CLASSES or min(shape) < 0 or math.prod(shape) != numbers.size:
        raise ValueError(f"{numbers.size} numbers for an array of {shape}")
    return numbers.reshape(shape, order="F")
