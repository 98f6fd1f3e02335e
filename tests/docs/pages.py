"""What the examples of a page find when they run, and what is checked after them.

All pages find `weights.pth`, `photo.jpg`, and `photos/` with two photos. A page that talks of more has a function here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import rrm
from tests.prediction.conftest import made_photo

Names = dict[str, Any]


def prepare(folder: Path, weights: Path) -> None:
    """Files that all pages may read."""
    (folder / "weights.pth").symlink_to(weights)
    Image.fromarray(made_photo(40, 57)).save(folder / "photo.jpg")
    (folder / "photos").mkdir()
    for seed in range(2):
        Image.fromarray(made_photo(24, 40, seed)).save(folder / "photos" / f"{seed}.jpg")


def _exported(folder: Path) -> Names:
    """The network in the file that `rrm export` writes."""
    from rrm.cli import main

    assert main(["export", str(folder / "weights.pth"), "--out", str(folder / "model.onnx")]) == 0
    return {}


def _filtering(folder: Path) -> Names:
    del folder
    return {"images": torch.from_numpy(made_photo(8, 12)).permute(2, 0, 1)[None], "values": torch.rand(1, 96, 3)}


def _training(folder: Path) -> Names:
    """A network, an optimizer and a loader as somebody else's."""
    del folder
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 4, 3, padding=1)
    images = torch.from_numpy(np.stack([made_photo(24, 32, seed) for seed in range(2)])).permute(0, 3, 1, 2).float()
    labels = torch.full((2, 24, 32), 255)
    labels[:, 4:9, 4:9] = 1
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6)
    return {"network": network, "optimizer": optimizer, "loader": [(images, labels)]}


def _moving(folder: Path) -> Names:
    """Arrays as pydensecrf takes them, tensors as the authors' loss does."""
    (images, labels) = _training(folder)["loader"][0]
    scores = torch.rand(2, 4, 24, 32).softmax(1)
    photo, valid = made_photo(24, 32), torch.ones(2, 24, 32)
    arrays = {"photo": photo, "probabilities": scores[0].numpy()}
    return {**arrays, "images": images, "labels": labels, "scores": scores, "valid": valid}


BEFORE: Mapping[str, Callable[[Path], Names]] = {
    "export.md": _exported,
    "filtering.md": _filtering,
    "migration.md": _moving,
    "parts.md": _training,
}
"""By page: makes what its readers have, beside files that all pages may read; gives names and their values."""


def _segmented(folder: Path, names: Names) -> None:
    expected = rrm.load(folder / "weights.pth", "cpu").predict(folder / "photo.jpg").labels
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "mask.png")), expected)
    assert Image.open(folder / "overlay.jpg").size == (57, 40)
    assert names["seen"].probabilities.shape == (3, 24, 40)  # of the last photo of the batch
    assert Image.open(folder / "0.png").size == Image.open(folder / "1.png").size == (40, 24)


def _trained(folder: Path, names: Names) -> None:
    del folder
    assert names["loss"].isfinite() and names["network"].weight.grad.abs().sum() > 0
    torch.testing.assert_close(names["refined"].sum(1), torch.ones(2, 24, 32))
    assert set(names["pseudo"].unique().tolist()) <= {0, 1, 2, 3, 255}


def _moved(folder: Path, names: Names) -> None:
    del folder
    np.testing.assert_allclose(names["after"], names["before"], atol=1e-4)
    assert names["filtered"].shape == names["scores"].shape and (names["filtered"] > 0).all()
    assert -1 < names["loss"] < 0


AFTER: Mapping[str, Callable[[Path, Names], None]] = {
    "migration.md": _moved,
    "parts.md": _trained,
    "predict.md": _segmented,
}
"""By page: checks what its examples made, given the folder and all names."""
