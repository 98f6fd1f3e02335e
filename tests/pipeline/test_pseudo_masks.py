"""Pseudo masks from the scores of one photo: image labels, confidence, sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rrm.config import PseudoMasks, load
from rrm.inference import keep_image_labels, labels_at, predicted_labels
from rrm.networks import AffinityNet, RRMNet
from rrm.stages.pseudo_masks import MaskMaker, Scored, one_hot, walked
from rrm.stages.table5 import describe
from rrm.store import Store
from rrm.training import read_weights
from tests.pipeline.conftest import CONFIG, Chain


def _options(**changes: Any) -> dict[str, Any]:
    return PseudoMasks.model_validate({"crf": None, **changes}).model_dump(mode="json")


def _scored(segmentation: list[float], cam: list[float] | None = None) -> Scored:
    def plane(values: list[float] | None) -> Any:
        return None if values is None else np.tile(np.array(values, np.float32)[:, None, None], (1, 4, 5))

    image = np.zeros((4, 5, 3), np.uint8)
    return Scored(image, np.array([1, 0], np.uint8), plane(segmentation), plane(cam), 1.0)


def test_most_probable_class_and_confidence() -> None:
    assert (MaskMaker(_options())(_scored([0.2, 0.7, 0.1])) == 1).all()
    assert (MaskMaker(_options(confidence=0.75))(_scored([0.2, 0.7, 0.1])) == 255).all()


def test_sources() -> None:
    scored = _scored([0.55, 0.45, 0.0], cam=[0.2, 0.8, 0.0])
    assert (MaskMaker(_options(source="cam"))(scored) == 1).all()
    assert (MaskMaker(_options(source="segmentation"))(scored) == 0).all()
    assert (MaskMaker(_options(source="average"))(scored) == 1).all()
    assert (MaskMaker(_options(source="average", confidence=0.8))(scored) == 255).all()


@pytest.mark.parametrize("use_image_labels", [True, False])
def test_crf_sees_the_classes_it_may_use(use_image_labels: bool) -> None:
    options = _options(crf={"iterations": 2}, use_image_labels=use_image_labels)
    scored = _scored([0.1, 0.2, 0.7])
    assert (MaskMaker(options)(scored) == (1 if use_image_labels else 2)).all()


def test_one_hot_and_labels() -> None:
    scores = np.array([[[0.1, 0.6]], [[0.9, 0.4]]], np.float32)
    np.testing.assert_array_equal(one_hot(scores), [[[0, 1]], [[1, 0]]])
    assert labels_at(scores, (1, 4)).tolist() == [[1, 1, 1, 0]]


def test_the_first_of_equally_probable_classes_is_taken() -> None:
    torch.manual_seed(0)
    scores = (torch.rand(2, 21, 33, 20) * 4).round() / 4
    assert torch.equal(labels_at(scores, (33, 20)).long(), scores.argmax(1))


def test_labels_that_are_absent_vanish_even_where_they_win() -> None:
    kept = keep_image_labels(np.array([[[0.0]], [[0.0]], [[1.0]]], np.float32), np.array([1, 0], np.uint8))
    assert np.isfinite(kept).all() and kept[2].max() == 0


@pytest.mark.parametrize(
    ("scores", "expected"), [([2.0, -1.0, 0.5], [1, 0, 1]), ([-3.0, -1.0, -2.0], [0, 1, 0])], ids=["above 0", "highest"]
)
def test_predicted_labels_are_the_scores_above_zero_or_the_highest(scores: list[float], expected: list[int]) -> None:
    network = RRMNet(3, width=1 / 16, units=(1, 1, 1, 1), classifier_bias=True, batch_norm="train").eval()
    with torch.no_grad():
        network.fc8.weight.zero_()
        network.fc8.bias.copy_(torch.tensor(scores))  # type: ignore[union-attr]
    assert predicted_labels(network, [np.zeros((16, 16, 3), np.uint8)]).tolist() == [expected]


@pytest.mark.parametrize("size", [(40, 33), (3, 5)])
def test_a_walk_keeps_flat_scores_and_absent_classes(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = AffinityNet(3, width=1 / 16, units=(1, 1, 1, 1), output_stride=4, batch_norm="train").eval()
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    scores = np.zeros((4, *size), np.float32)
    scores[0], scores[2] = 0.25, np.linspace(0, 1, size[1])
    walk = {"radius": 5, "beta": 8, "steps": 16}
    result = walked(network, image, scores, walk)
    assert result.shape == scores.shape and result.dtype == np.float32
    np.testing.assert_allclose(result[0], 0.25, rtol=1e-4)
    assert not result[[1, 3]].any() and result[2].min() >= 0 and result[2].max() <= 1
    assert np.ptp(result[2]) < np.ptp(scores[2])


WALK = """
pseudo_masks:
  affinitynet:
    cam_scales: [1.0]
    random_walk:
      radius: 3
      mining: {crf: {iterations: 2}}
      train: {steps: 2, batch_size: 4, crop: 48, optimizer: {kind: adamw, lr: 1.0e-3}}
step_two: {vgg16: {label: AffinityNet, pseudo_masks: affinitynet}}
"""


def test_masks_after_a_random_walk(finished: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    over = tmp_path / "walk.yaml"
    over.write_text(WALK)
    arguments = ("--config", *CONFIG, str(over), "--masks", "affinitynet")
    inputs = {"photos": finished.photos, "model": finished.seed / "classifier.pth"}
    affinity, path = tmp_path / "affinity" / "affinitynet.pth", tmp_path / "affinitynet.h5"
    assert finished.stage("pseudo-masks", path, *arguments, **inputs) == 1
    assert "expected an input 'affinity'" in capsys.readouterr().err
    assert finished.stage("affinity", affinity, *arguments, **inputs) == 0
    start, trained = (read_weights(each)["weights"] for each in (inputs["model"], affinity))
    assert "f9.weight" in trained and "fc8.weight" not in trained
    assert affinity.with_suffix(".history.jsonl").read_text().count('"negative"') == 2
    moved = (trained["backbone.conv1a.weight"] - start["backbone.conv1a.weight"]).abs().max()
    assert 0 < float(moved) < 0.01, "training goes on from the classifier"
    assert finished.stage("pseudo-masks", path, *arguments, affinity=affinity, **inputs) == 0
    photos, masks = Store(finished.photos, "photos"), Store(path, "pseudo_masks")
    assert len(masks.ids) == 10
    for name in masks.ids:
        mask, present = masks.read(name, "mask"), photos.read(name, "present")
        assert mask.shape == photos.read(name, "image").shape[:2]
        assert set(np.unique(mask)) <= {0, *(np.flatnonzero(present) + 1)}
    row = describe(load(*CONFIG, over), "step_two/vgg16").facts
    assert (row["method"], row["citation"], row["supervision"]) == ("AffinityNet", "ahn2018learning", "L")
    assert "pseudo_masks=affinitynet" in row["departures"]


def test_only_a_set_with_a_random_walk_has_affinities(
    finished: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = {"photos": finished.photos, "model": finished.seed / "classifier.pth"}
    assert finished.stage("affinity", tmp_path / "one_step.pth", "--masks", "one_step", **inputs) == 1
    assert "pseudo_masks.one_step: expected a random_walk, got none" in capsys.readouterr().err
