"""The files of a project of own photos that make it run: configuration, Snakefile and profile.

The workflow itself stays with the package, in the clone that it was installed from (`pip install --editable`).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

from rrm.config import load
from rrm.errors import RRMError

CLONE = Path(__file__).resolve().parents[1]
TEMPLATES = Path(__file__).resolve().parent / "templates"
STEPS = 100
_CLASSIFIER_STEPS = 4  # of each step of one-step training, from random weights
_TENSORFLOW_CLASSES = 1001  # ImageNet's and one for background


@dataclass(frozen=True)
class Start:
    """What a project trains from, and how long.

    Attributes:
        weights: MobileNetV2 of ImageNet in torchvision's layout; None: a narrow network from random weights.
        steps: of one-step training; >= 1.
        seed: of the run, >= 0.
    """

    weights: Path | None = None
    steps: int = STEPS
    seed: int = 0

    def values(self) -> Mapping[str, str | int]:
        """What the template of the configuration asks for.

        Raises:
            RRMError: steps, seed or weights that cannot be used.
        """
        if self.steps < 1:
            raise RRMError(f"steps: expected at least 1, got {self.steps}: use {STEPS}")
        if self.seed < 0:
            raise RRMError(f"seed: expected at least 0, got {self.seed}: use 0")
        common = {"steps": self.steps, "classifier_steps": _CLASSIFIER_STEPS * self.steps, "seed": self.seed}
        if self.weights is None:
            return {**common, "long_side": 160}
        padding, normalization = ("same", "tensorflow") if from_tensorflow(self.weights) else ("torch", "imagenet")
        path = str(self.weights.resolve())
        quoted = "'" + path.replace("'", "''") + "'"
        return {**common, "long_side": 320, "weights": quoted, "padding": padding, "normalization": normalization}


def from_tensorflow(weights: Path) -> bool:
    """Whether MobileNetV2's weights come from TensorFlow: its classifier has a class for background too.

    Raises:
        RRMError: unreadable, or no MobileNetV2.
    """
    from rrm.networks.weights import read_weights

    state = read_weights(weights)
    first, last = state.get("features.0.0.weight"), state.get("classifier.1.weight")
    if first is None or last is None or first.shape[0] != 32 or last.shape[1] != 1280:
        raise RRMError(
            f"{weights}: expected torchvision's mobilenet_v2 for ImageNet, got other weights: save it with "
            "`torch.save(torchvision.models.mobilenet_v2(weights='DEFAULT').state_dict(), PATH)`"
        )
    return last.shape[0] == _TENSORFLOW_CLASSES


def workflow_file() -> Path:
    """The workflow's Snakefile, beside the package.

    Raises:
        RRMError: the package was not installed from a clone.

    Example:
        >>> workflow_file().name
        'Snakefile'
    """
    path = CLONE / "workflow" / "Snakefile"
    if not path.is_file():
        raise RRMError(
            f"{path}: expected the workflow in the clone that the package was installed from, got none: install "
            "it with `make install`, or `pip install --editable '.[workflow]'` in a clone"
        )
    return path


def refuse_project(folder: Path) -> None:
    """Refuse a folder that is a project already: what was trained there is not to be removed for another one.

    Raises:
        RRMError: it is one.
    """
    if (folder / "config.yaml").is_file() and (folder / "Snakefile").is_file():
        raise RRMError(
            f"{folder}: expected a new or an empty folder, got a project: name another folder for other photos, "
            "classes or weights; steps and the like are changed in its config.yaml"
        )


def write_project(folder: Path, name: str, start: Start, *, background: bool) -> None:
    """Write `config.yaml`, `Snakefile` and `profiles/default` of a project whose data are below `data`.

    Args:
        folder: the project's, made already.
        name: of the project.
        start: from what and how long it trains.
        background: whether photos show none of the classes.

    Raises:
        RRMError: `Start.values`, `workflow_file`.
    """
    workflow_file()
    template = "own_photos.yaml" if start.weights is None else "own_photos_imagenet.yaml"
    text = TEMPLATES.joinpath(template).read_text(encoding="utf-8")
    values = {"title": name, "name": config_name(name), "background": str(background).lower(), **start.values()}
    folder.joinpath("config.yaml").write_text(Template(text).substitute(values), encoding="utf-8")
    load(folder / "config.yaml")
    shutil.copyfile(TEMPLATES / "Snakefile", folder / "Snakefile")
    shutil.copytree(CLONE / "profiles" / "default", folder / "profiles" / "default")


def config_name(name: str) -> str:
    """A folder's name as `dataset.name` may be.

    Example:
        >>> config_name("My photos (2)"), config_name("???")
        ('My-photos-2', 'own')
    """
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "own"
