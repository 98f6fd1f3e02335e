"""Stage `gallery`: a page to look at a run: photos of val with CAM, reliable regions, pseudo mask, predictions, truth.

The photos are chosen by rule, not by hand. Where there is no truth (no inputs `masks` and `confusion:<model>`) they are
chosen and sorted by `rrm.stages.doubt`, and those that were trained on are among them (inputs `train:<model>`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rrm.figures import Labels, Picture, heat_panel
from rrm.gallery import Pictures, hex_colours, label_file, photo_file, write_page
from rrm.inference import predicted_labels
from rrm.metrics import scores_of
from rrm.progress import tracked
from rrm.stages.call import Call
from rrm.stages.doubt import doubt
from rrm.stages.drawn import Scene, classes_in, open_scene, own_one_step, predicted, require_training, spread
from rrm.stages.figure3 import cam_scores, mined_labels
from rrm.stages.figure4 import Models, open_models
from rrm.stages.photo_facts import seen_classes
from rrm.stages.pseudo_masks import MaskMaker, Scorer, open_scorer, packed_photo
from rrm.stages.training_curves import read_history, smoothed
from rrm.store import Store
from rrm.tables import scores_of_store, total_confusion

_POINTS = 100  # of a training curve
_RULES = {
    True: "at evenly spaced quantiles of the one-step network's mIoU on each photo of val (with CRF), "
    "those with other classes than the ones above first",
    False: "at evenly spaced quantiles of the one-step network's doubt about each photo, "
    "those with other labels than the ones above first",
}


@dataclass(frozen=True)
class Run:
    """What the page shows of one seed's run.

    Attributes:
        models: that are shown, with their predictions on val.
        predictions: of each split that is shown, by model.
        photos, scene: the photos, and their truth; None where there is none.
        network, device: of the one-step model.
        options: of the stage.
        scorer: what pseudo masks are made with, if any.
    """

    models: Models
    predictions: Mapping[str, Mapping[str, Store]]
    photos: Store
    scene: Scene | None
    network: Any
    device: str
    options: Mapping[str, Any]
    scorer: Scorer | None

    @cached_property
    def classes(self) -> list[str]:
        """Names of the foreground classes."""
        return list(self.photos.attrs["classes"])

    @cached_property
    def splits(self) -> dict[str, str]:
        """Split of each photo that may be shown, in order."""
        return {name: split for split, stores in self.predictions.items() for name in stores["one_step"].ids}

    def given(self, name: str) -> Labels | None:
        """Image-level labels (C,) uint8 of a photo; None where nobody gave any."""
        if self.scene is not None:
            return self.scene.present(name)
        return self.photos.read(name, "present") if "present" in self.photos.names(name) else None

    def doubt(self, model: str, name: str) -> float:
        """Doubt of a model about a photo, before the CRF, as the table of doubt has it."""
        store = self.predictions[self.splits[name]][model]
        facts, given = seen_classes(store.read(name, "probabilities")), self.given(name)
        return doubt(facts if given is None else facts | {"present": given})

    def chosen(self, count: int) -> list[str]:
        """Names of the photos that are shown."""
        if self.scene is not None:
            return self.scene.chosen(count)
        names = list(self.splits)
        kinds = [bytes(labels) if (labels := self.given(name)) is not None else b"" for name in names]
        return [names[k] for k in spread([-self.doubt("one_step", name) for name in names], kinds, count)]


def open_run(call: Call) -> Run:
    """Open what the inputs name, if it all belongs to one run."""
    truth = "masks" in call.inputs
    models = open_models(call, scored=truth)
    network, device = own_one_step(call, models.probabilities["one_step"].attrs["trained"]["options"])
    made = call.options["pseudo_masks"]
    return Run(
        models=models,
        predictions={"val": models.probabilities} | ({} if truth else _of_train(call, models)),
        photos=Store(call.input("photos"), "photos"),
        scene=open_scene(call, models.confusions["one_step"]) if truth else None,
        network=network.network,
        device=device,
        options=call.options,
        scorer=open_scorer(call, made, device, "masks_model") if made else None,
    )


def _of_train(call: Call, models: Models) -> dict[str, dict[str, Store]]:
    """Predictions of the training photos by the same networks; nothing where none is an input."""
    if not any(name.startswith("train:") for name in call.inputs):
        return {}
    stores = {model: Store(call.input(f"train:{model}"), "probabilities") for model in models.probabilities}
    for model, store in stores.items():
        known = models.probabilities[model]
        expected = f"predictions of the network that {known.path} is of"
        require_training(store, known.attrs["trained"]["options"], expected)
    return {"train": stores}


def layers(run: Run) -> list[dict[str, str]]:
    """What can be shown of a photo, in the order of the data's way; `kind` says how it is laid over the photo."""
    return [
        {"id": "photo", "name": "Photo", "kind": "photo"},
        {"id": "cam", "name": "CAM", "kind": "heat"},
        {"id": "regions", "name": "Reliable regions", "kind": "labels"},
        *([{"id": "pseudo", "name": "Pseudo mask", "kind": "labels"}] if run.scorer else []),
        *({"id": model, "name": run.models.label(model), "kind": "labels"} for model in run.models.probabilities),
        *([{"id": "truth", "name": "Ground truth", "kind": "labels"}] if run.scene else []),
    ]


@dataclass(frozen=True)
class _Seen:
    """A photo, its image-level labels (`given`, or the network's where nobody gave any) and its CAM (1,C,H,W)."""

    name: str
    photo: Picture
    given: Labels | None
    present: Labels
    cams: torch.Tensor


class Painter:
    """Makes the pictures of a photo and says what is on them."""

    def __init__(self, run: Run, pictures: Pictures) -> None:
        self._run, self._pictures = run, pictures
        self._crf = run.models.config.evaluation.crf.model_dump()

    def __call__(self, number: int, name: str) -> dict[str, Any]:
        """Write the pictures of a photo; gives its part of the page's data."""
        seen = self._seen(name)
        size = (seen.photo.shape[0], seen.photo.shape[1])
        maps = dict(self._label_maps(seen))
        files = {"photo": photo_file(seen.photo)}
        files |= {layer: photo_file(heat_panel(each, seen.photo).picture) for layer, each in _heats(seen).items()}
        files |= {layer: label_file(labels, size) for layer, labels in maps.items()}
        return {
            "name": name,
            "split": self._run.splits[name],
            "size": size[::-1],
            "given": None if seen.given is None else [int(k) + 1 for k in np.flatnonzero(seen.given)],
            "images": {layer: self._pictures.add(number, layer, content) for layer, content in files.items()},
            "found": {layer: classes_in(labels) for layer, labels in maps.items()},
            "scores": {model: self._scores(model, name) for model in self._run.models.probabilities},
        }

    def _seen(self, name: str) -> _Seen:
        run = self._run
        photo, given = run.photos.read(name, "image"), run.given(name)
        present = given if given is not None else predicted_labels(run.network, [photo], run.device)[0]
        cams = cam_scores(photo, present, run.network, run.options["one_step"]["cam"], run.device)
        return _Seen(name, photo, given, present, cams)

    def _label_maps(self, seen: _Seen) -> Iterator[tuple[str, Labels]]:
        run = self._run
        yield "regions", mined_labels(seen.photo, seen.present, seen.cams, run.options["one_step"]["mining"])
        if run.scorer is not None:
            (scored,) = run.scorer([packed_photo(run.photos, seen.name, seen.present)])
            yield "pseudo", MaskMaker(run.scorer.options)(scored)
        for model, store in run.predictions[run.splits[seen.name]].items():
            yield model, predicted(run.photos, store, self._crf)(seen.name)
        if run.scene is not None:
            yield "truth", run.scene.mask(seen.name)

    def _scores(self, model: str, name: str) -> dict[str, Any]:
        run = self._run
        found: dict[str, Any] = {"doubt": run.doubt(model, name)}
        if run.scene is not None:
            scores = scores_of(run.models.confusions[model].read(name, "crf"))
            known = np.flatnonzero(~np.isnan(scores.iou))
            found |= {"mean": scores.mean_iou, "iou": {int(k): scores.iou[k] for k in known}}
        return found


def _heats(seen: _Seen) -> dict[str, npt.NDArray[np.float32]]:
    """The CAM (H,W): the highest score of any class, and where there are several that of each."""
    scores: npt.NDArray[np.float32] = seen.cams[0].cpu().numpy()
    shown = np.flatnonzero(seen.present)
    return {"cam": scores.max(0), **({f"cam:{k + 1}": scores[k] for k in shown} if len(shown) > 1 else {})}


def model_facts(models: Models, model: str) -> dict[str, Any]:
    """Name of a model and, where there is truth, its scores on all of val."""
    facts: dict[str, Any] = {"id": model, "name": models.label(model)}
    if model in models.confusions:
        store = models.confusions[model]
        scores = scores_of_store(store, "crf")
        facts |= {"mean": scores.mean_iou, "plain": scores_of_store(store, "plain").mean_iou}
        facts |= {"accuracy": scores.pixel_accuracy, "iou": scores.iou, "confusion": total_confusion(store, "crf")}
    return facts


def training(call: Call, models: Models) -> list[dict[str, Any]]:
    """Loss terms of the networks whose weights are inputs `weights:<model>`, as curves of few points."""
    found = []
    for given in call.inputs:
        kind, _, model = given.partition(":")
        history = call.input(given).with_suffix(".history.jsonl")
        if kind == "weights" and history.is_file():
            name = "Classifier" if model == "classifier" else models.label(model)
            found.append({"name": name, "terms": list(_terms(read_history(history)))})
    return found


def _terms(history: Any) -> Iterator[dict[str, Any]]:
    for term in history:
        curve = smoothed(history[term].dropna(), _POINTS)
        columns = {name: curve[name].tolist() for name in ("mean", "low", "high")}
        yield {"name": str(term).replace("_", " "), "steps": curve.index.tolist(), **columns}


def run(call: Call) -> None:
    """Write the page, its style, script and data, and its pictures beside it."""
    shown = open_run(call)
    names, pictures = shown.chosen(call.options["photos"]), Pictures(call.output)
    painter = Painter(shown, pictures)
    call.output.unlink(missing_ok=True)  # a page whose pictures are half replaced is none
    numbered = tracked(enumerate(names, 1), "gallery", len(names), call.runtime["log_seconds"])
    photos = [painter(number, name) for number, name in numbered]
    labels = ["background", *shown.classes]
    colours = hex_colours(len(labels))
    models = shown.models
    write_page(
        call.output,
        {
            "dataset": call.options["dataset"],
            "seed": call.options["seed"],
            "truth": shown.scene is not None,
            "photosOf": Counter(shown.splits.values()),
            "rule": _RULES[shown.scene is not None],
            "classes": [{"name": name, "colour": colour} for name, colour in zip(labels, colours, strict=True)],
            "layers": layers(shown),
            "models": [model_facts(models, model) for model in models.probabilities],
            "photos": photos,
            "training": training(call, models),
        },
    )
    pictures.remove_others()
