"""Stage `figure4`: photos of val, their ground truth and what each method predicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from rrm.config import Config
from rrm.figures import Panel, draw_sheet, label_panel, photo_panel, save_sheet
from rrm.metrics import scores_of
from rrm.stages.call import Call
from rrm.stages.drawn import SPREAD, Scene, facts, open_scene, predicted, require_training
from rrm.stages.measured import read_measured
from rrm.stages.table5 import describe
from rrm.store import Store

PHOTOS = 6
_CAPTION = (
    "Predictions with CRF, and the mIoU of each photo in percent, over the classes in its mask or its prediction. "
    "White pixels of the ground truth are void."
)


@dataclasses.dataclass(frozen=True)
class Models:
    """The methods of the figure with what they predicted on val, all of one seed."""

    config: Config
    confusions: Mapping[str, Store]
    probabilities: Mapping[str, Store]

    def label(self, model: str) -> str:
        """Name of a model as the tables show it."""
        return describe(self.config, model).facts["method"]


def open_models(call: Call, *, scored: bool = True) -> Models:
    """Open the inputs `confusion:<model>` and `probabilities:<model>` of all models of the figure.

    Args:
        call: its options hold `config` and `models`.
        scored: false where there is no truth: no confusion matrices are opened.

    Raises:
        RRMError: one is missing, or matrices and probabilities are of different trainings.
        RRMErrors: matrices were made with another configuration.
    """
    config = Config.model_validate(call.options["config"])
    names, seed = call.options["models"], config.seeds[0]
    probabilities = {name: Store(call.input(f"probabilities:{name}"), "probabilities") for name in names}
    if not scored:
        return Models(config, {}, probabilities)
    inputs = {f"{seed}:{name}:val": call.input(f"confusion:{name}") for name in names}
    measured = read_measured(dataclasses.replace(call, inputs=inputs))
    confusions = {name: measured.of_seeds(name, "val")[0] for name in names}
    for name, store in probabilities.items():
        expected = f"the probabilities that {confusions[name].path} was made of"
        require_training(store, confusions[name].attrs["trained_options"], expected)
    return Models(config, confusions, probabilities)


def prediction_panel(models: Models, scene: Scene, model: str, name: str) -> Panel:
    """What a model predicts for a photo, with its mIoU below."""
    labels = predicted(scene.photos, models.probabilities[model], models.config.evaluation.crf.model_dump())(name)
    score = scores_of(models.confusions[model].read(name, "crf")).mean_iou
    return label_panel(labels, f"mIoU {100 * score:.1f}")


def run(call: Call) -> None:
    """Draw the figure."""
    models = open_models(call)
    scene = open_scene(call, models.confusions["one_step"])
    names = scene.chosen(PHOTOS)
    rows = [
        [
            photo_panel(scene.photo(name), name),
            label_panel(scene.mask(name)),
            *(prediction_panel(models, scene, model, name) for model in models.confusions),
        ]
        for name in names
    ]
    headings = ["Photo", "Ground truth", *map(models.label, models.confusions)]
    run = f"Data set {models.config.dataset.name}, val, seed {models.config.seeds[0]}."
    text = facts(call, "Qualitative comparison", _CAPTION, run, f"Photos: {SPREAD}: {', '.join(names)}.")
    save_sheet(draw_sheet(rows, headings, scene.classes), call.output, text)
