"""The chain of stages at a small size, called through the command line's entry point."""

from __future__ import annotations

from pathlib import Path

import pytest

from rrm.cli import main

ROOT = Path(__file__).resolve().parents[2]
CONFIG = [str(ROOT / "config.yaml"), str(ROOT / "tests" / "tiny.yaml")]
MODELS = (
    *("cam/predicted", "cam/given", "one_step", "methods/em_adapt"),
    *("step_two/vgg16", "step_two/resnet101", "bounds/resnet38"),
)


class Chain:
    """Runs single stages in a folder; files have the names of the real layout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = folder / "voc" / "manifest.json"
        self.photos = folder / "photos.h5"
        self.seed = folder / "seed0"

    def stage(self, name: str, out: Path, *extra: str, **inputs: Path) -> int:
        """Call a stage with the small configuration; gives the exit code."""
        given = [part for key, path in inputs.items() for part in ("--in", f"{key}={path}")]
        return main([name, "--config", *CONFIG, *given, "--out", str(out), *extra])

    def data(self) -> None:
        assert self.stage("demo-data", self.manifest) == 0

    def pack(self) -> None:
        assert self.stage("pack-photos", self.photos, manifest=self.manifest) == 0
        assert self.stage("pack-masks", self.folder / "masks_val.h5", "--split", "val", manifest=self.manifest) == 0

    def weights(self, model: str) -> Path:
        return self.seed / model / "weights.pth"

    def one_step(self) -> int:
        """Classifier and one-step training."""
        start = self.seed / "classifier.pth"
        if not start.exists():
            assert self.stage("classifier", start, photos=self.photos) == 0
        return self.stage("one-step", self.weights("one_step"), photos=self.photos, start=start)

    def method(self, name: str, *extra: str) -> int:
        """Another method, from the classifier."""
        model, start = f"methods/{name}", self.seed / "classifier.pth"
        return self.stage("method", self.weights(model), "--model", model, *extra, photos=self.photos, start=start)

    def step_two(self, network: str) -> int:
        """Pseudo masks and one network trained on them."""
        masks = self.seed / "pseudo_masks" / "one_step.h5"
        assert self.stage("pseudo-masks", masks, photos=self.photos, model=self.weights("one_step")) == 0
        model = f"step_two/{network}"
        return self.stage("step-two", self.weights(model), "--model", model, photos=self.photos, masks=masks)

    def bound(self, network: str) -> int:
        """Training masks and one network trained on them."""
        masks, model = self.folder / "masks_train.h5", f"bounds/{network}"
        assert self.stage("pack-masks", masks, "--split", "train", manifest=self.manifest) == 0
        inputs = {"photos": self.photos, "masks": masks, "start": self.seed / "classifier.pth"}
        return self.stage("bound", self.weights(model), "--model", model, **inputs)

    def score(self, model: str, *extra: str) -> Path:
        """Predict and evaluate on val; gives the store of confusion matrices."""
        probabilities, confusion = (self.seed / model / f"{kind}_val.h5" for kind in ("probabilities", "confusion"))
        weights = self.weights("one_step" if model.startswith("cam/") else model)
        chosen = ("--model", model, "--split", "val", *extra)
        assert self.stage("predict", probabilities, *chosen, photos=self.photos, model=weights) == 0
        inputs = {"photos": self.photos, "masks": self.folder / "masks_val.h5", "probabilities": probabilities}
        assert self.stage("evaluate", confusion, "--split", "val", **inputs) == 0
        return confusion


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """A run through all stages."""
    chain = Chain(tmp_path_factory.mktemp("finished"))
    chain.data()
    chain.pack()
    assert chain.one_step() == 0
    assert chain.method("em_adapt") == 0
    assert chain.step_two("vgg16") == 0
    assert chain.step_two("resnet101") == 0
    assert chain.bound("resnet38") == 0
    for model in MODELS:
        chain.score(model)
    return chain
