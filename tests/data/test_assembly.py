"""Assembling VOC 2012 with SBD: lists, masks, sources that are missing, wrong or hostile, and runs that are killed."""

from __future__ import annotations

import io
import json
import os
import signal
import tarfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import loadmat, savemat

from rrm.cli import main
from rrm.datasets import VocLayout, assembly, pack_masks, pack_photos, voc2012
from rrm.datasets.matlab import read_field
from rrm.datasets.published import md5_of, open_published
from rrm.datasets.voc2012 import assemble_voc2012, sbd_mask
from rrm.errors import RRMError
from rrm.store import Store
from tests.data import published as mini

Faults = Callable[[Callable[[], object]], list[str]]


@dataclass
class Sources:
    """The three archives of the miniature, each of which a test can spoil."""

    root: Path

    def write(self, **changes: dict[str, Any]) -> None:
        """Write the archives, with members added or replaced; None takes one out."""
        contents = {"trainval": mini.voc_files(), "test": mini.test_files(), "sbd": mini.sbd_files()}
        for name, files in contents.items():
            changed = {key: value for key, value in {**files, **changes.get(name, {})}.items() if value is not None}
            folder = "benchmark_RELEASE/dataset" if name == "sbd" else "VOCdevkit/VOC2012"
            mini.write_tar(self.path(name), folder, changed)

    def path(self, name: str) -> Path:
        return self.root / (f"{name}.tgz" if name == "sbd" else f"{name}.tar")

    def assemble(self, out: Path, *, test: bool = True, **options: Any) -> bool:
        voc = [self.path("trainval"), self.path("test")] if test else [self.path("trainval")]
        return assemble_voc2012(out, voc, self.path("sbd"), **{"release": self.release(), **options})

    def release(self) -> voc2012.Release:
        return mini.release(**{name: md5_of(self.path(name)) for name in ("trainval", "test", "sbd")})


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    sources = Sources(tmp_path)
    sources.write()
    return sources


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "voc"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lists_of(folder: Path) -> dict[str, list[str]]:
    return {path.stem: path.read_text().split() for path in (folder / "ImageSets" / "Segmentation").iterdir()}


def only_sources_left(out: Path) -> bool:
    return {path.name for path in out.parent.iterdir()} == {"trainval.tar", "test.tar", "sbd.tgz"}


# ---- what is made ----


def test_lists_follow_the_fields_formula(sources: Sources, out: Path) -> None:
    assert sources.assemble(out)
    assert {name: tuple(ids) for name, ids in lists_of(out).items()} == {
        "train": mini.TRAIN,
        "val": mini.VAL,
        "trainval": tuple(sorted(mini.TRAIN + mini.VAL)),
        "train_aug": mini.TRAIN_AUG,
        "test": mini.TEST,
    }


def test_official_masks_win_and_sbd_gives_the_others(sources: Sources, out: Path) -> None:
    sources.assemble(out)
    layout = VocLayout(out)
    files = mini.voc_files()
    for name in (*mini.TRAIN, *mini.VAL):
        assert layout.mask_path(name).read_bytes() == files[f"SegmentationClass/{name}.png"]
    for name in ("2010_000005", "2011_000006"):
        assert (layout.read_mask(name) == mini.contours(name)).all()
        assert Image.open(layout.mask_path(name)).mode == "P"
    masks = {path.stem for path in (out / "SegmentationClass").iterdir()}
    assert masks == {*mini.TRAIN, *mini.VAL, *mini.TRAIN_AUG}


def test_photos_that_no_list_names_and_annotations_of_test_are_left_out(sources: Sources, out: Path) -> None:
    sources.assemble(out)
    photos = {path.stem for path in (out / "JPEGImages").iterdir()}
    assert photos == {*mini.LABELLED, *mini.TEST}
    assert {path.stem for path in (out / "Annotations").iterdir()} == set(mini.LABELLED)


@pytest.mark.parametrize("place", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_extracted_folders_give_the_same_data_set(sources: Sources, tmp_path: Path, out: Path, place: str) -> None:
    sources.assemble(out, test=False)
    voc = mini.write_folder(tmp_path / "extracted" / place, mini.voc_files())
    sbd = mini.write_folder(tmp_path / "sbd" / "dataset", mini.sbd_files())
    other = tmp_path / "other"
    assemble_voc2012(other, [tmp_path / "extracted"], sbd.parent, release=sources.release())
    first, second = contents(out), contents(other)
    assert first.pop("manifest.json") != second.pop("manifest.json")  # other sources
    assert first == second
    photo = f"JPEGImages/{mini.TRAIN[0]}.jpg"
    assert (other / photo).samefile(voc / photo)  # a hard link
    assert not any(path.is_symlink() for path in other.rglob("*"))


def test_files_are_copied_where_links_are_impossible(
    sources: Sources, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError("another file system")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    voc = mini.write_folder(tmp_path / "VOC2012", mini.voc_files())
    assemble_voc2012(out, [voc], sources.path("sbd"), release=sources.release())
    photo = f"JPEGImages/{mini.TRAIN[0]}.jpg"
    assert (out / photo).read_bytes() == (voc / photo).read_bytes()
    assert not (out / photo).samefile(voc / photo)


def test_links_in_an_extracted_folder_become_files(sources: Sources, tmp_path: Path, out: Path) -> None:
    voc = mini.write_folder(tmp_path / "VOC2012", mini.voc_files())
    (voc / "JPEGImages").rename(tmp_path / "elsewhere")
    (voc / "JPEGImages").symlink_to(tmp_path / "elsewhere")
    assemble_voc2012(out, [voc], sources.path("sbd"), release=sources.release())
    VocLayout(out, lists={"train": "train_aug", "val": "val"}).check(["train", "val"], ["train", "val"])


def test_without_test_photos_there_is_no_test_list(sources: Sources, tmp_path: Path, out: Path) -> None:
    files = mini.voc_files() | {"ImageSets/Segmentation/test.txt": b"2008_000009\n"}
    voc = mini.write_folder(tmp_path / "VOC2012", files)
    assemble_voc2012(out, [voc], sources.path("sbd"), release=sources.release())
    assert "test" not in lists_of(out)


def test_the_manifest_says_what_the_data_set_is_made_of(sources: Sources, out: Path) -> None:
    sources.assemble(out)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["made_of"]["subset"] is False
    assert manifest["made_of"]["sources"][0] == {
        "name": "trainval.tar",
        "bytes": sources.path("trainval").stat().st_size,
    }
    assert manifest["checksums"]["sbd.tgz"] == f"md5:{md5_of(sources.path('sbd'))}"
    assert {name: facts["photos"] for name, facts in manifest["lists"].items()} == {
        "train": 2, "val": 2, "trainval": 4, "train_aug": 4, "test": 1,
    }  # fmt: skip
    assert manifest["masks"] == {"voc": 4, "sbd": 2}
    assert len(manifest["classes"]) == 20


def test_the_data_set_can_be_packed(sources: Sources, out: Path, tmp_path: Path) -> None:
    sources.assemble(out)
    layout = VocLayout(out, lists={"train": "train_aug", "val": "val", "submission": "test"})
    pack_photos(layout, layout.splits, tmp_path / "photos.h5", config={}, code="-")
    pack_masks(layout, "train", tmp_path / "masks.h5", config={}, code="-")
    photos, masks = Store(tmp_path / "photos.h5", "photos"), Store(tmp_path / "masks.h5", "masks")
    assert photos.attrs["splits"]["train"] == list(mini.TRAIN_AUG) == list(masks.ids)
    for name in mini.TRAIN_AUG:
        assert np.flatnonzero(photos[name]["present"]).tolist() == [mini.class_of(name) - 1]
    assert "present" not in photos[mini.TEST[0]]


# ---- what is there already ----


def test_a_finished_data_set_is_not_made_again(sources: Sources, out: Path) -> None:
    sources.assemble(out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert not sources.assemble(out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_folders_with_other_content_are_left_alone(sources: Sources, out: Path) -> None:
    mini.write_folder(out, {"thesis.tex": b"all of it"})
    for path in (out, out.parent / "missing" / ".." / "voc", out / "missing" / ".."):
        for replace in (False, True):
            with pytest.raises(RRMError, match="expected a new or an empty folder, got something else"):
                sources.assemble(path, replace=replace)
    assert contents(out) == {"thesis.tex": b"all of it"}


def test_what_appears_meanwhile_is_left_alone(sources: Sources, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voc2012, "write_manifest", lambda *_: mini.write_folder(out, {"thesis.tex": b"all of it"}))
    with pytest.raises(RRMError, match="expected a new or an empty folder, got something else"):
        sources.assemble(out)
    assert contents(out) == {"thesis.tex": b"all of it"}


def test_a_data_set_of_other_sources_is_neither_taken_for_this_one_nor_overwritten(sources: Sources, out: Path) -> None:
    sources.assemble(out, test=False)
    before = contents(out)
    with pytest.raises(RRMError, match="got a data set made of other sources"):
        sources.assemble(out)
    assert contents(out) == before
    (out / "manifest.json").unlink()  # as Snakemake does before it runs a job again
    assert sources.assemble(out, replace=True)
    assert "test" in lists_of(out)


def test_a_changed_list_is_noticed(sources: Sources, out: Path) -> None:
    sources.assemble(out)
    (out / "ImageSets" / "Segmentation" / "train_aug.txt").write_text("2007_000001\n")
    with pytest.raises(RRMError, match="expected a new or an empty folder"):
        sources.assemble(out)


KILLED = [
    (voc2012, "open_published", 2),
    (assembly.Path, "touch", 1),
    (voc2012, "_write_mask", 1),
    (voc2012, "encode_mask", 2),
    (voc2012, "write_lists", 1),
    (voc2012, "write_manifest", 1),
    (assembly.os, "replace", 1),
]


@pytest.mark.parametrize(("module", "function", "call"), KILLED, ids=[f"{name}-{call}" for _, name, call in KILLED])
def test_a_run_that_was_killed_is_done_again_to_the_same_result(
    sources: Sources, out: Path, tmp_path: Path, module: Any, function: str, call: int
) -> None:
    whole = tmp_path / "whole"
    sources.assemble(whole)
    process = os.fork()
    if process == 0:
        original, calls = getattr(module, function), []

        def kill(*arguments: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        setattr(module, function, kill)
        sources.assemble(out)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    assert not out.exists()
    assert sources.assemble(out)
    assert contents(out) == contents(whole)
    assert not list(tmp_path.glob(".*"))


# ---- what is refused ----


def test_missing_files_are_explained(tmp_path: Path, out: Path, faults_of: Faults) -> None:
    faults = faults_of(lambda: assemble_voc2012(out, [tmp_path / "voc.tar"], tmp_path / "sbd.tgz"))
    assert "VOCtrainval_11-May-2012.tar (2.0 GB; http://host.robots.ox.ac.uk/pascal/VOC" in faults[0]
    assert "VOC2012test.tar (1.8 GB; from the evaluation server" in faults[0]
    assert "benchmark.tgz (1.4 GB; http://www.eecs.berkeley.edu" in faults[1]


@pytest.mark.parametrize("spoiled", ["trainval", "test", "sbd"])
def test_wrong_checksums_are_refused(sources: Sources, out: Path, faults_of: Faults, spoiled: str) -> None:
    release = sources.release()
    with sources.path(spoiled).open("ab") as file:
        file.write(b"\0" * 512)
    (fault,) = faults_of(lambda: sources.assemble(out, release=release))
    assert (
        f"{sources.path(spoiled)}: expected MD5 {getattr(release, spoiled).md5 if spoiled != 'test' else ''}" in fault
    )
    assert md5_of(sources.path(spoiled)) in fault
    assert only_sources_left(out)
    assert sources.assemble(out, release=release, subset=True)
    assert json.loads((out / "manifest.json").read_text())["made_of"]["subset"] is True


def test_wrong_numbers_of_photos_are_refused_unless_it_is_a_subset(
    sources: Sources, out: Path, faults_of: Faults
) -> None:
    sources.write(sbd={"train.txt": b"2008_000002\n"})
    (fault,) = faults_of(lambda: sources.assemble(out))
    assert fault.startswith("train_aug: expected 4 photos, got 3:")
    sources.assemble(out, subset=True)
    assert len(lists_of(out)["train_aug"]) == 3


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (
            {"trainval": {"ImageSets/Segmentation/val.txt": b"2007_000001\n2009_000004\n"}},
            "train and val: expected no photo in both, got 1, such as '2007_000001'",
        ),
        (
            {
                "test": {
                    "ImageSets/Segmentation/test.txt": b"2010_000005\n",
                    "JPEGImages/2010_000005.jpg": mini.jpeg("2010_000005"),
                }
            },
            "train_aug and test: expected no photo in both, got 1, such as '2010_000005'",
        ),
    ],
)
def test_photos_in_two_lists_are_refused(
    sources: Sources, out: Path, faults_of: Faults, changes: dict[str, Any], fault: str
) -> None:
    sources.write(**changes)
    assert any(fault in each for each in faults_of(lambda: sources.assemble(out, subset=True)))
    assert only_sources_left(out)


def _odd(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def _plain(name: str) -> tarfile.TarInfo:
    return tarfile.TarInfo(name)


HOSTILE = {
    "above": _plain("VOCdevkit/VOC2012/../../../evil.txt"),
    "absolute": _plain("/tmp/evil.txt"),
    "backslash": _plain("..\\evil.txt"),
    "link to an absolute path": _odd("VOCdevkit/VOC2012/x", tarfile.SYMTYPE, "/etc/passwd"),
    "link that leaves": _odd("VOCdevkit/x", tarfile.SYMTYPE, "../../../etc/passwd"),
    "linked folder": _odd("VOCdevkit/VOC2012/JPEGImages", tarfile.SYMTYPE, "Annotations"),
    "hard link": _odd(f"VOCdevkit/VOC2012/JPEGImages/{mini.TRAIN[0]}.jpg", tarfile.LNKTYPE, "VOCdevkit/VOC2012/a"),
    "photo as a link": _odd(f"VOCdevkit/VOC2012/JPEGImages/{mini.TRAIN[0]}.jpg", tarfile.SYMTYPE, "b.jpg"),
    "device": _odd("VOCdevkit/VOC2012/zero", tarfile.CHRTYPE),
    "pipe": _odd("VOCdevkit/VOC2012/pipe", tarfile.FIFOTYPE),
    "sparse file": _odd("VOCdevkit/VOC2012/large", tarfile.GNUTYPE_SPARSE),
    "a file twice": _plain(f"VOCdevkit/VOC2012/JPEGImages/{mini.TRAIN[0]}.jpg"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_members_are_refused_before_anything_is_written(
    sources: Sources, out: Path, faults_of: Faults, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("a folder was made")

    member = HOSTILE[name]
    sources.write(trainval={"hostile": member})
    monkeypatch.setattr(voc2012, "new_folder", fail)
    faults = faults_of(lambda: sources.assemble(out))
    assert len(faults) == 1
    assert repr(member.name) in faults[0]
    assert only_sources_left(out)


def test_all_missing_files_are_named(sources: Sources, out: Path, faults_of: Faults) -> None:
    sources.write(
        trainval={"JPEGImages/2010_000005.jpg": None, f"SegmentationClass/{mini.VAL[0]}.png": None},
        sbd={"cls/2011_000006.mat": None},
    )
    faults = faults_of(lambda: sources.assemble(out))
    assert [fault.split(": ")[0] for fault in faults[:2]] == [
        "JPEGImages/2010_000005.jpg",
        f"SegmentationClass/{mini.VAL[0]}.png",
    ]
    assert "expected cls/2011_000006.mat, got no such file" in faults[2]


def test_archives_given_in_the_wrong_place_are_named(sources: Sources, out: Path) -> None:
    with pytest.raises(RRMError, match=r"trainval.tar: expected one of the folders .*dataset/cls.*give the right file"):
        assemble_voc2012(out, [sources.path("trainval")], sources.path("trainval"), subset=True)
    with pytest.raises(RRMError, match=r"expected train.txt and val.txt, got none in .*test.tar: add trainval.tar"):
        assemble_voc2012(out, [sources.path("test")], sources.path("sbd"), release=sources.release())
    mini.write_folder(out.parent / "empty", {"a": b""})
    with pytest.raises(RRMError, match="expected one of the folders VOCdevkit/VOC2012/ImageSets"):
        assemble_voc2012(out, [out.parent / "empty"], sources.path("sbd"), subset=True)


@pytest.mark.parametrize("ids", [b"../../evil\n", b"a/b\n", b"2007_000001\n2007_000001\n", b"\xff\xfe\n", b"..\n"])
def test_lists_with_odd_ids_are_refused(sources: Sources, out: Path, faults_of: Faults, ids: bytes) -> None:
    sources.write(sbd={"train.txt": ids})
    (fault,) = faults_of(lambda: sources.assemble(out, subset=True))
    assert "sbd.tgz: train.txt: expected image ids, each once" in fault


def test_masks_that_do_not_fit_their_photos_are_all_named(sources: Sources, out: Path, faults_of: Faults) -> None:
    too_large, values = np.zeros((7, 9), np.uint8), np.full(mini.SIZE, 21, np.uint8)
    official = voc2012.encode_mask(np.zeros((3, 3), np.uint8))
    sources.write(
        trainval={f"SegmentationClass/{mini.VAL[0]}.png": official},
        sbd={"cls/2010_000005.mat": mini.mat(too_large), "cls/2011_000006.mat": mini.mat(values)},
    )
    faults = faults_of(lambda: sources.assemble(out))
    assert faults[0].startswith(f"SegmentationClass/{mini.VAL[0]}.png: expected the photo's size 9 x 6")
    assert "cls/2010_000005.mat: expected integers of the photo's size (6, 9)" in faults[1]
    assert "cls/2011_000006.mat: expected class ids 0..20, got [21]" in faults[2]
    assert only_sources_left(out)


@pytest.mark.parametrize("name", ["trainval", "sbd"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_truncated_archives_are_refused(sources: Sources, out: Path, name: str, share: float) -> None:
    data = sources.path(name).read_bytes()
    sources.path(name).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(RRMError):
        sources.assemble(out, subset=True)
    assert only_sources_left(out)


@pytest.mark.parametrize("name", ["sbd.tar", "sbd.tgz"])
def test_damaged_archives_give_a_message_or_files(tmp_path: Path, name: str) -> None:
    files = mini.sbd_files()
    path = mini.write_tar(tmp_path / name, "benchmark_RELEASE/dataset", files)
    original = path.read_bytes()

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=4), st.booleans())
    def check(flips: list[tuple[int, int]], cut: bool) -> None:
        data = bytearray(original)
        for place, value in flips:
            data[place % 4096 % len(data)] = value
        path.write_bytes(data[: flips[0][0] % len(data)] if cut else data)
        with suppress(RRMError):
            source = open_published(path, ("benchmark_RELEASE/dataset",), "cls")
            assert {name for name, _ in source.read(list(files))} <= set(files)

    check()


MATS = [mini.mat(mini.contours("2010_000005"), do_compression=packed) for packed in (False, True)]


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(MATS),
    st.lists(
        st.tuples(st.integers(0), st.sampled_from([0, 1, 2, 4, 8, 14, 15, 127, 128, 255])), min_size=1, max_size=4
    ),
    st.booleans(),
)
def test_damaged_mat_files_give_a_message_or_a_mask(mat: bytes, flips: list[tuple[int, int]], cut: bool) -> None:
    data = bytearray(mat)
    for place, value in flips:
        data[place % len(mat)] = value
    if cut:
        del data[flips[0][0] % len(mat) :]
    with suppress(RRMError):
        mask = sbd_mask(bytes(data), "a.mat", mini.SIZE)
        assert mask.shape == mini.SIZE
        assert mask.max() <= 20


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_mat_files_are_read_as_scipy_reads_them(packed: bool, dtype: type) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 100, (7, 5)).astype(dtype)
    data = mini.mat(values, do_compression=packed)
    theirs = loadmat(io.BytesIO(data))["GTcls"]["Segmentation"][0, 0]
    assert np.array_equal(read_field(data, "GTcls", "Segmentation"), theirs)


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ({"GTinst": {"Segmentation": np.zeros((6, 9), np.uint8)}}, "no variable GTcls"),
        ({"GTcls": {"Boundaries": np.zeros((6, 9), np.uint8)}}, "not in list"),
        ({"GTcls": np.zeros((6, 9), np.uint8)}, "no struct"),
        ({"GTcls": {"Segmentation": "text"}}, "KeyError|numbers for an array"),
        ({"GTcls": {"Segmentation": np.zeros((6, 9), np.float64)}}, "expected integers of the photo's size"),
    ],
)
def test_other_mat_files_are_refused(content: dict[str, Any], got: str) -> None:
    file = io.BytesIO()
    savemat(file, content)
    with pytest.raises(RRMError, match=got):
        sbd_mask(file.getvalue(), "a.mat", mini.SIZE)


def test_a_pickle_in_place_of_a_mat_file_is_not_run() -> None:
    with pytest.raises(RRMError, match=r"a.mat: expected a MATLAB 5 file with GTcls.Segmentation"):
        sbd_mask(b"cos\nsystem\n(S'echo evil'\ntR.", "a.mat", mini.SIZE)


# ---- the command ----


def test_the_command_makes_the_data_set_and_says_so(
    sources: Sources, out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["data", "voc2012", "--voc", str(sources.path("trainval")), str(sources.path("test"))]
    command += ["--sbd", str(sources.path("sbd")), "--out", str(out)]
    assert main(command) == 1
    assert "expected MD5 6cd6e144f989b92b3379bac3b3de84fd (VOCtrainval_11-May-2012.tar)" in capfd.readouterr().err
    assert main([*command, "--subset"]) == 0
    assert "made, photos of each list: test 1, train 2, train_aug 4, trainval 4, val 2" in capfd.readouterr().out
    assert main([*command, "--subset"]) == 0
    assert "there already" in capfd.readouterr().out
    assert main([*command[:-1], str(out.parent), "--subset"]) == 1
    err = capfd.readouterr().err
    assert "expected a new or an empty folder" in err
    assert "Traceback" not in err
