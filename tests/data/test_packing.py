"""Packing: what the stores hold, what is refused, and that weak supervision never meets a training mask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rrm.datasets import VocLayout, open_masks, pack_masks, pack_photos
from rrm.datasets.packing import reduce_photo
from rrm.errors import RRMError
from rrm.store import Store

Faults = Callable[[Callable[[], object]], list[str]]
STAMP = {"config": {"long_side": None}, "code": "c0de"}


def test_photo_store(tree, tmp_path: Path) -> None:
    layout, out = tree.layout(), tmp_path / "photos.h5"
    seen: list[tuple[int, int]] = []
    pack_photos(layout, ["train", "val"], out, **STAMP, progress=lambda done, total: seen.append((done, total)))
    store = Store(out, "photos", code="c0de", config={"long_side": None})
    assert store.ids == ("a", "b", "c", "d", "e", "v2", "v1")
    assert store.attrs["splits"] == {"train": ["a", "b", "c", "d", "e"], "val": ["v2", "v1"]}
    assert store.attrs["classes"] == ["cat", "dog", "traffic light"] and store.attrs["long_side"] is None
    for name in store.ids:
        np.testing.assert_array_equal(store.read(name, "image"), layout.read_photo(name))
        np.testing.assert_array_equal(store.read(name, "present"), layout.present(name))
        assert store.read(name, "size").tolist() == [20, 30]
    assert seen == [(done, 7) for done in range(1, 8)]


def test_photos_are_reduced_but_never_enlarged(tree, tmp_path: Path) -> None:
    tree.photo("a", size=(100, 40))
    tree.photo("b", size=(3, 90))
    pack_photos(tree.layout(), ["train"], tmp_path / "p.h5", long_side=50, **STAMP)
    store = Store(tmp_path / "p.h5", "photos")
    shapes = {name: store.read(name, "image").shape[:2] for name in "abc"}
    assert shapes == {"a": (20, 50), "b": (50, 2), "c": (20, 30)}
    assert [store.read(name, "size").tolist() for name in "abc"] == [[40, 100], [90, 3], [20, 30]]


def test_reduction_is_antialiased() -> None:
    stripes = np.zeros((40, 40, 3), np.uint8)
    stripes[:, ::2] = 255
    small = reduce_photo(stripes, 10)
    assert small.shape == (10, 10, 3) and abs(small.astype(float) - 127.5).max() < 20
    assert reduce_photo(stripes, 40) is stripes and reduce_photo(stripes, None) is stripes


def test_labels_are_optional_outside_training(tree, tmp_path: Path) -> None:
    (tree.root / "Annotations/v1.xml").unlink()
    pack_photos(tree.layout(), ["train", "val"], tmp_path / "p.h5", **STAMP)
    store = Store(tmp_path / "p.h5", "photos")
    assert "present" not in store.names("v1") and "present" in store.names("v2")


def test_packing_twice_gives_the_same_bytes(tree, tmp_path: Path) -> None:
    for name in ("first", "second"):
        pack_photos(tree.layout(), ["train"], tmp_path / f"{name}.h5", long_side=16, **STAMP)
    assert (tmp_path / "first.h5").read_bytes() == (tmp_path / "second.h5").read_bytes()


def test_all_faults_at_once_and_nothing_written(tree, tmp_path: Path, faults_of: Faults) -> None:
    (tree.root / "JPEGImages/a.jpg").unlink()
    (tree.root / "JPEGImages/b.jpg").write_bytes(b"\xff\xd8")
    tree.labels("c", ["unicorn"])
    tree.listing("val", ["v1", "v1", "v2", "a"])
    faults = faults_of(lambda: pack_photos(tree.layout(), ["train", "val"], tmp_path / "out/p.h5", **STAMP))
    assert len(faults) == 5
    for part in ("a.jpg", "b.jpg", "unicorn", "'v1' 2 times", "train and val"):
        assert any(part in fault for fault in faults)
    assert list((tmp_path / "out").iterdir()) == []


def test_long_side_is_checked(tree, tmp_path: Path) -> None:
    with pytest.raises(RRMError, match="long_side: expected at least 1 pixel"):
        pack_photos(tree.layout(), ["train"], tmp_path / "p.h5", long_side=0, **STAMP)


def test_packing_photos_opens_no_mask(tree, tmp_path: Path) -> None:
    for path in (tree.root / "SegmentationClass").iterdir():
        path.write_bytes(b"broken")
    pack_photos(tree.layout(), ["train", "val"], tmp_path / "p.h5", **STAMP)
    for path in (tree.root / "SegmentationClass").iterdir():
        path.unlink()
    pack_photos(tree.layout(), ["train", "val"], tmp_path / "p.h5", **STAMP)


def test_mask_store(tree, tmp_path: Path) -> None:
    layout, out = tree.layout(), tmp_path / "masks.h5"
    pack_masks(layout, "val", out, **STAMP)
    store = open_masks(out, "val", "image")
    assert store.ids == ("v2", "v1") and store.kind == "masks"
    assert store.attrs == {"split": "val", "classes": ["cat", "dog", "traffic light"]}
    for name in store.ids:
        np.testing.assert_array_equal(store.read(name, "mask"), layout.read_mask(name))


def test_mask_faults_at_once_and_nothing_written(tree, tmp_path: Path, faults_of: Faults) -> None:
    (tree.root / "SegmentationClass/a.png").unlink()
    tree.mask("b", np.zeros((4, 4)))
    tree.mask("c", np.full((20, 30), 9))
    Image.new("RGB", (30, 20)).save(tree.root / "SegmentationClass/d.png")
    faults = faults_of(lambda: pack_masks(tree.layout(), "train", tmp_path / "out/m.h5", **STAMP))
    assert len(faults) == 4 and list((tmp_path / "out").iterdir()) == []


# ---- the guard ----


@pytest.mark.parametrize("supervision", ["image", "", "FULL", "weak"])
def test_training_masks_are_refused_without_full_supervision(tree, tmp_path: Path, supervision: str) -> None:
    pack_masks(tree.layout(), "train", tmp_path / "m.h5", **STAMP)
    for split in ("train", "val"):  # also when the caller names another split than the file holds
        with pytest.raises(RRMError, match="expected no training mask in a run with supervision"):
            open_masks(tmp_path / "m.h5", split, supervision)
    assert open_masks(tmp_path / "m.h5", "train", "full").ids == ("a", "b", "c", "d", "e")


def test_the_guard_refuses_before_it_looks_at_the_file(tmp_path: Path) -> None:
    with pytest.raises(RRMError, match="expected no training mask"):
        open_masks(tmp_path / "none.h5", "train", "image")


def test_masks_of_another_split_are_refused(tree, tmp_path: Path) -> None:
    pack_masks(tree.layout(), "val", tmp_path / "m.h5", **STAMP)
    with pytest.raises(RRMError, match="expected masks of split 'test', got 'val'"):
        open_masks(tmp_path / "m.h5", "test", "image")
    pack_photos(tree.layout(), ["val"], tmp_path / "p.h5", **STAMP)
    with pytest.raises(RRMError, match="expected a 'masks' store, got a 'photos' store"):
        open_masks(tmp_path / "p.h5", "val", "image")


# ---- real data ----


def test_real_photos(voc_mini: Path, tmp_path: Path) -> None:
    """A few real photos in a tree of their own: lists cut to 6 and 4 ids, the rest linked inside one root."""
    root = tmp_path / "mini"
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    source = VocLayout(voc_mini)
    for split, count in (("train", 6), ("val", 4)):
        ids = source.ids(split)[:count]
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(ids))
        for name in ids:
            for relative in (
                f"JPEGImages/{name}.jpg",
                f"Annotations/{name}.xml",
                f"SegmentationClass/{name}.png",
            ):
                (root / relative).parent.mkdir(exist_ok=True)
                (root / relative).write_bytes((voc_mini / relative).read_bytes())
    layout = VocLayout(root)
    pack_photos(layout, ["train", "val"], tmp_path / "p.h5", long_side=128, **STAMP)
    pack_masks(layout, "val", tmp_path / "m.h5", **STAMP)
    photos, masks = Store(tmp_path / "p.h5", "photos"), open_masks(tmp_path / "m.h5", "val", "image")
    assert len(photos) == 10 and len(masks) == 4
    for name in photos.ids:
        assert max(photos.read(name, "image").shape) == 128 and photos.read(name, "present").sum() >= 1
        assert photos.read(name, "image").std() > 10
    for name in masks.ids:
        assert masks.read(name, "mask").shape == tuple(photos.read(name, "size"))
