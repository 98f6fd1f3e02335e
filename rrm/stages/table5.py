"""Stage `table5`: the comparison table from the confusion matrices of all models, seeds and splits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rrm.config import Config, OneStep, StepTwo, departures
from rrm.errors import RRMError
from rrm.pipeline import models, network_section, stage_options
from rrm.stages.call import Call
from rrm.store import Store
from rrm.tables import Row, check_sources, measured_row, write_table5

BACKBONES = {
    "resnet38": "ResNet-38",
    "resnet101": "ResNet-101",
    "resnet50": "ResNet-50",
    "vgg16": "VGG-16",
    "mobilenet_v2": "MobileNetV2",
}
_SHAPE_OPTIONS = ("width", "units", "layers", "output_stride")


def backbone_name(network: Mapping[str, Any]) -> str:
    """Backbone as the table shows it, with what makes it a narrow or shallow variant.

    Example:
        >>> backbone_name({"backbone": "resnet38", "options": {"width": 0.125}})
        'ResNet-38 (width 0.125)'
    """
    changed = [f"{k} {v}" for k, v in network["options"].items() if k in _SHAPE_OPTIONS]
    return BACKBONES[network["backbone"]] + (f" ({', '.join(changed)})" if changed else "")


def _facts(config: Config, section: OneStep | StepTwo) -> dict[str, str]:
    return {
        "citation": "zhang2020reliability",
        "backbone": backbone_name(section.network.model_dump()),
        "start_weights": section.network.start,
        "image_labels_at_test": "no",
        "extra_data": "-",
        "dataset": config.dataset.name,
        "recipe": section.recipe,
        "departures": "; ".join(departures(section)),
    }


def describe(config: Config, model: str) -> Row:
    """Text columns of a model's row."""
    group, _, image_labels = model.partition("/")
    if group in ("one_step", "cam"):
        facts = _facts(config, config.one_step) | {"supervision": "L", "end_to_end": "yes", "method": "RRM one-step"}
        if group == "cam":
            given = "yes" if image_labels == "given" else "no"
            facts |= {"method": "CAM of RRM's classification branch", "image_labels_at_test": given}
        return Row(model, facts)
    section = network_section(config, model)
    facts = _facts(config, section) | {"method": section.label}
    if group == "bounds":
        return Row(model, facts | {"supervision": "F", "end_to_end": "-", "citation": "-"})
    return Row(model, facts | {"supervision": "L", "end_to_end": "no"})


def _parse(name: str) -> tuple[int, str, str]:
    seed, _, rest = name.partition(":")
    model, _, split = rest.rpartition(":")
    if not (seed.isdigit() and model and split):
        raise RRMError(
            f"table5: expected inputs named SEED:MODEL:SPLIT such as 0:one_step:val, got {name!r}: correct --in"
        )
    return int(seed), model, split


def _expected(config: Config, seed: int, model: str) -> dict[str, Any]:
    """Options of the training stage that made a model."""
    stage = {"step_two": "step-two", "bounds": "bound"}.get(model.partition("/")[0], "one-step")
    return stage_options(config, stage, seed=seed, model=model)


def run(call: Call) -> None:
    """Write the table; every model of the configuration has a row."""
    config = Config.model_validate(call.options["config"])
    stores = {_parse(name): Store(call.input(name), "confusion") for name in call.inputs}
    expected = {key: {"split": key[2], "trained_options": _expected(config, key[0], key[1])} for key in stores}
    check_sources(stores, expected)
    rows = []
    for model in models(config):
        mine = {(seed, split): store for (seed, name, split), store in stores.items() if name == model}
        if not mine:
            raise RRMError(
                f"table5: expected confusion matrices of {model!r}, got none: add --in SEED:{model}:val=PATH"
            )
        rows.append(measured_row(describe(config, model), mine))
    write_table5(call.output, rows)
