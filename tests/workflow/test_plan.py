"""What a change re-plans: exactly the jobs whose result it concerns, and those that follow."""

from __future__ import annotations

import ast
import copy
import subprocess
import sys
from typing import Any

import pytest

from tests.workflow.project import REPOSITORY, Project, small_config
from workflow.plan import Plan

TABLE = {"table3.csv", "table4.csv", "table5.csv", "comparisons.csv"}
PREDICTIONS = {"figure4.png", "failures.png"}
FIGURES = {"figure2.png", "figure3.png", "label_quality.csv"} | PREDICTIONS
DATA = {
    "demo/voc/manifest.json",
    "demo/photos.h5",
    *(f"demo/masks_{split}.h5" for split in ("train", "val", "test")),
}
MODELS = (
    "cam/predicted",
    "cam/given",
    "one_step",
    "methods/em_adapt",
    "step_two/plain",
    "step_two/warm",
    "bounds/full",
)
STEP_TWO = ("step_two/plain", "step_two/warm")


def evaluated(*models: str, seed: int = 0) -> set[str]:
    return {f"demo/seed{seed}/{model}/confusion_{split}.h5" for model in models for split in ("val", "test")}


def scored(*models: str, seed: int = 0) -> set[str]:
    folders = [f"demo/seed{seed}/{model}" for model in models]
    return {f"{folder}/probabilities_{split}.h5" for folder in folders for split in ("val", "test")} | evaluated(
        *models, seed=seed
    )


def weights(*models: str, seed: int = 0) -> set[str]:
    return {f"demo/seed{seed}/{model}/weights.pth" for model in models}


def variants(*names: str) -> set[str]:
    """Variants of the one-step network, which are scored on val only."""
    models = [f"ablation/{name}" for name in names]
    return weights(*models) | {path for path in scored(*models) if path.endswith("_val.h5")}


def masks(seed: int = 0) -> set[str]:
    return {f"demo/seed{seed}/pseudo_masks/one_step.h5"}


def run_of(seed: int) -> set[str]:
    """Everything that belongs to one seed."""
    trained = weights("one_step", "methods/em_adapt", *STEP_TWO, "bounds/full", seed=seed) | {
        f"demo/seed{seed}/classifier.pth"
    }
    return trained | masks(seed) | scored(*MODELS, seed=seed)


def put(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The configuration with one key set."""
    *sections, last = key.split(".")
    place = config
    for section in sections:
        place = place.setdefault(section, {})
    place[last] = value
    return config


EM_ADAPT = weights("methods/em_adapt") | scored("methods/em_adapt")
CHANGES = [
    ({"evaluation.crf.iterations": 7}, evaluated(*MODELS) | TABLE | FIGURES),
    (
        {"evaluation.views.scales": [0.5, 1.0]},
        scored("one_step", "methods/em_adapt", *STEP_TWO, "bounds/full") | TABLE | FIGURES,
    ),
    ({"step_two.plain.views": {"scales": [1.5]}}, scored("step_two/plain") | TABLE | PREDICTIONS),
    (
        {"pseudo_masks.one_step.crf.iterations": 7},
        masks() | weights(*STEP_TWO) | scored(*STEP_TWO) | TABLE | PREDICTIONS,
    ),
    (
        {"pseudo_masks.cam": {"network": "classifier", "source": "cam"}, "step_two.plain.pseudo_masks": "cam"},
        {"demo/seed0/pseudo_masks/cam.h5"} | weights("step_two/plain") | scored("step_two/plain") | TABLE | PREDICTIONS,
    ),
    (
        {"pseudo_masks.walk.random_walk": {}, "step_two.plain.pseudo_masks": "walk"},
        {"demo/seed0/affinity/walk.pth", "demo/seed0/pseudo_masks/walk.h5"}
        | weights("step_two/plain")
        | scored("step_two/plain")
        | TABLE
        | PREDICTIONS,
    ),
    ({"methods.em_adapt.train.steps": 77}, EM_ADAPT | TABLE | PREDICTIONS),
    ({"methods.em_adapt.foreground": 0.3}, EM_ADAPT | TABLE | PREDICTIONS),
    ({"step_two.plain.train.steps": 77}, weights("step_two/plain") | scored("step_two/plain") | TABLE | PREDICTIONS),
    (
        {"bounds.full.labels": "boxes"},
        {"demo/boxes_train.h5"} | weights("bounds/full") | scored("bounds/full") | TABLE,
    ),
    ({"bounds.full.train.steps": 77}, weights("bounds/full") | scored("bounds/full") | TABLE),
    (
        {"one_step.mining.ratio": 0.77},
        weights("one_step", *STEP_TWO)
        | masks()
        | scored("cam/predicted", "cam/given", "one_step", *STEP_TWO)
        | TABLE
        | FIGURES,
    ),
    ({"classifier.train.steps": 77}, run_of(0) | TABLE | FIGURES),
    ({"classifier.enabled": False}, (run_of(0) - {"demo/seed0/classifier.pth"}) | TABLE | FIGURES),
    (
        {"step_two.plain.label": "other", "methods.em_adapt.label": "other", "step_two.warm.network.start": "other"},
        TABLE | PREDICTIONS,
    ),
    ({"seeds": [0, 3]}, run_of(3) | TABLE),
    ({"gallery.photos": 7}, set()),
    (
        {"ablation.ratios": [0.4, 0.8]},
        variants("rrm-0.4-ce", "rrm-0.4-joint", "rrm-0.8-ce") | {"table1.csv"} | TABLE,
    ),
    (
        {"ablation.pseudo_labels": True},
        variants("rrm-0.8-ce", "cam-0.8-ce", "cam-0.8-joint") | {"table2.csv"} | TABLE,
    ),
]


def test_from_nothing_all_is_planned_once(everything: set[str]) -> None:
    assert everything == DATA | run_of(0) | TABLE | FIGURES


@pytest.mark.parametrize(("changed", "expected"), CHANGES, ids=[" ".join(changed) for changed, _ in CHANGES])
def test_a_key_replans_what_reads_it_and_what_follows(
    changed: dict[str, Any], expected: set[str], finished: Project
) -> None:
    config = small_config()
    for key, value in changed.items():
        put(config, key, value)
    finished.configure(config)
    assert finished.planned() == expected


WALKED = (
    {"demo/seed0/pseudo_masks/walk.h5"} | weights("step_two/plain") | scored("step_two/plain") | TABLE | PREDICTIONS
)


def test_a_walk_replans_its_masks_and_its_training_the_affinities_too(clone: Project) -> None:
    walk = put(put(small_config(), "pseudo_masks.walk.random_walk", {}), "step_two.plain.pseudo_masks", "walk")
    clone.configure(walk)
    for output in clone.planned():
        path = clone.root / "results" / output
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("made by hand")
    assert clone.snakemake("--touch", "--forceall").returncode == 0
    assert clone.planned() == set()
    trained = WALKED | {"demo/seed0/affinity/walk.pth"}
    for key, value, expected in (("beta", 2, WALKED), ("steps", 9, WALKED), ("train.steps", 77, trained)):
        clone.configure(put(copy.deepcopy(walk), f"pseudo_masks.walk.random_walk.{key}", value))
        assert clone.planned() == expected, key
    clone.configure(put(copy.deepcopy(walk), "pseudo_masks.walk.network", "one_step"))
    assert clone.planned() == trained


def test_processes_are_for_the_training_loop() -> None:
    config = put(small_config(), "runtime", {"device": "cuda", "processes": 4, "threads": {"one_step": 3}})
    for section in (config["classifier"]["train"], config["one_step"]["train"]):
        section["batch_size"] = 8
    plan = Plan(put(config, "methods", {}) | {"step_two": {}, "bounds": {}}, "test")
    commands = {stage: plan.launch(stage)(None, None) for stage in ("one-step", "predict")}
    assert commands == {"one-step": "torchrun --standalone --nproc-per-node 4", "predict": "python"}
    assert [plan.gpu(stage) for stage in ("one-step", "predict", "evaluate")] == [4, 1, 1]
    assert [plan.threads(stage) for stage in ("one-step", "classifier", "predict")] == [12, 8, 1]


def test_how_to_run_and_mere_text_replan_nothing(finished: Project) -> None:
    config = small_config()
    config["runtime"] = {
        "device": "cpu",
        "processes": 2,
        "threads": {"one_step": 5},
        "workers": 3,
        "crf_workers": 0,
        "log_seconds": 1,
    }
    finished.configure(config, comment="# said otherwise\n")
    for path in finished.root.glob("rrm/**/*.py"):
        text = path.read_text()
        docstring = ast.get_docstring(ast.parse(text), clean=False)
        path.write_text(text.replace(docstring or "", "Another text.\n", 1) + "\n# a remark\n")
    rules = finished.root / "workflow" / "rules" / "training.smk"
    rules.write_text(rules.read_text().replace("{params.launch} -m rrm", "exec {params.launch} -m rrm"))
    assert finished.planned() == set()


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("stages/pseudo_masks.py", masks() | weights(*STEP_TWO) | scored(*STEP_TWO) | TABLE | PREDICTIONS),
        ("em_adapt.py", EM_ADAPT | TABLE | PREDICTIONS),
        ("figures.py", FIGURES),
        ("tables.py", TABLE | PREDICTIONS | {"label_quality.csv"}),
    ],
)
def test_code_replans_the_stages_that_import_it(module: str, expected: set[str], finished: Project) -> None:
    path = finished.root / "rrm" / module
    path.write_text(path.read_text() + "\n_CHANGED = True\n")
    assert finished.planned() == expected


def test_a_stage_stopped_while_done_anew_leaves_nothing_stale(finished: Project, everything: set[str]) -> None:
    gone = "demo/seed0/bounds/full/weights.pth"
    assert gone in everything
    config = small_config()
    config["bounds"]["full"]["train"]["steps"] += 1
    finished.configure(config)
    assert finished.snakemake("--cleanup-metadata", f"results/{gone}").returncode == 0
    finished.root.joinpath("results", gone).unlink()  # as Snakemake does, and forgets it, when the job starts
    planned = finished.planned()
    assert gone in planned
    assert {output for output in planned if "bounds/full" in output} == {o for o in everything if "bounds/full" in o}


def test_planning_does_not_load_torch() -> None:
    """Each call of Snakemake would wait for it: seconds."""
    program = "import sys, workflow.plan, workflow.folder; print({'torch', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
