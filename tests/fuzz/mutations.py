"""Mutations of files: bytes anywhere, and fields of the formats with their checksums mended, so that readers go on."""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import pairwise
from typing import Any

Mutation = Callable[[random.Random, bytes], bytes]
LARGEST = 1 << 16  # bytes of a mutated file; larger ones are cut
NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    255,
    256,
    32767,
    65535,
    65536,
    10**6,
    2**31 - 1,
    -(2**31),
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**64 - 1,
)
TEXTS = ("", "0", "-1", "1e999", "nan", "9" * 5000, "4294967296", "../../x", "/etc/passwd", "a" * 300, "\0", "\x1b[2J",
         "\ud800", "%s%n", "\u202e", "💥", "null", "{}", "[]")  # fmt: skip


# ---- bytes ----


def flip(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8)) if data else 0):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def put_byte(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4)) if data else 0):
        changed[rng.randrange(len(data))] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
    return bytes(changed)


def put_number(rng: random.Random, data: bytes) -> bytes:
    """An integer of 1 to 8 bytes in either byte order over what was there."""
    size = rng.choice((1, 2, 4, 8))
    place = rng.randrange(max(1, len(data) - size + 1))
    number = (rng.choice(NUMBERS) & (256**size - 1)).to_bytes(size, rng.choice(("little", "big")))
    return data[:place] + number + data[place + size :]


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _span(rng: random.Random, data: bytes) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 2, 4, 8, 16, 64, 256, 1024)))


def remove(rng: random.Random, data: bytes) -> bytes:
    start, stop = _span(rng, data)
    return data[:start] + data[stop:]


def repeat(rng: random.Random, data: bytes) -> bytes:
    start, stop = _span(rng, data)
    return data[:stop] + data[start:stop] * rng.choice((1, 2, 8, 100, 1000)) + data[stop:]


def move(rng: random.Random, data: bytes) -> bytes:
    start, stop = _span(rng, data)
    part, rest = data[start:stop], data[:start] + data[stop:]
    place = rng.randrange(len(rest) + 1)
    return rest[:place] + part + rest[place:]


def insert(rng: random.Random, data: bytes) -> bytes:
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.randbytes(rng.choice((1, 2, 4, 16, 100))) + data[place:]


BYTES: tuple[Mutation, ...] = (flip, put_byte, put_number, cut, remove, repeat, move, insert)


def splicing(seeds: Sequence[bytes]) -> Mutation:
    """The beginning of the data and the end of another seed."""

    def splice(rng: random.Random, data: bytes) -> bytes:
        other = rng.choice(seeds)
        return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]

    return splice


# ---- text ----


def number_in_text(rng: random.Random, data: bytes) -> bytes:
    """Another number in place of one that is written in digits."""
    places = [match.span() for match in re.finditer(rb"-?\d+(?:\.\d+)?", data)]
    if not places:
        return data
    start, stop = rng.choice(places)
    text = rng.choice((*map(str, NUMBERS), "9" * 5000, "1e999", "-0", "nan", "1e-320", "0x10", "1_0", "007", "1.5"))
    return data[:start] + text.encode() + data[stop:]


_WORD = re.compile(rb"\w+|[^\w\s]")
_MANY = 1 << 14  # bytes, in which looking for all words would take longer than a reader does


def _word(rng: random.Random, data: bytes) -> tuple[int, int]:
    if len(data) > _MANY:
        found = _WORD.search(data, rng.randrange(len(data)))
        return found.span() if found else (0, 0)
    return rng.choice([match.span() for match in _WORD.finditer(data)] or [(0, 0)])


def tokens(*texts: bytes) -> Mutation:
    """Texts that mean something to the reader, in any place, once or often, in place of a word or between words."""

    def put_token(rng: random.Random, data: bytes) -> bytes:
        token = rng.choice(texts) * rng.choice((1, 1, 1, 2, 100, 5000))
        start, stop = _word(rng, data)
        return data[:start] + token + data[rng.choice((start, stop)) :]

    return put_token


def lines(rng: random.Random, data: bytes) -> bytes:
    """Lines removed, repeated, moved, indented or ended otherwise."""
    rows = data.split(b"\n")
    place, other = rng.randrange(len(rows)), rng.randrange(len(rows))
    change = rng.randrange(5)
    if change == 0:
        del rows[place]
    elif change == 1:
        rows[place:place] = [rows[place]] * rng.choice((1, 2, 200))
    elif change == 2:
        rows[place], rows[other] = rows[other], rows[place]
    elif change == 3:
        rows[place] = rng.choice((b" ", b"  ", b"\t", b"- ", b"\r", b"\x0c")) + rows[place]
    return rng.choice((b"\r\n", b"\r", b"\xc2\x85", b"\0")).join(rows) if change == 4 else b"\n".join(rows)


def encoding(rng: random.Random, data: bytes) -> bytes:
    text = data.decode("utf-8", "replace")
    return text.encode(rng.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1", "utf-7")), "replace")


TEXT: tuple[Mutation, ...] = (number_in_text, lines, encoding)


def json_value(rng: random.Random, data: bytes) -> bytes:
    """A value somewhere in a JSON file replaced, removed, repeated, nested or renamed."""
    try:
        whole = json.loads(data)
    except (ValueError, RecursionError):
        return data
    holders: list[Any] = []
    todo = [whole]
    while todo:
        holder = todo.pop()
        if isinstance(holder, dict | list) and holder:
            holders.append(holder)
            todo += holder.values() if isinstance(holder, dict) else holder
    if not holders:
        return data
    _change(rng, rng.choice(holders))
    return json.dumps(whole, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def _change(rng: random.Random, holder: Any) -> None:
    key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    change = rng.randrange(4)
    if change == 0:
        del holder[key]
    elif change == 1 and isinstance(holder, list):
        holder += [holder[key]] * rng.choice((1, 10, 100))
    elif change == 2 and isinstance(holder, dict):
        holder[rng.choice(TEXTS)] = holder.pop(key)
    else:
        holder[key] = rng.choice(
            (None, True, 1.5, float("inf"), [], {}, [holder[key]], {"a": holder[key]}, *NUMBERS, *TEXTS)
        )


# ---- compressed data ----


def inside(unpack: Callable[[bytes], bytes], pack: Callable[[bytes], bytes], mutations: Sequence[Mutation]) -> Mutation:
    """Mutations of what is inside a compressed file."""

    def mutate(rng: random.Random, data: bytes) -> bytes:
        with suppress(Exception):
            return pack(rng.choice(mutations)(rng, unpack(data)))
        return data

    return mutate


def gunzip(data: bytes) -> bytes:
    return zlib.decompressobj(31).decompress(data, 1 << 20)


def in_gzip(*mutations: Mutation) -> Mutation:
    return inside(gunzip, lambda content: gzip.compress(content, 1, mtime=0), mutations)


# ---- PNG ----


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, place = [], 8
    while place + 8 <= len(data):
        (size,) = struct.unpack_from(">I", data, place)
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + size]))
        place += 12 + size
    return chunks


def png_file(chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    parts = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


_PNG_KINDS = (
    b"tEXt",
    b"zTXt",
    b"iTXt",
    b"iCCP",
    b"eXIf",
    b"acTL",
    b"fcTL",
    b"fdAT",
    b"tRNS",
    b"gAMA",
    b"PLTE",
    b"pHYs",
)


def png_chunk(rng: random.Random, data: bytes) -> bytes:
    """A chunk changed, added, removed, repeated or moved, with the right CRC."""
    chunks = _png_chunks(data)
    if not chunks:
        return data
    place = rng.randrange(len(chunks))
    kind, content = chunks[place]
    change = rng.randrange(6)
    if change == 0:
        chunks[place] = (kind, rng.choice(BYTES)(rng, content))
    elif change == 1:
        content = rng.choice(
            (b"", b"a\0" + zlib.compress(bytes(5000)), rng.randbytes(20), b"Raw profile type exif\0\0x")
        )
        chunks.insert(place, (rng.choice(_PNG_KINDS), content))
    elif change == 2:
        del chunks[place]
    elif change == 3:
        chunks[place:place] = [(kind, content)] * rng.choice((1, 5, 500))
    elif kind == b"IHDR" and len(content) == 13:
        fields = list(struct.unpack(">IIBBBBB", content))
        field = rng.randrange(7)
        fields[field] = rng.choice(NUMBERS) & (2**32 - 1 if field < 2 else 255)
        chunks[place] = (kind, struct.pack(">IIBBBBB", *fields))
    elif kind in (b"IDAT", b"zTXt", b"iCCP"):
        chunks[place] = (kind, inside(zlib.decompress, zlib.compress, BYTES)(rng, content))
    return png_file(chunks)


# ---- JPEG ----


def _jpeg_segments(data: bytes) -> list[bytes]:
    """Segments from marker to marker; the entropy-coded data belong to their SOS."""
    places = [match.start() for match in re.finditer(rb"\xff[\x01\xc0-\xcf\xd8-\xfe]", data)]
    return [data[start:stop] for start, stop in pairwise([*places, len(data)])]


def jpeg_segment(rng: random.Random, data: bytes) -> bytes:
    """A segment changed, removed, repeated or moved; sizes and numbers of components of the frame."""
    segments = _jpeg_segments(data)
    if not segments:
        return data
    place = rng.randrange(len(segments))
    change = rng.randrange(5)
    frames = [k for k, part in enumerate(segments) if 0xC0 <= part[1] <= 0xCF and part[1] not in (0xC4, 0xC8, 0xCC)]
    if change == 0 and frames:
        place = rng.choice(frames)
        part = bytearray(segments[place])
        field, size = rng.choice(((1, 1), (4, 1), (5, 2), (7, 2), (9, 1)))
        part[field : field + size] = (rng.choice(NUMBERS) & (256**size - 1)).to_bytes(size, "big")
        segments[place] = bytes(part)
    elif change == 1:
        del segments[place]
    elif change == 2:
        scans = [k for k, part in enumerate(segments) if part[1] == 0xDA]
        place = rng.choice(scans) if scans and rng.random() < 0.5 else place
        segments[place:place] = [segments[place]] * rng.choice((1, 5, 50, 2000))
    elif change == 3:
        segments[place] = segments[place][:2] + rng.choice(BYTES)(rng, segments[place][2:])
    else:
        segments.insert(rng.randrange(len(segments)), segments.pop(place))
    return b"".join(segments)


# ---- TIFF, also as EXIF in other files ----


def tiff_field(rng: random.Random, data: bytes) -> bytes:
    """Tag, type, count or value of an entry of a directory in a TIFF file or in EXIF."""
    start = max(0, data.find(b"Exif\0\0") + 6 if b"Exif\0\0" in data else 0)
    order = {b"II": "<", b"MM": ">"}.get(data[start : start + 2])
    try:
        (first,) = struct.unpack_from(f"{order}I", data, start + 4)
        (count,) = struct.unpack_from(f"{order}H", data, start + first)
    except (struct.error, TypeError):
        return data
    place = start + first + 2 + 12 * rng.randrange(max(1, min(count, 64)))
    field, code = rng.choice(((0, "H"), (2, "H"), (4, "I"), (8, "I"), (8, "I"), (8, "H")))
    number = rng.choice((*NUMBERS, 256, 257, 258, 259, 273, 274, 277, 278, 279, 322, 323, 324, first))
    changed = bytearray(data)
    with suppress(struct.error):
        struct.pack_into(order + code, changed, place + field, number & (256 ** struct.calcsize(code) - 1))
    return bytes(changed)


# ---- tar ----

_TAR_FIELDS = {
    "name": (0, 100), "mode": (100, 8), "uid": (108, 8), "size": (124, 12), "mtime": (136, 12), "kind": (156, 1),
    "link": (157, 100), "magic": (257, 8), "device": (329, 8), "prefix": (345, 155),
}  # fmt: skip
_TAR_VALUES = {
    "name": (b"../../escape", b"/tmp/escape", b"a/../../b", b"..\\x", b"\xff\xfe", b"", b"x" * 100, b"./", b"a\0b"),
    "size": (b"77777777777", b"00000000000", b"-1", b"99", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"\x80" + b"\1" * 11),
    "kind": tuple(bytes([kind]) for kind in b"0\x00123457LKSxgXVM\xff"),
    "link": (b"/etc/passwd", b"../../../x", b"", b"x" * 100),
}  # fmt: skip


def tar_field(rng: random.Random, data: bytes) -> bytes:
    """A field of a member's header, with the right checksum."""
    heads = [place for place in range(0, len(data) - 511, 512) if data[place + 257 : place + 262] == b"ustar"]
    if not heads:
        return data
    place = rng.choice(heads)
    name = rng.choice(list(_TAR_FIELDS))
    start, size = _TAR_FIELDS[name]
    head = bytearray(data[place : place + 512])
    head[start : start + size] = rng.choice(_TAR_VALUES.get(name, (b"", b"7" * 8, rng.randbytes(8)))).ljust(
        size, b"\0"
    )[:size]
    head[148:156] = b"%06o\0 " % (sum(head[:148]) + 256 + sum(head[156:]))
    return data[:place] + bytes(head) + data[place + 512 :]


def tar_blocks(rng: random.Random, data: bytes) -> bytes:
    """Blocks of 512 bytes removed, repeated or moved."""
    blocks = [data[place : place + 512] for place in range(0, len(data), 512)] or [b""]
    start = rng.randrange(len(blocks))
    part = blocks[start : start + rng.randrange(1, 4)]
    change = rng.randrange(3)
    if change < 2:
        del blocks[start : start + len(part)]
    if change > 0:
        place = rng.randrange(len(blocks) + 1)
        blocks[place:place] = part * rng.choice((1, 1, 2, 20))
    return b"".join(blocks)


def tar_bytes(members: Sequence[tuple[str, bytes]], mode: str = "w:") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


# ---- zip ----


def in_zip(*mutations: Mutation) -> Mutation:
    """A member of a zip archive changed, removed, renamed, repeated or compressed, in an archive that is whole."""

    def mutate(rng: random.Random, data: bytes) -> bytes:
        with suppress(Exception):
            return _zipped(rng, list(_members(data)), mutations)
        return data

    return mutate


@lru_cache(32)
def _members(data: bytes) -> tuple[tuple[str, bytes], ...]:
    """Of a seed, again and again."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return tuple((each.filename, archive.read(each)) for each in archive.infolist()[:100])


def _zipped(rng: random.Random, members: list[tuple[str, bytes]], mutations: Sequence[Mutation]) -> bytes:
    place = rng.randrange(len(members))
    name, content = members[place]
    change = rng.randrange(8)
    if change == 0:
        del members[place]
    elif change == 1:
        members[place] = (rng.choice((name + "x", "../x", "/x", "x/data.pkl", "archive/constants.pkl", "")), content)
    elif change == 2:
        members.append((name, content))
    else:
        members[place] = (name, rng.choice(mutations)(rng, content))
    return _zip_bytes(members, packed=rng.random() < 0.2)


def _zip_bytes(members: Sequence[tuple[str, bytes]], *, packed: bool) -> bytes:
    """A whole archive; `zipfile` takes ten times as long to write one of many small members."""
    parts, index, place = [], [], 0
    for name, content in members:
        data = zlib.compress(content, 6, -15) if packed else content
        text, sizes = name.encode(), (len(data), len(content))
        facts = struct.pack("<5H3I2H", 20, 0x800, 8 * packed, 0, 33, zlib.crc32(content), *sizes, len(text), 0)
        parts += [b"PK\3\4", facts, text, data]
        index += [b"PK\1\2\x14\0", facts, struct.pack("<3H2I", 0, 0, 0, 0, place), text]
        place += 30 + len(text) + len(data)
    size, count = sum(map(len, index)), len(members)
    return b"".join([*parts, *index, b"PK\5\6", struct.pack("<4H2IH", 0, 0, count, count, size, place, 0)])
