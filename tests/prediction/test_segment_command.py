"""`rrm segment`: inputs, outputs, resuming, refusals."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import rrm
from rrm import segmenting
from rrm.photos import read_photo
from rrm.segment_files import KINDS
from rrm.store import Store
from tests.prediction.conftest import CLASSES, made_photo
from tests.prediction.test_annotations import covered, painted

EVERYTHING = ("--write", *KINDS)
Segment = Callable[..., int]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Sizes of the photos that a network sees, in order."""
    sizes: list[tuple[int, int]] = []
    predict = rrm.Segmenter.predict_batch

    def recorded(self: rrm.Segmenter, images: Any, *how: Any, **options: Any) -> list[rrm.Prediction]:
        sizes.extend(image.shape[:2] for image in images)
        return predict(self, images, *how, **options)

    monkeypatch.setattr(rrm.Segmenter, "predict_batch", recorded)
    return sizes


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def mask(out: Path, name: str) -> Any:
    return np.asarray(Image.open(out / "masks" / f"{name}.png"))


def fails_at(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], error: BaseException) -> Callable[[], None]:
    """Let batches with a photo of this size fail; gives what undoes it."""
    predict = rrm.Segmenter.predict_batch

    def failing(self: rrm.Segmenter, images: Any, *how: Any, **options: Any) -> list[rrm.Prediction]:
        if size in [image.shape[:2] for image in images]:
            raise error
        return predict(self, images, *how, **options)

    monkeypatch.setattr(rrm.Segmenter, "predict_batch", failing)
    return lambda: monkeypatch.setattr(rrm.Segmenter, "predict_batch", predict)


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each photo be a batch."""
    monkeypatch.setitem(segmenting.BATCH_PIXELS, "cpu", 1)


# ---- outputs ----


def test_masks_and_overlays_with_crf(
    segment: Segment, photos: Path, out: Path, segmenter: rrm.Segmenter, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segment(photos, crf=True) == 0
    assert files(out) == ["masks/a.png", "masks/sub/b.png", "overlays/a.jpg", "overlays/sub/b.jpg", "segment.json"]
    for name, photo in (("a", photos / "a.JPG"), ("sub/b", photos / "sub" / "b.png")):
        np.testing.assert_array_equal(mask(out, name), segmenter.predict(photo).labels)
    assert capsys.readouterr().out == f"{out}: 2 photos segmented, 0 were there already\n"


def test_every_kind_of_output_says_the_same(
    segment: Segment, photos: Path, out: Path, segmenter: rrm.Segmenter
) -> None:
    assert segment(photos, *EVERYTHING, "--overlay-format", "png", "--scales", "1,0.5", "--flip") == 0
    expected = segmenter.predict(photos / "a.JPG", crf=False, scales=(1, 0.5), flip=True)
    np.testing.assert_array_equal(mask(out, "a"), expected.labels)
    overlay = np.asarray(Image.open(out / "overlays" / "a.png"))
    np.testing.assert_array_equal(overlay, expected.overlay(photos / "a.JPG"))

    store = Store(out / "probabilities.h5", "probabilities")
    assert store.ids == ("a", "sub/b") and store.attrs["classes"] == CLASSES
    np.testing.assert_array_equal(store.read("a", "probabilities"), expected.probabilities.astype(np.float16))

    polygons = json.loads((out / "polygons" / "sub" / "b.json").read_text())
    assert (out / "polygons" / "sub" / polygons["imagePath"]).resolve() == photos / "sub" / "b.png"
    for shape in polygons["shapes"]:
        shape["label"] = {"cat": "a", "dog": "b"}.get(shape["label"], shape["label"])
    np.testing.assert_array_equal(painted((33, 20), polygons), mask(out, "sub/b"))

    features = json.loads((out / "geojson" / "a.geojson").read_text())
    assert {each["properties"]["image"] for each in features["features"]} == {"a.JPG"}
    np.testing.assert_array_equal(covered((24, 40), features), expected.labels)
    np.testing.assert_array_equal(np.asarray(Image.open(out / "photos" / "a.png")), read_photo(photos / "a.JPG"))

    coco = COCO(out / "rle.json")
    assert [coco.imgs[key]["file_name"] for key in (1, 2)] == ["a.JPG", "sub/b.png"]
    assert [coco.cats[key]["name"] for key in (1, 2)] == CLASSES
    labels = np.zeros((24, 40), np.uint8)
    for annotation in coco.loadAnns(coco.getAnnIds(imgIds=[1])):
        labels[coco_mask.decode(annotation["segmentation"]).astype(bool)] = annotation["category_id"]
    np.testing.assert_array_equal(labels, expected.labels)


def test_tiles_from_the_command_line(segment: Segment, tmp_path: Path, out: Path, segmenter: rrm.Segmenter) -> None:
    Image.fromarray(made_photo(70, 100)).save(tmp_path / "p.png")
    assert segment(tmp_path / "p.png", "--tile", "64") == 0
    expected = segmenter.predict(tmp_path / "p.png", crf=False, tile=64).labels
    np.testing.assert_array_equal(mask(out, "p"), expected)
    assert segment(tmp_path / "p.png", "--tile", "0", "--overwrite") == 0
    np.testing.assert_array_equal(mask(out, "p"), segmenter.predict(tmp_path / "p.png", crf=False, tile=None).labels)


# ---- inputs ----


def test_patterns_lists_and_doubles(
    segment: Segment, photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch, seen: list[tuple[int, int]]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{photos / 'a.JPG'}\n\n"))
    assert segment("-", str(photos / "**" / "*.png"), photos / "a.JPG") == 0
    assert files(out / "masks") == ["a.png", "b.png"] and len(seen) == 2


def test_the_folder_of_results_may_lie_among_the_photos(
    segment: Segment, photos: Path, seen: list[tuple[int, int]]
) -> None:
    for _ in range(2):
        assert segment(photos, out=photos / "segmented") == 0
    assert len(seen) == 2


def test_two_photos_of_one_name(segment: Segment, photos: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "a.png").write_bytes((photos / "sub" / "b.png").read_bytes())
    assert segment(photos) == 1
    message = capsys.readouterr().err
    assert "a: expected one photo of this name, got" in message and "a.JPG" in message
    assert files(out / "masks") == ["sub/b.png"]


@pytest.mark.parametrize(("given", "masks"), [(".", ["a.png", "sub/b.png"]), ("**/*.[Jp]*", ["a.png", "b.png"])])
def test_the_folder_of_results_may_be_that_of_the_photos(
    segment: Segment, photos: Path, monkeypatch: pytest.MonkeyPatch, seen: list[Any], given: str, masks: list[str]
) -> None:
    monkeypatch.chdir(photos)
    for _ in range(2):
        assert segment(given, "--overlay-format", "png", out=Path()) == 0
    assert len(seen) == 2 and files(photos / "masks") == masks


def test_files_that_are_no_inputs_are_named(
    segment: Segment, photos: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("c.HEIC", "a.CR2", "a.MOV"):  # a raw file and the film of a photo are no second photo
        (photos / name).write_bytes(b"")
    foreign = os.fsencode(photos) + b"/caf\xe9.jpg"
    Path(os.fsdecode(foreign)).write_bytes((photos / "a.JPG").read_bytes())
    assert segment(photos, "--write", "masks", "geojson") == 1
    message = capsys.readouterr().err
    assert "c.HEIC: expected JPEG, PNG, BMP, TIFF, WebP, GIF or PPM, got .HEIC: save it as JPEG" in message
    assert "caf\\udce9.jpg': expected a name in UTF-8" in message and "a.CR2" not in message
    assert "a.MOV: expected" in message and "3 fault(s)" in message  # an empty film
    assert files(out / "masks") == ["a.png", "sub/b.png"]


def test_nothing_to_segment(segment: Segment, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert segment(tmp_path / "empty", tmp_path / "absent.jpg", tmp_path / "*.gif") == 1
    message = capsys.readouterr().err
    assert message.count("expected a photo, a folder with photos or a pattern, got none") == 3
    assert not out.exists()


def test_photos_of_all_sizes_go_in_batches(
    segment: Segment, tmp_path: Path, out: Path, segmenter: rrm.Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "many").mkdir()
    sizes = [(24, 40), (24, 40), (40, 24), (24, 40), (66, 70), (24, 40)]
    for number, size in enumerate(sizes):
        Image.fromarray(made_photo(*size, seed=number)).save(tmp_path / "many" / f"{number}.png")
    (tmp_path / "many" / "2b.png").write_text("no photo")
    monkeypatch.setattr(segmenting, "_LEAST_PIXELS", 1)
    monkeypatch.setitem(segmenting.BATCH_PIXELS, "cpu", 3 * 24 * 40)
    batches: list[int] = []
    predict = rrm.Segmenter.predict_batch

    def recorded(self: rrm.Segmenter, images: Any, *how: Any, **options: Any) -> list[rrm.Prediction]:
        batches.append(len(images))
        return predict(self, images, *how, **options)

    monkeypatch.setattr(rrm.Segmenter, "predict_batch", recorded)
    assert segment(tmp_path / "many", "--tile", "64", crf=True) == 1
    assert batches == [3, 1, 1, 1]
    for number in range(len(sizes)):
        alone = segmenter.predict(tmp_path / "many" / f"{number}.png", tile=64)
        assert (mask(out, str(number)) == alone.labels).mean() > 0.99  # last bits of probabilities may differ


# ---- what fails ----


def test_bad_photos_are_listed_and_the_others_done(
    segment: Segment, photos: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "text.jpg").write_text("no photo")
    whole = (photos / "a.JPG").read_bytes()
    (photos / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    assert segment(photos, photos / "absent.png", *EVERYTHING) == 1
    message = capsys.readouterr().err
    assert "rrm segment: 2 photos segmented, 0 were there already; of the others: 3 fault(s)" in message
    assert all(f"{photos / name}: expected" in message for name in ("text.jpg", "cut.jpg", "absent.png"))
    assert "Traceback" not in message
    assert files(out / "masks") == ["a.png", "sub/b.png"]
    assert len(Store(out / "probabilities.h5", "probabilities")) == 2


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: not enough memory"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_too_little_memory_is_the_fault_of_one_photo(
    segment: Segment, photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], error: BaseException,
) -> None:  # fmt: skip
    fails_at(monkeypatch, (24, 40), error)
    assert segment(photos) == 1
    assert "a.JPG: expected enough memory" in capsys.readouterr().err
    assert files(out / "masks") == ["sub/b.png"]


def test_large_photos_are_refused(
    segment: Segment, photos: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segment(photos, "--max-pixels", "700") == 1
    assert "a.JPG: expected at most 700 pixels, got DecompressionBombError (40 x 24)" in capsys.readouterr().err
    assert files(out / "masks") == ["sub/b.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tile", "100"), "tile: expected a multiple of 32"),
        (("--long-side", "0"), "long_side: expected at least 1 pixel"),
        (("--scales", "1,0"), "scales: expected at least one number"),
        (("--labels", "absent.csv"), "absent.csv: expected a CSV file"),
        (("--classes", "absent.txt"), "absent.txt: expected class names"),
        (("--classes", "voc", "--network", "[1]"), "network: expected options of RRMNet by name"),
        (("--network", "{}"), "network: expected no options without classes"),
    ],
)
def test_options_that_are_refused(
    segment: Segment, photos: Path, out: Path, capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    assert segment(photos, *arguments) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_arguments_that_are_no_numbers(segment: Segment, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        segment(photos, "--scales", "1,x")
    assert "expected numbers with commas between, got '1,x'" in capsys.readouterr().err


def test_a_model_that_is_none(segment: Segment, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert segment(photos, model=photos / "notes.txt") == 1
    assert segment(photos, model=photos / "absent.pth") == 1
    assert "Traceback" not in capsys.readouterr().err


# ---- image-level labels ----


def test_image_labels_of_a_file(
    segment: Segment, photos: Path, out: Path, tmp_path: Path, segmenter: rrm.Segmenter
) -> None:
    (tmp_path / "labels.csv").write_text("image,labels\na.JPG,dog\nsub/b,\n")
    assert segment(photos, "--labels", tmp_path / "labels.csv") == 0
    expected = segmenter.predict(photos / "a.JPG", crf=False, image_labels=["dog"]).labels
    np.testing.assert_array_equal(mask(out, "a"), expected)
    assert not mask(out, "sub/b").any()


def test_labels_are_those_of_the_photo_that_is_meant(
    segment: Segment, photos: Path, out: Path, tmp_path: Path, segmenter: rrm.Segmenter
) -> None:
    (photos / "b.png").write_bytes((photos / "sub" / "b.png").read_bytes())
    (tmp_path / "labels.json").write_text(_coco({"x/photos/a.JPG": "dog", "b.png": "cat", "sub/b.png": "dog"}))
    assert segment(photos, "--labels", tmp_path / "labels.json") == 0
    for name, label in {"b": "cat", "sub/b": "dog"}.items():
        expected = segmenter.predict(photos / "b.png", crf=False, image_labels=[label]).labels
        np.testing.assert_array_equal(mask(out, name), expected)


def _coco(labels: dict[str, str]) -> str:
    names = sorted(set(labels.values()))
    annotations = [
        {"image_id": number, "category_id": names.index(name)} for number, name in enumerate(labels.values())
    ]
    images = [{"id": number, "file_name": name} for number, name in enumerate(labels)]
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories})


def test_faults_of_image_labels(
    segment: Segment, photos: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("image,labels\na,cow\nelsewhere,horse\n")
    assert segment(photos, "--labels", labels) == 1
    message = capsys.readouterr().err
    assert "a: expected classes among cat, dog, got cow: correct the line" in message and "horse" not in message
    assert "expected a line that means 'sub/b' and no other, got none" in message
    labels.write_text("image,labels\na\n")
    assert segment(photos, "--labels", labels, out=tmp_path / "other") == 1
    assert "row 2: expected 2 cells, got 1" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


# ---- going on ----


def test_what_is_there_is_not_made_again(
    segment: Segment, photos: Path, out: Path, seen: list[tuple[int, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert segment(photos, *EVERYTHING) == 0
    before = {name: (out / name).read_bytes() for name in files(out)}
    assert segment(photos, *EVERYTHING) == 0 and len(seen) == 2
    assert "0 photos segmented, 2 were there already" in capsys.readouterr().out
    (out / "masks" / "a.png").unlink()
    assert segment(photos, *EVERYTHING) == 0 and seen[2:] == [(24, 40)]
    assert {name: (out / name).read_bytes() for name in files(out)} == before


def test_another_kind_of_output_later(segment: Segment, photos: Path, out: Path) -> None:
    assert segment(photos) == 0
    assert segment(photos, "--write", "rle") == 0
    assert len(json.loads((out / "rle.json").read_text())["images"]) == 2


def test_further_photos_join_what_is_collected(segment: Segment, photos: Path, out: Path) -> None:
    assert segment(photos / "a.JPG", "--write", "rle", "probabilities") == 0
    first = Store(out / "probabilities.h5", "probabilities").read("a", "probabilities")
    assert segment(photos / "sub" / "b.png", "--write", "rle", "probabilities") == 0
    store = Store(out / "probabilities.h5", "probabilities")
    assert store.ids == ("a", "b") and not (out / ".parts").exists()
    np.testing.assert_array_equal(store.read("a", "probabilities"), first)
    assert [image["file_name"] for image in json.loads((out / "rle.json").read_text())["images"]] == ["a.JPG", "b.png"]


@pytest.mark.usefixtures("one_by_one")
def test_an_interrupted_call_goes_on(
    segment: Segment, photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    undo = fails_at(monkeypatch, (33, 20), KeyboardInterrupt())
    assert segment(photos, *EVERYTHING) == 130
    assert not (out / "probabilities.h5").exists() and files(out / "masks") == ["a.png"]
    undo()
    assert segment(photos, *EVERYTHING) == 0
    assert "1 photos segmented, 1 were there already" in capsys.readouterr().out
    assert Store(out / "probabilities.h5", "probabilities").ids == ("a", "sub/b")
    assert not list(out.rglob("*.tmp-*")) and not (out / ".parts").exists()


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize("change", ["model", "options"])
def test_results_of_others_are_refused_and_overwritten_on_demand(
    segment: Segment, photos: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    write_weights: Callable[..., Path], capsys: pytest.CaptureFixture[str], change: str,
) -> None:  # fmt: skip
    assert segment(photos, *EVERYTHING) == 0
    before = {name: (out / name).read_bytes() for name in files(out)}
    other: dict[str, Any] = {"model": write_weights(tmp_path / "other.pth", seed=5)} if change == "model" else {}
    extra = () if change == "model" else ("--flip",)
    capsys.readouterr()
    assert segment(photos, *EVERYTHING, *extra, **other) == 1
    message = capsys.readouterr().err
    assert f"({change} " in message and "choose another --out, or make all again with --overwrite" in message
    assert {name: (out / name).read_bytes() for name in files(out)} == before

    undo = fails_at(monkeypatch, (33, 20), KeyboardInterrupt())
    assert segment(photos, *EVERYTHING, *extra, "--overwrite", **other) == 130
    undo()
    assert segment(photos, *EVERYTHING, *extra, **other) == 0  # goes on with the new ones
    assert segment(photos, *EVERYTHING, *extra, out=tmp_path / "fresh", **other) == 0
    for name in files(tmp_path / "fresh"):
        assert (out / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes(), name
    assert files(out) == files(tmp_path / "fresh")


def test_files_of_others_are_spared(
    segment: Segment, photos: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (out / "masks").mkdir(parents=True)
    (out / "masks" / "a.png").write_text("drawn by hand")
    assert segment(photos) == 1
    assert "got masks and no segment.json: choose another --out" in capsys.readouterr().err
    assert files(out) == ["masks/a.png"]
    assert segment(photos, "--overwrite") == 0


def test_a_damaged_manifest(segment: Segment, photos: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert segment(photos) == 0
    for text in ("{", "[1]", "{}"):
        (out / "segment.json").write_text(text)
        assert segment(photos) == 1
        message = capsys.readouterr().err
        assert "--overwrite" in message and "Traceback" not in message


def test_probabilities_beyond_what_a_store_holds(
    segment: Segment, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rrm.segment_files._LARGEST_RECORD", 5000)
    assert segment(photos, "--write", "probabilities") == 1
    assert "a.JPG: expected probabilities below 4 GiB, got 5760 bytes (3 x 24 x 40)" in capsys.readouterr().err


def test_a_mistake_of_ours_is_no_fault_of_a_photo(
    segment: Segment, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_at(monkeypatch, (24, 40), RuntimeError("a mistake of ours"))
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        segment(photos)
