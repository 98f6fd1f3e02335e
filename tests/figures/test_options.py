"""What the figures depend on, and which models they show, for configurations with more or fewer models."""

from __future__ import annotations

from typing import Any

import pytest

from rrm.config import Config, resolve
from rrm.pipeline import FIGURES, drawn_models, stage_options
from tests.workflow.project import small_config


def config(**changed: Any) -> Config:
    return resolve(small_config() | changed)


def test_models_of_the_figure_in_their_order() -> None:
    assert drawn_models(config()) == ["methods/em_adapt", "one_step", "step_two/plain", "step_two/warm"]
    assert drawn_models(config(methods={}, step_two={}, bounds={}, cam_rows=[])) == ["one_step"]


@pytest.mark.parametrize("figure", [*FIGURES, "gallery"])
def test_a_voc_folder_without_test_masks_and_step_two(figure: str) -> None:
    dataset = {"kind": "voc", "name": "voc", "root": "VOC2012"}
    assert stage_options(config(dataset=dataset, step_two={}), figure)


@pytest.mark.parametrize("figure", [*FIGURES, "gallery"])
def test_other_seeds_bounds_and_cam_rows_redraw_nothing(figure: str) -> None:
    other = config(seeds=[0, 5], bounds={}, cam_rows=[], ablation={"pseudo_labels": True})
    assert stage_options(other, figure) == stage_options(config(), figure)


@pytest.mark.parametrize("figure", ["figure2", "figure3"])
def test_figures_of_the_labels_do_not_depend_on_step_two(figure: str) -> None:
    assert stage_options(config(step_two={}), figure) == stage_options(config(), figure)
