"""Label maps as other programs read them: polygons for LabelMe and as GeoJSON, run lengths for COCO's tools.

All describe the labels exactly. A polygon runs through the middle between the centres of pixels of its class and
others; points in a straight line are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Labels = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float64]
BACKGROUND = "_background_"
"""LabelMe's name of the background."""


def foreground(labels: Labels) -> list[int]:
    """The labels above 0 that have a pixel, in ascending order.

    Args:
        labels: (H,W) uint8.

    Example:
        >>> foreground(np.array([[0, 7], [2, 7]], np.uint8))
        [2, 7]
    """
    counts = Image.fromarray(labels).histogram()  # NumPy's would take 8 bytes a pixel
    return [label for label, count in enumerate(counts) if label > 0 and count > 0]


def outlines(labels: Labels, label: int) -> list[list[Points]]:
    """Polygons around the regions of one label.

    Args:
        labels: (H,W) uint8.
        label: the one that is traced.

    Returns:
        For each region its outer polygon, then its holes; (N,2) float64 of x and y in pixels from the upper left
        corner of the photo, so the centre of the first pixel is (0.5, 0.5). The first point is not repeated. A region
        is connected over edges of pixels, or over corners.

    Example:
        >>> [polygon.tolist() for polygon in outlines(np.array([[0, 3, 3]], np.uint8), 3)[0]]
        [[[1.0, 0.5], [1.5, 0.0], [2.5, 0.0], [3.0, 0.5], [2.5, 1.0], [1.5, 1.0]]]
    """
    from contourpy import FillType, contour_generator  # comes with Matplotlib

    region = labels == label
    if not region.any():
        return []
    rows, columns = (np.flatnonzero(region.any(axis)) for axis in (1, 0))
    top, left = int(rows[0]), int(columns[0])
    part = np.pad(region[top : rows[-1] + 1, left : columns[-1] + 1], 1).astype(np.float64)
    traced = contour_generator(z=part, fill_type=FillType.OuterOffset).filled(0.5, 1.5)
    shift = np.array([left, top]) - 0.5  # of the padding, and from centres to corners
    return [
        [_without_straight_points(points[first : last - 1] + shift) for first, last in pairwise(offsets)]
        for points, offsets in zip(*traced, strict=True)
    ]


def _without_straight_points(points: Points) -> Points:
    before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
    return np.asarray(points[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]])


def _area(points: Points) -> float:
    """Above 0 where the points run from x to y."""
    x, y = points.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def labelme(labels: Labels, classes: Sequence[str], image_path: str) -> dict[str, Any]:
    """A label map as a file of LabelMe: filled one after the other, the polygons give the labels.

    LabelMe's polygons have no holes: a hole is a polygon `_background_`, and what lies in it comes after it.

    Args:
        labels: (H,W) uint8, 0 = background.
        classes: names of the foreground classes.
        image_path: of the photo, seen from the folder of the file.

    Returns:
        What to write as JSON.

    Example:
        >>> ring = np.pad(np.zeros((1, 1), np.uint8), 1, constant_values=2)
        >>> shapes = labelme(ring, ["cat", "dog"], "a.jpg")["shapes"]
        >>> [(shape["label"], len(shape["points"])) for shape in shapes]
        [('dog', 8), ('_background_', 4)]
    """
    found: list[tuple[str, Points]] = []
    for label in foreground(labels):
        for outer, *holes in outlines(labels, label):
            found.append((classes[label - 1], outer))
            found += [(BACKGROUND, hole) for hole in holes]
    found.sort(key=lambda each: (-abs(_area(each[1])), each[0] != BACKGROUND))  # what fills a hole comes after the hole
    shapes = [
        {"label": name, "points": points.tolist(), "group_id": None, "shape_type": "polygon", "flags": {}}
        for name, points in found
    ]
    size = {"imageHeight": labels.shape[0], "imageWidth": labels.shape[1]}
    return {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": image_path, "imageData": None, **size}


def geojson(labels: Labels, classes: Sequence[str], image: str) -> dict[str, Any]:
    """A label map as GeoJSON: a polygon a region, with its holes.

    Coordinates are pixels as in `outlines`, y downwards, not the degrees that RFC 7946 has in mind. As there, rings are
    closed, and outer rings run from x to y (a positive area), holes the other way.

    Args:
        labels: (H,W) uint8, 0 = background.
        classes: names of the foreground classes.
        image: name of the photo.

    Returns:
        What to write as JSON: a feature collection; a feature has the properties `label`, `class` and `image`.

    Example:
        >>> ring = np.pad(np.zeros((1, 1), np.uint8), 1, constant_values=2)
        >>> (feature,) = geojson(ring, ["cat", "dog"], "a.jpg")["features"]
        >>> feature["properties"], [len(ring) for ring in feature["geometry"]["coordinates"]]
        ({'label': 2, 'class': 'dog', 'image': 'a.jpg'}, [9, 5])
    """
    features = [
        {
            "type": "Feature",
            "properties": {"label": label, "class": classes[label - 1], "image": image},
            "geometry": {"type": "Polygon", "coordinates": [_ring(outer, 1), *(_ring(hole, -1) for hole in holes)]},
        }
        for label in foreground(labels)
        for outer, *holes in outlines(labels, label)
    ]
    return {"type": "FeatureCollection", "features": features}


def _ring(points: Points, sign: int) -> list[list[float]]:
    ordered: list[list[float]] = (points if _area(points) * sign > 0 else points[::-1]).tolist()
    return [*ordered, ordered[0]]


def coco_regions(labels: Labels) -> list[dict[str, Any]]:
    """COCO annotations of a photo, one a class that has a pixel, without ids of annotation and image.

    Args:
        labels: (H,W) uint8, 0 = background.

    Returns:
        Mappings with `category_id` (the label), `segmentation` (COCO's compressed run lengths), `area` in pixels,
        `bbox` (x, y, width, height in pixels) and `iscrowd` 0.

    Example:
        >>> (region,) = coco_regions(np.array([[0, 2, 2]], np.uint8))
        >>> region["category_id"], region["area"], region["bbox"]
        (2, 2, [1.0, 0.0, 2.0, 1.0])
    """
    from pycocotools import mask

    regions = []
    for label in foreground(labels):
        lengths = mask.encode(np.asfortranarray(labels == label, np.uint8))
        box = [float(value) for value in mask.toBbox(lengths)]
        coded = {"size": [int(side) for side in lengths["size"]], "counts": lengths["counts"].decode("ascii")}
        fact = {"area": int(mask.area(lengths)), "bbox": box, "iscrowd": 0}
        regions.append({"category_id": label, "segmentation": coded, **fact})
    return regions


def coco_dataset(photos: Mapping[str, Mapping[str, Any]], classes: Sequence[str]) -> dict[str, Any]:
    """Photos with their regions as one file that COCO's tools load.

    Args:
        photos: by file name; each has `size`, (H,W) in pixels, and `regions` of `coco_regions`.
        classes: names of the foreground classes.

    Returns:
        What to write as JSON: `images`, `annotations` and `categories`. Ids of images and annotations count from 1.

    Example:
        >>> regions = coco_regions(np.array([[0, 2, 2]], np.uint8))
        >>> made = coco_dataset({"a.jpg": {"size": [1, 3], "regions": regions}}, ["cat", "dog"])
        >>> made["images"], made["annotations"][0]["image_id"], made["categories"][1]
        ([{'id': 1, 'file_name': 'a.jpg', 'height': 1, 'width': 3}], 1, {'id': 2, 'name': 'dog'})
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for name, photo in photos.items():
        height, width = photo["size"]
        images.append({"id": len(images) + 1, "file_name": name, "height": height, "width": width})
        for region in photo["regions"]:
            annotations.append({"id": len(annotations) + 1, "image_id": len(images), **region})
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}
