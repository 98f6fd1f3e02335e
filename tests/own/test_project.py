"""A new user's way: photos and labels to masks by `rrm init` and `snakemake`, in a folder far from the clone."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from rrm.cli import main
from rrm.config import load
from rrm.datasets.demo import DEMO_CLASSES
from rrm.errors import RRMError
from rrm.own_project import Start, from_tensorflow
from tests.figures.made_gallery import shown_on
from tests.workflow.project import REPOSITORY


def demo_photos(folder: Path) -> dict[str, list[str]]:
    """Twelve photos of the demo in `folder`, and their labels."""
    data = folder.with_name("demo")
    options = '{"demo": {"seed": 3, "size": 96, "train": 10, "val": 5, "test": 5}}'
    assert main(["demo-data", "--out", str(data / "manifest.json"), "--options", options]) == 0
    names = (data / "ImageSets" / "Segmentation" / "train.txt").read_text().split()
    return _renamed(data, names, folder, DEMO_CLASSES)


def voc_photos(root: Path, folder: Path) -> dict[str, list[str]]:
    """Twenty real photos in `folder`, and their labels."""
    names = (root / "ImageSets" / "Segmentation" / "train.txt").read_text().split()
    with (root / "image_labels.csv").open(encoding="utf-8", newline="") as file:
        labels = {row["image"]: row["labels"].split() for row in csv.DictReader(file)}
    chosen = [name for name in names if labels[name] in (["cat"], ["dog"], ["bus"], ["aeroplane"])][:20]
    return _renamed(root, chosen, folder, ["cat", "dog", "bus", "aeroplane"])


def _renamed(root: Path, names: list[str], folder: Path, classes: list[str] | tuple[str, ...]) -> dict[str, list[str]]:
    from rrm.datasets.voc import xml_names

    folder.mkdir()
    labels = {}
    for number, name in enumerate(names):
        shutil.copy(root / "JPEGImages" / f"{name}.jpg", folder / f"my photo {number}.jpg")
        labels[f"my photo {number}"] = sorted(set(xml_names(root / "Annotations" / f"{name}.xml")) & set(classes))
    return labels


def snakemake(project: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--nocolor", *arguments]
    done = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("source", ["demo", "voc"])
def test_photos_become_masks_in_three_commands(source: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    photos = tmp_path / "photos"
    labels = demo_photos(photos) if source == "demo" else voc_photos(request.getfixturevalue("voc_mini"), photos)
    unlabelled = sorted(labels)[-1]
    with (tmp_path / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        rows = [[f"{name}.jpg", ";".join(found)] for name, found in labels.items() if name != unlabelled]
        csv.writer(file).writerows([["image", "labels"], *rows])
    project = tmp_path / "elsewhere" / "my project"
    arguments = ["--images", str(photos), "--labels", str(tmp_path / "labels.csv"), "--steps", "1"]
    assert main(["init", str(project), *arguments]) == 0
    snakemake(project)
    _check_masks(project, photos, labels, unlabelled)
    _check_tables(project, labels)
    assert "Nothing to be done" in snakemake(project, "--dry-run")
    if source == "demo":
        _changes_are_done_again(project, photos / f"{unlabelled}.jpg")


def _check_masks(project: Path, photos: Path, labels: dict[str, list[str]], unlabelled: str) -> None:
    classes = (project / "data" / "classes.txt").read_text().splitlines()
    for name, found in labels.items():
        with (
            Image.open(photos / f"{name}.jpg") as photo,
            Image.open(project / f"results/segmented/masks/{name}.png") as mask,
        ):
            assert mask.mode == "P" and mask.size == photo.size
            seen = {classes[label - 1] for label in np.unique(np.asarray(mask)).tolist() if label}
            assert name == unlabelled or seen <= set(found)
        assert (project / f"results/segmented/overlays/{name}.jpg").is_file()
    segmented = table(project / "results" / "segmented.csv")
    assert {row.pop("image") for row in segmented} == set(labels)
    assert all(abs(sum(map(float, row.values())) - 100) < 0.5 for row in segmented)


def _check_tables(project: Path, labels: dict[str, list[str]]) -> None:
    agreement = table(project / "results" / "label_agreement.csv")
    held_out = (project / "data" / "ImageSets" / "Segmentation" / "val.txt").read_text().splitlines()
    told = {(row["split"], row["class"]): row["photos"] for row in agreement}
    shown = shown_on(project / "results" / "my-project" / "gallery" / "index.html")
    assert shown["photosOf"] == {"val": len(held_out), "train": len(labels) - 1 - len(held_out)}
    assert told["val", "all classes"] == str(sum(len(labels[name]) for name in held_out))
    doubts = table(project / "results" / "doubt.csv")
    assert len(doubts) == len(labels) - 1
    assert [float(row["doubt"]) for row in doubts] == sorted((float(row["doubt"]) for row in doubts), reverse=True)


def _changes_are_done_again(project: Path, photo: Path) -> None:
    config = yaml.safe_load((project / "config.yaml").read_text())
    config["segment"]["crf"] = False
    (project / "config.yaml").write_text(yaml.safe_dump(config))
    assert _planned(project) == {"own_masks"}
    shutil.copy(photo, project / "data" / "JPEGImages" / "one more.jpg")
    snakemake(project)
    assert (project / "results" / "segmented" / "masks" / "one more.png").is_file()


def _planned(project: Path) -> set[str]:
    lines = snakemake(project, "--dry-run").splitlines()
    return {line.split()[-1].rstrip(":") for line in lines if line.startswith(("rule ", "localrule "))} - {"all"}


def test_weights_say_where_they_come_from(mobilenet_weights: Path) -> None:
    assert from_tensorflow(mobilenet_weights)
    values = Start(mobilenet_weights).values()
    assert (values["padding"], values["normalization"]) == ("same", "tensorflow")


def test_other_weights_are_refused(tmp_path: Path) -> None:
    import torch

    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(RRMError, match="expected torchvision's mobilenet_v2"):
        Start(tmp_path / "other.pth").values()


def test_both_starts_give_a_valid_configuration(tmp_path: Path) -> None:
    import torch
    from torchvision.models import mobilenet_v2

    from rrm.own_project import write_project

    torch.save(mobilenet_v2().state_dict(), tmp_path / "it's mine.pth")
    for name, weights in {"plain": None, "better": tmp_path / "it's mine.pth"}.items():
        folder = tmp_path / name
        folder.mkdir()
        write_project(folder, "Über: photos", Start(weights, 7, 5), background=True)
        config = load(folder / "config.yaml")
        assert config.one_step.train.steps == 7 and config.seeds == [5] and config.dataset.background_images
        assert config.one_step.network.weights == (str(weights) if weights else None)
