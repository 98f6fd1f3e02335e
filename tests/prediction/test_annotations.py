"""Polygons and run lengths describe the labels exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from pycocotools import mask as coco_mask

from rrm.annotations import BACKGROUND, coco_regions, foreground, geojson, labelme, outlines
from tests.prediction.conftest import made_photo

CLASSES = ["a", "b", "c"]


def painted(shape: tuple[int, int], made: Any) -> Any:
    """The labels that a file of LabelMe gives when its polygons are filled in their order."""
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    centres = np.stack([columns.ravel(), rows.ravel()], 1)
    labels = np.zeros(shape, np.uint8)
    for each in made["shapes"]:
        inside = Outline(np.array(each["points"])).contains_points(centres).reshape(shape)
        labels[inside] = 0 if each["label"] == BACKGROUND else CLASSES.index(each["label"]) + 1
    return labels


def covered(shape: tuple[int, int], made: Any) -> Any:
    """The labels that GeoJSON gives: of a polygon's rings an odd number is around each of its pixels."""
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    centres = np.stack([columns.ravel(), rows.ravel()], 1)
    labels = np.zeros(shape, np.uint8)
    for feature in made["features"]:
        rings = [Outline(np.array(ring)) for ring in feature["geometry"]["coordinates"]]
        inside = np.sum([ring.contains_points(centres) for ring in rings], 0).reshape(shape) % 2 == 1
        assert not labels[inside].any(), "polygons overlap"
        labels[inside] = feature["properties"]["label"]
    return labels


def _nested() -> Any:
    labels = np.zeros((21, 25), np.uint8)
    for depth, label in enumerate((1, 0, 2, 3, 0, 1)):
        labels[depth + 1 : 20 - depth, 2 * depth : 24 - depth] = label
    return labels


@pytest.mark.parametrize("seed", range(25))
def test_polygons_of_noise_give_the_labels_again(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, tuple(random.integers(1, 14, 2))).astype(np.uint8)
    made = labelme(labels, CLASSES, "photo.jpg")
    np.testing.assert_array_equal(painted(labels.shape, made), labels)


def test_polygons_of_things_in_holes_of_things() -> None:
    labels = _nested()
    made = labelme(labels, CLASSES, "../photo.jpg")
    np.testing.assert_array_equal(painted(labels.shape, made), labels)
    assert (made["imagePath"], made["imageHeight"], made["imageWidth"]) == ("../photo.jpg", 21, 25)
    assert {each["label"] for each in made["shapes"]} == {*CLASSES, BACKGROUND}


@pytest.mark.parametrize("seed", range(25))
def test_geojson_of_noise_gives_the_labels_again(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, tuple(random.integers(1, 14, 2))).astype(np.uint8)
    np.testing.assert_array_equal(covered(labels.shape, geojson(labels, CLASSES, "photo.jpg")), labels)


def test_geojson_of_things_in_holes_of_things() -> None:
    labels = _nested()
    made = geojson(labels, CLASSES, "photo.jpg")
    np.testing.assert_array_equal(covered(labels.shape, made), labels)
    assert made["type"] == "FeatureCollection" and len(made["features"]) == 4
    for feature in made["features"]:
        assert feature["properties"]["class"] == CLASSES[feature["properties"]["label"] - 1]
        outer, *holes = [np.array(ring) for ring in feature["geometry"]["coordinates"]]
        assert all((ring[0] == ring[-1]).all() for ring in (outer, *holes))
        areas = [ring[:-1, 0] @ ring[1:, 1] - ring[:-1, 1] @ ring[1:, 0] for ring in (outer, *holes)]
        assert [area > 0 for area in areas] == [True] + [False] * len(holes)


def test_straight_edges_have_no_points() -> None:
    ((outer,),) = outlines(np.pad(np.ones((30, 50), np.uint8), 3), 1)
    assert len(outer) == 8
    assert outer.min(0).tolist() == [3.0, 3.0] and outer.max(0).tolist() == [53.0, 33.0]


@pytest.mark.parametrize("labels", [_nested(), made_photo(30, 20)[..., 0] // 64])
def test_run_lengths_give_the_labels_again(labels: Any) -> None:
    again = np.zeros_like(labels)
    for region in coco_regions(labels):
        inside = coco_mask.decode(region["segmentation"]).astype(bool)
        again[inside] = region["category_id"]
        left, top, width, height = (int(value) for value in region["bbox"])
        assert inside.sum() == region["area"] == inside[top : top + height, left : left + width].sum()
    np.testing.assert_array_equal(again, labels)


def test_background_alone_has_no_regions() -> None:
    labels = np.zeros((4, 5), np.uint8)
    assert foreground(labels) == [] == coco_regions(labels) == labelme(labels, CLASSES, "x")["shapes"]
