"""Training in several processes: the same as in one, at any number of parts; stops, resumes and fails as one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from rrm.cli import main
from rrm.config import load, merge, resolve
from rrm.datasets.augmentation import TrainTransform
from rrm.datasets.loading import StepBatches
from rrm.distributed import joined
from rrm.errors import RRMError, RRMErrors
from rrm.networks import build_network
from rrm.pipeline import stage_options
from rrm.stages.trained import save_trained
from rrm.store import Store, StoreWriter
from rrm.training import read_weights
from tests.training.spread import call
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
CONFIG = [ROOT / "config.yaml", ROOT / "tests" / "tiny.yaml"]
SPREAD = ROOT / "tests" / "training" / "spread.py"
STEADY = {"network": {"options": {"batch_norm": "frozen", "dropout": [0, 0], "classifier_dropout": 0}}}
"""Neither batch statistics nor dropout: all that depends on which process has which images."""
SGD = {"kind": "sgd", "lr": 0.002, "momentum": 0.9}  # AdamW makes steps out of gradients that are all rounding


def _torchrun(*command: str | Path) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, command)]


@dataclass
class Bench:
    """A tiny data set and what to train on it."""

    folder: Path
    photos: Path
    masks: Path
    start: Path

    def options(self, stage: str, changes: dict[str, Any], model: str = "one_step") -> dict[str, Any]:
        (key,) = (key for key in stage_options(load(*CONFIG), stage, model=model) if key != "seed")
        options = stage_options(load(*CONFIG), stage, model=model)
        return {**options, key: merge(options[key], changes)}

    def case(self, name: str) -> tuple[str, dict[str, str], dict[str, Any]]:
        """Stage, inputs and options."""
        photos, train = {"photos": str(self.photos)}, {"train": {"steps": 3, "optimizer": SGD}}
        if name == "step two":
            steady = {
                "network": {"options": {"dropout": 0.0, "batch_norm": "none"}},
                "loss_scales": [0.5, 1.0],
                "cross_entropy": "balanced",
            }
            options = self.options("step-two", merge(train, steady), "step_two/vgg16")
            return "step_two", {**photos, "masks": str(self.masks)}, options
        photos["start"] = str(self.start)
        if name == "dsrg":  # does not know its counts before its losses
            dsrg = {"methods": {"dsrg": {"kind": "dsrg", "label": "DSRG", "seeds": {"foreground": 0.4}, **train}}}
            config = resolve(merge(load(*CONFIG).model_dump(mode="json"), merge(dsrg, {"methods": {"em_adapt": None}})))
            options = stage_options(config, "method", model="methods/dsrg")
            loop = merge(config.one_step.train.model_dump(mode="json"), train["train"])
            return "method", photos, {**options, "method": merge(options["method"], {"train": loop, **STEADY})}
        if name == "stopped":  # all that a process keeps to itself: dropout, statistics of batch norm
            drops = {"batch_norm": "train", "dropout": [0.1, 0.1], "classifier_dropout": 0.1}
            quick = {
                "train": {"steps": 10, "checkpoint_every": 100},
                "mining": {"rule": "cam"},
                "energy": {"weight": 0},
            }
            return "one_step", photos, self.options("one-step", {"network": {"options": drops}, **quick})
        losses = {"cross_entropy": "mean", "classification": "softmax"} if name == "mean" else {}
        return "one_step", photos, self.options("one-step", merge(train, {**STEADY, "losses": losses}))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    made = Bench(folder, folder / "photos.h5", folder / "pseudo.h5", folder / "start.pth")
    manifest, masks = folder / "voc" / "manifest.json", folder / "masks.h5"
    config = ["--config", *map(str, CONFIG)]
    assert main(["demo-data", *config, "--out", str(manifest)]) == 0
    assert main(["pack-photos", *config, "--in", f"manifest={manifest}", "--out", str(made.photos)]) == 0
    packed = [*config, "--split", "train", "--in", f"manifest={manifest}", "--out", str(masks)]
    assert main(["pack-masks", *packed]) == 0
    truth = Store(masks, "masks")
    with StoreWriter(made.masks, "pseudo_masks", {}, "", {"classes": truth.attrs["classes"]}) as writer:
        for name in truth.ids:
            writer.add(name, {"mask": truth.read(name, "mask")})
    _write_start(made)
    return made


def _write_start(bench: Bench) -> None:
    """Random weights with statistics of batch norm that fit them: with others, scores would overflow any softmax."""
    photos, options = Store(bench.photos, "photos"), bench.options("one-step", {})["one_step"]["network"]
    torch.manual_seed(0)
    classes, backbone = photos.attrs["classes"], options["backbone"]
    network = build_network("rrm", num_classes=len(classes), backbone=backbone, **options["options"]).train()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # the mean of all batches
    images = np.stack([photos.read(name, "image")[:40, :40] for name in photos.attrs["splits"]["train"]])
    with torch.no_grad():
        network(network.normalize(torch.from_numpy(images).permute(0, 3, 1, 2).float()))
    save_trained(bench.start, network, "rrm", classes, options, {})


CASES = ("balanced", "mean", "step two", "dsrg")


def _split(options: dict[str, Any], accumulate: int) -> dict[str, Any]:
    return {k: merge(v, {"train": {"accumulate": accumulate}}) if k != "seed" else v for k, v in options.items()}


@pytest.fixture(scope="module")
def spread(bench: Bench) -> Path:
    """Folder with the results of two processes: all cases, one of them in parts, and the one that a test stops."""
    folder = bench.folder / "spread"
    folder.mkdir()
    calls = []
    for name, parts in [*((name, 1) for name in CASES), ("balanced", 2), ("stopped", 1)]:
        stage, inputs, options = bench.case(name)
        calls += [(stage, inputs, str(folder / f"{name}-{parts}.pth"), _split(options, parts))]
    (folder / "calls.json").write_text(json.dumps(calls))
    command = _torchrun(SPREAD, folder / "calls.json")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def _history(weights: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in weights.with_suffix(".history.jsonl").read_text().splitlines()]


def _assert_same(made: Path, expected: Path) -> None:
    theirs, ours = _history(expected), _history(made)
    assert len(theirs) == len(ours) == 3
    for there, here in zip(theirs, ours, strict=True):
        assert here == pytest.approx(there, rel=1e-5)
    for name, tensor in read_weights(expected)["weights"].items():
        scale = 1e-5 * float(tensor.abs().max())
        torch.testing.assert_close(read_weights(made)["weights"][name], tensor, rtol=1e-5, atol=scale, msg=name)


@pytest.mark.parametrize("name", CASES)
def test_processes_and_parts_give_what_one_process_gives(name: str, bench: Bench, spread: Path) -> None:
    stage, inputs, options = bench.case(name)
    whole, parts = bench.folder / f"{name}-whole.pth", bench.folder / f"{name}-parts.pth"
    call(stage, inputs, str(whole), options)
    call(stage, inputs, str(parts), _split(options, 2))
    for made in (parts, *spread.glob(f"{name}-?.pth")):
        _assert_same(made, whole)


def _one_step(bench: Bench, out: Path, photos: Path | None = None) -> list[str]:
    """The command of the case `stopped`."""
    _, inputs, options = bench.case("stopped")
    given = [f"--in={name}={path}" for name, path in (inputs | ({"photos": str(photos)} if photos else {})).items()]
    runtime = json.dumps({"device": "cpu"})
    return _torchrun(
        "-m", "rrm", "one-step", *given, "--out", out, "--options", json.dumps(options), "--runtime", runtime
    )


def _children(parent: int) -> list[int]:
    stats = [path.read_text().rpartition(")")[2].split() for path in Path("/proc").glob("[0-9]*/stat")]
    numbers = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/stat")]
    return [number for number, stat in zip(numbers, stats, strict=True) if int(stat[1]) == parent]


def _stop_after_a_step(command: list[str], folder: Path) -> tuple[int, str]:
    """SIGTERM to one of the processes once there is a line of history; torchrun's exit code and all messages."""
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    histories = "*.checkpoints/*/history.jsonl"
    until(lambda: process.poll() is not None or any(path.stat().st_size for path in folder.glob(histories)), "a step")
    if process.poll() is None:
        os.kill(_children(process.pid)[-1], signal.SIGTERM)
    _, messages = process.communicate(timeout=120)
    return process.returncode, messages


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for the processes in /proc (Linux)")
def test_stopped_and_resumed_ends_with_identical_weights(bench: Bench, spread: Path, tmp_path: Path) -> None:
    out, undisturbed = tmp_path / "weights.pth", spread / "stopped-1.pth"
    code, messages = _stop_after_a_step(_one_step(bench, out), tmp_path)
    assert code != 0
    assert "exitcode: 143" in messages.replace("  :", ":"), messages
    assert messages.count("stopped by SIGTERM after step") == 1, messages
    assert not out.exists()
    resumed = subprocess.run(_one_step(bench, out), cwd=ROOT, capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert out.with_suffix(".history.jsonl").read_bytes() == undisturbed.with_suffix(".history.jsonl").read_bytes()
    weights = read_weights(undisturbed)["weights"]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in read_weights(out)["weights"].items())


def test_a_fault_in_one_process_ends_all_with_one_message(bench: Bench, tmp_path: Path) -> None:
    photos = tmp_path / "photos.h5"
    shutil.copyfile(bench.photos, photos)
    store = Store(bench.photos, "photos")
    seed, size = bench.case("stopped")[2]["seed"], 4
    second = StepBatches(store, None, "train", TrainTransform(48), size, seed)[1]["id"]  # of the process of rank 1
    with h5py.File(photos, "r+") as file:
        file[f"{list(store.ids).index(second):08d}.image"][...] = 0
    command = _one_step(bench, tmp_path / "weights.pth", photos)
    failed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert failed.returncode != 0
    lines = [line for line in failed.stderr.splitlines() if line.startswith("rrm one-step:")]
    assert len(lines) == 1 and repr(second) in lines[0], failed.stderr


def test_a_batch_that_processes_cannot_share(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, inputs, options = bench.case("balanced")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(RRMError, match="batch_size: expected a multiple of 6 .3 processes, accumulate 2., got 4"):
        call(stage, inputs, str(bench.folder / "never.pth"), _split(options, 2))
    with pytest.raises(
        RRMErrors, match=r"multiples of processes \* accumulate, got 3 processes.*one_step.train.batch_size 4"
    ):
        resolve(merge(load(*CONFIG).model_dump(mode="json"), {"runtime": {"processes": 3}}))


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(RRMError, match="a GPU for each of the 2 processes, torch sees 1"), joined("cuda"):
        pass


@pytest.mark.parametrize("stage", ["evaluate", "one-step"])
def test_variables_of_torchrun_where_they_do_not_belong(
    stage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    runtime = json.dumps({"device": "cpu"})
    assert main([stage, "--out", "never", "--options", "{}", "--runtime", runtime]) == 1
    assert "processes: expected" in capsys.readouterr().err
