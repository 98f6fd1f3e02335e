"""Reader for MXNet's `.params` files (lists of named arrays), without MXNet, and ResNet-38's names in them.

Layout, little endian: u64 0x112, u64 0, u64 count, the arrays, u64 count, the names (u64 length, bytes each).
An array starts with a u32: 0xF993FACA or 0xF993FAC9 (then i32 storage type), 0xF993FAC8, or, in the oldest
files, directly its number of dimensions. Then dimensions (u32 count unless given, i64 each; u32 each in the
oldest), i32 device type, i32 device number, i32 element type and the elements.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from rrm.errors import RRMError

MAGIC = (0x112).to_bytes(8, "little")
"""First eight bytes of every such file."""

_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_DENSE = 0
_DTYPES: dict[int, np.dtype[Any]] = {0: np.dtype("<f4"), 1: np.dtype("<f8"), 2: np.dtype("<f2")}
_MAX_DIMENSIONS = 32
_LEAVES = {
    "weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias",
    "moving_mean": "running_mean", "moving_var": "running_var",
}  # fmt: skip
_UNIT = re.compile(r"(?:res|bn)(?P<block>\d)(?:a|b(?P<index>\d+))_(?P<branch>branch[0-9ab]+)_(?P<leaf>\w+)")
_PLAIN = re.compile(r"(?P<layer>conv1a|bn7)_(?P<leaf>\w+)")


class _Reader:
    """Cursor over a file's bytes that refuses to pass its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = np.memmap(path, dtype=np.uint8, mode="r")
        self.position = 0

    def fail(self, what: str) -> RRMError:
        return RRMError(
            f"{self.path}: expected a readable MXNet .params file, got another: {what} (at byte {self.position})"
        )

    def take(self, size: int) -> np.ndarray:
        left = len(self.data) - self.position
        if size > left:
            raise self.fail(f"expected {size} more bytes, got {left}: the file is truncated or damaged")
        self.position += size
        return self.data[self.position - size : self.position]

    def integer(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(size).tobytes(), "little", signed=signed)

    def integers(self, count: int, dtype: str) -> list[int]:
        content = self.take(count * np.dtype(dtype).itemsize)
        return [int(value) for value in np.frombuffer(content.tobytes(), dtype)]


def read_mxnet_params(path: str | Path) -> dict[str, np.ndarray]:
    """Arrays by name from an MXNet `.params` file; dense float16, float32 and float64 only.

    Args:
        path: the file.

    Returns:
        Names as in the file, such as "arg:conv1a_weight", to writable arrays in the file's precision.

    Raises:
        RRMError: foreign, truncated or damaged file, sparse or integer arrays, arrays without names.

    Example:
        >>> import struct, tempfile
        >>> path = Path(tempfile.mkdtemp()) / "one.params"
        >>> array = struct.pack("<IiIqiii2f", 0xF993FAC9, 0, 1, 2, 1, 0, 0, 1.5, 2.5)
        >>> name = struct.pack("<QQ", 1, 5) + b"arg:x"
        >>> _ = path.write_bytes(struct.pack("<QQQ", 0x112, 0, 1) + array + name)
        >>> read_mxnet_params(path)["arg:x"].tolist()
        [1.5, 2.5]
    """
    path = Path(path)
    if not path.is_file() or path.stat().st_size < len(MAGIC):
        raise RRMError(f"{path}: expected an MXNet .params file, got no file or an empty one")
    reader = _Reader(path)
    if reader.take(len(MAGIC)).tobytes() != MAGIC:
        raise reader.fail("it does not start with the number of such files")
    if reader.integer(8) != 0:
        raise reader.fail("the reserved field is not zero")
    arrays = [_read_array(reader) for _ in range(_read_count(reader, "arrays", 16))]
    names = [_read_name(reader) for _ in range(_read_count(reader, "names", 8))]
    if len(names) != len(arrays) or len(set(names)) != len(names):
        got = f"{len(arrays)} arrays and {len(set(names))} names"
        raise reader.fail(f"expected one distinct name per array, got {got}")
    if reader.position != len(reader.data):
        raise reader.fail(f"{len(reader.data) - reader.position} bytes are left over")
    return dict(zip(names, arrays, strict=True))


def _read_count(reader: _Reader, what: str, smallest: int) -> int:
    """A number of items, refused if that many could not fit into the rest of the file."""
    count = reader.integer(8)
    left = len(reader.data) - reader.position
    if count * smallest > left:
        raise reader.fail(f"{count} {what} do not fit into {left} bytes")
    return count


def _read_name(reader: _Reader) -> str:
    try:
        return reader.take(reader.integer(8)).tobytes().decode("utf-8")
    except UnicodeDecodeError:
        raise reader.fail("a name is not UTF-8 text") from None


def _read_array(reader: _Reader) -> np.ndarray:
    shape = _read_shape(reader)
    reader.take(8)  # the device it was saved from
    flag = reader.integer(4, signed=True)
    if flag not in _DTYPES:
        raise reader.fail(f"expected element type 0 (float32), 1 (float64) or 2 (float16), got {flag}")
    dtype = _DTYPES[flag]
    content = reader.take(math.prod(shape) * dtype.itemsize)
    try:
        return content.copy().view(dtype).reshape(shape)
    except ValueError:  # sides too large for NumPy, one of them 0
        raise reader.fail(f"expected the sides of an array, got {shape}") from None


def _read_shape(reader: _Reader) -> list[int]:
    magic = reader.integer(4)
    if magic in (_V2, _V3):
        storage = reader.integer(4, signed=True)
        if storage != _DENSE:
            raise reader.fail(f"expected a dense array (storage type 0), got storage type {storage}")
    modern = magic in (_V1, _V2, _V3)
    dimensions = reader.integer(4, signed=True) if modern else magic
    if not (0 if magic == _V3 else 1) <= dimensions <= _MAX_DIMENSIONS:
        raise reader.fail(f"expected an array of up to {_MAX_DIMENSIONS} dimensions, got {dimensions}")
    shape = reader.integers(dimensions, "<i8" if modern else "<u4")
    if any(side < 0 for side in shape):
        raise reader.fail(f"expected known dimensions, got {shape}")
    return shape


def resnet38_name(name: str) -> str:
    """Name in our `ResNet38` of an array of the published ImageNet ResNet-38; others come back unchanged.

    Example:
        >>> resnet38_name("arg:res4b5_branch2b1_weight"), resnet38_name("aux:bn2a_branch2a_moving_var")
        ('b4_5.conv_branch2b1.weight', 'b2.bn_branch2a.running_var')
        >>> resnet38_name("arg:linear1000_weight")
        'arg:linear1000_weight'
    """
    plain = name.split(":", 1)[-1]
    if (match := _PLAIN.fullmatch(plain)) and match["leaf"] in _LEAVES:
        return f"{match['layer']}.{_LEAVES[match['leaf']]}"
    if not (match := _UNIT.fullmatch(plain)) or match["leaf"] not in _LEAVES:
        return name
    unit = f"b{match['block']}" + (f"_{match['index']}" if match["index"] else "")
    kind = "conv" if plain.startswith("res") else "bn"
    return f"{unit}.{kind}_{match['branch']}.{_LEAVES[match['leaf']]}"
