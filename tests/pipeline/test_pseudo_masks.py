"""Pseudo masks from the scores of one photo: image labels, confidence, sources."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rrm.config import PseudoMasks
from rrm.inference import keep_image_labels, labels_at, predicted_labels
from rrm.networks import RRMNet
from rrm.stages.pseudo_masks import MaskMaker, Scored, one_hot


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
    assert predicted_labels(network, np.zeros((16, 16, 3), np.uint8)).tolist() == expected
