"""Stage `table5`: the comparison table from the confusion matrices of all models, seeds and splits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rrm.config import Config, Method, OneStep, StepTwo, departures
from rrm.pipeline import (
    evaluated_splits,
    masks_section,
    method_section,
    models,
    network_section,
    stage_options,
    submitted_models,
)
from rrm.stages.call import Call
from rrm.stages.measured import read_measured
from rrm.tables import Row, measured_row, write_table5

BACKBONES = {
    "resnet38": "ResNet-38",
    "resnet101": "ResNet-101",
    "resnet50": "ResNet-50",
    "vgg16": "VGG-16",
    "mobilenet_v2": "MobileNetV2",
}
METHODS = {
    "em_adapt": {"citation": "papandreou2015weakly", "end_to_end": "yes"},
    "sec": {"citation": "kolesnikov2016seed", "end_to_end": "no"},
    "dsrg": {"citation": "huang2018weakly", "end_to_end": "no"},
}
"""What is known of the other methods, by kind; end to end: no seeds of a classifier that was trained before."""
SUPERVISION = {"masks": "F", "scribbles": "S", "boxes": "B"}
_SHAPE_OPTIONS = ("width", "units", "layers", "output_stride")


def backbone_name(network: Mapping[str, Any]) -> str:
    """Backbone as the table shows it, with what makes it a narrow or shallow variant.

    Example:
        >>> backbone_name({"backbone": "resnet38", "options": {"width": 0.125}})
        'ResNet-38 (width 0.125)'
    """
    changed = [f"{k} {v}" for k, v in network["options"].items() if k in _SHAPE_OPTIONS]
    return BACKBONES[network["backbone"]] + (f" ({', '.join(changed)})" if changed else "")


def test_note(config: Config, model: str) -> str:
    """Why a model's test cells are empty and where its figures come from; nothing where test has public masks."""
    if "test" in evaluated_splits(config):
        return ""
    if config.dataset.submission is None:
        return "test: no public masks; dataset.submission names a list for archives that an evaluation server scores"
    if model not in submitted_models(config):
        why = "has seen true masks" if model.startswith("bounds/") else "needs image labels"
        return f"test: no public masks, and no archive for the evaluation server, for this model {why}"
    crf = "with" if config.evaluation.submission_crf else "without"
    return f"test: to be scored by the evaluation server from {model}/submission.tar.gz of each seed ({crf} CRF)"


def _facts(config: Config, section: OneStep | StepTwo | Method) -> dict[str, str]:
    network = section.network or config.one_step.network
    return {
        "citation": "zhang2020reliability",
        "backbone": backbone_name(network.model_dump()),
        "start_weights": network.start,
        "image_labels_at_test": "no",
        "masks_cleaned": "-",
        "extra_data": "-",
        "dataset": config.dataset.name,
        "recipe": getattr(section, "recipe", ""),
        "departures": "; ".join(departures(section)),
    }


def views_at_test(config: Config, model: str) -> dict[str, str]:
    """Scales and mirroring of the photos that a model predicts from; the CAM has its own."""
    options = stage_options(config, "predict", model=model, split="val")
    views = options.get("views") or options["cam"]
    return {"scales": " ".join(f"{scale:g}" for scale in views["scales"]), "flip": _yes(views.get("flip", False))}


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def _noted(config: Config, model: str) -> Row:
    row = describe(config, model)
    return Row(model, {**row.facts, **views_at_test(config, model), "note": test_note(config, model)})


def describe(config: Config, model: str) -> Row:
    """Text columns of a model's row."""
    group, _, image_labels = model.partition("/")
    if group in ("one_step", "cam"):
        facts = _facts(config, config.one_step) | {"supervision": "L", "end_to_end": "yes", "method": "RRM one-step"}
        if group == "cam":
            facts |= {
                "method": "CAM of RRM's classification branch",
                "image_labels_at_test": _yes(image_labels == "given"),
            }
        return Row(model, facts)
    if group == "methods":
        method = method_section(config, model)
        facts = _facts(config, method) | METHODS[method.kind]
        return Row(model, facts | {"method": method.label, "recipe": method.kind, "supervision": "L"})
    section = network_section(config, model)
    facts = _facts(config, section) | {"method": section.label}
    if group == "bounds":
        return Row(model, facts | {"supervision": SUPERVISION[section.labels], "end_to_end": "-", "citation": "-"})
    masks = masks_section(config, section.pseudo_masks)
    if masks.random_walk:
        facts["citation"] = "ahn2018learning"
    elif masks.network == "classifier":
        facts["citation"] = "zhou2016learning"
    cleaned = _yes(masks.use_image_labels)
    return Row(model, facts | {"supervision": "L", "end_to_end": "no", "masks_cleaned": cleaned})


def run(call: Call) -> None:
    """Write the table; every model of the configuration has a row."""
    measured = read_measured(call)
    rows = [measured_row(_noted(measured.config, name), measured.by_split(name)) for name in models(measured.config)]
    write_table5(call.output, rows)
