"""A training that is long enough to be disturbed, and what can be seen of it in its folder."""

from __future__ import annotations

import sys
from pathlib import Path

from rrm.torch_files import load_torch
from tests.kills.session import LAYERS

LONG = "classifier: {train: {steps: 100000, checkpoint_every: 5}}\nruntime: {workers: 2}\n"


def classifier(photos: Path, out: Path, extra: str = "") -> list[str]:
    """The command of a training, with more configuration in a file beside its output."""
    layers = [*map(str, LAYERS)]
    if extra:
        out.parent.mkdir(parents=True, exist_ok=True)
        layers.append(str(out.with_suffix(".yaml")))
        Path(layers[-1]).write_text(extra)
    given = ("--config", *layers, "--in", f"photos={photos}", "--out", str(out), "--threads", "1")
    return [sys.executable, "-m", "rrm", "classifier", *given]


def steps_done(folder: Path) -> int:
    """Steps whose lines are in the histories below a folder."""
    return sum(len(path.read_text().splitlines()) for path in folder.rglob("history.jsonl"))


def resumed_step(folder: Path) -> int:
    """The step that a training in this folder would go on from."""
    (checkpoint,) = folder.glob("*.checkpoints/*/last.pth")
    return int(load_torch(checkpoint)["step"])
