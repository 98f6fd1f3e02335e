"""HDF5 stores: files of per-image arrays that are written once, atomically, and read-only after that.

Every stage hands its result to the next one in such a store. A store is one HDF5 file:

* file attributes: `magic`, `version` (of this layout), `kind` (what the arrays mean, for example "photos",
  "masks", "pseudo_masks" or "probabilities"), `config` (the resolved configuration as JSON), `code` (content
  hash of the code that wrote it) and `complete` (set last);
* one data set `<number>.<name>` for each array of each record;
* one data set `index`: JSON with the record ids in their order, the CRC-32 of each array and the extra
  attributes.

No implementation of an equation lives here. The same input gives the same bytes: nothing in the file depends
on the time. A reader refuses foreign, truncated, incomplete, outdated and wrong-kind files with one clear
line, and checks the CRC-32 of each array it reads. Reading takes no file lock and opens its handle per
process, so `DataLoader` workers can share a `Store`.

Compression is gzip at level 1, after a byte shuffle. LZF writes in two thirds of the time, but its table starts with
what lies in memory, so that the same array has other bytes now and then. For a probability map of 21 x 375 x 500
float16 on one busy core gzip took 258 ms to write, 36 to read and 5.1 of 7.9 MB; LZF 156, 59 and 5.8. Arrays are packed
here, into the bytes that HDF5's filters would write: HDF5 itself packs in one thread at a time.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import io
import json
import math
import os
import re
import signal
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Literal, Self, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from rrm.alive import PATTERN, has_ended, name_of
from rrm.errors import RRMError

MAGIC = "rrm-store"
FORMAT_VERSION = 1
_LEVEL = 1  # of gzip
# What h5py raises on damaged metadata, depending on where the damage is.
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError)
_HEADER = ("magic", "version", "kind", "config", "code", "complete", "index_crc32")
_MOST_PACKED = 1100  # times that gzip makes data smaller, at the most
_AGAIN = "delete it and run the stage that writes it again"
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_RIGHT = {errno.EROFS, errno.EACCES, errno.EPERM}
_LEFT_OVER = re.compile(rf"\..+\.tmp-({PATTERN})(\.[^.]*)?")
_LONGEST_NAME = 180  # bytes; file systems take 255, and a temporary name has more
_LEFT_OVER_SECONDS = 3600  # a writer elsewhere adds to its file more often than that
Result = TypeVar("Result")
Checksums = Sequence[dict[str, int]] | Mapping[int, dict[str, int]]


@contextmanager
def naming_what_failed(path: Path) -> Iterator[None]:
    """Say in one line that a file could not be written: which, why, and what to do.

    Args:
        path: the file that is written in the block.

    Raises:
        RRMError: no room on the disk, or no right to write there.

    Example:
        >>> with naming_what_failed(Path("table.csv")), open("/dev/full", "w") as file:
        ...     _ = file.write("a,b")
        Traceback (most recent call last):
        ...
        rrm.errors.RRMError: table.csv: expected room to write it, got 'No space left on device': make room, then the
        same command goes on
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            expected, action = "room to write it", "make room"
        elif error.errno in _NO_RIGHT and _lies_at(path, error.filename):
            expected, action = "a folder that may be written to", "allow that"
        else:
            raise
        raise RRMError(
            f"{path}: expected {expected}, got {error.strerror!r}: {action}, then the same command goes on"
        ) from None


def _lies_at(path: Path, named: object) -> bool:
    """Whether what an error names is the file's folder, lies in it or holds it."""
    if named is None:
        return True
    other = Path(os.fsdecode(named)) if isinstance(named, str | bytes) else path
    return other.parent == path.parent or other in path.parents


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    r"""Give a temporary path beside `path`; rename it to `path` when the block ends well, remove it otherwise.

    The temporary name says which process writes it and keeps the suffix (writers that choose a format by suffix
    work). The file is flushed to disk before the rename, so that `path` is at any time absent, the old file
    or the whole new one. What processes that were killed have left in the folder is removed.

    Args:
        path: the file to write. Its folder is made when it is missing.

    Yields:
        The temporary path, on which the block must create a regular file.

    Raises:
        RRMError: the block ended without having created the file, or there is no room or no right to write it.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with atomic_path(folder / "table.csv") as temporary:
        ...     _ = temporary.write_text("a,b\n")
        >>> [entry.name for entry in folder.iterdir()]
        ['table.csv']
    """
    target = Path(path)
    temporary = _temporary(target)
    with naming_what_failed(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_over(target.parent.resolve())
        try:
            yield temporary
            if not temporary.is_file():
                raise RRMError(f"{target}: expected a file at {temporary.name}, got none: write to the given path")
            _sync(temporary)
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    with suppress(OSError):  # some network file systems cannot flush a folder; the file itself is safe
        _sync(target.parent)


def _temporary(target: Path) -> Path:
    long = len(os.fsencode(target.name)) > _LONGEST_NAME
    stem = hashlib.sha256(os.fsencode(target.stem)).hexdigest()[:16] if long else target.stem
    return target.with_name(f".{stem}.tmp-{name_of()}{target.suffix}")


@cache
def _remove_left_over(folder: Path) -> None:
    """Remove temporary files of processes that ended, once a process and folder.

    Of another machine's processes nothing is known: their files go when they have not changed for an hour, by the clock
    of the file system.
    """
    found = [entry for entry in os.scandir(folder) if _LEFT_OVER.fullmatch(entry.name)]
    if not found:
        return
    now = _file_system_time(folder)
    for entry in found:
        matched = _LEFT_OVER.fullmatch(entry.name)
        assert matched is not None
        with suppress(OSError):  # another process may have removed it
            ended = has_ended(matched[1])
            if ended or (ended is None and now - entry.stat().st_mtime > _LEFT_OVER_SECONDS):
                Path(entry.path).unlink()


def _file_system_time(folder: Path) -> float:
    probe = folder / f".clock.tmp-{name_of()}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Sink(io.FileIO):
    """A new file for writers that cannot bear an error: once a write fails, it takes and drops all that follows.

    HDF5 loses data in silence and crashes at the end of the process when a disk is full, torch hides why it fails.

    Args:
        path: the file.

    Attributes:
        error: the first error, None so far; the owner has to look (`check`).
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of `data`."""
        left = memoryview(data).cast("B")
        size = len(left)
        while len(left):
            left = left[self._tried(partial(super().write, left), len(left)) :]
        return size

    def truncate(self, size: int | None = None) -> int:
        """Set the file's size."""
        return self._tried(partial(super().truncate, size), size or 0)

    def check(self) -> None:
        """Raise the first error, if there was one."""
        if self.error is not None:
            raise self.error

    def _tried(self, action: Callable[[], int | None], otherwise: int) -> int:
        if self.error is None:
            try:
                return action() or 0
            except OSError as error:
                self.error = error
        return otherwise


@contextmanager
def _signals_held() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait for the end of the block, where the exceptions they raise would be lost in HDF5."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    before = {kind: handler for kind, handler in before.items() if callable(handler)}
    for kind in before:
        signal.signal(kind, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
    for number, frame in came:
        before[signal.Signals(number)](number, frame)  # type: ignore[operator, misc]


def _to_json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


class StoreWriter:
    """Write a store record by record; the file appears under its name only when the `with` block ends well.

    Arrays of 4 KiB and more are compressed as one chunk each, after a byte shuffle where an element has
    several bytes; smaller ones are stored as they are.

    Args:
        path: the file to write.
        kind: what the arrays mean; readers ask for it.
        config: the resolved configuration of the stage, JSON-serialisable.
        code: content hash of the code that writes (any text).
        attrs: further facts for readers, JSON-serialisable (for example `{"split": "train"}`); the attribute
            `attrs` of the writer may be changed until the block ends.
        compression: "gzip", or None.
        threads: that pack records, 1 or more; with several, records wait for it in order, and arrays that were
            added must not be changed until the block ends. The file is the same for any number.

    Raises:
        RRMError: an id twice, an empty record, an array that HDF5 cannot hold, or a `config` that is not
            JSON.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "masks.h5"
        >>> with StoreWriter(path, "masks", config={"side": 4}, code="abc", attrs={"split": "val"}) as writer:
        ...     writer.add("cat", {"mask": np.zeros((4, 4), np.uint8)})
        >>> store = Store(path, "masks")
        >>> store.ids, store.config, store.attrs, store["cat"]["mask"].shape
        (('cat',), {'side': 4}, {'split': 'val'}, (4, 4))
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        kind: str,
        config: Mapping[str, Any],
        code: str,
        attrs: Mapping[str, Any] | None = None,
        compression: Literal["gzip"] | None = "gzip",
        threads: int = 1,
    ) -> None:
        self.path = Path(path)
        self.kind = kind
        self.attrs: dict[str, Any] = dict(attrs or {})
        self._code = code
        self._compression = compression
        self._checksums: dict[str, dict[str, int]] = {}
        self._packers = ThreadPoolExecutor(threads, "rrm-pack") if threads > 1 else None
        self._ahead = 2 * threads if threads > 1 else 0
        self._waiting: deque[_Waiting] = deque()
        try:
            self._config = _to_json(dict(config))
        except (TypeError, ValueError) as error:
            raise RRMError(
                f"{self.path}: config: expected values that JSON can hold, got {error}: convert them"
            ) from error

    def __enter__(self) -> Self:
        self._atomic = atomic_path(self.path)
        temporary = self._atomic.__enter__()
        try:
            with _signals_held():
                self._begin(temporary)
        except BaseException as failure:
            self._atomic.__exit__(type(failure), failure, failure.__traceback__)
            raise
        return self

    def _begin(self, temporary: Path) -> None:
        self._sink = Sink(temporary)
        self._file = h5py.File(self._sink, "w", libver=("v108", "v108"))
        self._header = {"magic": MAGIC, "kind": self.kind, "config": self._config, "code": self._code or "-"}
        for name, text in self._header.items():
            self._file.attrs[name] = np.bytes_(text.encode())
        self._file.attrs["version"] = FORMAT_VERSION
        self._file.attrs["complete"] = np.uint8(0)

    def add(self, record: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Append one record.

        Args:
            record: its id, unique in the store.
            arrays: named arrays, numeric or boolean, of any shape; at least one.
        """
        if not arrays:
            raise RRMError(f"{self.path}: record {record!r}: expected at least one array, got none: give its arrays")
        prefix = self._next(record)
        storable = {name: self._storable(f"{prefix}.{name}", array) for name, array in arrays.items()}
        self._checksums[record] = {}
        self._waiting.append(
            _Waiting(record, prefix, {name: (each, self._packed(each)) for name, each in storable.items()})
        )
        self._write_all_but(self._ahead)

    def _packed(self, array: NDArray[Any]) -> Callable[[], _Packed]:
        """What packs an array, or is packing it meanwhile."""
        pack = partial(_pack, array, bool(self._packing(array)))
        return self._packers.submit(pack).result if self._packers else pack

    def _write_all_but(self, ahead: int) -> None:
        """Write the records that wait but the newest `ahead`."""
        while len(self._waiting) > ahead:
            each = self._waiting.popleft()
            packed = {name: (array, of()) for name, (array, of) in each.arrays.items()}
            with _signals_held():
                self._checksums[each.record] = {
                    name: self._write(f"{each.prefix}.{name}", *array) for name, array in packed.items()
                }
            self._sink.check()

    def copy(self, record: str, store: Store) -> None:
        """Append a record of another store: `add(record, store[record])`, with the packed bytes as they are.

        Each array is unpacked for its CRC-32; it is packing that takes the time.

        Args:
            record: its id, in that store and in this one.
            store: written with the compression of this writer.
        """
        self._write_all_but(0)
        prefix = self._next(record)
        with _signals_held():
            self._checksums[record] = {
                name: self._copy(f"{prefix}.{name}", record, store, name) for name in store.names(record)
            }
        self._sink.check()

    def _next(self, record: str) -> str:
        if record in self._checksums:
            raise RRMError(f"{self.path}: record {record!r}: expected each id once, got it twice: remove the double")
        return f"{len(self._checksums):08d}"

    def _packing(self, array: NDArray[Any]) -> dict[str, Any]:
        if self._compression is None or array.nbytes < 4096:
            return {}
        how = {"compression": self._compression, "compression_opts": _LEVEL, "shuffle": array.itemsize > 1}
        return {"chunks": array.shape} | how

    def _storable(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        array = np.require(value, requirements="C")
        if array.dtype.kind not in "biuf":
            raise RRMError(f"{self.path}: {name}: expected numbers or booleans, got {array.dtype}: convert the array")
        return array

    def _write(self, name: str, array: NDArray[Any], packed: _Packed) -> int:
        made = self._file.create_dataset(
            name, array.shape, array.dtype, None if packed.chunk else array, track_times=False, **self._packing(array)
        )
        if packed.chunk:
            made.id.write_direct_chunk((0,) * array.ndim, packed.chunk)
        return packed.checksum

    def _copy(self, name: str, record: str, store: Store, source: str) -> int:
        array = store.read(record, source)
        compressed = bool(self._packing(array))
        chunk = store.packed(record, source) if compressed else None
        return self._write(name, array, _Packed(_checksum(array), chunk) if chunk else _pack(array, compressed))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with _signals_held():
                try:
                    if error is None:
                        self._write_all_but(0)
                        self._finish()
                finally:
                    if self._packers:
                        self._packers.shutdown(cancel_futures=True)
                    self._file.close()
                    self._sink.close()
            if error is None:
                self._sink.check()
        except BaseException as failure:
            self._atomic.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._atomic.__exit__(kind, error, trace)

    def _finish(self) -> None:
        index = {"ids": list(self._checksums), "crc32": list(self._checksums.values()), "attrs": self.attrs}
        text = np.frombuffer(json.dumps(index, ensure_ascii=False).encode(), np.uint8)
        self._file.create_dataset("index", data=text, track_times=False)
        self._file.attrs["index_crc32"] = _index_checksum(text, self._header)
        self._file.attrs["complete"] = np.uint8(1)


@dataclass(frozen=True)
class _Packed:
    """CRC-32 of an array, and the bytes of its one chunk; None where it is stored as it is."""

    checksum: int
    chunk: bytes | None


@dataclass(frozen=True)
class _Waiting:
    """A record to be written: each array, and what gives it packed."""

    record: str
    prefix: str
    arrays: Mapping[str, tuple[NDArray[Any], Callable[[], _Packed]]]


def _pack(array: NDArray[Any], compressed: bool) -> _Packed:
    """Do what HDF5's filters shuffle and gzip do to a chunk. Several threads can: zlib releases Python's lock."""
    if not compressed:
        return _Packed(_checksum(array), None)
    raw = array.reshape(-1).view(np.uint8)
    if array.itemsize > 1:
        raw = np.ascontiguousarray(raw.reshape(-1, array.itemsize).T)
    return _Packed(_checksum(array), zlib.compress(raw, _LEVEL))  # type: ignore[arg-type]


def _checksum(array: NDArray[Any]) -> int:
    """CRC-32 of the bytes of a C-contiguous array, started from its dtype and shape."""
    head = f"{array.dtype.str}{array.shape}".encode()
    return zlib.crc32(array.reshape(-1).view(np.uint8), zlib.crc32(head))  # type: ignore[arg-type]


def _index_checksum(index: NDArray[np.uint8], header: Mapping[str, Any]) -> int:
    """CRC-32 of the index and of the texts in the header."""
    texts = "\0".join(str(header.get(name)) for name in ("magic", "kind", "config", "code"))
    return zlib.crc32(texts.encode(), _checksum(index))


class Store:
    """Read a store that `StoreWriter` wrote.

    The file is checked when the object is made. Its handle is opened at the first read, anew in each process,
    and never
    pickled: one object can be given to `DataLoader` workers started by fork or by spawn.

    Args:
        path: the file.
        kind: the kind, or the kinds, that the caller can use.
        code: content hash that the file must carry; None takes any.
        config: resolved configuration that the file must carry; None takes any.

    Attributes:
        path, kind, code: as in the file.
        config: dict, the resolved configuration that the file was written with.
        attrs: dict, the extra attributes.
        ids: tuple of str, the record ids in the order in which they were written.

    Raises:
        RRMError: one line that says which file, what was expected, what was found and what to do. When made:
            a missing, foreign, truncated, incomplete or outdated file, or one of another kind, code or
            config. When read: an unknown id or array name, or bytes that do not match their CRC-32.

    Example:
        >>> Store("missing.h5", "photos")
        Traceback (most recent call last):
        ...
        rrm.errors.RRMError: missing.h5: expected a 'photos' store, got no file: run the stage that writes it
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        kind: str | Sequence[str],
        code: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self._wanted = (kind,) if isinstance(kind, str) else tuple(kind)
        self._handle: h5py.File | None = None
        self._handle_pid = -1
        with self._open() as file:
            self._read_header(file)
            self._read_index(file)
        self._check("code", code, self.code)
        self._check("config", None if config is None else json.loads(_to_json(dict(config))), self.config)

    def _fault(self, got: str, action: str = _AGAIN) -> RRMError:
        kinds = " or ".join(repr(kind) for kind in self._wanted)
        return RRMError(f"{self.path}: expected a {kinds} store, got {got}: {action}")

    def _check(self, name: str, expected: object, got: object) -> None:
        if expected is not None and expected != got:
            raise RRMError(f"{self.path}: {name}: expected {expected!r}, got {got!r}: {_AGAIN}")

    def _open(self) -> h5py.File:
        if not self.path.is_file():
            found = "a folder" if self.path.is_dir() else "no file"
            raise self._fault(found, "run the stage that writes it")
        try:
            return h5py.File(self.path, "r", locking=False)
        except OSError as error:
            raise self._fault(_why_not_open(self.path, error)) from error

    def _read_header(self, file: h5py.File) -> None:
        try:
            header = {name: _header_value(file.attrs, name) for name in _HEADER if name in file.attrs}
        except _DAMAGE as error:
            raise self._fault("a damaged header") from error
        if header.get("magic") != MAGIC:
            raise self._fault("an HDF5 file of other origin", "give the path of a file that rrm wrote")
        if header.get("version") != FORMAT_VERSION:
            raise self._fault(f"format version {header.get('version')} (this code reads {FORMAT_VERSION})")
        if header.get("kind") not in self._wanted:
            raise self._fault(f"a {header.get('kind')!r} store", "give the path of the right file")
        if header.get("complete") != 1:
            raise self._fault("a file whose writing was broken off")
        self.kind = str(header["kind"])
        self.code = str(header.get("code"))
        self.config: dict[str, Any] = self._parse(header.get("config"))
        self._header = header

    def _parse(self, text: Any) -> dict[str, Any]:
        try:
            value: dict[str, Any] = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise self._fault("a damaged configuration or index") from error
        if not isinstance(value, dict):
            raise self._fault("a damaged configuration or index")
        return value

    def _read_index(self, file: h5py.File) -> None:
        try:
            data = _array(file, "index")
        except _DAMAGE as error:
            raise self._fault("a file without a readable index") from error
        if _index_checksum(data, self._header) != self._header.get("index_crc32"):
            raise self._fault("a damaged header or index (its CRC-32 does not match)")
        index = self._parse(data.tobytes())
        try:
            self.ids, self.attrs, self._checksums = _records(index)
        except _DAMAGE as error:
            raise self._fault("a damaged configuration or index") from error
        self._numbers = {record: number for number, record in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, record: object) -> bool:
        return record in self._numbers

    def __getitem__(self, record: str) -> dict[str, NDArray[Any]]:
        """All arrays of one record, by name."""
        return {name: self.read(record, name) for name in self.names(record)}

    def names(self, record: str) -> tuple[str, ...]:
        """Names of the arrays of one record."""
        if record not in self._numbers:
            raise RRMError(f"{self.path}: expected an id of this store, got {record!r}: see its {len(self)} ids")
        return tuple(self._checksums[self._numbers[record]])

    def read(self, record: str, name: str) -> NDArray[Any]:
        """One array of one record, as it was written.

        Args:
            record: an element of `ids`.
            name: one of `names(record)`.

        Returns:
            A new array with the dtype and shape that were given to `StoreWriter.add`.
        """
        names = self.names(record)
        if name not in names:
            raise RRMError(f"{self.path}: record {record!r}: expected one of {', '.join(names)}, got {name!r}")
        number = self._numbers[record]
        try:
            array = _array(self._file(), f"{number:08d}.{name}")
        except _DAMAGE as error:
            raise self._fault(f"no readable array {name!r} of record {record!r}") from error
        if _checksum(array) != self._checksums[number][name]:
            raise self._fault(f"damaged bytes in array {name!r} of record {record!r} (CRC-32 does not match)")
        return array

    def packed(self, record: str, name: str) -> bytes | None:
        """The bytes of one array as gzip packed them; None where they are packed otherwise, or not at all."""
        data = self._file()[f"{self._numbers[record]:08d}.{name}"]
        how = (data.compression, data.compression_opts, data.chunks, data.shuffle)
        if how != ("gzip", _LEVEL, data.shape, data.dtype.itemsize > 1):
            return None
        skipped, content = data.id.read_direct_chunk((0,) * data.ndim)
        return None if skipped else bytes(content)

    def only(self, record: str) -> Store:
        """The store with one of its records and without `attrs`: quickly sent to a process that reads no other.

        A whole store has the ids and checksums of all records with it. The handle is this store's, in this process.

        Args:
            record: an element of `ids`.

        Raises:
            RRMError: an unknown id.
        """
        self.names(record)
        self._file()
        one, number = copy.copy(self), self._numbers[record]
        one.ids, one.attrs = (record,), {}
        one._numbers, one._checksums = {record: number}, {number: self._checksums[number]}
        return one

    def _file(self) -> h5py.File:
        if self._handle is None or self._handle_pid != os.getpid():
            self._handle, self._handle_pid = self._open(), os.getpid()
        return self._handle

    def close(self) -> None:
        """Close the handle of this process; a later read opens it again."""
        if self._handle is not None and self._handle_pid == os.getpid():
            self._handle.close()
        self._handle = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None, "_handle_pid": -1}


def _header_value(attrs: h5py.AttributeManager, name: str) -> Any:
    """A value of the header: text from bytes of fixed length, or a whole number; None for text of any length.

    That text no store has, and it is not looked at: it lies elsewhere in the file, and damaged, HDF5 looks without end.

    Raises:
        ValueError: it is something else.
    """
    found = attrs.get_id(name)
    if found.dtype.kind == "O":
        return None
    if found.dtype.kind not in "Siu" or found.shape != ():
        raise ValueError("expected a text or a whole number")
    value = attrs[name]
    return value.decode() if isinstance(value, bytes) else value


def _records(index: Any) -> tuple[tuple[str, ...], dict[str, Any], Checksums]:
    """Ids, extra attributes and checksums in an index.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    ids, attrs, checksums = index["ids"], index["attrs"], index["crc32"]
    lists = isinstance(ids, list) and isinstance(attrs, dict) and isinstance(checksums, list)
    if not lists or not len(set(ids)) == len(ids) == len(checksums):
        raise ValueError("expected a checksum for each of the records")
    if not all(isinstance(each, str) for each in ids) or not all(isinstance(each, dict) for each in checksums):
        raise ValueError("expected records by name")
    return tuple(ids), attrs, checksums


def _array(file: h5py.File, name: str) -> NDArray[Any]:
    """An array that lies in the file itself, as it was written.

    Raises:
        ValueError: a link, numbers that lie in another file, no numbers, or more than the bytes
            in the file can hold.
    """
    if "/" in name or not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError("a link")
    found = file[name]
    if not isinstance(found, h5py.Dataset) or found.shape is None or found.dtype.kind not in "biuf":
        raise ValueError("no numbers")
    if found.external or found.is_virtual:
        raise ValueError("numbers in another file")
    chunk = math.prod(found.chunks or (0,)) * found.dtype.itemsize
    if max(found.nbytes, chunk) > _MOST_PACKED * found.id.get_storage_size():
        raise ValueError("more numbers than the bytes in the file can hold")
    return np.asarray(found[()])


def _why_not_open(path: Path, error: OSError) -> str:
    text = str(error)
    if isinstance(error, PermissionError) or error.errno == 13:
        return "a file that may not be read"
    if "truncated" in text:
        return "a truncated file"
    with path.open("rb") as file:
        signed = file.read(8) == b"\x89HDF\r\n\x1a\n"
    return "a truncated or damaged HDF5 file" if signed else "a file that is not HDF5"
