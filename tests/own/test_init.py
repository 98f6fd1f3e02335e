"""`rrm init`: photos and labels taken in, all faults at once, odd photos shown."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rrm.cli import main
from rrm.datasets.voc import VocLayout, read_classes
from rrm.errors import RRMError, RRMErrors
from rrm.own_data import Wishes, take_in
from rrm.photos import read_photo
from tests.prediction.conftest import made_photo

SIZE = (120, 160)


def save(folder: Path, name: str, photo: Any, **how: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo).save(path, **how)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve photos `p00.jpg` and so on, with textures of their own."""
    folder = tmp_path / "photos"
    for number in range(12):
        save(folder, f"p{number:02d}.jpg", made_photo(*SIZE, seed=number))
    return folder


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.csv"
    path.write_text("image,labels\n" + "".join(f"p{k:02d}.jpg,{'cat' if k % 2 else 'dog'}\n" for k in range(12)))
    return path


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_photos_become_a_data_set(
    photos: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    save(photos, "p00.jpg", made_photo(*SIZE, seed=50), exif=exif)
    save(photos, "deep/p12.tif", made_photo(*SIZE, seed=51))
    project = tmp_path / "mine"
    assert main(["init", str(project), "--images", str(photos), "--labels", str(labels)]) == 0
    told = capsys.readouterr().out
    data = VocLayout(project / "data", read_classes(project / "data" / "classes.txt"), labels="labels.csv")
    data.check(["train", "val"])
    assert data.classes == ("cat", "dog")
    assert (len(data.ids("train")), len(data.ids("val"))) == (10, 2)
    assert data.photo_size("p00") == (SIZE[1], SIZE[0]) and data.photo_size("deep/p12") == SIZE
    assert "1 unlabelled" in told and "13 photos, 2 classes, 12 photos labelled" in told
    assert table(project / "check" / "classes.csv")[0] == {"class": "cat", "photos": "6", "train": "5", "val": "1"}


def test_folders_are_classes_and_one_file_in_two_has_both(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for number in range(8):
        save(photos, f"{'big cat' if number < 4 else 'dog'}/{number}.png", made_photo(*SIZE, seed=number))
    (photos / "dog" / "again.png").write_bytes((photos / "big cat" / "0.png").read_bytes())
    assert main(["init", str(tmp_path / "mine"), "--images", str(photos)]) == 0
    rows = {row["image"]: row["labels"] for row in table(tmp_path / "mine" / "data" / "labels.csv")}
    assert rows["big cat/0"] == "big cat;dog" and len(rows) == 8 and rows["dog/7"] == "dog"


def test_all_faults_are_told_at_once_and_nothing_is_written(
    photos: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "p03.jpg").write_bytes(b"no photo")
    (photos / "p05.jpg").write_bytes((photos / "p05.jpg").read_bytes()[:900])
    labels.write_text(labels.read_text().replace("p07.jpg,cat", "p07.jpg,cow") + "p99.jpg,cat\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    arguments = [
        "--images",
        str(photos),
        "missing",
        "--labels",
        str(labels),
        "--classes",
        str(tmp_path / "classes.txt"),
    ]
    assert main(["init", str(tmp_path / "mine"), *arguments]) == 1
    told = capsys.readouterr().err
    assert "5 fault(s)" in told
    for name in ("p03.jpg", "p05.jpg", "['cow']", "p99.jpg", "missing"):
        assert name in told
    assert not (tmp_path / "mine").exists()
    assert main(["init", str(tmp_path / "mine"), *arguments, "--skip-faulty"]) == 0
    assert len((tmp_path / "mine" / "check" / "left_out.txt").read_text().splitlines()) == 5
    rows = {row["image"]: row for row in table(tmp_path / "mine" / "check" / "photos.csv")}
    assert len(rows) == 10 and rows["p07"]["notes"] == "unlabelled"


def test_faulty_rows_do_not_hide_other_faults(
    photos: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "p03.jpg").write_bytes(b"no photo")
    labels.write_text(labels.read_text().replace("p05.jpg,cat", "p05.jpg") + "p99.jpg,cat\n")
    arguments = ["init", str(tmp_path / "mine"), "--images", str(photos), "--labels", str(labels)]
    assert main(arguments) == 1
    told = capsys.readouterr().err
    assert "3 fault(s)" in told and all(name in told for name in ("p03.jpg", "row 7", "p99.jpg"))
    assert main([*arguments, "--skip-faulty"]) == 0
    assert len((tmp_path / "mine" / "check" / "left_out.txt").read_text().splitlines()) == 3
    rows = {row["image"]: row["labels"] for row in table(tmp_path / "mine" / "check" / "photos.csv")}
    assert len(rows) == 11 and rows["p05"] == "" and rows["p07"] == "cat"


def test_labels_that_cannot_be_read_are_the_fault_that_is_told(
    photos: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["init", str(tmp_path / "mine"), "--images", str(photos), "--labels", str(labels), "--skip-faulty"]
    labels.write_bytes(b"image,labels\np00.jpg,\xff\n")
    assert main(arguments) == 1
    told = capsys.readouterr().err
    assert "expected a CSV file in UTF-8" in told and "classes" not in told
    labels.write_text("image,labels\np00.jpg,cat\np99.jpg,dog\n")
    assert main(arguments) == 1
    told = capsys.readouterr().err
    assert "p99.jpg" in told and "expected at least 2 that are labelled" in told


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("cat", "Background"), "got 'Background': rename it"),
        (("cat", "dog", "cat"), "got 'cat' 2 times: leave one"),
        (("a;b",), "got 'a;b'"),
        (("a\u2028b",), "without ';' and line breaks"),
    ],
)
def test_classes_that_nothing_can_be_trained_on(classes: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(RRMErrors, match=message):
        take_in([str(tmp_path / "none")], tmp_path / "out", Wishes(classes=classes, skip_faulty=True))


def test_names_that_no_mask_could_have_are_told(photos: Path, labels: Path, tmp_path: Path) -> None:
    (photos / "p00.jpg").rename(photos / f"{'p' * 240}.jpg")
    with pytest.raises(RRMErrors, match="at most 200 bytes between slashes and 1000 in all"):
        take_in([str(photos)], tmp_path / "out", Wishes(labels))


@pytest.mark.parametrize("wishes", [Wishes(val=0), Wishes(val=1.5), Wishes(seed=-1)])
def test_a_division_that_cannot_be_is_told_before_photos_are_read(wishes: Wishes, tmp_path: Path) -> None:
    with pytest.raises(RRMError, match="got (0|1.5|-1): use"):
        take_in([str(tmp_path / "none")], tmp_path / "out", wishes)


def test_a_folder_is_no_class_of_background(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, first in {"background": 0, "cat": 4, "dog ": 8}.items():
        (photos / folder).mkdir()
        for number in range(first, first + 4):
            (photos / f"p{number:02d}.jpg").rename(photos / folder / f"{number}.jpg")
    (photos / "dog " / "broken.jpg").symlink_to("nowhere")
    arguments = ["init", str(tmp_path / "mine"), "--images", str(photos)]
    assert main(arguments) == 1
    told = capsys.readouterr().err
    assert "got 'background': rename it" in told and "broken.jpg" in told
    assert main([*arguments, "--skip-faulty"]) == 0
    assert (tmp_path / "mine" / "data" / "classes.txt").read_text() == "cat\ndog\n"


def test_names_that_are_no_utf8_are_told(
    photos: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(photos, os.fsdecode(b"caf\xe9.jpg"), made_photo(*SIZE, seed=40))
    arguments = ["init", str(tmp_path / "mine"), "--images", str(photos), "--labels", str(labels)]
    assert main(arguments) == 1
    told = capsys.readouterr().err
    assert "1 fault(s)" in told and r"caf\udce9.jpg" in told
    assert main([*arguments, "--skip-faulty"]) == 0
    assert r"caf\udce9.jpg" in (tmp_path / "mine" / "check" / "left_out.txt").read_text()


def test_training_sees_photos_as_masks_show_them(photos: Path, labels: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (photos / "p00.jpg").unlink()
    files = [
        save(photos, "p00.png", made_photo(*SIZE, seed=50), exif=exif),
        save(photos, "p01.jpg", made_photo(*SIZE, seed=51), dpi=(72, 72), exif=b"Exif\0\0 no TIFF at all"),
    ]
    with Image.open(files[1]) as damaged, pytest.raises(SyntaxError):
        damaged.getexif()
    project = tmp_path / "mine"
    assert main(["init", str(project), "--images", str(photos), "--labels", str(labels)]) == 0
    data = VocLayout(project / "data", ("cat", "dog"), labels="labels.csv")
    for path, height in zip(files, (SIZE[1], SIZE[0]), strict=True):
        trained = data.read_photo(path.stem)
        assert trained.shape[0] == height
        assert np.array_equal(trained, read_photo(data.photo_path(path.stem)))
        assert np.abs(trained.astype(int) - read_photo(path)).mean() < 3


def test_odd_photos_are_shown(photos: Path, labels: Path, tmp_path: Path) -> None:
    save(photos, "p01.jpg", made_photo(40, 60, seed=1))
    save(photos, "p02.jpg", made_photo(*SIZE, seed=2) // 12)
    save(photos, "p03.jpg", np.full((*SIZE, 3), 200, np.uint8))
    small = Image.open(photos / "p05.jpg").resize((130, 98))
    save(photos, "p06.jpg", np.asarray(small), quality=60)
    project = tmp_path / "mine"
    assert main(["init", str(project), "--images", str(photos), "--labels", str(labels)]) == 0
    notes = {row["image"]: row["notes"] for row in table(project / "check" / "photos.csv") if row["notes"]}
    assert notes == {
        "p01": "very small", "p02": "very dark", "p03": "of one colour", "p05": "alike 1", "p06": "very small;alike 1"
    }  # fmt: skip
    splits = {row["image"]: row["split"] for row in table(project / "check" / "photos.csv")}
    assert splits["p05"] == splits["p06"]
    with Image.open(project / "check" / "suspicious.png") as sheet:
        assert np.asarray(sheet).std() > 20 and sheet.height > 4 * 170


def test_what_is_there_is_not_overwritten(
    photos: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    assert main(["init", str(tmp_path / "mine"), "--images", str(photos), "--labels", str(labels)]) == 1
    assert "expected a new or an empty folder" in capsys.readouterr().err


def test_a_project_is_kept(photos: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["init", str(tmp_path / "mine"), "--images", str(photos), "--labels", str(labels)]
    assert main([*arguments, "--seed", "-1"]) == 1
    assert "seed: expected at least 0, got -1" in capsys.readouterr().err
    assert main(arguments) == 0
    capsys.readouterr()
    assert main(arguments) == 1
    told = capsys.readouterr().err
    assert "got a project: name another folder" in told and "remove" not in told
