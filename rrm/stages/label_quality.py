"""Stage `label-quality`: how right and how many the labels are that a trained network mines (Eq. 5-7), on val.

The ground truth of training photos is out of reach of a weakly supervised run, so the labels are mined from whole val
photos with their image-level labels, as `figure3` draws them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from rrm.figures import Labels, resize_labels
from rrm.labels import IGNORE
from rrm.metrics import scores_of
from rrm.progress import tracked
from rrm.stages.call import Call
from rrm.stages.drawn import open_one_step, open_scene
from rrm.stages.figure3 import mined
from rrm.store import Store
from rrm.tables import write_table

STEPS = ("CAM label", "CRF label", "reliable CAM label", "reliable label")


def label_counts(labels: Labels, mask: Labels, num_classes: int) -> npt.NDArray[np.int64]:
    """Counts of (true class, label) over the pixels that are not void; the last column counts pixels without a label.

    Args:
        labels: (H,W) 0..num_classes, 255 without a label.
        mask: (H,W) 0..num_classes, 255 void.
        num_classes: foreground classes.

    Returns:
        (num_classes + 1, num_classes + 2) int64.

    Example:
        >>> label_counts(np.array([[0, 1, 255]], np.uint8), np.array([[0, 0, 1]], np.uint8), 1).tolist()
        [[1, 1, 0], [0, 0, 1]]
    """
    width = num_classes + 2
    given = np.where(labels == IGNORE, num_classes + 1, labels).astype(np.int64)
    places = (mask.astype(np.int64) * width + given)[mask != IGNORE]
    return np.bincount(places, minlength=(num_classes + 1) * width).reshape(-1, width)


def quality(counts: npt.NDArray[np.int64], names: Sequence[str]) -> pd.DataFrame:
    """Rows for each class and for all of them, in percent.

    `kept` is the share of a class's pixels that have a label, `recall` that of those that have the right one, and
    `precision` the share of pixels with its label that are its own. The row `all` has the share of kept pixels, the
    share of those that are right (as `precision`) and the mean IoU on them.

    Args:
        counts: sum of `label_counts`.
        names: background and classes.

    Example:
        >>> quality(np.array([[6, 2, 2], [0, 5, 5]]), ["background", "cat"]).values.tolist()[-1]
        ['all', '65.00', '84.62', '55.00', '73.21']
    """
    matrix, own = counts[:, :-1], np.diag(counts)
    rows = []
    for number, name in enumerate(names):
        pixels = counts[number].sum()
        shares = [(matrix[number].sum(), pixels), (own[number], matrix[:, number].sum()), (own[number], pixels)]
        rows.append([name, *(_percent(*share) for share in shares), ""])
    kept, total = matrix.sum(), counts.sum()
    mean = scores_of(matrix).mean_iou
    shown = "" if np.isnan(mean) else f"{100 * mean:.2f}"
    rows.append(["all", _percent(kept, total), _percent(own.sum(), kept), _percent(own.sum(), total), shown])
    return pd.DataFrame(rows, columns=["class", "kept", "precision", "recall", "mean_iou_of_kept"])


def _percent(part: np.int64, whole: np.int64) -> str:
    return f"{100 * part / whole:.2f}" if whole else ""


def run(call: Call) -> None:
    """Write the table: for each step of mining a row a class and one for all."""
    trained, device = open_one_step(call)
    scene = open_scene(call, Store(call.input("confusion"), "confusion"))
    classes = len(scene.classes)
    totals = np.zeros((len(STEPS), classes + 1, classes + 2), np.int64)
    for name in tracked(scene.masks.ids, "label quality", len(scene.masks.ids), call.runtime["log_seconds"]):
        steps = mined(scene.photo(name), scene.present(name), trained.network, call.options["one_step"], device)
        mask = resize_labels(scene.mask(name), scene.photo(name).shape[:2])
        totals += [label_counts(np.asarray(labels[0].cpu().numpy(), np.uint8), mask, classes) for labels in steps]
    names = ["background", *scene.classes]
    tables = [quality(total, names).assign(labels=step) for step, total in zip(STEPS, totals, strict=True)]
    facts = {"split": "val", "images": len(scene.masks.ids), "seed": call.options["seed"]}
    table = pd.concat(tables).assign(**facts, dataset=call.options["dataset"])
    write_table(call.output, table[["labels", *(name for name in table if name != "labels")]])
