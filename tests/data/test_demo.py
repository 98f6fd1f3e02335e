"""The synthetic demo: layout, determinism, and that it is the miniature that it claims to be."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from rrm.datasets.demo import DEMO_CLASSES, SPLITS, generate_demo
from rrm.errors import RRMError

COUNTS = {"train": 30, "val": 10, "test": 10}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    generate_demo(root, seed=3, size=96, **COUNTS)
    return root


def _manifest(root: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((root / "manifest.json").read_text())
    return manifest


def _names(root: Path, split: str) -> list[str]:
    return (root / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()


def _mask(root: Path, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(Image.open(root / "SegmentationClass" / f"{name}.png"))


def _objects(root: Path, name: str) -> list[str]:
    tree = ET.parse(root / "Annotations" / f"{name}.xml")
    return [str(entry.findtext("name")) for entry in tree.findall("object")]


def _all(root: Path) -> list[str]:
    return [name for split in SPLITS for name in _names(root, split)]


def test_same_seed_same_bytes_and_other_seed_other_photos(tmp_path: Path) -> None:
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        generate_demo(tmp_path / folder, seed=seed, size=64, train=5, val=5, test=5)
    a, b, c = (_manifest(tmp_path / folder) for folder in "abc")
    assert a == b
    photos = [path for path in a["files"] if path.endswith(".jpg")]
    assert len(photos) == 15
    assert all(a["files"][path] != c["files"][path] for path in photos)


def test_a_photo_does_not_depend_on_the_number_of_photos(tmp_path: Path) -> None:
    generate_demo(tmp_path / "few", size=64, train=5, val=5, test=5)
    generate_demo(tmp_path / "more", size=64, train=8, val=5, test=5)
    few, more = _manifest(tmp_path / "few")["files"], _manifest(tmp_path / "more")["files"]
    assert [path for path in few if few[path] != more[path]] == ["ImageSets/Segmentation/train.txt"]


def test_manifest_lists_every_file_with_its_hash(demo: Path) -> None:
    manifest = _manifest(demo)
    present = {str(path.relative_to(demo)) for path in demo.rglob("*") if path.is_file()}
    assert present == {*manifest["files"], "manifest.json"}
    for path, digest in manifest["files"].items():
        assert hashlib.sha256((demo / path).read_bytes()).hexdigest() == digest
    assert manifest["classes"] == list(DEMO_CLASSES)
    assert manifest["parameters"] == {"seed": 3, "size": 96, **COUNTS}


def test_a_broken_off_run_leaves_no_manifest(tmp_path: Path) -> None:
    generate_demo(tmp_path, size=64, train=5, val=5, test=5)
    blocked = tmp_path / "ImageSets" / "Segmentation" / "val.txt"
    blocked.unlink()
    blocked.mkdir()
    with pytest.raises(IsADirectoryError):
        generate_demo(tmp_path, size=64, train=5, val=5, test=5)
    assert not (tmp_path / "manifest.json").exists()


def test_layout_is_that_of_voc(demo: Path) -> None:
    names = _all(demo)
    assert len(set(names)) == sum(COUNTS.values())
    for name in names:
        photo = Image.open(demo / "JPEGImages" / f"{name}.jpg")
        mask = Image.open(demo / "SegmentationClass" / f"{name}.png")
        assert photo.mode == "RGB" and mask.mode == "P" and photo.size == mask.size
        assert max(photo.size) == 96 and min(photo.size) in (72, 96)
    palette = mask.getpalette() or []
    assert palette[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
    assert palette[-3:] == [224, 224, 192]


def test_photos_differ_in_shape(demo: Path) -> None:
    assert {_mask(demo, name).shape for name in _names(demo, "train")} == {(96, 96), (72, 96), (96, 72)}


def test_masks_and_annotations_agree(demo: Path) -> None:
    for name in _all(demo):
        labels, objects = set(np.unique(_mask(demo, name)).tolist()), _objects(demo, name)
        assert 1 <= len(objects) <= 3
        assert labels == {0, 255} | {DEMO_CLASSES.index(entry) + 1 for entry in objects}


def test_boxes_enclose_the_objects(demo: Path) -> None:
    for name in _names(demo, "train"):
        covered = np.zeros(_mask(demo, name).shape, bool)
        for entry in ET.parse(demo / "Annotations" / f"{name}.xml").findall("object"):
            left, top, right, bottom = (
                int(entry.findtext(f"bndbox/{tag}") or 0) for tag in ("xmin", "ymin", "xmax", "ymax")
            )
            assert 1 <= left <= right <= covered.shape[1] and 1 <= top <= bottom <= covered.shape[0]
            covered[top - 1 : bottom, left - 1 : right] = True
        mask = _mask(demo, name)
        assert covered[(mask > 0) & (mask < 255)].all()


def test_every_class_in_every_split_and_balanced(demo: Path) -> None:
    for split in SPLITS:
        photos = dict.fromkeys(DEMO_CLASSES, 0)
        for name in _names(demo, split):
            for label in set(_objects(demo, name)):
                photos[label] += 1
        assert min(photos.values()) >= COUNTS[split] // len(DEMO_CLASSES)
        assert max(photos.values()) <= 3 * min(photos.values())
        objects = _manifest(demo)["counts"][split]["objects"]
        assert sum(objects.values()) == sum(len(_objects(demo, name)) for name in _names(demo, split))


def test_some_photos_hold_several_objects_and_classes(demo: Path) -> None:
    objects = [_objects(demo, name) for name in _all(demo)]
    assert {len(entry) for entry in objects} == {1, 2, 3}
    assert any(len(set(entry)) >= 2 for entry in objects)


def test_objects_and_void_take_a_plausible_share(demo: Path) -> None:
    masks = [_mask(demo, name) for name in _all(demo)]
    shares = np.array([((mask > 0) & (mask < 255)).mean() for mask in masks])
    void = np.array([(mask == 255).mean() for mask in masks])
    assert 0.15 < shares.mean() < 0.35 and shares.min() > 0.02 and shares.max() < 0.6
    assert 0.01 < void.mean() < 0.10


def test_void_line_lies_between_objects_and_ground(demo: Path) -> None:
    for name in _names(demo, "val"):
        mask = _mask(demo, name)
        for a, b in ((mask[:, 1:], mask[:, :-1]), (mask[1:], mask[:-1])):
            ground_beside_object = ((a == 0) & (b > 0) & (b < 255)) | ((b == 0) & (a > 0) & (a < 255))
            assert not ground_beside_object.any()


def test_colour_alone_does_not_tell_objects_from_ground(demo: Path) -> None:
    """The best look-up from a coarse colour to object or ground is far from perfect, yet beats chance."""
    counts = np.zeros((512, 2))
    for name in _names(demo, "train"):
        mask = _mask(demo, name)
        photo = np.asarray(Image.open(demo / "JPEGImages" / f"{name}.jpg")).astype(int) // 32
        bins = photo @ np.array([64, 8, 1])
        for column, chosen in enumerate((mask == 0, (mask > 0) & (mask < 255))):
            counts[:, column] += np.bincount(bins[chosen], minlength=512)
    balanced = counts / counts.sum(axis=0)
    accuracy = balanced.max(axis=1).sum() / 2
    assert 0.6 < accuracy < 0.92


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"size": 32}, "size: expected 64"), ({"val": 4}, "val: expected at least 5 photos .*got 4")],
)
def test_values_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, int], message: str) -> None:
    with pytest.raises(RRMError, match=message):
        generate_demo(tmp_path / "demo", **wrong)
    assert not (tmp_path / "demo").exists()
