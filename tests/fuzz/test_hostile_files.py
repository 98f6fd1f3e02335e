"""Files that are known to be nasty, one at a time, and properties of readers over any content."""

from __future__ import annotations

import csv
import gzip
import io
import os
import struct
import tarfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rrm.cli import main
from rrm.config import _yaml, load
from rrm.datasets import published as archives
from rrm.datasets.matlab import read_field
from rrm.datasets.voc import VocLayout, read_classes
from rrm.errors import RRMError
from rrm.limits import CONFIG_DEPTH, Refused, read_file
from rrm.networks import read_mxnet_params
from rrm.photos import read_photo
from tests.fuzz.seeds import long_header, many_scans, packed_mat

CLASSES = ("cat", "dog", "traffic light")
some = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def layout(tmp_path: Path) -> VocLayout:
    for below in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
        (tmp_path / below).mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(tmp_path / "JPEGImages" / "a.jpg")
    return VocLayout(tmp_path, classes=CLASSES, lists={"train": "train"})


# ---- what is no regular file, or leads elsewhere ----


READ: dict[str, Callable[[VocLayout], object]] = {
    "ImageSets/Segmentation/train.txt": lambda layout: layout.ids("train"),
    "Annotations/a.xml": lambda layout: layout.training_labels("a"),
    "JPEGImages/a.jpg": lambda layout: layout.read_photo("a"),
    "SegmentationClass/a.png": lambda layout: layout.read_mask("a"),
    "labels.csv": lambda layout: VocLayout(layout.root, classes=CLASSES, labels="labels.csv").training_labels("a"),
}
ODD: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "folder": os.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "circle": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_regular_file(layout: VocLayout, name: str, kind: str) -> None:
    path = layout.root / name
    path.unlink(missing_ok=True)
    ODD[kind](path)
    for call in (lambda: READ[name](layout), lambda: read_classes(path), lambda: load(path), lambda: read_photo(path)):
        with pytest.raises(RRMError, match="expected"):
            call()


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "x" * 250, "a\0b", "é" * 120, "a/../../b"])
def test_ids_that_no_file_can_have(layout: VocLayout, name: str) -> None:
    for reader in (layout.read_photo, layout.read_mask, layout.present, layout.photo_size):
        with pytest.raises(RRMError, match="expected"):
            reader(name)


def test_larger_files_than_allowed_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(RRMError, match="more than 1048576 bytes"):
        load(path)
    with pytest.raises(RRMError, match="more than 268435456 bytes"):
        read_classes(path)
    assert read_file(__file__, 1 << 20).startswith(b'"""Files')
    grown = Path("/proc/self/status")  # has more in it than its size says
    if grown.exists():
        assert read_file(grown, 1 << 20).startswith(b"Name:") and b"VmPeak:" in read_file(grown, 1 << 20)
        with pytest.raises(Refused, match="more than 10 bytes"):
            read_file(grown, 10)


# ---- little that asks for much ----


def test_a_jpeg_of_many_scans(layout: VocLayout) -> None:
    (layout.root / "JPEGImages" / "a.jpg").write_bytes(many_scans(990, 1000, 1))
    assert layout.read_photo("a").shape == (990, 1000, 3)
    (layout.root / "JPEGImages" / "a.jpg").write_bytes(many_scans(990, 1000, 5000))
    begin = time.process_time()
    for read in (
        layout.read_photo,
        layout.photo_size,
        lambda name: read_photo(layout.root / "JPEGImages" / f"{name}.jpg"),
    ):
        with pytest.raises(RRMError, match="scans, more than 64"):
            read("a")
    assert time.process_time() - begin < 1


def test_a_member_with_an_endless_name(tmp_path: Path) -> None:
    path = tmp_path / "voc.tar"
    with gzip.open(path, "wb", compresslevel=1) as packed:
        packed.write(long_header(tarfile.GNUTYPE_LONGNAME, 8 << 20) + bytes(9 << 20))
    with pytest.raises(RRMError, match="a header of 8388608 bytes, more than 1048576"):
        archives.open_published(path, ("",), "ImageSets")


def test_an_archive_of_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MEMBERS", 3)
    with tarfile.open(tmp_path / "voc.tar", "w") as archive:
        for number in range(4):
            archive.addfile(tarfile.TarInfo(f"ImageSets/{number}"))
    with pytest.raises(RRMError, match="expected at most 3 members"):
        archives.open_published(tmp_path / "voc.tar", ("",), "ImageSets")


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<II", 14, 60 << 20) + bytes(60 << 20),  # millions of empty parts
        struct.pack("<II", 14, 70 << 20) + bytes(70 << 20),  # larger than a file may be
    ],
)
def test_a_packed_matrix_of_nothing(content: bytes) -> None:
    begin = time.process_time()
    with pytest.raises(RRMError, match="expected a MATLAB 5 file"):
        read_field(packed_mat(content), "GTcls", "Segmentation")
    assert time.process_time() - begin < 2


_NESTED = "a0: &a0 [x]\n" + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 10))


@pytest.mark.parametrize(
    "text",
    [_NESTED, "dataset: &d {name: *d}\n", "x: 2001-99-99\n", "x: " + "9" * 5000, "x: " + "[" * 5000, "x: !!int ''\n",
     "x: !!python/object/apply:os.system ['true']\n", "? {a: b}\n: c\n", "2001-01-01: 1\n", "\ufeff\ufeff",
     "seeds: [0x" + "f" * 5000 + "]\n"],
)  # fmt: skip
def test_configurations_that_ask_for_much(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text(text)
    assert main(["check", str(tmp_path / "config.yaml")]) == 1
    message = capsys.readouterr().err
    assert "config.yaml: 1 fault(s)" in message or "fault(s)" in message
    assert "Traceback" not in message and len(message) < 20_000


def test_values_lie_in_each_other_so_deep_and_no_deeper() -> None:
    assert _yaml("[" * CONFIG_DEPTH + "]" * CONFIG_DEPTH) != []
    for deeper in ("[" * (CONFIG_DEPTH + 1), "- " * CONFIG_DEPTH + "x", "".join(f"{' ' * k}a:\n" for k in range(99))):
        with pytest.raises(Refused, match=f"more than {CONFIG_DEPTH} deep"):
            _yaml(deeper)


def test_messages_change_no_terminal() -> None:
    assert str(RRMError("a\x1b[2J\u202e: expected\nb")) == "a\\x1b[2J\\u202e: expected\nb"
    long = str(RRMError("x" * 100_000 + " expected a name"))
    assert len(long) < 5000 and long.endswith("expected a name")


# ---- properties ----

ids = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters='/\\,;"'), min_size=1, max_size=30
)
names = ids.filter(lambda name: name not in {".", ".."} and name.strip() == name)


@some
@given(st.dictionaries(names, st.sets(st.sampled_from(CLASSES), min_size=1), min_size=1, max_size=8))
def test_tables_of_labels_are_read_as_written(layout: VocLayout, labels: dict[str, set[str]]) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerows([("image", "labels"), *((name, ";".join(sorted(found)) + ";") for name, found in labels.items())])
    (layout.root / "labels.csv").write_text(buffer.getvalue(), encoding="utf-8", newline="")
    table = VocLayout(layout.root, classes=CLASSES, labels="labels.csv")
    for name, found in labels.items():
        assert table.training_labels(name).tolist() == [label in found for label in CLASSES]


@some
@given(
    st.lists(names.filter(lambda name: len(name.encode()) < 200), min_size=1, unique=True),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
)
def test_lists_are_read_as_written(layout: VocLayout, listed: list[str], end: str) -> None:
    layout.list_path("train").write_bytes(end.join(listed).encode())
    assert layout.ids("train") == tuple(listed)


def _only_refuses(call: Callable[[], Any]) -> None:
    try:
        call()
    except RRMError as error:
        assert "expected" in str(error)  # noqa: PT017


@some
@given(
    st.binary(max_size=300),
    st.text(max_size=300),
    st.sampled_from(["", "x: ", "dataset:\n  name: ", "methods: {sec: "]),
)
def test_any_bytes_are_read_or_refused(layout: VocLayout, content: bytes, text: str, start: str) -> None:
    root = layout.root
    for name, data, call in (
        ("net.params", b"\x12\x01" + bytes(6) + content, lambda: read_mxnet_params(root / "net.params")),
        ("Annotations/a.xml", b"<a>" + content, lambda: layout.present("a")),
        ("Annotations/a.xml", text.encode("utf-8", "surrogatepass"), lambda: layout.present("a")),
        ("JPEGImages/a.jpg", b"\xff\xd8\xff" + content, lambda: layout.read_photo("a")),
        ("config.yaml", (start + text).encode("utf-8", "surrogatepass"), lambda: load(root / "config.yaml")),
        ("classes.txt", content, lambda: read_classes(root / "classes.txt")),
    ):
        (root / name).write_bytes(data)
        _only_refuses(call)
    _only_refuses(lambda: read_field(bytes(126) + b"IM" + content, "GTcls", "Segmentation"))
    _only_refuses(lambda: read_field(packed_mat(content), "GTcls", "Segmentation"))


@some
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**16), st.booleans())
def test_matrices_are_read_as_written(height: int, width: int, seed: int, packed: bool) -> None:
    from scipy.io import savemat

    numbers = np.random.default_rng(seed).integers(0, 21, (height, width)).astype(np.uint8)
    buffer = io.BytesIO()
    savemat(buffer, {"GTcls": {"x": 3.0, "Segmentation": numbers}}, do_compression=packed)
    np.testing.assert_array_equal(read_field(buffer.getvalue(), "GTcls", "Segmentation"), numbers)
    cut = buffer.getvalue()[: -1 - seed % 50]
    _only_refuses(lambda: read_field(cut, "GTcls", "Segmentation"))
    assert zlib.crc32(cut)  # the input is not empty
