"""Stages end to end: outputs, tables from matrices only, refusals, kills and resumes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rrm.metrics import scores_of
from rrm.store import Store
from rrm.tables import COLUMNS
from rrm.training import read_weights
from tests.pipeline.conftest import CONFIG, MODELS, ROOT, Chain
from tests.waiting import until


def _table(chain: Chain, out: Path, models: tuple[str, ...] = MODELS) -> int:
    inputs = {f"0:{model}:val": chain.seed / model / "confusion_val.h5" for model in models}
    return chain.stage("table5", out, **inputs)


def test_probabilities_sum_to_one(finished: Chain) -> None:
    for model in MODELS:
        store = Store(finished.seed / model / "probabilities_val.h5", "probabilities")
        values = store.read(store.ids[0], "probabilities").astype(np.float32)
        np.testing.assert_allclose(values.sum(0), 1, atol=5e-3)


def test_table_holds_reported_rows_and_recomputable_cells(finished: Chain, tmp_path: Path) -> None:
    assert _table(finished, tmp_path / "table5.csv") == 0
    table = pd.read_csv(tmp_path / "table5.csv")
    assert list(table.columns) == COLUMNS
    reported, measured = table[table.source == "reported"], table[table.source == "measured"]
    assert len(reported) == 19 and reported.citation.notna().all()
    assert set(reported.dataset) == {"VOC 2012"} and reported.val_without_crf.isna().all()
    assert list(measured.supervision) == ["L", "L", "L", "L", "L", "L", "F"]
    assert list(measured.image_labels_at_test) == ["no", "yes", "no", "no", "no", "no", "no"]
    em_adapt = measured[measured.method == "EM-Adapt"].iloc[0]
    assert (em_adapt.citation, em_adapt.end_to_end, em_adapt.recipe) == ("papandreou2015weakly", "yes", "em_adapt")
    for model, (_, row) in zip(MODELS, measured.iterrows(), strict=True):
        store = Store(finished.seed / model / "confusion_val.h5", "confusion")
        for kind, column in (("crf", "val"), ("plain", "val_without_crf")):
            total = np.sum([store.read(name, kind) for name in store.ids], 0)
            assert row[column] == pytest.approx(100 * scores_of(total).mean_iou, abs=0.006)
        assert row.val_images == 5 and row.dataset == "tiny" and int(row.seeds) == 0
        assert "train.steps=" in row.departures


def test_table_refuses_matrices_of_another_configuration(
    finished: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = zip(MODELS, reversed(MODELS), strict=True)
    swapped = {f"0:{m}:val": finished.seed / o / "confusion_val.h5" for m, o in pairs}
    assert finished.stage("table5", tmp_path / "table5.csv", **swapped) == 1
    assert "made with another configuration" in capsys.readouterr().err
    assert _table(finished, tmp_path / "table5.csv", MODELS[:-1]) == 1
    assert "expected confusion matrices of 'bounds/resnet38'" in capsys.readouterr().err
    assert not (tmp_path / "table5.csv").exists()


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_killed_training_goes_on_to_the_same_weights(finished: Chain, tmp_path: Path, kind: signal.Signals) -> None:
    out = tmp_path / "one_step" / "weights.pth"
    command = [
        *(sys.executable, "-m", "rrm", "one-step", "--config", *CONFIG, "--threads", "1", "--out", str(out)),
        *("--in", f"photos={finished.photos}", "--in", f"start={finished.seed / 'classifier.pth'}"),
    ]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    until(lambda: list(out.parent.glob("weights.checkpoints/*/last.pth")), "a checkpoint")
    os.kill(process.pid, kind)
    process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGKILL, 143) and not out.exists()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 0, again.stderr
    expected, got = read_weights(finished.weights("one_step")), read_weights(out)
    assert all((expected["weights"][name] == tensor).all() for name, tensor in got["weights"].items())


def test_a_fitted_classifier_is_reproducible_and_leaves_the_backbone(finished: Chain, tmp_path: Path) -> None:
    over = tmp_path / "linear.yaml"
    over.write_text("classifier: {linear: {scales: [1.0], weight_decay: 1.0e-1}, train: null}\n")
    paths = [tmp_path / name for name in ("a.pth", "b.pth")]
    for path in paths:
        assert finished.stage("classifier", path, "--config", *CONFIG, str(over), photos=finished.photos) == 0
    first, second = (read_weights(path)["weights"] for path in paths)
    assert all((tensor == second[name]).all() for name, tensor in first.items())
    assert first["fc8.weight"].any() and not first["backbone.bn7.running_mean"].any()


@pytest.mark.parametrize("kind", ["sec", "dsrg"])
def test_methods_with_seeds_are_trained_and_scored(finished: Chain, tmp_path: Path, kind: str) -> None:
    over = tmp_path / "methods.yaml"
    loop = "{steps: 2, batch_size: 4, crop: 48, optimizer: {kind: adamw, lr: 1.0e-3}}"
    over.write_text(
        f"methods: {{{kind}: {{kind: {kind}, seeds: {{foreground: 0.5, background: 0.3}}, train: {loop}}}}}"
    )
    config = ("--config", *CONFIG, str(over))
    assert finished.method(kind, *config) == 0
    confusion = finished.score(f"methods/{kind}", *config)
    table, model = tmp_path / "table5.csv", f"0:methods/{kind}:val"
    inputs = {f"0:{each}:val": finished.seed / each / "confusion_val.h5" for each in MODELS}
    assert finished.stage("table5", table, *config, **inputs, **{model: confusion}) == 0
    row = pd.read_csv(table).query("method == @kind.upper() and source == 'measured'").iloc[0]
    assert (row.supervision, row.end_to_end, row.recipe) == ("L", "no", kind)
    assert "seeds.foreground=0.5" in row.departures and "seeds.scales" not in row.departures


def test_missing_and_wrong_inputs_are_one_line(
    finished: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.pth"
    assert finished.stage("classifier", out) == 1
    assert "add --in photos=PATH" in capsys.readouterr().err
    assert finished.stage("classifier", out, photos=tmp_path / "none.h5") == 1
    assert "run the stage that makes it" in capsys.readouterr().err
    assert finished.stage("classifier", out, photos=finished.weights("one_step")) == 1
    message = capsys.readouterr().err
    assert "weights.pth" in message and "Traceback" not in message
    assert not out.exists()
