"""Stage `failures`: the photos of val on which the best model does worst, and what it takes for what."""

from __future__ import annotations

import textwrap

import numpy as np
import numpy.typing as npt

from rrm.figures import draw_sheet, label_panel, photo_panel, save_sheet
from rrm.metrics import scores_of
from rrm.stages.call import Call
from rrm.stages.drawn import facts, lowest, open_scene, photo_scores
from rrm.stages.figure4 import Models, open_models, prediction_panel
from rrm.tables import scores_of_store

PHOTOS = 6
CONFUSIONS = 3
_LETTERS = 34  # of a line beside a row


def best_model(models: Models) -> str:
    """The two-step model with the highest mIoU on val with CRF, the first among equals; else the one-step network."""
    two_step = [name for name in models.confusions if name.startswith("step_two/")]
    scores = {name: scores_of_store(models.confusions[name], "crf").mean_iou for name in two_step or ["one_step"]}
    return max(scores, key=lambda name: scores[name])


def confused(matrix: npt.NDArray[np.int64], names: list[str], count: int = CONFUSIONS) -> list[str]:
    r"""The most frequent errors of a confusion matrix (rows true classes), with their share of pixels from 0.5 % on.

    Example:
        >>> confused(np.array([[6, 1, 0], [0, 0, 3], [0, 0, 0]]), ["background", "cat", "dog"])
        ['cat → dog 30\xa0%', 'background → cat 10\xa0%']
    """
    wrong = matrix * (1 - np.eye(len(matrix), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = [divmod(int(place), len(matrix)) for place in order]
    share = 100 * wrong / max(1, matrix.sum())
    return [f"{names[t]} → {names[p]} {share[t, p]:.0f}\u00a0%" for t, p in pairs if share[t, p] >= 0.5]


def _beside(matrix: npt.NDArray[np.int64], names: list[str]) -> str:
    """Text beside a row: the IoU of the classes that count, and the most frequent errors."""
    iou = scores_of(matrix).iou
    counted = ", ".join(f"{names[k]}\u00a0{100 * iou[k]:.0f}" for k in np.flatnonzero(~np.isnan(iou)))
    errors = confused(matrix, names)
    lines = [f"IoU: {counted}", *(["", "true → predicted, share of pixels:", *errors] if errors else [])]
    how = textwrap.TextWrapper(_LETTERS, subsequent_indent="   ", max_lines=4, placeholder=" ...")
    return "\n".join(how.fill(line) for line in lines)


def run(call: Call) -> None:
    """Draw the figure."""
    models = open_models(call)
    model = best_model(models)
    confusion = models.confusions[model]
    scene = open_scene(call, confusion)
    chosen = [confusion.ids[place] for place in lowest(photo_scores(confusion), PHOTOS)]
    rows = [
        [
            photo_panel(scene.photo(name), name),
            label_panel(scene.mask(name)),
            prediction_panel(models, scene, model, name),
        ]
        for name in chosen
    ]
    names = ["background", *scene.classes]
    beside = [_beside(confusion.read(name, "crf"), names) for name in chosen]
    sheet = draw_sheet(rows, ["Photo", "Ground truth", models.label(model)], scene.classes, beside=beside)
    shown = (
        f"The {len(chosen)} photos with the lowest mIoU of {models.label(model)} with CRF, the lowest first: "
        f"{', '.join(chosen)}. Beside each: the IoU in percent of the classes in its mask or its prediction, and the "
        "most frequent errors with their share of the pixels. White pixels of the ground truth are void."
    )
    run = f"Data set {models.config.dataset.name}, val, seed {models.config.seeds[0]}."
    save_sheet(sheet, call.output, facts(call, "Failure cases", shown, run))
