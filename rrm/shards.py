"""Shards: a stage's photos in contiguous parts, each with a store of its own, and the one store these are merged into.

A shard is named by its number and theirs, such as 3/7: it has the photos from place `total * 2 // 7` up to
`total * 3 // 7` of the stage's list. Its store is like the whole one's, with one more attribute: `shard` says which
part of which list it is. The store that shards are merged into has the bytes that the stage would have written alone,
for any number of shards, because records are written in the order of the list, photos are worked on together with the
same others, and nothing in a store depends on when or where it was written. So shards are how to run, and no result
depends on them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rrm.errors import RRMError
from rrm.parallel import WINDOW
from rrm.progress import tracked
from rrm.store import Store, StoreWriter

Result = TypeVar("Result")
KINDS = ("probabilities", "confusion", "pseudo_masks")
"""Kinds of stores that are made in shards."""
_SUFFIX = ".h5"
_AGAIN = "run that shard again"
_SHOWN = 5  # missing shards that a message names


@dataclass(frozen=True)
class Shard:
    """Part `part` (1..parts) of `parts` parts of a list.

    Example:
        >>> shard = Shard.parse("2/3")
        >>> shard, shard.of("abcdefg")
        (Shard(part=2, parts=3), 'cd')
    """

    part: int
    parts: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `"K/N"`.

        Raises:
            RRMError: it is not two whole numbers with 1 <= K <= N.
        """
        part, _, parts = text.partition("/")
        if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
            raise RRMError(f"shard: expected K/N with 1 <= K <= N, such as 3/7, got {text!r}: correct it")
        return cls(int(part), int(parts))

    def of(self, items: Sequence[Any]) -> Any:
        """This part of a list: none of it where there are more parts than items."""
        return items[len(items) * (self.part - 1) // self.parts : len(items) * self.part // self.parts]


def shard_path(folder: Path, part: int | str, parts: int | str, suffix: str = _SUFFIX) -> Path:
    """Where a shard lies in its folder.

    Example:
        >>> shard_path(Path("probabilities_val.shards"), 3, 7).as_posix()
        'probabilities_val.shards/3of7.h5'
    """
    return folder / f"{part}of{parts}{suffix}"


def own_share(
    runtime: Mapping[str, Any], ids: Sequence[str], attrs: Mapping[str, Any]
) -> tuple[Sequence[str], dict[str, Any]]:
    """What a stage works on and the attributes of its store: of the whole list, or of the shard that it was called for.

    Args:
        runtime: the call's; `shard` is `"K/N"`, or absent or None for the whole.
        ids: of all photos, in order.
        attrs: of the store.

    Returns:
        The ids of the share in order, and `attrs`, with `shard` last where it is one.

    Raises:
        RRMError: `shard` is malformed.

    Example:
        >>> own_share({}, ["a", "b"], {"split": "val"})
        (['a', 'b'], {'split': 'val'})
        >>> own_share({"shard": "2/2"}, ["a", "b"], {})[0]
        ['b']
    """
    if not runtime.get("shard"):
        return ids, dict(attrs)
    shard = Shard.parse(runtime["shard"])
    facts = {
        "part": shard.part,
        "parts": shard.parts,
        "total": len(ids),
        "list": hashlib.sha256(_lines(ids)).hexdigest(),
    }
    return shard.of(ids), {**attrs, "shard": facts}


def in_whole_windows(
    work: Callable[[Sequence[str]], Iterable[Result]], ids: Sequence[str], share: Sequence[str]
) -> Iterator[tuple[str, Result]]:
    """Yield the photos of a share with their results, which are those of the same photos in the whole list.

    A library may choose another kernel for a batch of another size, which changes last bits. Batches are made within
    windows of the list (`rrm.parallel.map_alike`), so photos of the next shards that lie in the windows at both ends
    are worked on too, and left out.

    Args:
        work: gives a result for each of the photos that it is called with, in order.
        ids: of all photos.
        share: consecutive ones of them.

    Example:
        >>> photos = [f"photo{number}" for number in range(200)]
        >>> shares = [photos[:70], photos[70:]]
        >>> for share in shares:
        ...     found = dict(in_whole_windows(lambda names: [len(names)] * len(names), photos, share))
        ...     print(len(found), set(found.values()))
        70 {128}
        130 {136}
    """
    if not share:
        return
    first, wanted = ids.index(share[0]), set(share)
    begin, end = first // WINDOW * WINDOW, -(-(first + len(share)) // WINDOW) * WINDOW
    names = ids[begin:end]
    yield from ((name, result) for name, result in zip(names, work(names), strict=True) if name in wanted)


def _lines(ids: Iterable[str]) -> bytes:
    """Ids, each with a line break, which none holds."""
    return "".join(f"{each}\n" for each in ids).encode()


def merge_shards(folder: Path, parts: int, out: Path, log_seconds: float = 10.0) -> None:
    """Write one store from all shards of it: byte for byte what the stage writes without shards.

    All shards are checked before the first record is copied. Records are copied one at a time as they were packed, with
    the CRC-32 of each array checked.

    Args:
        folder: holds the shards, as `shard_path` names them.
        parts: their number, >= 1.
        out: the store to write.
        log_seconds: least seconds between two lines of progress.

    Raises:
        RRMError: a shard is missing, damaged, of another place, list, configuration or code, or has not all its photos;
            `out` is not written then.
    """
    if parts < 1:
        raise RRMError(f"shards: expected 1 or more, got {parts}: give the N of 1ofN{_SUFFIX}")
    paths = [shard_path(folder, part, parts) for part in range(1, parts + 1)]
    first = _checked(paths)
    total = first.attrs["shard"]["total"]
    with StoreWriter(out, first.kind, first.config, first.code, _common(first)) as writer:
        for name, store in tracked(_records(paths), f"merge {out.name}", total, log_seconds):
            writer.copy(name, store)


def _records(paths: Iterable[Path]) -> Iterator[tuple[str, Store]]:
    """All records in order, each with its shard; one shard is open at a time."""
    for path in paths:
        store = Store(path, KINDS)
        yield from ((name, store) for name in store.ids)
        store.close()


def _checked(paths: Sequence[Path]) -> Store:
    """The first of the shards, once all of them are known to make one whole."""
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + " ..." * (len(missing) > _SHOWN)
        raise RRMError(f"{paths[0].parent}: expected {len(paths)} shards, {len(missing)} missing ({shown}): run them")
    first = Store(paths[0], KINDS)
    digest = hashlib.sha256()
    for part, path in enumerate(paths, 1):
        store = Store(path, KINDS)
        _check_place(store, Shard(part, len(paths)))
        _check_alike(store, first)
        digest.update(_lines(store.ids))
    if digest.hexdigest() != first.attrs["shard"]["list"]:
        raise RRMError(f"{paths[0].parent}: expected the photos of the list in order, got others: run the shards again")
    return first


def _check_place(store: Store, shard: Shard) -> None:
    """That a store is this shard, with as many photos as belong to it."""
    facts = store.attrs.get("shard")
    wanted = f"shard {shard.part} of {shard.parts}"
    if facts is None:
        raise RRMError(f"{store.path}: expected {wanted}, got a whole store: {_AGAIN}")
    if (facts["part"], facts["parts"]) != (shard.part, shard.parts):
        raise RRMError(f"{store.path}: expected {wanted}, got {facts['part']} of {facts['parts']}: {_AGAIN}")
    photos = len(shard.of(range(facts["total"])))
    if len(store) != photos:
        raise RRMError(f"{store.path}: expected {photos} photos, got {len(store)}: {_AGAIN}")


def _check_alike(store: Store, first: Store) -> None:
    """That two shards are of one list, configuration and code."""
    lists = [(each.attrs["shard"]["total"], each.attrs["shard"]["list"]) for each in (first, store)]
    pairs = {
        "kind": (first.kind, store.kind),
        "code": (first.code, store.code),
        "configuration": (first.config, store.config),
        "list of photos": (lists[0], lists[1]),
        "attributes": (_common(first), _common(store)),
    }
    for name, (expected, got) in pairs.items():
        if expected != got:
            raise RRMError(
                f"{store.path}: expected the {name} of {first.path.name}, got another: run both shards again"
            )


def _common(store: Store) -> dict[str, Any]:
    """Attributes that a shard shares with the whole."""
    return {name: value for name, value in store.attrs.items() if name != "shard"}
