"""Assembling COCO: labels, masks, lists, and every fault of the annotations."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrm.cli import main
from rrm.datasets import VocLayout, pack_masks, pack_photos
from rrm.datasets import coco as datasets_coco
from rrm.datasets.coco import assemble_coco, run_lengths, semantic_mask
from rrm.datasets.voc import read_classes
from rrm.errors import RRMError
from rrm.store import Store
from tests.data import published as mini

Faults = Callable[[Callable[[], object]], list[str]]
CLASSES = ("person", "car", "traffic light")
FIRST, EMPTY, THIRD = (f"COCO_train2014_{number:012d}" for number in (7, 8, 9))


def _layout(out: Path, **options: Any) -> VocLayout:
    return VocLayout(out, classes=read_classes(out / "classes.txt"), labels="labels.csv", **options)


def _assemble(root: Path, out: Path, **options: Any) -> bool:
    files = mini.write_coco(root, train2014=mini.coco("train2014"), val2014=mini.coco("val2014"))
    return assemble_coco(out, root / "images", files, **options)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "coco"


def test_labels_are_those_of_all_annotations_in_the_order_of_category_ids(tmp_path: Path, out: Path) -> None:
    _assemble(tmp_path, out)
    layout = _layout(out)
    assert layout.classes == CLASSES
    assert layout.present(FIRST).tolist() == [1, 1, 1]
    assert layout.present(THIRD).tolist() == [0, 0, 1]
    assert layout.present(EMPTY.replace("train", "val")).tolist() == [0, 0, 0]


def test_annotations_over_the_limit_are_refused(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = mini.write_coco(tmp_path, train2014=mini.coco("train2014"))
    size = path.stat().st_size
    monkeypatch.setattr(datasets_coco, "COCO_BYTES", size - 1)
    with pytest.raises(RRMError, match=f"{path}: expected COCO's annotations, got more than {size - 1} bytes: divide"):
        assemble_coco(out, tmp_path / "images", [path])
    monkeypatch.setattr(datasets_coco, "COCO_BYTES", size)
    assert assemble_coco(out, tmp_path / "images", [path])


def test_small_objects_lie_on_top_and_crowds_are_ignored(tmp_path: Path, out: Path) -> None:
    _assemble(tmp_path, out)
    expected = np.zeros(mini.SIZE, np.uint8)
    expected[:, [0, 8]] = 255  # the crowd
    expected[1:5, 1:6] = 1
    expected[2:4, 2:4] = 2
    assert np.array_equal(_layout(out).read_mask(FIRST), expected)
    parts = np.zeros(mini.SIZE, np.uint8)
    parts[:2, :2] = parts[:2, 5:7] = 3
    assert np.array_equal(_layout(out).read_mask(THIRD), parts)


def test_an_object_in_a_crowd_keeps_its_label() -> None:
    crowd = {"counts": [0, 12], "size": [3, 4]}
    mask = semantic_mask([(2, True, crowd), (1, False, [mini.polygon(0, 0, 4, 2)])], (3, 4))
    assert mask.tolist() == [[1] * 4, [1] * 4, [255] * 4]


@pytest.mark.parametrize("kept", [False, True])
def test_photos_without_objects_train_only_where_that_is_wanted(tmp_path: Path, out: Path, kept: bool) -> None:
    _assemble(tmp_path, out, background_images=kept)
    layout = _layout(out, background_images=kept)
    assert layout.ids("train") == ((FIRST, EMPTY, THIRD) if kept else (FIRST, THIRD))
    assert len(layout.ids("val")) == 3
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["left_out_without_objects"] == (0 if kept else 1)
    assert manifest["classes"] == list(CLASSES)
    assert (out / "JPEGImages" / f"{EMPTY}.jpg").exists() is kept


def test_the_data_set_can_be_packed(tmp_path: Path, out: Path) -> None:
    _assemble(tmp_path, out)
    layout = _layout(out)
    pack_photos(layout, ["train", "val"], tmp_path / "photos.h5", config={}, code="-")
    pack_masks(layout, "val", tmp_path / "masks.h5", config={}, code="-")
    assert Store(tmp_path / "photos.h5", "photos").attrs["classes"] == list(CLASSES)
    assert len(Store(tmp_path / "masks.h5", "masks").ids) == 3


def test_the_command_makes_it_once(tmp_path: Path, out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = mini.write_coco(tmp_path, train2014=mini.coco("train2014"), val2017=mini.coco("val2017"))
    command = ["data", "coco", "--images", str(tmp_path / "images"), "--annotations", *map(str, files)]
    assert main([*command, "--out", str(out)]) == 0
    assert "made, photos of each list: train 2, val 3" in capfd.readouterr().out
    assert main([*command, "--out", str(out)]) == 0
    assert "there already" in capfd.readouterr().out
    assert main([*command, "--background-images", "--out", str(out)]) == 1
    assert "made of other sources" in capfd.readouterr().err


def test_photos_may_lie_in_one_folder(tmp_path: Path, out: Path) -> None:
    (path,) = mini.write_coco(tmp_path, train2014=mini.coco("train2014"))
    assemble_coco(out, tmp_path / "images" / "train2014", [path])
    assert _layout(out).ids("train") == (FIRST, THIRD)


def _with(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    content = copy.deepcopy(mini.coco("train2014"))
    change(content)
    return content


WRONG = {
    "no key": (lambda c: c.pop("categories"), "categories: Field required"),
    "no file name": (lambda c: c["images"][0].pop("file_name"), "images.0.file_name: Field required"),
    "no region": (lambda c: c["annotations"][1].pop("segmentation"), "annotations.1.segmentation: "),
    "size": (lambda c: c["images"][0].update(width=0), "images.0.width: Input should be greater than 0"),
    "crowd": (lambda c: c["annotations"][0].update(iscrowd=2), "annotations.0.iscrowd: Input should be 0 or 1"),
    "category name": (lambda c: c["categories"][0].update(name="a;b"), "categories.0.name: "),
    "short polygon": (lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4]]), "at least 6 items"),
    "odd polygon": (lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "pairs of coordinates"),
    "far polygon": (lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4, 5, 1e9]]), "pairs of coordinates"),
    "no polygon": (lambda c: c["annotations"][0].update(segmentation=[]), "expected at least one polygon"),
    "RLE size": (lambda c: c["annotations"][2]["segmentation"].update(size=[9, 6]), "RLE of the image's size (6, 9)"),
    "RLE length": (lambda c: c["annotations"][2]["segmentation"].update(counts=[9]), "RLE of 54 pixels, got 9"),
    "RLE run": (lambda c: c["annotations"][2]["segmentation"].update(counts=[-1, 55]), "greater than or equal to 0"),
    "RLE text": (lambda c: c["annotations"][2]["segmentation"].update(counts="\u00e9"), "expected the text of an RLE"),
    "RLE cut": (lambda c: c["annotations"][2]["segmentation"].update(counts="o"), "one that is cut"),
    "image twice": (lambda c: c["images"].append(c["images"][0]), "images: expected id 7 once, got it 2 times"),
    "object twice": (lambda c: c["annotations"][1].update(id=1), "annotations: expected id 1 once, got it 2 times"),
    "category twice": (lambda c: c["categories"][1].update(id=90), "categories: expected id 90 once"),
    "name twice": (lambda c: c["categories"][1].update(name="car"), "expected each category's name once"),
    "no such image": (lambda c: c["annotations"][0].update(image_id=99), "annotation 1: expected the id of an image"),
    "no such category": (lambda c: c["annotations"][0].update(category_id=5), "annotation 1: expected the id of a cat"),
    "name above": (lambda c: c["images"][0].update(file_name="../a.jpg"), "expected a JPEG or PNG file's name inside"),
    "name absolute": (lambda c: c["images"][0].update(file_name="/etc/a.jpg"), "file's name inside the photos' folder"),
    "name of a text": (lambda c: c["images"][0].update(file_name="a.txt"), "expected a JPEG or PNG file's name"),
    "no photo": (lambda c: c["images"][0].update(file_name="a.jpg"), "image 7: expected a.jpg in"),
    "other size": (lambda c: c["images"][1].update(width=10), "expected the size in instances_train2014.json, 10 x 6"),
}


@pytest.mark.parametrize("name", WRONG)
def test_faults_of_annotations_are_named(tmp_path: Path, out: Path, faults_of: Faults, name: str) -> None:
    change, message = WRONG[name]
    (path,) = mini.write_coco(tmp_path, train2014=mini.coco("train2014"))
    path.write_text(json.dumps(_with(change)))
    faults = faults_of(lambda: assemble_coco(out, tmp_path / "images", [path], background_images=True))
    assert any(message in fault for fault in faults), faults
    assert not out.exists()
    assert not list(tmp_path.glob(".*"))


def test_all_faults_of_all_files_are_named_at_once(tmp_path: Path, out: Path, faults_of: Faults) -> None:
    files = mini.write_coco(tmp_path, train2014=mini.coco("train2014"), val2014=mini.coco("val2014"))
    for path, names in zip(files, (["image twice", "no photo"], ["no key", "size"]), strict=True):
        content = json.loads(path.read_text())
        for name in names:
            WRONG[name][0](content)
        path.write_text(json.dumps(content))
    faults = faults_of(lambda: assemble_coco(out, tmp_path / "images", files))
    assert len(faults) == 4


def test_files_that_do_not_go_together_are_refused(tmp_path: Path, out: Path, faults_of: Faults) -> None:
    val = mini.coco("val2014")
    val["categories"][0]["name"] = "cat"
    files = mini.write_coco(tmp_path, train2014=mini.coco("train2014"), val2014=val)
    (fault,) = faults_of(lambda: assemble_coco(out, tmp_path / "images", files))
    assert "expected the categories of" in fault
    faults = faults_of(lambda: assemble_coco(out, tmp_path / "images", [files[0], files[0]]))
    assert "list train: expected one annotation file, got 2: rename one" in faults
    assert f"photo {FIRST}: expected one file of this name, got 2: rename or remove the others" in faults


def test_missing_files_are_explained(tmp_path: Path, out: Path, faults_of: Faults) -> None:
    faults = faults_of(lambda: assemble_coco(out, tmp_path / "images", [tmp_path / "instances_train2014.json"]))
    assert "expected the photos' folder, got none" in faults[0]
    assert "annotations_trainval2014.zip" in faults[1]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"images": 1, "annotations": [], "categories": []}', "[" * 9999]
)
def test_what_is_no_annotation_file_is_refused(tmp_path: Path, out: Path, text: str) -> None:
    (path,) = mini.write_coco(tmp_path, train2014=mini.coco("train2014"))
    path.write_text(text)
    with pytest.raises(RRMError):
        assemble_coco(out, tmp_path / "images", [path])


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_compressed_rle_is_read_as_pycocotools_reads_it(height: int, width: int, seed: int) -> None:
    from pycocotools import mask as rle

    region = np.random.default_rng(seed).random((height, width)) < 0.4
    coded = rle.encode(np.asfortranarray(region.astype(np.uint8)))
    counts = run_lengths(coded["counts"].decode())
    assert sum(counts) == region.size
    again = semantic_mask([(1, False, {"counts": counts, "size": [height, width]})], (height, width))
    assert np.array_equal(again, region)


@settings(max_examples=500, deadline=None)
@given(st.text(st.characters(codec="latin-1"), max_size=30))
def test_any_text_of_an_rle_is_read_or_refused(text: str) -> None:
    with suppress(ValueError):
        assert all(isinstance(number, int) for number in run_lengths(text))
