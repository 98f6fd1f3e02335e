"""Configuration: recipes, all mistakes at once, departures, and which stage reads which key."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from rrm.config import departures, load, merge, resolve
from rrm.errors import RRMError, RRMErrors
from rrm.pipeline import (
    FIGURES,
    STAGES,
    evaluated_splits,
    judged_splits,
    masks_section,
    method_section,
    models,
    stage_options,
)
from tests.workflow.project import shown_in_head

ROOT = Path(__file__).resolve().parents[2]
METHOD = {"kind": "em_adapt", "network": {"backbone": "mobilenet_v2", "start": "ImageNet"}}
VOC = {"dataset": {"root": "/data/VOC2012"}, "one_step": {"network": {"weights": "/data/mobilenet_v2.pth"}}}


@pytest.fixture
def raw() -> dict[str, Any]:
    return merge(yaml.safe_load((ROOT / "configs" / "voc_light.yaml").read_text()), VOC)


@pytest.mark.parametrize(
    "paths",
    [
        ["config.yaml"],
        ["config.yaml", "configs/demo_methods.yaml"],
        ["config.yaml", "configs/quick.yaml"],
        ["configs/voc_light.yaml"],
        ["configs/voc2012.yaml"],
        ["configs/voc2012.yaml", "configs/voc2012_paper.yaml"],
        ["configs/voc2012.yaml", "configs/voc2012_coco.yaml"],
    ],
)
def test_shipped_configurations_are_valid(paths: list[str], tmp_path: Path) -> None:
    over = tmp_path / "paths.yaml"
    own: dict[str, Any] = {}
    for path in paths:
        for asked in shown_in_head(Path(path).name)[:1] if path.startswith("configs/voc") else []:
            own = merge(own, asked)
    over.write_text(yaml.safe_dump(own))
    config = load(*(ROOT / path for path in paths), over)
    assert models(config)[:3] == ["cam/predicted", "cam/given", "one_step"]


def test_start_weights_that_tables_name_are_given() -> None:
    shipped = [ROOT / "configs" / name for name in ("voc2012.yaml", "voc2012_coco.yaml")]
    with pytest.raises(RRMErrors) as error:
        load(*shipped)
    networks = ["one_step", *(f"step_two.{name}" for name in ("vgg16", "resnet101", "cam_resnet101", "resnet101_coco"))]
    missing = [f"{name}.network.weights" for name in (*networks, "bounds.vgg16", "bounds.resnet101")]
    assert [fault.split(":")[0] for fault in error.value.faults] == ["dataset.root", *missing]
    assert "tables will call 'COCO', got null: give its path" in str(error.value)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"one_step": {"network": {"weights": None, "start": "random"}}}, None),
        (
            {"one_step": {"network": {"start": "random"}}},
            "one_step.network.start: expected what /data/mobilenet_v2.pth",
        ),
        ({"bounds": {"mobilenet_v2": {"warm_start": False}}}, "bounds.mobilenet_v2.network.weights: expected the file"),
        ({"methods": {"own": METHOD}}, None),
        ({"methods": {"own": METHOD}, "classifier": {"enabled": False}}, "methods.own.network.weights: expected the"),
    ],
)
def test_a_name_of_start_weights_goes_with_weights(
    raw: dict[str, Any], change: dict[str, Any], fault: str | None
) -> None:
    """One-step training and methods take over the classifier, networks with `warm_start` another one's weights."""
    if fault is None:
        resolve(merge(raw, change))
        return
    with pytest.raises(RRMErrors, match=fault):
        resolve(merge(raw, change))


def test_a_later_file_takes_an_entry_out(raw: dict[str, Any]) -> None:
    assert models(resolve(merge(raw, {"bounds": {"mobilenet_v2": None}})))[-1] == "step_two/mobilenet_v2"


def test_every_mistake_is_reported_at_once(raw: dict[str, Any]) -> None:
    raw["one_step"]["mining"]["ratio"] = 1.5
    raw["one_step"]["colour"] = "red"
    raw["step_two"]["mobilenet_v2"]["train"]["steps"] = "many"
    raw["bounds"]["mobilenet_v2"]["train"]["optimizer"] = {"lr": "1e-3x"}
    del raw["evaluation"]
    with pytest.raises(RRMErrors) as error:
        resolve(raw)
    keys = {fault.split(":")[0] for fault in error.value.faults}
    assert keys == {
        "one_step.mining.ratio",
        "one_step.colour",
        "step_two.mobilenet_v2.train.steps",
        "bounds.mobilenet_v2.train.optimizer.lr",
        "evaluation",
    }


@pytest.mark.parametrize("change", [{"linear": None}, {"train": {"steps": 1, "batch_size": 1, "crop": 16}}])
def test_a_classifier_is_fitted_or_trained(raw: dict[str, Any], change: dict[str, Any]) -> None:
    for section in change.values():
        if section:
            section["optimizer"] = {"lr": 0.1, "weight_decay": 0}
    with pytest.raises(RRMErrors, match="expected one of linear and train, got both or none"):
        resolve(merge(raw, {"classifier": change}))


def test_one_number_of_shards_is_for_all_stages(raw: dict[str, Any]) -> None:
    for given, expected in ((3, (3, 3, 3)), ({"predict": 2}, (1, 2, 1))):
        shards = resolve(merge(raw, {"runtime": {"shards": given}})).runtime.shards
        assert (shards.pseudo_masks, shards.predict, shards.evaluate) == expected
    with pytest.raises(RRMErrors, match="runtime.shards.evaluate: Input should be greater than or equal to 1, got 0"):
        resolve(merge(raw, {"runtime": {"shards": {"evaluate": 0}}}))
    with pytest.raises(RRMErrors, match="runtime.shards.train: expected a known key"):
        resolve(merge(raw, {"runtime": {"shards": {"train": 2}}}))


def test_voc_needs_a_root(raw: dict[str, Any]) -> None:
    raw["dataset"]["root"] = None
    with pytest.raises(RRMErrors, match="give dataset.root"):
        resolve(raw)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n- b\n", "bad.yaml"),
        ("a: [1\n", "bad.yaml"),
        ("", "bad.yaml"),
        ('"\\ud800": 1\n', "expected text, got half a character"),
        ('dataset: {"\\ud800": 1}\n', "expected text, got half a character"),
        ('dataset: {name: "\\ud800"}\n', "expected text, got half a character"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(RRMErrors, match=message):
        load(path)


def test_recipes_fill_what_is_not_set(raw: dict[str, Any]) -> None:
    raw["one_step"] = {"recipe": "paper"}
    one_step = resolve(raw).one_step
    assert (one_step.mining.rule, one_step.losses.classification, one_step.train.optimizer.lr) == (
        "paper",
        "softmax",
        1e-3,
    )
    assert departures(one_step) == []
    raw["one_step"] = {
        "recipe": "reference",
        "mining": {"ratio": 0.6},
        "network": {"weights": "x.params", "start": "ImageNet"},
    }
    assert departures(resolve(raw).one_step) == ["mining.ratio=0.6"]


OTHERS = {kind: {"kind": kind} for kind in ("em_adapt", "sec", "dsrg")}


def test_other_methods_have_the_defaults_of_their_publications(raw: dict[str, Any]) -> None:
    config = resolve(merge(raw, {"methods": OTHERS}))
    assert models(config)[2:6] == ["one_step", "methods/em_adapt", "methods/sec", "methods/dsrg"]
    assert [departures(method) for method in config.methods.values()] == [[], [], []]
    assert [method.label for method in config.methods.values()] == ["EM-Adapt", "SEC", "DSRG"]
    assert method_section(config, "methods/sec").network == config.one_step.network
    with pytest.raises(RRMError, match="model: expected one of .*methods/sec.* got 'methods/other'"):
        method_section(config, "methods/other")
    changed = resolve(merge(raw, {"methods": {"sec": {"kind": "sec", "train": {"steps": 9}, "absent_decay": 0.5}}}))
    assert departures(changed.methods["sec"]) == ["train.steps=9", "absent_decay=0.5"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"em_adapt": {"background": 1.2}}, "methods.em_adapt.background: Input should be less than or equal to 1"),
        ({"em_adapt": {"passes": 0}}, "methods.em_adapt.passes: Input should be greater than or equal to 1"),
        ({"sec": {"foreground": 0.2}}, "methods.sec.foreground: expected a known key"),
        ({"dsrg": {"seeds": {"background": 0.3}}}, "methods.dsrg.seeds: .*expected background at most foreground"),
        ({"sec": {"kind": "other"}}, "methods.sec: .*'other'"),
        ({"Other": {"kind": "sec"}}, "methods.Other"),
    ],
)
def test_mistakes_in_other_methods(raw: dict[str, Any], change: dict[str, Any], fault: str) -> None:
    with pytest.raises(RRMErrors, match=fault):
        resolve(merge(raw, {"methods": merge(OTHERS, change)}))


def test_seeds_need_a_classifier(raw: dict[str, Any]) -> None:
    changed = merge(raw, {"classifier": {"enabled": False}, "methods": {"em_adapt": OTHERS["em_adapt"]}})
    assert resolve(changed).methods
    with pytest.raises(RRMErrors, match=r"expected classifier.enabled for the seeds of sec, dsrg, got false"):
        resolve(merge(changed, {"methods": OTHERS}))


def test_masks_of_the_classifier_need_one(raw: dict[str, Any]) -> None:
    changed = merge(raw, {"classifier": {"enabled": False}, "pseudo_masks": {"walk": {"random_walk": {}}}})
    assert masks_section(resolve(changed), "walk").network == "classifier"  # of which no network is trained
    changed["step_two"]["mobilenet_v2"]["pseudo_masks"] = "walk"
    with pytest.raises(RRMErrors, match=r"pseudo_masks.walk.network: expected one_step where classifier.enabled is f"):
        resolve(changed)
    resolve(merge(changed, {"pseudo_masks": {"walk": {"network": "one_step"}}}))


def _readers(raw: dict[str, Any], *keys: str, value: Any) -> set[str]:
    """Stages whose options change when the key does."""
    changed = copy.deepcopy(raw)
    section = changed
    for key in keys[:-1]:
        section = section[key]
    section[keys[-1]] = value
    before, after = resolve(raw), resolve(changed)
    readers = set()
    for stage in STAGES:
        if stage == "affinity":
            continue  # `test_a_key_of_a_random_walk_concerns_its_training_or_its_masks`
        names = [""] if stage not in ("step-two", "bound", "method", "predict") else models(before)
        for model in names:
            group = {"step-two": "step_two/", "bound": "bounds/", "method": "methods/", "predict": ""}.get(stage, "")
            if model.startswith(group) and stage_options(before, stage, model=model) != stage_options(
                after, stage, model=model
            ):
                readers.add(f"{stage} {model}".strip())
    whole = {"ablation-table", "class-table", "table5", "comparisons", "resolved-config", "departures", "label-quality"}
    whole |= {"photo-facts", "label-agreement", "doubt", "gallery"}
    return readers - whole - set(FIGURES)  # what the figures read: tests/figures/test_options.py


def test_a_key_concerns_the_stages_that_read_it(raw: dict[str, Any]) -> None:
    assert _readers(raw, "evaluation", "crf", "iterations", value=5) == {"evaluate", "submission"}
    assert _readers(raw, "evaluation", "submission_crf", value=False) == {"submission"}
    assert _readers(raw, "one_step", "mining", "ratio", value=0.5) == {"one-step"}
    assert _readers(raw, "one_step", "network", "start", value="x") == set()
    assert _readers(raw, "step_two", "mobilenet_v2", "train", "steps", value=5) == {"step-two step_two/mobilenet_v2"}
    assert _readers(raw, "step_two", "mobilenet_v2", "label", value="x") == set()
    assert _readers(raw, "runtime", "workers", value=3) == set()
    assert _readers(raw, "runtime", "shards", value=3) == set()
    assert _readers(raw, "pseudo_masks", "one_step", "confidence", value=0.5) == {"pseudo-masks"}
    raw["methods"] = {"em_adapt": {"kind": "em_adapt"}}
    assert _readers(raw, "methods", "em_adapt", "foreground", value=0.5) == {"method methods/em_adapt"}
    assert _readers(raw, "methods", "em_adapt", "label", value="x") == set()
    assert _readers(raw, "one_step", "network", "options", value={"width": 0.5}) == {
        *("classifier", "one-step", "method methods/em_adapt")
    }


def test_sets_of_pseudo_masks_fit_together(raw: dict[str, Any]) -> None:
    name = next(iter(raw["step_two"]))
    raw["step_two"][name]["pseudo_masks"] = "other"
    with pytest.raises(RRMErrors, match=rf"step_two.{name}.pseudo_masks: expected one of one_step, got 'other'"):
        resolve(raw)
    raw["pseudo_masks"]["other"] = {"network": "classifier", "source": "segmentation"}
    with pytest.raises(RRMErrors, match="expected cam for the network classifier"):
        resolve(raw)
    raw["pseudo_masks"]["other"]["source"] = "cam"
    raw["step_two"][name]["labels"] = "boxes"
    with pytest.raises(RRMErrors, match=rf"step_two.{name}.labels: expected masks, got boxes"):
        resolve(raw)
    del raw["step_two"][name]["labels"]
    assert resolve(raw).step_two[name].pseudo_masks == "other"


def test_a_random_walk_has_the_defaults_of_its_publication(raw: dict[str, Any]) -> None:
    raw["pseudo_masks"]["walk"] = {"random_walk": {}}
    config = resolve(raw)
    section = masks_section(config, "walk")
    assert (section.network, section.source, section.cam_exponent) == ("classifier", "cam", 16)
    walk = section.random_walk
    assert walk is not None and (walk.radius, walk.beta, walk.steps) == (5, 8, 256)
    assert (walk.mining.rule, walk.mining.cam_exponent, walk.mining.crf_exponent) == ("reference", 32, 4)
    assert resolve(config.model_dump(mode="json")) == config
    raw["pseudo_masks"]["walk"] = {"network": "one_step", "cam_exponent": 8, "random_walk": {"train": {"steps": 9}}}
    changed = masks_section(resolve(raw), "walk")
    assert changed.random_walk is not None and changed.random_walk.train.steps == 9
    assert (changed.network, changed.cam_exponent) == ("one_step", 8)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            {"network": "one_step", "source": "average"},
            "pseudo_masks.walk.source: expected cam for a random walk, got average",
        ),
        ({"random_walk": {"radius": 1}}, "pseudo_masks.walk.random_walk.radius: Input should be greater than or equal"),
        ({"random_walk": {"beta": 0}}, "pseudo_masks.walk.random_walk.beta: Input should be greater than 0"),
        ({"random_walk": {"steps": -1}}, "pseudo_masks.walk.random_walk.steps"),
        ({"random_walk": {"colour": 1}}, "pseudo_masks.walk.random_walk.colour: expected a known key"),
        ({"random_walk": 3}, "pseudo_masks.walk.random_walk: "),
    ],
)
def test_mistakes_in_a_random_walk(raw: dict[str, Any], change: dict[str, Any], fault: str) -> None:
    raw["pseudo_masks"]["walk"] = merge({"random_walk": {}}, change)
    with pytest.raises(RRMErrors, match=fault):
        resolve(raw)


@pytest.mark.parametrize(
    ("change", "readers"),
    [
        ({"random_walk": {"beta": 2}}, {"pseudo-masks"}),
        ({"random_walk": {"steps": 9}}, {"pseudo-masks"}),
        ({"cam_exponent": 9}, {"pseudo-masks"}),
        ({"crf": {"iterations": 9}}, {"pseudo-masks"}),
        ({"random_walk": {"train": {"steps": 9}}}, {"affinity"}),
        ({"random_walk": {"mining": {"ratio": 0.5}}}, {"affinity"}),
        ({"random_walk": {"radius": 3}}, {"affinity", "pseudo-masks"}),
        ({"cam_scales": [1.0]}, {"affinity", "pseudo-masks"}),
    ],
)
def test_a_key_of_a_random_walk_concerns_its_training_or_its_masks(
    raw: dict[str, Any], change: dict[str, Any], readers: set[str]
) -> None:
    raw["pseudo_masks"]["walk"] = {"random_walk": {}}
    before, after = resolve(raw), resolve(merge(raw, {"pseudo_masks": {"walk": change}}))
    stages = ("affinity", "pseudo-masks", "classifier", "one-step")
    options = {stage: [stage_options(each, stage, masks="walk") for each in (before, after)] for stage in stages}
    assert {stage for stage, (old, new) in options.items() if old != new} == readers
    with pytest.raises(RRMError, match=r"pseudo_masks.one_step: expected a random_walk, got none"):
        stage_options(before, "affinity", masks="one_step")


SOURCES = {"voc": ["VOCtrainval_11-May-2012.tar"], "sbd": "benchmark.tgz"}


@pytest.mark.parametrize(
    ("dataset", "fault"),
    [
        ({"kind": "voc"}, "or dataset.sources to assemble VOC 2012"),
        ({"kind": "voc", "root": "voc", "sources": SOURCES}, "sources: expected null beside root"),
        ({"kind": "demo", "sources": SOURCES}, "sources: expected null beside root and for the demo"),
        ({"kind": "voc", "sources": {**SOURCES, "voc": []}}, "dataset.sources.voc"),
    ],
)
def test_the_data_set_is_in_one_place(raw: dict[str, Any], dataset: dict[str, Any], fault: str) -> None:
    with pytest.raises(RRMErrors, match=fault):
        resolve({**raw, "dataset": {"name": "mine", **dataset}})


def test_packing_does_not_depend_on_where_the_sources_lie(raw: dict[str, Any]) -> None:
    raw["dataset"] = {"name": "mine", "kind": "voc", "sources": SOURCES}
    assert _readers(raw, "dataset", "sources", "sbd", value="elsewhere/benchmark.tgz") == {"assemble"}


def test_without_masks_nothing_may_ask_for_them(raw: dict[str, Any]) -> None:
    raw["dataset"]["masks"] = False
    with pytest.raises(RRMErrors, match="dataset.masks: expected true for bounds, which need masks, got false"):
        resolve(raw)
    raw["bounds"] = {}
    assert evaluated_splits(resolve(raw)) == [] and judged_splits(resolve(raw)) == ["train", "val"]


def test_photos_are_segmented_by_a_model_of_the_run(raw: dict[str, Any]) -> None:
    raw["segment"] = {"model": "step_two/other"}
    with pytest.raises(RRMErrors, match="segment.model: expected one of one_step, step_two/mobilenet_v2, bounds/"):
        resolve(raw)
    raw["segment"] = {"model": "step_two/mobilenet_v2", "write": ["overlays"]}
    with pytest.raises(RRMErrors, match="segment.write: .*expected masks among them"):
        resolve(raw)
    raw["segment"]["write"] = ["masks"]
    assert resolve(raw).segment is not None


def test_masks_of_photos_concern_no_other_stage(raw: dict[str, Any]) -> None:
    assert _readers(raw, "segment", value={"crf": False}) == set()
