"""A small data set in VOC layout, made on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rrm.datasets import VocLayout, voc_palette

CLASSES = ("cat", "dog", "traffic light")


@dataclass(frozen=True)
class Tree:
    """Writes single files of a data set in VOC layout, so that a test can spoil one of them."""

    root: Path

    def layout(self, **options: object) -> VocLayout:
        return VocLayout(self.root, classes=CLASSES, **options)  # type: ignore[arg-type]

    def write(self, relative: str, content: str) -> None:
        path = self.root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    def listing(self, split: str, ids: Sequence[str]) -> None:
        self.write(f"ImageSets/Segmentation/{split}.txt", "".join(f"{name}\n" for name in ids))

    def labels(self, name: str, classes: Sequence[str]) -> None:
        objects = "".join(f"<object><name>{label}</name><part><name>head</name></part></object>" for label in classes)
        self.write(f"Annotations/{name}.xml", f"<annotation>{objects}</annotation>")

    def photo(self, name: str, size: tuple[int, int] = (30, 20), suffix: str = ".jpg") -> np.ndarray:
        seed = [ord(letter) for letter in name]
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        path = self.root / "JPEGImages" / (name + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        image.save(path)
        return np.asarray(Image.open(path).convert("RGB"))

    def mask(self, name: str, mask: np.ndarray) -> None:
        path = self.root / "SegmentationClass" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(mask.astype(np.uint8), mode="L")
        image.putpalette(voc_palette().tobytes())
        image.save(path)

    def image(self, name: str, classes: Sequence[str]) -> None:
        """A whole image: photo, labels, and a mask with one row a class and a row to ignore."""
        self.photo(name)
        self.labels(name, classes)
        mask = np.zeros((20, 30), np.uint8)
        for row, label in enumerate(classes):
            mask[row] = CLASSES.index(label) + 1
        mask[19] = 255
        self.mask(name, mask)


@pytest.fixture
def empty_tree(tmp_path: Path) -> Tree:
    root = tmp_path / "data set"
    root.mkdir()
    return Tree(root)


@pytest.fixture
def tree(empty_tree: Tree) -> Tree:
    """Five training and two validation images without any fault."""
    for name, classes in {
        "a": ["cat"],
        "b": ["dog", "cat"],
        "c": ["dog"],
        "d": ["traffic light"],
        "e": ["cat"],
    }.items():
        empty_tree.image(name, classes)
    for name in ("v1", "v2"):
        empty_tree.image(name, ["dog"])
    empty_tree.listing("train", ["a", "b", "c", "d", "e"])
    empty_tree.listing("val", ["v2", "v1"])
    return empty_tree


@pytest.fixture
def faults_of() -> Callable[[Callable[[], object]], list[str]]:
    """Run something that must raise `RRMErrors` and give its faults."""
    from rrm.errors import RRMErrors

    def run(action: Callable[[], object]) -> list[str]:
        with pytest.raises(RRMErrors) as caught:
            action()
        return caught.value.faults

    return run
