"""A gallery of photos of noise, written by hand: the page without a run; and what a page holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from rrm.figures import heat_panel
from rrm.gallery import Pictures, hex_colours, label_file, photo_file, write_page

HOSTILE = "<script>window.bad = 1</script>"
CLASSES = ["background", "cat", HOSTILE, "traffic light with a very long name that no line holds"]
MODELS = {"one_step": "RRM one-step", "step_two/big": "RRM two-step <img src=x onerror=window.bad=1>"}
PHOTOS = 12


def shown_on(page: Path) -> dict[str, Any]:
    """The data of a page."""
    text = (page.parent / "data.js").read_text()
    data: dict[str, Any] = json.loads(text.removeprefix("window.data = ").removesuffix(";\n"))
    return data


def a_page(folder: Path, *, truth: bool = True) -> Path:
    """A page of photos of noise with a square on each, written by hand."""
    page, random = folder / "gallery" / "index.html", np.random.default_rng(0)
    pictures = Pictures(page)
    photos = [_photo(number, pictures, random, truth=truth) for number in range(1, PHOTOS + 1)]
    models: list[dict[str, Any]] = [{"id": model, "name": name} for model, name in MODELS.items()]
    for model in models if truth else []:
        matrix = np.diag([9000, 500, 400, 300]) + random.integers(0, 200, (4, 4))
        model |= {"mean": 0.5, "plain": 0.4, "accuracy": 0.9, "iou": [0.9, 0.5, float("nan"), 0.1], "confusion": matrix}
    made = [{"id": model, "name": name, "kind": "labels"} for model, name in MODELS.items()]
    curve = {"steps": [0, 10, 20], "mean": [2.0, 1.0, 0.5], "low": [1.5, 0.7, 0.4], "high": [2.5, 1.3, 0.6]}
    colours = hex_colours(len(CLASSES))
    write_page(page, {
        "dataset": "demo", "seed": 0, "truth": truth, "rule": "by hand",
        "photosOf": {"val": 240} if truth else {"val": 4, "train": 16},
        "classes": [{"name": name, "colour": colour} for name, colour in zip(CLASSES, colours, strict=True)],
        "layers": [
            {"id": "photo", "name": "Photo", "kind": "photo"}, {"id": "cam", "name": "CAM", "kind": "heat"},
            {"id": "regions", "name": "Reliable regions", "kind": "labels"}, *made,
            *([{"id": "truth", "name": "Ground truth", "kind": "labels"}] if truth else []),
        ],
        "models": models, "photos": photos,
        "training": [{"name": "RRM one-step", "terms": [{"name": "energy", **curve}]}],
    })  # fmt: skip
    return page


def _photo(number: int, pictures: Pictures, random: np.random.Generator, *, truth: bool) -> dict[str, Any]:
    label, shape = 1 + number % 3, (60, 80) if number % 2 else (80, 60)
    photo = random.integers(0, 256, (*shape, 3), np.uint8)
    mask = np.zeros(shape, np.uint8)
    mask[10:40, 10 : 10 + 3 * number] = label
    sparse = np.where(random.random(shape) < 0.5, mask, 255).astype(np.uint8)
    maps = {"regions": sparse, **dict.fromkeys(MODELS, mask), **({"truth": mask} if truth else {})}
    files = {"photo": photo_file(photo), "cam": photo_file(heat_panel(mask / 4.0, photo).picture)}
    files |= {layer: label_file(labels, shape) for layer, labels in maps.items()}
    scores = {"mean": number / PHOTOS, "iou": {0: 0.9, label: number / PHOTOS}} if truth else {}
    return {
        "name": HOSTILE if number == 1 else f"2007_{number:06d}",
        "split": "val" if truth or number % 3 == 0 else "train",
        "size": [shape[1], shape[0]],
        "given": None if number == 2 else [label],
        "images": {layer: pictures.add(number, layer, content) for layer, content in files.items()},
        "found": {layer: [label] for layer in maps},
        "scores": {model: {"doubt": 0.3 - number / 100, **scores} for model in MODELS},
    }
