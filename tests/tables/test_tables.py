"""The tables from made confusion matrices: every measured cell is recomputed here, pixel counts added by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from rrm.config import Config, resolve
from rrm.errors import RRMErrors
from rrm.pipeline import models, scored_models, stage_options, variant, variants
from rrm.stages import ablation_table, class_table, comparisons, table5
from rrm.stages.call import Call
from rrm.stages.measured import _expected
from rrm.store import Store, StoreWriter

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ["beetle", "gecko", "heron", "crayfish", "marten"]
RATIOS = [0.2, 0.8, 1.0]


def demo(**changes: Any) -> Config:
    """The demo's configuration with two seeds and all tables."""
    raw: dict[str, Any] = yaml.safe_load(ROOT.joinpath("config.yaml").read_text())
    raw["seeds"] = [0, 5]
    raw["ablation"] = {"ratios": RATIOS, "pseudo_labels": True}
    return resolve(raw | copy.deepcopy(changes))


def matrices(rng: np.random.Generator, quality: float) -> dict[str, np.ndarray]:
    """One photo's matrices: `quality` of each class's pixels are right."""
    made = {}
    for kind, bonus in (("plain", 0.0), ("crf", 0.1)):
        wrong = rng.integers(0, 30, (6, 6))
        made[kind] = (wrong + np.diag(rng.integers(200, 400, 6) * (quality + bonus))).astype(np.int64)
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, dict[str, Path]]:
    """Stores of all models, seeds and splits; joint is better than cross-entropy, RRM better than CAM."""
    config, folder, inputs = demo(), tmp_path_factory.mktemp("matrices"), {}
    for number, (model, splits) in enumerate(scored_models(config).items()):
        quality = 1.0 - 0.3 * model.endswith("-ce") - 0.3 * ("/cam-" in model) + 0.5 * model.startswith("step_two")
        for seed in config.seeds:
            for split in splits:
                path = folder / f"{number}_{seed}_{split}.h5"
                facts = {"split": split, "classes": CLASSES, "trained_options": _expected(config, seed, model)}
                rng = np.random.default_rng([number, seed, len(split)])
                with StoreWriter(path, "confusion", {}, "code", attrs=facts) as writer:
                    for photo in range(12):
                        writer.add(f"photo{photo}", matrices(rng, quality))
                inputs[f"{seed}:{model}:{split}"] = path
    return config, inputs


def table(stage: Any, run: tuple[Config, dict[str, Path]], out: Path, **options: str) -> pd.DataFrame:
    config, inputs = run
    given = {"config": config.model_dump(mode="json", exclude={"runtime"}), **options}
    stage.run(Call(stage.__name__.rpartition(".")[2], inputs, out, given))
    return pd.read_csv(out, dtype=str, keep_default_na=False)


def by_hand(run: tuple[Config, dict[str, Path]], model: str, split: str, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """IoU of each class, and their mean, for each seed; in percent."""
    ious = []
    for seed in run[0].seeds:
        store = Store(run[1][f"{seed}:{model}:{split}"], "confusion")
        total = np.zeros((6, 6))
        for name in store.ids:
            total += store.read(name, kind)
        ious.append([100 * total[k, k] / (total[k].sum() + total[:, k].sum() - total[k, k]) for k in range(6)])
    return np.array(ious), np.mean(ious, axis=1)


def test_table_1(run: tuple[Config, dict[str, Path]], tmp_path: Path) -> None:
    found = table(ablation_table, run, tmp_path / "table1.csv", table="1")
    assert list(found.ratio) == ["0.2", "0.8", "1.0"]
    assert list(found.paper_joint) == ["62.3", "59.4", "58.2"]
    assert list(found.paper_ce) == ["", "", ""]
    for ratio, (_, row) in zip(RATIOS, found.iterrows(), strict=True):
        for loss in ("ce", "joint"):
            for kind, suffix in (("crf", ""), ("plain", "_without_crf")):
                _, means = by_hand(run, variant(run[0], "rrm", ratio, loss), "val", kind)
                assert row[f"{loss}{suffix}"] == f"{means.mean():.2f}"
                assert row[f"{loss}{suffix}_std"] == f"{means.std(ddof=1):.2f}"
        assert (row.seeds, row.val_images, row.dataset) == ("0 5", "12", "demo")


def test_table_2(run: tuple[Config, dict[str, Path]], tmp_path: Path) -> None:
    found = table(ablation_table, run, tmp_path / "table2.csv", table="2")
    assert found[["labels", "paper_ce", "paper_joint"]].values.tolist() == [
        ["CAM", "46.1", "55.7"],
        ["RRM", "48.5", "62.6"],
    ]
    for labels, (_, row) in zip(("cam", "rrm"), found.iterrows(), strict=True):
        for loss in ("ce", "joint"):
            _, means = by_hand(run, variant(run[0], labels, 0.8, loss), "val", "crf")
            assert row[loss] == f"{means.mean():.2f}"


@pytest.mark.parametrize(("number", "split", "paper"), [("3", "val", "62.6"), ("4", "test", "62.9")])
def test_tables_3_and_4(
    run: tuple[Config, dict[str, Path]], tmp_path: Path, number: str, split: str, paper: str
) -> None:
    found = table(class_table, run, tmp_path / f"table{number}.csv", table=number)
    reported, measured = found[found.source == "reported"], found[found.source == "measured"]
    assert reported[["method", "mean"]].values.tolist()[1] == ["RRM one-step", paper]
    assert len(measured) == 2 * len(models(run[0]))
    for position, model in enumerate(models(run[0])):
        for offset, kind in enumerate(("crf", "plain")):
            row = measured.iloc[2 * position + offset]
            ious, means = by_hand(run, model, split, kind)
            assert row["mean"] == f"{means.mean():.2f}"
            for number_, name in enumerate(["background", *CLASSES]):
                assert row[name] == f"{ious[:, number_].mean():.2f}"
            assert (row.crf, row.images, row.aeroplane) == ("yes" if kind == "crf" else "no", "12", "")


def test_table_4_without_masks_says_so(run: tuple[Config, dict[str, Path]], tmp_path: Path) -> None:
    config = demo(dataset={"kind": "voc", "name": "mine", "root": "/photos"})
    found = table(class_table, (config, {}), tmp_path / "table4.csv", table="4")
    measured = found[found.source == "measured"]
    assert len(measured) == len(models(config))
    assert all("no public masks" in note for note in measured.note)
    assert set(measured["mean"]) == {""}


def test_table_5_leaves_variants_out(run: tuple[Config, dict[str, Path]], tmp_path: Path) -> None:
    found = table(table5, run, tmp_path / "table5.csv")
    assert (found.source == "measured").sum() == len(models(run[0]))


def test_comparisons(run: tuple[Config, dict[str, Path]], tmp_path: Path) -> None:
    found = table(comparisons, run, tmp_path / "comparisons.csv")
    for _, row in found.iterrows():
        kind = "crf" if row.crf == "yes" else "plain"
        above, below = (by_hand(run, model, row.split, kind)[1].mean() for model in (row.above, row.below))
        assert float(row.difference) == pytest.approx(above - below, abs=0.006)
        assert float(row.low) <= float(row.difference) <= float(row.high)
        if "above cross-entropy" in row.claim or "above CAM labels" in row.claim or "two-step" in row.claim:
            assert float(row.p) < 0.05, row.claim
    ratios = found[found.claim.str.startswith("Table 1: ratio") & (found.crf == "yes")]
    assert set(zip(ratios.above, ratios.below, strict=True)) == {
        ("one_step", "ablation/rrm-0.2-joint"),
        ("one_step", "ablation/rrm-1-joint"),
    }
    losses = found[found.claim.str.startswith("Table 1: joint") & (found.crf == "yes")]
    assert list(losses.below) == ["ablation/rrm-0.2-ce", "ablation/rrm-0.8-ce", "ablation/rrm-1-ce"]


def test_tables_refuse_matrices_of_another_configuration(run: tuple[Config, dict[str, Path]], tmp_path: Path) -> None:
    changed = demo(ablation={"ratios": [0.3, 0.8], "pseudo_labels": True})
    inputs = {f"{seed}:{model}:val": run[1][f"{seed}:ablation/rrm-0.2-ce:val"] for seed in (0, 5)
              for model in variants(changed)}  # fmt: skip
    with pytest.raises(RRMErrors, match="made with another configuration"):
        table(ablation_table, (changed, inputs), tmp_path / "table1.csv", table="1")
    assert not (tmp_path / "table1.csv").exists()


def test_variants_depart_in_what_they_are_named_after() -> None:
    config = demo()
    assert variant(config, "rrm", 0.8, "joint") == "one_step"
    assert set(variants(config)) == {
        *(f"ablation/rrm-{ratio}-{loss}" for ratio in ("0.2", "1") for loss in ("ce", "joint")),
        "ablation/rrm-0.8-ce",
        "ablation/cam-0.8-ce",
        "ablation/cam-0.8-joint",
    }
    own = stage_options(config, "one-step", seed=0, model="one_step")["one_step"]
    for name, (labels, ratio, loss) in variants(config).items():
        mine = stage_options(config, "one-step", seed=0, model=name)["one_step"]
        assert mine["mining"]["ratio"] == ratio
        assert mine["mining"]["rule"] == ("cam" if labels == "cam" else own["mining"]["rule"])
        assert (mine["energy"]["weight"] == 0) == (loss == "ce")
        mine["mining"] |= {key: own["mining"][key] for key in ("ratio", "rule")}
        mine["energy"]["weight"] = own["energy"]["weight"]
        assert mine == own


def test_variants_need_something_to_depart_from() -> None:
    raw = yaml.safe_load(ROOT.joinpath("config.yaml").read_text())
    raw["ablation"] = {"pseudo_labels": True}
    raw["one_step"]["energy"]["weight"] = 0
    with pytest.raises(RRMErrors, match=r"one_step.energy.weight above 0"):
        resolve(raw)
