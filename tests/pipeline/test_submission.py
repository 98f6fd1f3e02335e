"""Archives for the evaluation server: the stage on photos that were packed smaller, the check on hostile archives."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from rrm.cli import main
from rrm.config import load
from rrm.crf import DenseCRF
from rrm.datasets import voc_palette
from rrm.datasets.voc import encode_mask
from rrm.errors import RRMError, RRMErrors
from rrm.inference import labels_at
from rrm.networks import build_network
from rrm.stages.trained import save_trained
from rrm.store import Store
from rrm.submission import FOLDER, check_archive, member_name, write_archive
from tests.pipeline.conftest import CONFIG

CLASSES = ["cat", "dog"]
SIZES = {"s1": (60, 90), "s0": (90, 60), "deep/s2": (40, 33)}  # (H, W); two are packed smaller


# ---- the stage ----


def _photo(root: Path, name: str, size: tuple[int, int]) -> None:
    path = root / "JPEGImages" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(name)).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC).save(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in VOC layout with a submission list, its config file, packed photos and random weights."""
    folder = tmp_path_factory.mktemp("submission")
    root, lists = folder / "voc", {"train": ["t0", "t1"], "val": ["v0"], "test": list(SIZES)}
    for split, names in lists.items():
        for name in names:
            _photo(root, name, SIZES.get(name, (48, 48)))
        path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{name}\n" for name in names))
    (root / "labels.csv").write_text("image,labels\nt0,cat\nt1,dog\nv0,cat\ns0,unknown to us\n")
    dataset = {"kind": "voc", "name": "mini", "root": str(root), "classes": CLASSES, "labels": "labels.csv"}
    over = {"dataset": {**dataset, "submission": "test", "long_side": 48}}
    (folder / "over.yaml").write_text(json.dumps(over))
    assert _stage(folder, "pack-photos", "photos.h5") == 0
    options = {"width": 0.0625, "units": [1, 1, 1, 1], "output_stride": 8}
    network = build_network("rrm", num_classes=2, backbone="resnet38", **options)
    identity = {"stage": "one_step", "code": "-", "options": {}, "inputs": {}}
    save_trained(
        folder / "weights.pth", network, "rrm", CLASSES, {"backbone": "resnet38", "options": options}, identity
    )
    given_inputs = ["--in", f"photos={folder / 'photos.h5'}", "--in", f"model={folder / 'weights.pth'}"]
    named = ["--model", "one_step", "--split", "submission"]
    assert _stage(folder, "predict", "probabilities.h5", *given_inputs, *named) == 0
    return folder


def _config(folder: Path) -> list[str]:
    return [*CONFIG, str(folder / "over.yaml")]


def _stage(folder: Path, name: str, out: str, *extra: str) -> int:
    return main([name, "--config", *_config(folder), "--out", str(folder / out), *extra])


def _inputs(folder: Path) -> list[str]:
    return ["--in", f"photos={folder / 'photos.h5'}", "--in", f"probabilities={folder / 'probabilities.h5'}"]


def _masks(path: Path) -> dict[str, np.ndarray]:
    with tarfile.open(path, "r:gz") as archive:
        return {
            member.name: np.array(Image.open(io.BytesIO(archive.extractfile(member).read())))  # type: ignore[union-attr]
            for member in archive
        }


def test_photos_for_the_server_are_packed_without_labels(data: Path) -> None:
    store = Store(data / "photos.h5", "photos")
    assert store.attrs["splits"]["submission"] == list(SIZES)
    for name, size in SIZES.items():
        record = store[name]
        assert set(record) == {"image", "size"}
        assert tuple(record["size"]) == size
        assert max(record["image"].shape[:2]) == min(48, max(size))


@pytest.mark.parametrize("with_crf", [True, False])
def test_masks_have_the_original_size_and_come_from_resized_probabilities(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], with_crf: bool
) -> None:
    over = tmp_path / "crf.yaml"
    over.write_text(f"evaluation: {{submission_crf: {str(with_crf).lower()}}}\n")
    out = tmp_path / "submission.tar.gz"
    call = ["submission", "--config", *_config(data), str(over), *_inputs(data)]
    assert main([*call, "--out", str(out)]) == 0
    masks = _masks(out)
    assert list(masks) == [f"{FOLDER}/{name}.png" for name in sorted(SIZES)]
    photos, scores = Store(data / "photos.h5", "photos"), Store(data / "probabilities.h5", "probabilities")
    crf = DenseCRF(**load(*_config(data)).evaluation.crf.model_dump())
    for name, size in SIZES.items():
        image, expected = photos.read(name, "image"), scores.read(name, "probabilities").astype(np.float32)
        if with_crf:
            expected = crf.scaled(max(image.shape[:2]) / max(size))(image, expected)
        np.testing.assert_array_equal(masks[member_name(name)], labels_at(expected, size))
    capsys.readouterr()
    assert main(["check-submission", str(out), "--photos", str(data / "photos.h5")]) == 0
    assert "3 masks" in capsys.readouterr().out
    again = tmp_path / "later" / "submission.tar.gz"
    assert main([*call, "--out", str(again), "--runtime", '{"crf_workers": 1, "device": "cpu"}']) == 0
    assert again.read_bytes() == out.read_bytes()


def test_an_archive_that_the_check_refuses_gets_no_name(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rrm.stages.submission.labels_at", lambda scores, size: np.full(size, 255, np.uint8))
    out = tmp_path / "submission.tar.gz"
    assert main(["submission", "--config", *_config(data), *_inputs(data), "--out", str(out)]) == 1
    assert "3 fault(s)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_store_without_the_list_and_a_demo_with_one_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "none.yaml").write_text("dataset: {submission: null}\n")
    photos = tmp_path / "photos.h5"
    assert main(["pack-photos", "--config", *_config(data), str(tmp_path / "none.yaml"), "--out", str(photos)]) == 0
    assert main(["check-submission", str(tmp_path / "none.yaml"), "--photos", str(photos)]) == 1
    assert "expected a split of train, val, got 'submission'" in capsys.readouterr().err
    (tmp_path / "demo.yaml").write_text("dataset: {submission: test}\n")
    with pytest.raises(RRMErrors, match="submission: expected null for the demo"):
        load(*CONFIG, tmp_path / "demo.yaml")


# ---- the check ----

IDS = ("a", "b", "sub/c")
SHAPES = {"a": (4, 6), "b": (5, 3), "sub/c": (2, 2)}
Entry = tuple[tarfile.TarInfo, bytes]


def _mask(name: str, value: int = 1) -> bytes:
    return encode_mask(np.full(SHAPES[name], value, np.uint8))


def _entry(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> Entry:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, len(data)
    return member, data


def _good() -> list[Entry]:
    return [_entry(member_name(name), _mask(name)) for name in IDS]


def _pack(path: Path, entries: list[Entry]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for member, data in entries:
            archive.addfile(member, io.BytesIO(data))
    return path


def _faults(path: Path, num_classes: int = 20) -> list[str]:
    with pytest.raises(RRMErrors) as caught:
        check_archive(path, IDS, SHAPES, num_classes)
    for fault in caught.value.faults:
        assert "\n" not in fault and "expected " in fault and "got " in fault, fault
    return caught.value.faults


def _png(pixels: np.ndarray, palette: np.ndarray | None = None, **options: object) -> bytes:
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_good_archives_pass(tmp_path: Path) -> None:
    path = tmp_path / "good.tar.gz"
    write_archive(path, [(name, _mask(name, 20)) for name in IDS])
    check_archive(path, IDS, SHAPES, 20)
    folders = [_entry(name, kind=tarfile.DIRTYPE) for name in ("results", "results/VOC2012", FOLDER, f"{FOLDER}/sub")]
    check_archive(_pack(path, [*folders, *reversed(_good())]), IDS, SHAPES, 20)
    other = tmp_path / "other name.tar.gz"
    for target in (path, other):
        write_archive(target, [(name, _mask(name)) for name in IDS])
    assert path.read_bytes() == other.read_bytes()
    with tarfile.open(path) as archive:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in archive} == {(0, 0, 0, "", "", 0o644)}


A = member_name("a")
HOSTILE: dict[str, tuple[Callable[[list[Entry]], list[Entry]], str]] = {
    "missing": (lambda good: good[1:], f"{A}: expected a file, got none"),
    "extra": (lambda good: [*good, _entry(f"{FOLDER}/other.png", _mask("a"))], "expected no such file"),
    "another folder": (lambda good: [*good, _entry("results/VOC2012/Main", kind=tarfile.DIRTYPE)], "a folder"),
    "double": (lambda good: [*good, good[0]], "got another: remove the double"),
    "absolute": (lambda good: [*good, _entry("/etc/passwd", b"x")], "got one that leaves it"),
    "upwards": (lambda good: [*good, _entry(f"{FOLDER}/../../../../x.png", b"x")], "got one that leaves it"),
    "backslashes": (lambda good: [*good, _entry("..\\x.png", b"x")], "got one that leaves it"),
    "symbolic link": (lambda good: [*good, _entry("x.png", kind=tarfile.SYMTYPE, link="/etc")], "got a link"),
    "link as a mask": (
        lambda good: [_entry(A, kind=tarfile.SYMTYPE, link="/etc/passwd"), *good[1:]],
        f"{A!r}: expected regular files only, got a link",
    ),
    "hard link": (lambda good: [*good[1:], _entry(A, kind=tarfile.LNKTYPE, link=good[1][0].name)], "got a link"),
    "device": (lambda good: [_entry(A, kind=tarfile.CHRTYPE), *good[1:]], "got a special file"),
    "pipe": (lambda good: [_entry(A, kind=tarfile.FIFOTYPE), *good[1:]], "got a special file"),
    "folder as a mask": (lambda good: [_entry(A, kind=tarfile.DIRTYPE), *good[1:]], "got a folder"),
}
IMAGES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "expected a PNG file"),
    "text": (b"not an image" * 10, "expected a PNG file"),
    "grey": (_png(np.ones((4, 6), np.uint8)), "mode: expected 8 bits with a palette, got 8 bits with grey"),
    "RGB": (_png(np.ones((4, 6, 3), np.uint8)), "got 8 bits with RGB"),
    "4 bits": (_png(np.ones((4, 6), np.uint8), voc_palette(), bits=4), "got 4 bits with a palette"),
    "another size": (_png(np.ones((6, 4), np.uint8), voc_palette()), "size: expected the photo's, 6 x 4 (width"),
    "another palette": (_png(np.ones((4, 6), np.uint8), voc_palette()[::-1].copy()), "palette: expected VOC's colours"),
    "ignored": (encode_mask(np.full((4, 6), 255, np.uint8)), "values: expected 0..20, got [255]"),
    "class 21": (encode_mask(np.full((4, 6), 21, np.uint8)), "values: expected 0..20, got [21]"),
    "cut off": (_mask("a")[:-20], "expected a readable PNG file"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_members(tmp_path: Path, name: str) -> None:
    change, expected = HOSTILE[name]
    (fault,) = [each for each in _faults(_pack(tmp_path / "x.tar.gz", change(_good()))) if "got none" not in each or
                name == "missing"]  # fmt: skip
    assert expected in fault


@pytest.mark.parametrize("name", IMAGES)
def test_wrong_images(tmp_path: Path, name: str) -> None:
    data, expected = IMAGES[name]
    faults = _faults(_pack(tmp_path / "x.tar.gz", [_entry(A, data), *_good()[1:]]))
    assert A in faults[0] and expected in faults[0]
    assert len(faults) == 1 + (name == "4 bits")  # which hold too few colours as well


def test_all_faults_at_once(tmp_path: Path) -> None:
    entries = [
        _entry(A, _png(np.full((9, 9), 3, np.uint8))),
        _entry("/x", b""),
        _entry(member_name("b"), _mask("b", 9)),
    ]
    found = "\n".join(_faults(_pack(tmp_path / "x.tar.gz", entries), num_classes=8))
    for part in ("mode: ", "size: ", "leaves it", "values: expected 0..8, got [9]", "sub/c.png: expected a file"):
        assert part in found


def test_other_containers(tmp_path: Path) -> None:
    good, path = _pack(tmp_path / "good.tar.gz", _good()), tmp_path / "x.tar.gz"
    packed = good.read_bytes()
    unpacked = gzip.decompress(packed)
    cases = {
        b"": "expected gzip, got something else",
        unpacked: "expected gzip, got something else",
        packed[:-9]: "compression: expected a readable gzip file",
        gzip.compress(b""): "tar: expected a readable archive",
        gzip.compress(b"no tar" * 200): "tar: expected a readable archive",
        gzip.compress(unpacked + unpacked): "bytes behind its last file",
        gzip.compress(unpacked[:700]): "tar: expected a readable archive",
    }
    for content, expected in cases.items():
        path.write_bytes(content)
        assert any(expected in fault for fault in _faults(path)), expected
    path.unlink()
    assert "FileNotFoundError" in _faults(path)[0]


def test_what_would_fill_the_disk_or_the_memory_is_not_unpacked(tmp_path: Path) -> None:
    bomb = _pack(tmp_path / "x.tar.gz", [*_good(), _entry("zeros", bytes(64 << 20))])
    assert "bytes when unpacked, got more" in _faults(bomb)[0]
    text = PngImagePlugin.PngInfo()
    text.add_text("k", "x" * (8 << 20), zip=True)
    image = Image.fromarray(np.ones((4, 6), np.uint8))
    image.putpalette(voc_palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=text)
    (fault,) = _faults(_pack(tmp_path / "y.tar.gz", [_entry(A, buffer.getvalue()), *_good()[1:]]))
    assert "expected a readable PNG file" in fault


def test_sizes_of_all_ids_are_needed(tmp_path: Path) -> None:
    with pytest.raises(RRMError, match="sizes: expected one of each id"):
        check_archive(tmp_path / "x", ["a", "z"], SHAPES, 20)


def _accepted(path: Path) -> bool:
    try:
        check_archive(path, IDS, SHAPES, 20)
    except RRMErrors:
        return False
    return True


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6), cut=st.integers(0, 10_000))
def test_damaged_archives_pass_or_are_refused_in_words(
    tmp_path: Path, changes: list[tuple[int, int]], cut: int
) -> None:
    content = bytearray(gzip.decompress(_pack(tmp_path / "x.tar.gz", _good()).read_bytes()))
    for place, value in changes:
        content[place % len(content)] = value
    path = tmp_path / "y.tar.gz"
    path.write_bytes(gzip.compress(bytes(content[: len(content) - cut])))
    _accepted(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries=st.lists(st.sampled_from(["a", "b", "sub/c", "d", "../a"]), max_size=5))
def test_exactly_the_list_is_accepted(tmp_path: Path, entries: list[str]) -> None:
    shapes = {**SHAPES, "d": (1, 1), "../a": (4, 6)}
    masks = [_entry(member_name(name), encode_mask(np.zeros(shapes[name], np.uint8))) for name in entries]
    assert _accepted(_pack(tmp_path / "x.tar.gz", masks)) == (sorted(entries) == sorted(IDS))
