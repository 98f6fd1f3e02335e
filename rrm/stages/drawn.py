"""What the figures read: photos, masks and models of one seed on val, and which photos are shown, chosen by rule."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rrm.crf import DenseCRF
from rrm.datasets.packing import open_masks
from rrm.errors import RRMError
from rrm.figures import Labels, Picture
from rrm.inference import labels_at, refined
from rrm.labels import IGNORE
from rrm.metrics import scores_of
from rrm.stages.call import Call
from rrm.stages.trained import Trained, load_trained
from rrm.store import Store
from rrm.training import take_device

SPREAD = (
    "at evenly spaced quantiles of the one-step network's mIoU on each photo of val (with CRF), "
    "a photo with other classes than those above first"
)
"""The rule of `spread`, in words."""


def spread(scores: Sequence[float], kinds: Sequence[Hashable], count: int) -> list[int]:
    """Places of items at evenly spaced quantiles of their scores, one of each kind as long as there are others.

    Quantile k of n is (k + 0.5) / n. At each, the nearest item in rank is taken whose kind was not taken before, else
    the nearest that was not taken itself; the better one among equally near ones. Items with a NaN score are left out.

    Args:
        scores: one an item.
        kinds: one an item.
        count: how many are wanted.

    Returns:
        At most `count` places, the highest score first.

    Example:
        >>> spread([0.1, 0.9, 0.5, 0.6], ["a", "a", "a", "b"], 2)
        [1, 3]
    """
    known = [k for k in range(len(scores)) if not np.isnan(scores[k])]
    ranked = sorted(known, key=lambda k: (-scores[k], k))
    rank = {place: position for position, place in enumerate(ranked)}
    taken: list[int] = []
    for quantile in (np.arange(count) + 0.5) / count:
        left = [k for k in ranked if k not in taken]
        fresh = [k for k in left if kinds[k] not in {kinds[other] for other in taken}]
        middle = quantile * len(ranked) - 0.5
        taken += sorted(fresh or left, key=lambda k: abs(rank[k] - middle))[:1]
    return sorted(taken, key=rank.__getitem__)


def lowest(scores: Sequence[float], count: int) -> list[int]:
    """Places of the lowest scores, the lowest first, the earlier one among equals; NaN is left out.

    Example:
        >>> lowest([0.5, float("nan"), 0.1, 0.5], 2)
        [2, 0]
    """
    known = [k for k in range(len(scores)) if not np.isnan(scores[k])]
    return sorted(known, key=lambda k: (scores[k], k))[:count]


def photo_scores(confusion: Store) -> list[float]:
    """Mean IoU of each photo with CRF, over the classes in its mask or prediction; NaN where all is void."""
    return [scores_of(confusion.read(name, "crf")).mean_iou for name in confusion.ids]


def classes_in(mask: Labels) -> tuple[int, ...]:
    """Foreground labels in a mask, ascending.

    Example:
        >>> classes_in(np.array([[0, 7, 255, 2]], np.uint8))
        (2, 7)
    """
    return tuple(int(label) for label in np.unique(mask) if label not in (0, IGNORE))


@dataclass(frozen=True)
class Scene:
    """Photos and masks of val, and the confusion matrices of the one-step network, which choose the photos."""

    photos: Store
    masks: Store
    confusion: Store

    def chosen(self, count: int) -> list[str]:
        """Ids of photos with foreground, chosen by `spread` over classes in the mask."""
        kinds = {name: classes_in(self.mask(name)) for name in self.confusion.ids}
        scores = [
            score if kinds[name] else float("nan")
            for name, score in zip(self.confusion.ids, photo_scores(self.confusion), strict=True)
        ]
        places = spread(scores, list(kinds.values()), count)
        if not places:
            raise RRMError(
                f"{self.masks.path}: expected photos with foreground in their masks, got none: there is nothing to draw"
            )
        return [self.confusion.ids[place] for place in places]

    def photo(self, name: str) -> Picture:
        """A photo, (H,W,3) uint8, at the size it was packed at."""
        return self.photos.read(name, "image")

    def mask(self, name: str) -> Labels:
        """Ground truth, (H,W) uint8, at the photo's original size."""
        return self.masks.read(name, "mask")

    def present(self, name: str) -> npt.NDArray[np.uint8]:
        """Image-level labels (C,) uint8; of a photo without, the classes in its mask."""
        if "present" in self.photos.names(name):
            return self.photos.read(name, "present")
        present = np.zeros(len(self.classes), np.uint8)
        present[[label - 1 for label in classes_in(self.mask(name))]] = 1
        return present

    @property
    def classes(self) -> list[str]:
        """Names of the foreground classes."""
        return list(self.photos.attrs["classes"])


def open_scene(call: Call, confusion: Store) -> Scene:
    """Open photos and masks of val; masks of the training photos are refused."""
    masks = open_masks(call.input("masks"), "val", supervision="evaluation")
    return Scene(Store(call.input("photos"), "photos"), masks, confusion)


def open_one_step(call: Call) -> tuple[Trained, str]:
    """The trained one-step network and its device, if its matrices and the options of the call are its own.

    Raises:
        RRMError: weights and matrices are of different trainings, or of another configuration.
    """
    return own_one_step(call, Store(call.input("confusion"), "confusion").attrs.get("trained_options"))


def own_one_step(call: Call, scored: Any) -> tuple[Trained, str]:
    """The same, if `scored` are the options of its training.

    Raises:
        RRMError: the weights are of another training, or of another configuration.
    """
    device = take_device(call.runtime)
    trained = load_trained(call.input("model"), device)
    wanted = {"seed": call.options["seed"], **call.options["one_step"]}
    options = trained.facts["options"]
    trained_as = {name: options.get("one_step", {}).get(name) for name in call.options["one_step"]}
    given = {"seed": options.get("seed"), **trained_as}
    if scored != options or given != wanted:
        raise RRMError(
            f"{call.input('model')}: expected the network of this configuration and of these confusion matrices, "
            "got another: run `snakemake` for it again"
        )
    return trained, device


def require_training(probabilities: Store, options: Any, expected: str) -> None:
    """Refuse probabilities of another training than that of these options.

    Raises:
        RRMError: they are of another; `expected` says in the message what they should be.
    """
    if probabilities.attrs["trained"]["options"] != options:
        raise RRMError(f"{probabilities.path}: expected {expected}, got others: run `snakemake` for it again")


def predicted(photos: Store, probabilities: Store, crf: Mapping[str, Any]) -> Callable[[str], Labels]:
    """Labels (H,W) of a photo at its original size, that of its mask, with CRF, as they are scored."""

    def of(name: str) -> Labels:
        height, width = (int(side) for side in photos.read(name, "size"))
        scores: npt.NDArray[Any] = probabilities.read(name, "probabilities").astype(np.float32)
        sharp: npt.NDArray[Any] = refined(DenseCRF(**crf), photos.read(name, "image"), scores, (height, width))
        return labels_at(sharp, (height, width))

    return of


def facts(call: Call, title: str, *sentences: str) -> dict[str, str]:
    """Text for the file: what is shown, and digests of the options and the code that drew it."""
    options = json.dumps(call.options, sort_keys=True).encode()
    return {
        "Title": title,
        "Description": " ".join(sentences),
        "Options": hashlib.sha256(options).hexdigest()[:16],
        "Code": call.code,
    }
