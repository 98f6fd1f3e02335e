"""Files of a data set as it is published: in a tar archive, or in the folder that one was extracted to.

tarfile extracts nothing here. All members of an archive are checked before the first is read; then the bytes of
those that are wanted are written to paths that this program chooses.
"""

from __future__ import annotations

import hashlib
import shutil
import struct
import tarfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rrm.datasets.voc import raise_faults
from rrm.errors import RRMError
from rrm.limits import HEADER_BYTES, MEMBER_BYTES, MEMBERS, read_file

# What tarfile raises on damaged or hostile bytes, depending on where these are.
TAR_DAMAGE = (tarfile.TarError, OSError, SyntaxError, ValueError, EOFError, OverflowError, RecursionError, MemoryError,
              KeyError, IndexError, TypeError, struct.error, zlib.error)  # fmt: skip
_HEADERS = {
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
}


class Member(tarfile.TarInfo):
    """A member of an archive whose names and facts fit into memory: tarfile reads these at once, however large."""

    @classmethod
    def frombuf(cls, *arguments: Any) -> Member:
        """A header, as tarfile reads it.

        Raises:
            tarfile.ReadError: it announces more than `HEADER_BYTES` of names and facts.
        """
        member: Member = super().frombuf(*arguments)
        if member.type in _HEADERS and not 0 <= member.size <= HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {member.size} bytes, more than {HEADER_BYTES}")
        return member


def is_plain(member: tarfile.TarInfo) -> bool:
    """Whether a member is a regular file, stored whole: no link, device, folder or sparse file.

    Example:
        >>> is_plain(tarfile.TarInfo("a.jpg"))
        True
    """
    return member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()


def leaves_folder(name: str) -> bool:
    r"""Whether a relative path, as an archive or an annotation gives it, could lead out of its folder.

    Example:
        >>> [leaves_folder(name) for name in ("a/b.jpg", "/a.jpg", "a/../../b.jpg", "..\\b.jpg")]
        [False, True, True, True]
    """
    return name.startswith("/") or ".." in PurePosixPath(name).parts or "\\" in name or "\0" in name


def md5_of(path: Path) -> str:
    """MD5 of a file, hexadecimal: the checksum that the data sets' archives are known by."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` a hard link of the file, or a copy where the file system or the file's rights allow none.

    Args:
        source: a file; symbolic links are followed, so that `target` is none.
        target: a path where there is no file; its folder is made.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "a").write_text("photo")
        >>> link_or_copy(folder / "a", folder / "b" / "c")
        >>> (folder / "b" / "c").read_text()
        'photo'
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source.resolve())
    except OSError:
        shutil.copyfile(source, target)


@dataclass(frozen=True)
class Folder:
    """A data set's folder.

    Attributes:
        path: as the user named it.
        root: the folder that names are relative to.
    """

    path: Path
    root: Path

    def __contains__(self, name: str) -> bool:
        return (self.root / name).is_file()

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """Names and contents of those of the files that there are."""
        for name in names:
            if name in self:
                try:
                    yield name, read_file(self.root / name, MEMBER_BYTES)
                except ValueError as error:
                    got = f"got {error}: give the extracted data set's folder"
                    raise RRMError(
                        f"{self.root / name}: expected a file of at most {MEMBER_BYTES} bytes, {got}"
                    ) from None

    def place(self, targets: Mapping[str, Path]) -> Iterator[str]:
        """Link or copy files to the paths given by name; yields each name when it is done."""
        for name, target in targets.items():
            link_or_copy(self.root / name, target)
            yield name


@dataclass(frozen=True)
class Archive:
    """A tar file, compressed or not, whose members have been checked.

    Attributes:
        path: the file.
        members: names of the members that hold the data set's files, by name relative to the data set's folder.
    """

    path: Path
    members: Mapping[str, str]

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """Names and contents of those of the files that there are, in the archive's order, in one pass."""
        wanted = {self.members[name]: name for name in names if name in self.members}
        with _opened(self.path) as archive:
            for member in archive:
                name = wanted.pop(member.name, None)
                file = archive.extractfile(member) if name is not None and is_plain(member) else None
                if name is not None and file is not None:
                    yield name, file.read()
                if not wanted:
                    return
        if wanted:
            raise RRMError(f"{self.path}: expected {len(wanted)} more files, got the end: was it changed meanwhile?")

    def place(self, targets: Mapping[str, Path]) -> Iterator[str]:
        """Write files to the paths given by name; yields each name when it is done."""
        for name, data in self.read(targets):
            targets[name].parent.mkdir(parents=True, exist_ok=True)
            targets[name].write_bytes(data)
            yield name


def open_published(path: Path, prefixes: Sequence[str], marker: str) -> Folder | Archive:
    """A published data set, ready to be read.

    Args:
        path: a tar file, or a folder.
        prefixes: where in it the data set's folder may lie; "" for `path` itself.
        marker: a folder of the data set, by which it is recognised.

    Returns:
        Its files, by names relative to the data set's folder.

    Raises:
        RRMError: the data set is not in there, or the archive is unreadable. RRMErrors: members that leave the
            archive, links that do, devices, and below the data set's folder anything but files and folders.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "VOC2012" / "JPEGImages").mkdir(parents=True)
        >>> open_published(folder, ("", "VOC2012"), "JPEGImages").root.name
        'VOC2012'
    """
    places = ", ".join(str(PurePosixPath(prefix, marker)) for prefix in prefixes)
    if path.is_dir():
        roots = [path / prefix for prefix in prefixes if (path / prefix / marker).is_dir()]
        if roots:
            return Folder(path, roots[0])
        raise RRMError(f"{path}: expected one of the folders {places}, got none: give the extracted data set's folder")
    members = _checked_members(path)
    for prefix in prefixes:
        start = f"{prefix}/" if prefix else ""
        inside = {name.removeprefix(start): member for name, member in members.items() if name.startswith(start)}
        if any(name.startswith(f"{marker}/") for name in inside):
            _refuse_odd_members(path, inside.values())
            return Archive(path, {name: member.name for name, member in inside.items() if is_plain(member)})
    raise RRMError(f"{path}: expected one of the folders {places} in the archive, got none: give the right file")


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path, tarinfo=Member) as archive:
            yield archive
    except TAR_DAMAGE as error:
        got = f"{type(error).__name__} ({' '.join(str(error).split())[:120]})"
        raise RRMError(f"{path}: expected a readable tar file, got {got}: download it again") from None


def _checked_members(path: Path) -> dict[str, tarfile.TarInfo]:
    """Members by name without a leading `./`; none of them leaves the archive."""
    members: dict[str, tarfile.TarInfo] = {}
    faults = []
    with _opened(path) as archive:
        for number, member in enumerate(archive):
            if number >= MEMBERS:
                raise RRMError(f"{path}: expected at most {MEMBERS} members, got more: {_AGAIN}")
            name = member.name.removeprefix("./")
            if fault := _escape(path, member):
                faults.append(f"{path}: member {member.name!r}: {fault}")
            elif is_plain(member) and name in members:
                faults.append(f"{path}: member {member.name!r}: expected it once, got it twice: {_AGAIN}")
            members[name] = member
    raise_faults(str(path), faults)
    return members


_AGAIN = "download the archive again, from where it is published"


def _escape(path: Path, member: tarfile.TarInfo) -> str | None:
    """What is wrong with a member's place, kind or size; tarfile's own filter is asked too, where there is one."""
    if leaves_folder(member.name):
        return f"expected a path inside the archive, got one that leaves it: {_AGAIN}"
    if member.size > MEMBER_BYTES or member.size < 0:
        return f"expected at most {MEMBER_BYTES} bytes, got {member.size}: {_AGAIN}"
    try:
        if hasattr(tarfile, "data_filter"):  # from Python 3.11.4
            tarfile.data_filter(member, f"{path}/members")  # below a file there is nothing that could be followed
    except tarfile.FilterError as error:
        return f"expected a file or folder inside the archive, got {type(error).__name__}: {_AGAIN}"
    return None


def _refuse_odd_members(path: Path, members: Collection[tarfile.TarInfo]) -> None:
    odd = [member for member in members if not (is_plain(member) or member.isdir())]
    faults = [
        f"{path}: member {member.name!r}: expected a regular file, got a link, device or sparse file: {_AGAIN}"
        for member in odd
    ]
    raise_faults(str(path), faults)
