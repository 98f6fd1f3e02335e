"""Reader of the VOC layout: lists, labels, photos, masks; each kind of fault, and all of them in one go."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rrm.datasets import VOC_CLASSES, VocLayout, voc_palette
from rrm.errors import RRMError, RRMErrors

Faults = Callable[[Callable[[], object]], list[str]]


def only(faults: list[str], *parts: str) -> None:
    """Exactly one fault, on one line, with expected, got and these parts."""
    assert len(faults) == 1, faults
    for part in ("expected ", "got ", *parts):
        assert part in faults[0], faults[0]
    assert "\n" not in faults[0]


# ---- constants ----


def test_classes_and_palette() -> None:
    assert len(VOC_CLASSES) == 20 and list(VOC_CLASSES) == sorted(VOC_CLASSES)
    palette = voc_palette()
    assert palette.shape == (256, 3) and palette.dtype == np.uint8
    assert len({tuple(color) for color in palette.tolist()}) == 256
    known = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        8: (64, 0, 0),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    assert {label: tuple(palette[label].tolist()) for label in known} == known


# ---- reading ----


def test_lists(tree) -> None:
    layout = tree.layout()
    assert layout.ids("train") == ("a", "b", "c", "d", "e")
    assert layout.ids("val") == ("v2", "v1")
    assert layout.splits == ("train", "val")
    tree.write("ImageSets/Segmentation/val.txt", "\ufeff v1 \r\n\n\nv2\n\n")
    assert layout.ids("val") == ("v1", "v2")
    with pytest.raises(RRMError, match="expected a split of train, val, got 'test'"):
        layout.list_path("test")


def test_photos_are_decoded_to_rgb(tree) -> None:
    expected = tree.photo("p", suffix=".png")
    np.testing.assert_array_equal(tree.layout().read_photo("p"), expected)
    assert tree.layout().photo_size("p") == (20, 30)
    for mode in ("L", "P", "RGBA", "1", "CMYK"):
        suffix = ".jpg" if mode == "CMYK" else ".png"
        Image.fromarray(expected).convert(mode).save(tree.root / "JPEGImages" / f"{mode}{suffix}")
        photo = tree.layout().read_photo(mode)
        assert photo.shape == (20, 30, 3) and photo.dtype == np.uint8
    np.testing.assert_array_equal(tree.layout().read_photo("RGBA"), expected)


def test_exif_orientation_is_not_applied(tree) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to show
    Image.new("RGB", (40, 10), (200, 10, 10)).save(tree.root / "JPEGImages" / "turned.jpg", exif=exif)
    assert tree.layout().read_photo("turned").shape == (10, 40, 3)


def test_masks_are_class_ids(tree) -> None:
    mask = tree.layout().read_mask("b")
    assert mask.dtype == np.uint8 and mask.shape == (20, 30)
    assert [int(mask[row, 0]) for row in (0, 1, 2, 19)] == [2, 1, 0, 255]
    Image.fromarray(mask).save(tree.root / "SegmentationClass" / "b.png")  # grey instead of palette
    np.testing.assert_array_equal(tree.layout().read_mask("b"), mask)


def test_labels_from_xml(tree) -> None:
    assert tree.layout().present("b").tolist() == [1, 1, 0]  # names of parts ("head") are not labels
    assert tree.layout().present("d").tolist() == [0, 0, 1]
    assert tree.layout().present("unknown") is None


def test_labels_from_csv(tree) -> None:
    tree.write("labels.csv", "image,labels\na,cat\nb,dog cat\nc,cat; traffic light\nd,traffic light\ne,\n")
    layout = tree.layout(labels="labels.csv")
    expected = {"a": [1, 0, 0], "b": [1, 1, 0], "c": [1, 0, 1], "d": [0, 0, 1], "e": [0, 0, 0]}
    assert {name: layout.present(name).tolist() for name in expected} == expected
    assert layout.present("v1") is None
    absolute = tree.layout(labels=str(tree.root / "labels.csv"))
    assert absolute.present("b").tolist() == [1, 1, 0]


def test_a_good_data_set_has_no_fault(tree) -> None:
    tree.layout().check(["train", "val"], masks=["train", "val"])


def test_layout_in_subfolders_and_linked_root(tree, tmp_path: Path) -> None:
    tree.image("sub/x", ["cat"])
    tree.listing("val", ["sub/x"])
    (tmp_path / "link").symlink_to(tree.root)
    layout = VocLayout(tmp_path / "link", classes=("cat", "dog", "traffic light"))
    layout.check(["val"], masks=["val"])
    assert layout.read_photo("sub/x").shape == (20, 30, 3)


# ---- faults of the configuration ----


@pytest.mark.parametrize(
    "classes", [(), ("cat", "cat"), ("cat", "background"), ("cat", ""), tuple(f"c{k}" for k in range(255))]
)
def test_bad_classes(tmp_path: Path, classes: tuple[str, ...]) -> None:
    with pytest.raises(RRMError, match="classes: expected"):
        VocLayout(tmp_path, classes=classes)


def test_missing_root(tmp_path: Path) -> None:
    with pytest.raises(RRMError, match="expected the folder of a data set, got nothing"):
        VocLayout(tmp_path / "none")


# ---- faults of the data, one by one ----


def test_missing_files(tree, faults_of: Faults) -> None:
    def check() -> None:
        tree.layout().check(["train"], masks=["train"])

    (tree.root / "SegmentationClass/a.png").unlink()
    only(faults_of(check), "SegmentationClass/a.png", "no file")
    (tree.root / "SegmentationClass/a.png").write_bytes((tree.root / "SegmentationClass/c.png").read_bytes())
    (tree.root / "JPEGImages/c.jpg").unlink()
    only(faults_of(check), "JPEGImages/c.jpg", "no file")
    tree.photo("c")
    (tree.root / "Annotations/d.xml").unlink()
    only(faults_of(check), "Annotations/d.xml", "image-level labels, got none")
    tree.labels("d", ["cat"])
    (tree.root / "ImageSets/Segmentation/train.txt").unlink()
    only(faults_of(check), "train.txt", "no file")


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.3, 0.7, 0.95])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_truncated_photos(tree, faults_of: Faults, keep: float, suffix: str) -> None:
    (tree.root / "JPEGImages/b.jpg").unlink()
    tree.photo("b", suffix=suffix)
    path = tree.root / f"JPEGImages/b{suffix}"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    only(faults_of(lambda: tree.layout().check(["train"])), f"JPEGImages/b{suffix}", "readable JPEG or PNG")


@pytest.mark.parametrize("content", [b"GIF89a not a photo", b"<html>404</html>", b"\xff\xd8\xff\xe0" + bytes(500)])
def test_unreadable_photos(tree, faults_of: Faults, content: bytes) -> None:
    (tree.root / "JPEGImages/b.jpg").write_bytes(content)
    only(faults_of(lambda: tree.layout().check(["train"])), "JPEGImages/b.jpg", "readable JPEG or PNG")


def test_photos_of_other_formats_and_depths(tree, faults_of: Faults) -> None:
    Image.new("RGB", (9, 9)).save(tree.root / "JPEGImages/b.jpg", format="BMP")
    only(faults_of(lambda: tree.layout().check(["train"])), "b.jpg", "JPEG or PNG")
    (tree.root / "JPEGImages/b.jpg").unlink()
    Image.fromarray(np.full((9, 9), 3000, np.uint16)).save(tree.root / "JPEGImages/b.png")
    only(faults_of(lambda: tree.layout().check(["train"])), "b.png", "8 bits a channel", "I;16")


def test_oversized_photos_are_not_decoded(tree, faults_of: Faults) -> None:
    only(faults_of(lambda: tree.layout(max_pixels=599).check(["train"]))[:1], "at most 599 pixels", "30 x 20")
    tree.layout(max_pixels=600).check(["train"])
    huge = Image.new("1", (14_000, 14_000))  # small as a file, a decompression bomb in memory
    huge.save(tree.root / "JPEGImages/a.png")
    (tree.root / "JPEGImages/a.jpg").unlink()
    only(faults_of(lambda: tree.layout().check(["train"])), "a.png", "at most 50000000 pixels")


def test_mask_of_another_size(tree, faults_of: Faults) -> None:
    tree.mask("b", np.zeros((30, 20)))
    faults = faults_of(lambda: tree.layout().check(["train"], masks=["train"]))
    only(faults, "SegmentationClass/b.png", "30 x 20 (width x height), got 20 x 30")


def test_class_ids_out_of_range(tree, faults_of: Faults) -> None:
    mask = np.zeros((20, 30))
    mask[0, :4] = [3, 4, 254, 255]
    tree.mask("b", mask)
    faults = faults_of(lambda: tree.layout().check(["train"], masks=["train"]))
    only(faults, "SegmentationClass/b.png", "class ids 0..3 and 255", "[4, 254]")


def test_masks_painted_in_rgb(tree, faults_of: Faults) -> None:
    Image.open(tree.root / "SegmentationClass/b.png").convert("RGB").save(tree.root / "SegmentationClass/b.png")
    faults = faults_of(lambda: tree.layout().check(["train"], masks=["train"]))
    only(faults, "SegmentationClass/b.png", "palette or grey PNG", "got mode RGB")


def test_unreadable_masks(tree, faults_of: Faults) -> None:
    path = tree.root / "SegmentationClass/b.png"
    path.write_bytes(path.read_bytes()[:-30])
    only(faults_of(lambda: tree.layout().check(["train"], masks=["train"])), "b.png", "readable PNG")


def test_unknown_class_names(tree, faults_of: Faults) -> None:
    tree.labels("b", ["cat", "Cat", "unicorn"])
    only(faults_of(lambda: tree.layout().check(["train"])), "Annotations/b.xml", "['Cat', 'unicorn']")
    tree.labels("b", ["cat"])
    tree.labels("v1", ["unicorn"])  # labels of other splits are optional, but not allowed to be wrong
    only(faults_of(lambda: tree.layout().check(["train", "val"])), "Annotations/v1.xml", "['unicorn']")


def test_ids_twice(tree, faults_of: Faults) -> None:
    tree.listing("train", ["a", "b", "a", "c", "a"])
    only(faults_of(lambda: tree.layout().check(["train"])), "train.txt", "'a' 3 times")
    with pytest.raises(RRMErrors):
        tree.layout().ids("train")


def test_ids_in_two_lists(tree, faults_of: Faults) -> None:
    tree.listing("held_out", ["v1", "e"])
    layout = tree.layout(lists={"train": "train", "val": "val", "test": "held_out"})
    assert len(faults_of(lambda: layout.check(["train", "val", "test"]))) == 2
    only(faults_of(lambda: layout.check(["train"])), "'e'", "train and test")


def test_images_without_labels(tree, faults_of: Faults) -> None:
    tree.labels("b", [])
    only(faults_of(lambda: tree.layout().check(["train"])), "image 'b'", "at least one class")
    tree.layout(background_images=True).check(["train"])
    tree.labels("b", ["cat"])
    tree.labels("v1", [])
    tree.layout().check(["train", "val"])


@pytest.mark.parametrize("name", ["../outside", "sub/../../x", "/etc/hostname", "a\0b"])
def test_ids_that_leave_the_folder(tree, faults_of: Faults, name: str) -> None:
    tree.listing("train", ["a", name])
    only(faults_of(lambda: tree.layout().check(["train"])), "inside the data set's folder", repr(name))


@pytest.mark.parametrize("name", ["a" * 201, "/".join(["a" * 50] * 100)])
def test_ids_that_no_file_can_have(tree, faults_of: Faults, name: str) -> None:
    tree.listing("train", ["a", name])
    only(faults_of(lambda: tree.layout().check(["train"])), "at most 200 bytes between slashes and 1000 in all")


@pytest.mark.parametrize("folder", ["JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation"])
def test_links_that_leave_the_folder(tree, tmp_path: Path, faults_of: Faults, folder: str) -> None:
    name = {"JPEGImages": "a.jpg", "Annotations": "a.xml", "SegmentationClass": "a.png"}.get(folder, "train.txt")
    path = tree.root / folder / name
    os.replace(path, tmp_path / name)
    path.symlink_to(tmp_path / name)
    faults = faults_of(lambda: tree.layout().check(["train"], masks=["train"]))
    assert faults and all("inside the data set's folder" in fault for fault in faults)


def test_list_names_that_leave_the_folder(tree, faults_of: Faults) -> None:
    layout = tree.layout(lists={"train": "../../../train"})
    only(faults_of(lambda: layout.check(["train"])), "inside the data set's folder")


def test_empty_and_binary_lists(tree, faults_of: Faults) -> None:
    tree.listing("train", ["", "  "])
    only(faults_of(lambda: tree.layout().check(["train"])), "train.txt", "an empty list")
    (tree.root / "ImageSets/Segmentation/train.txt").write_bytes(b"\xff\xfe\x00")
    only(faults_of(lambda: tree.layout().check(["train"])), "train.txt", "list of image ids")


USE = "<annotation><object><name>&a;</name></object></annotation>"
BOMB = f'<!DOCTYPE x [<!ENTITY b "bbbb"><!ENTITY a "&b;&b;&b;">]>{USE}'
OUTSIDE = f'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]>{USE}'


@pytest.mark.parametrize("text", ["", "<annotation><object>", "cat", BOMB, OUTSIDE])
def test_bad_xml(tree, faults_of: Faults, text: str) -> None:
    tree.write("Annotations/b.xml", text)
    only(faults_of(lambda: tree.layout().check(["train"])), "Annotations/b.xml", "annotation in XML")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["header"]),
        ("a,cat\nb,dog\n", ["header", "'a,cat'"]),
        ("image,labels\na,cat\na,dog\nb,cat\nc,cat\nd,cat\ne,cat\n", ["one row for image 'a', got 2"]),
        ("image,labels\na,cat,dog\nb,cat\nc,cat\nd,cat\ne,cat\n", ["row 2", "2 cells, got 3"]),
        ("image,labels\na,cat\nb,cat\nc,cat\nd,cat\n", ["'e'", "image-level labels, got none"]),
        ("image,labels\na,cat\nb,cat\nc,cat\nd,cat\ne,horse\n", ["'e'", "['horse']"]),
        ("image,labels\na,cat\nb,cat\nc,cat\nd,cat\ne,\n", ["'e'", "at least one class"]),
    ],
)
def test_bad_csv(tree, faults_of: Faults, text: str, parts: list[str]) -> None:
    tree.write("labels.csv", text)
    only(faults_of(lambda: tree.layout(labels="labels.csv").check(["train"])), *parts)


def test_missing_csv(tree, faults_of: Faults) -> None:
    only(faults_of(lambda: tree.layout(labels="none.csv").check(["train", "val"])), "none.csv", "no file")


# ---- all of them at once ----


def test_all_faults_in_one_go(tree, tmp_path: Path, faults_of: Faults) -> None:
    for name in "fghijklm":
        tree.image(name, ["cat"])
    (tree.root / "JPEGImages/a.jpg").unlink()
    photo = tree.root / "JPEGImages/b.jpg"
    photo.write_bytes(photo.read_bytes()[:400])
    tree.mask("c", np.zeros((5, 5)))
    tree.mask("d", np.full((20, 30), 77))
    tree.labels("e", ["unicorn"])
    tree.labels("f", [])
    (tree.root / "SegmentationClass/g.png").unlink()
    Image.new("RGB", (30, 20)).save(tree.root / "SegmentationClass/h.png")
    tree.photo("i", size=(300, 200))
    tree.write("Annotations/j.xml", "<annotation>")
    os.replace(tree.root / "JPEGImages/k.jpg", tmp_path / "k.jpg")
    (tree.root / "JPEGImages/k.jpg").symlink_to(tmp_path / "k.jpg")
    tree.listing("train", [*"abcdefghijkl", "l", "../x", "v1"])
    tree.listing("test", [])
    layout = tree.layout(lists={"train": "train", "val": "val", "test": "test"}, max_pixels=2000)
    faults = faults_of(lambda: layout.check(["train", "val", "test"], masks=["train", "val"]))
    expected = [
        "'l' 2 times",
        "'../x'",
        "test.txt: expected at least one image id",
        "'v1': expected it in one of the lists train and val",
        "JPEGImages/a.jpg: expected a photo",
        "JPEGImages/b.jpg: expected a readable",
        "c.png: expected the photo's size",
        "d.png: expected class ids 0..3 and 255, got [77]",
        "e.xml: image 'e': expected class names",
        "image 'f': expected at least one class",
        "g.png: expected a mask, got no file",
        "h.png: expected a palette",
        "i.jpg: expected at most 2000 pixels",
        "j.xml: expected a VOC annotation",
        "JPEGImages/'k.jpg': expected a path inside",
    ]
    missed = [part for part in expected if not any(part in fault for fault in faults)]
    assert missed == [] and len(faults) == len(expected) == len(set(faults)), faults


def test_weakly_supervised_check_opens_no_mask(tree) -> None:
    for name in "abcde":
        (tree.root / f"SegmentationClass/{name}.png").write_bytes(b"broken")
    tree.layout().check(["train", "val"], masks=["val"])


# ---- real data ----


def test_real_photos(voc_mini: Path) -> None:
    layout, table = VocLayout(voc_mini), VocLayout(voc_mini, labels="image_labels.csv")
    assert [len(layout.ids(split)) for split in ("train", "val")] == [311, 321]
    assert layout.list_faults(["train", "val"]) == []
    for name in layout.ids("train")[:10] + layout.ids("val")[:10]:
        np.testing.assert_array_equal(layout.present(name), table.present(name))
        mask = layout.read_mask(name)
        assert mask.shape == layout.read_photo(name).shape[:2]
        shown = set(np.unique(mask).tolist()) - {0, 255}
        assert shown == set((np.flatnonzero(layout.present(name)) + 1).tolist())
