"""The paper's configuration, on a miniature of VOC 2012 and SBD in their published formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from rrm.config import merge
from tests.workflow.project import REPOSITORY, Project, shown_in_head
from tests.workflow.test_assembly_plan import archives, sources  # noqa: F401 (a fixture)

RUN = "results/voc2012/seed0"
WANTED = ("step_two/vgg16/confusion_val.h5", "step_two/vgg16/submission.tar.gz")
RANDOM = {"weights": None, "start": "random"}
LOOP = {"steps": 2, "batch_size": 4, "crop": 33, "optimizer": {"lr": 1.0e-6}}
SMALL: dict[str, Any] = {
    "classifier": {"train": LOOP},
    "one_step": {
        "network": {"options": {"width": 0.0625, "units": [1, 1, 1, 1]}, **RANDOM},
        "train": LOOP,
    },
    "step_two": {"vgg16": {"network": {"options": {"width": 0.03125}, **RANDOM}, "train": LOOP}},
    "runtime": {"device": "cpu", "workers": 0, "crf_workers": 0, "threads": {"one_step": 1, "default": 1}},
}


def _config(sources: Path) -> dict[str, Any]:  # noqa: F811
    config = yaml.safe_load(REPOSITORY.joinpath("configs", "voc2012.yaml").read_text())
    own = {"dataset": {"root": None, "sources": archives(sources), "submission": "test"}}
    return merge(merge(config, shown_in_head("voc2012.yaml")[0]), own)


def test_all_of_the_paper_is_planned_from_the_archives(clone: Project, sources: Path) -> None:  # noqa: F811
    clone.configure(_config(sources))
    planned = clone.planned()
    tables = {f"table{number}.csv" for number in (1, 2, 3, 5)}
    assert tables | {"comparisons.csv", "figure4.png", "voc2012/voc/manifest.json"} <= planned
    assert len({path for path in planned if path.startswith("voc2012/seed0/ablation/") and "weights" in path}) == 15
    assert "voc2012/seed0/step_two/resnet101/submission.tar.gz" in planned
    assert "voc2012/seed0/classifier.pth" in planned


def test_who_has_a_classifier_trains_none(clone: Project, sources: Path) -> None:  # noqa: F811
    clone.configure(merge(_config(sources), shown_in_head("voc2012.yaml")[1]))
    planned = clone.planned()
    assert {f"voc2012/seed0/{path}" for path in ("one_step/weights.pth", "pseudo_masks/cam.h5")} <= planned
    assert "voc2012/seed0/classifier.pth" not in planned


def test_small_networks_go_all_the_way(clone: Project, sources: Path) -> None:  # noqa: F811
    """From the archives to scores on val and an archive for the server, by the recipes' own losses and mining."""
    clone.configure(merge(_config(sources), SMALL))
    done = clone.snakemake(*(f"{RUN}/{name}" for name in WANTED))
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(clone.root.joinpath(RUN, name).is_file() for name in WANTED)
