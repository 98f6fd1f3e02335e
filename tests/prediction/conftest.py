"""A tiny network in a file of trained weights, and photos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import rrm
from rrm.cli import main
from rrm.networks import build_network
from rrm.stages.trained import save_trained

CLASSES = ["cat", "dog"]
TINY = {"width": 1 / 16, "units": [1, 1, 1, 1]}


def made_photo(height: int, width: int, seed: int = 0) -> Any:
    """Smooth patches of colour, (H,W,3) uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@torch.inference_mode()
def lively(network: Any) -> Any:
    """Let a random network see all its classes in photos: scores of a mean of 0 and a deviation of 2."""
    network.eval()
    photo = torch.from_numpy(made_photo(64, 64, seed=7)).permute(2, 0, 1)[None].float()
    scores = network.forward_segmentation(network.normalize(photo))
    factor, layer = 2 / scores.std((0, 2, 3)), network.head.score_layers[-1]
    layer.weight *= factor[:, None, None, None]
    layer.bias.copy_((layer.bias - scores.mean((0, 2, 3))) * factor)
    return network


@pytest.fixture(scope="session")
def write_weights() -> Callable[..., Path]:
    """Writes a file as a stage that trains does."""

    def write(path: Path, kind: str = "rrm", stage: str = "one_step", seed: int = 0) -> Path:
        torch.manual_seed(seed)
        network = build_network(kind, num_classes=len(CLASSES), backbone="resnet38", **TINY)
        if hasattr(network, "forward_segmentation"):
            lively(network)
        identity = {"stage": stage, "code": "abc", "options": {}, "inputs": {}}
        save_trained(path, network, kind, CLASSES, {"backbone": "resnet38", "options": TINY}, identity)
        return path

    return write


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory, write_weights: Callable[..., Path]) -> Path:
    """weights.pth of a one-step network with random weights."""
    return write_weights(tmp_path_factory.mktemp("weights") / "weights.pth")


@pytest.fixture(scope="session")
def segmenter(weights: Path) -> rrm.Segmenter:
    """The same, opened."""
    return rrm.load(weights, device="cpu")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with two photos, one of them in a folder below, and files that are none."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    Image.fromarray(made_photo(24, 40)).save(folder / "a.JPG")
    Image.fromarray(made_photo(33, 20, seed=1)).save(folder / "sub" / "b.png")
    Image.fromarray(made_photo(8, 8)).save(folder / ".hidden.png")
    (folder / "notes.txt").write_text("no photo")
    return folder


@pytest.fixture
def segment(weights: Path, tmp_path: Path) -> Callable[..., int]:
    """Calls `rrm segment` on `weights`, without the CRF, into the folder `out`; gives the exit code."""

    def call(*arguments: str | Path, out: Path = tmp_path / "out", model: Path = weights, crf: bool = False) -> int:
        how = [] if crf else ["--no-crf"]
        return main(["segment", str(model), *map(str, arguments), "--out", str(out), "--device", "cpu", *how])

    return call
