"""The training loop: same result after any interruption, SIGTERM, non-finite losses, accumulation, weights on disk."""

from __future__ import annotations

import json
import os
import signal
import threading
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rrm.errors import RRMError
from rrm.losses import cross_entropy_term
from rrm.schedules import build_optimizer
from rrm.terms import Term, mean_term
from rrm.training import LoopOptions, Run, Task, _Stepper, fit, read_weights, save_weights, step_seed

STEPS = 7


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 2, 1))


class _RegressionTask(Task):
    def losses(self, batch: dict[str, Any], progress: float) -> Mapping[str, Term]:
        out = self.network.body(batch["images"])
        return {
            "square": mean_term(out.square().mean(), len(out)),
            "mean": mean_term((out - progress).mean(), len(out)),
        }


def _batches(start: int) -> Iterator[dict[str, Any]]:
    for step in range(start, STEPS):
        generator = torch.Generator().manual_seed(step)
        yield {"images": torch.rand(4, 3, 8, 8, generator=generator), "ids": ["a"] * 4}


def _train(folder: Path, batches: Any = _batches, **options: Any) -> _Net:
    torch.manual_seed(0)
    network = _Net()
    groups = {"backbone.weight": list(network.parameters()), "backbone.bias": [], "head.weight": [], "head.bias": []}
    optimizer = build_optimizer(groups, kind="sgd", lr=0.1, momentum=0.9, weight_decay=1e-3)
    loop = LoopOptions(**{"steps": STEPS, "batch_size": 4, "seed": 3, "checkpoint_every": 2, **options})
    fit(_RegressionTask(network), batches, optimizer, loop, Run(folder, {"test": 1}))
    return network


def _equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("stop", range(1, STEPS))
def test_interrupted_anywhere_ends_with_identical_weights(tmp_path: Path, stop: int) -> None:
    begun = []

    def counted(start: int) -> Iterable[dict[str, Any]]:
        begun.append(start)
        return _batches(start)

    with pytest.raises(InterruptedError):
        _train(tmp_path / "killed", _interrupted_at(stop))
    assert _equal(_train(tmp_path / "killed", counted), _train(tmp_path / "whole"))
    assert 0 <= stop - begun[0] < 2  # what is done again is less than an interval
    steps = [json.loads(line)["step"] for line in next((tmp_path / "killed").glob("*/history.jsonl")).open()]
    assert steps == list(range(STEPS))


def test_sigterm_saves_the_step_and_exits_with_143(tmp_path: Path) -> None:
    def terminated(start: int) -> Iterator[dict[str, Any]]:
        for step, batch in enumerate(_batches(start), start):
            if step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with pytest.raises(SystemExit) as stopped:
        _train(tmp_path / "run", terminated, checkpoint_every=100)
    assert stopped.value.code == 143
    state = torch.load(next((tmp_path / "run").glob("*/last.pth")), weights_only=True)
    assert state["step"] == 3
    assert _equal(_train(tmp_path / "run"), _train(tmp_path / "whole"))


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 8]) + data[at + 1 :]


def _tensor_at(path: Path) -> int:
    """Where the bytes of the first tensor begin in a file of torch."""
    with zipfile.ZipFile(path) as archive:
        name = next(each for each in archive.namelist() if "/data/" in each)
        return path.read_bytes().find(archive.read(name))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign"])
def test_a_damaged_checkpoint_costs_time_only(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = _train(tmp_path / "run")
    path = next((tmp_path / "run").glob("*/last.pth"))
    data = path.read_bytes()
    made = {"truncated": data[:-100], "flipped": _flipped(data, _tensor_at(path) + 1), "foreign": b"PK damaged"}
    path.write_bytes(made[damage])
    assert _equal(_train(tmp_path / "run"), expected)
    told = capsys.readouterr().err
    assert f"{path}: expected a file that torch.save wrote, got " in told and "starting from step 0" in told


def test_a_full_disk_while_a_checkpoint_is_written_stops_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: object) -> None:
        raise RRMError(f"{path}: expected room")

    monkeypatch.setattr("rrm.training.save_torch", full)
    with pytest.raises(RRMError, match=r"last.pth: expected room"):
        _train(tmp_path)


def test_a_checkpoint_is_of_its_step_though_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved, go = [], threading.Event()

    def slowly(path: Path, content: Any) -> None:
        go.wait(10)
        saved.append((content["step"], content["network"]["body.0.weight"].clone()))

    def watched(start: int) -> Iterator[dict[str, Any]]:
        for step, batch in enumerate(_batches(start), start):
            if step == 3:  # one step was done since the checkpoint of step 2 was taken
                go.set()
            yield batch

    monkeypatch.setattr("rrm.training.save_torch", slowly)
    _train(tmp_path / "run", watched)
    monkeypatch.undo()
    with pytest.raises(InterruptedError):
        _train(tmp_path / "short", _interrupted_at(2))
    state = torch.load(next((tmp_path / "short").glob("*/last.pth")), weights_only=True)
    assert [step for step, _ in saved] == [2, 4, 6, 7]
    assert saved[0][0] == state["step"] and torch.equal(saved[0][1], state["network"]["body.0.weight"])


def _interrupted_at(stop: int) -> Any:
    def batches(start: int) -> Iterator[dict[str, Any]]:
        for step, batch in enumerate(_batches(start), start):
            if step == stop:
                raise InterruptedError
            yield batch

    return batches


def test_history_of_a_training_done_twice_has_each_step_once(tmp_path: Path) -> None:
    run = Run(tmp_path, {})
    run.history.write_text('{"step": 0, "a": 1}\n{"step": 1, "a": 2}\n{"step": 0, "a": 1}\n{"step": 1, "a": 3}\n{"st')
    run.keep_history_before(2)
    assert run.history.read_text() == '{"step": 0, "a": 1}\n{"step": 1, "a": 3}\n'


def test_not_finite_loss_names_step_terms_and_checkpoint(tmp_path: Path) -> None:
    def poisoned(start: int) -> Iterator[dict[str, Any]]:
        for step, batch in enumerate(_batches(start), start):
            yield {**batch, "images": batch["images"] * (float("nan") if step == 5 else 1)}

    with pytest.raises(RRMError, match=r"square nan.*at step 5.*last good checkpoint: .*last\.pth"):
        _train(tmp_path, poisoned)


def test_accumulation_covers_the_batch(tmp_path: Path) -> None:
    network = _train(tmp_path, accumulate=3)
    assert all(torch.isfinite(parameter).all() for parameter in network.parameters())


class _PixelTask(Task):
    """Cross-entropy on labels of which the images have different numbers, the last one none, and a mean over images."""

    mode = "balanced"

    def losses(self, batch: dict[str, Any], progress: float) -> Mapping[str, Term]:
        logits = self.network(batch["images"])
        cross_entropy = cross_entropy_term(logits, batch["labels"], self.mode)
        return {"cross_entropy": cross_entropy, "square": mean_term(logits.square().mean(), len(logits))}


@pytest.mark.parametrize("mode", ["balanced", "mean", "sum"])
def test_accumulated_gradient_equals_that_of_the_whole_batch(mode: str) -> None:
    torch.manual_seed(0)
    task = _PixelTask(nn.Conv2d(3, 2, 1))
    task.mode = mode
    labels = torch.full((4, 8, 8), 255)
    labels[0, :5], labels[0, 5:], labels[1, :2], labels[2, 0, 0] = 0, 1, 1, 0
    batch = {**next(iter(_batches(0))), "labels": labels}
    found = []
    for accumulate in (1, 2, 3, 4):
        options = LoopOptions(steps=1, batch_size=4, seed=0, accumulate=accumulate)
        values = _Stepper(task, torch.optim.SGD(task.network.parameters(), lr=0.1), options)(batch, 0)
        found.append({**values, "gradient": task.network.weight.grad.double()})
    for each in found[1:]:
        torch.testing.assert_close(each, found[0], rtol=1e-5, atol=1e-6)


def test_weights_file_round_trip_and_refusals(tmp_path: Path) -> None:
    network = _Net()
    save_weights(tmp_path / "net.pth", network, note="x")
    content = read_weights(tmp_path / "net.pth")
    assert content["note"] == "x" and torch.equal(
        content["weights"]["body.0.weight"], network.state_dict()["body.0.weight"]
    )
    whole = (tmp_path / "net.pth").read_bytes()
    save_weights(tmp_path / "again.pth", network, note="x")
    assert (tmp_path / "again.pth").read_bytes() == whole
    (tmp_path / "flipped.pth").write_bytes(_flipped(whole, _tensor_at(tmp_path / "net.pth")))
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    torch.save({"format": "other"}, tmp_path / "foreign.pth")
    for name in ("cut", "flipped", "foreign", "absent"):
        with pytest.raises(RRMError, match=f"{name}.pth: expected"):
            read_weights(tmp_path / f"{name}.pth")


def test_step_seeds_differ() -> None:
    assert len({step_seed(seed, step) for seed in range(10) for step in range(100)}) == 1000
