"""A weakly supervised run is out of reach of the training masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rrm.config import load
from rrm.pipeline import STAGES
from rrm.stages.table5 import describe
from rrm.store import Store
from rrm.training import read_weights
from tests.pipeline.conftest import CONFIG, Chain


def _spoil_training_masks(root: Path) -> int:
    names = (root / "ImageSets" / "Segmentation" / "train.txt").read_text().split()
    generator = np.random.default_rng(0)
    for name in names:
        path = root / "SegmentationClass" / f"{name}.png"
        garbage = Image.fromarray(generator.integers(0, 256, (7, 9), np.uint8), "P")
        garbage.putpalette(list(range(256)) * 3)
        garbage.save(path)
    return len(names)


def test_garbage_training_masks_change_nothing(finished: Chain, tmp_path: Path) -> None:
    spoiled = Chain(tmp_path)
    spoiled.data()
    assert _spoil_training_masks(spoiled.manifest.parent) == 10
    spoiled.pack()
    assert spoiled.one_step() == 0
    assert spoiled.method("em_adapt") == 0
    assert spoiled.step_two("vgg16") == 0
    for model in ("one_step", "methods/em_adapt", "step_two/vgg16"):
        expected, got = read_weights(finished.weights(model)), read_weights(spoiled.weights(model))
        assert all((expected["weights"][name] == tensor).all() for name, tensor in got["weights"].items())
        assert spoiled.score(model).read_bytes() == (finished.seed / model / "confusion_val.h5").read_bytes()


@pytest.mark.parametrize("stage", ["classifier", "one-step", "method", "affinity", "pseudo-masks"])
def test_stages_with_image_labels_alone_take_no_masks(stage: str) -> None:
    assert "masks" not in STAGES[stage].inputs


def test_step_two_refuses_true_masks(finished: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = tmp_path / "masks_train.h5"
    assert finished.stage("pack-masks", masks, "--split", "train", manifest=finished.manifest) == 0
    out = tmp_path / "weights.pth"
    assert finished.stage("step-two", out, "--model", "step_two/vgg16", photos=finished.photos, masks=masks) == 1
    assert "expected a 'pseudo_masks' store" in capsys.readouterr().err
    assert not out.exists()


def test_evaluation_refuses_training_masks(finished: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = tmp_path / "masks_train.h5"
    assert finished.stage("pack-masks", masks, "--split", "train", manifest=finished.manifest) == 0
    inputs = {
        "photos": finished.photos,
        "masks": masks,
        "probabilities": finished.seed / "one_step" / "probabilities_val.h5",
    }
    assert finished.stage("evaluate", tmp_path / "confusion.h5", "--split", "val", **inputs) == 1
    assert "expected no training mask" in capsys.readouterr().err


def test_a_bound_sees_no_more_than_the_labels_it_is_given(finished: Chain, tmp_path: Path) -> None:
    over = tmp_path / "scribbles.yaml"
    over.write_text("bounds: {resnet38: {labels: scribbles}}\n")
    masks, sparse = finished.folder / "masks_train.h5", tmp_path / "scribbles_train.h5"
    assert finished.stage("sparse-labels", sparse, "--labels", "scribbles", masks=masks) == 0
    given, whole = Store(sparse, "masks"), Store(masks, "masks")
    for name in given.ids:
        labels, mask = given.read(name, "mask"), whole.read(name, "mask")
        assert 0 < (labels != 255).mean() < 0.2
        assert (labels[labels != 255] == mask[labels != 255]).all()
    out, inputs = tmp_path / "weights.pth", {"photos": finished.photos, "start": finished.seed / "classifier.pth"}
    arguments = ("--config", *CONFIG, str(over), "--model", "bounds/resnet38")
    assert finished.stage("bound", out, *arguments, masks=sparse, **inputs) == 0
    first, second = read_weights(out)["weights"], read_weights(finished.weights("bounds/resnet38"))["weights"]
    assert any((first[name] != second[name]).any() for name in first)
    assert describe(load(*CONFIG, over), "bounds/resnet38").facts["supervision"] == "S"
    assert finished.stage("sparse-labels", tmp_path / "val.h5", masks=finished.folder / "masks_val.h5") == 1
