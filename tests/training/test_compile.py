"""`runtime.compile`: the same training through `torch.compile`, the same names, one message without a compiler."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from rrm import training
from rrm.crf import DenseCRF
from rrm.errors import RRMError
from rrm.networks import AffinityNet, RRMNet
from rrm.regions import RegionRule
from rrm.schedules import build_optimizer
from rrm.tasks import OneStepTask
from rrm.training import LoopOptions, Run, fit, read_weights, save_weights

STEPS = 3
SMALL: dict[str, Any] = {"width": 1 / 16, "units": (1, 1, 1, 1), "head_dilation": 2}


@pytest.fixture
def without_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are captured and differentiated, and then run operation by operation: no compiler is called."""
    torch._dynamo.reset()
    monkeypatch.setattr(training, "COMPILER", {"dynamic": False, "backend": "aot_eager"})


def _batches(start: int) -> Iterator[dict[str, Any]]:
    for step in range(start, STEPS):
        generator = torch.Generator().manual_seed(step)
        present = torch.eye(4)[:, :3]
        images = torch.rand(4, 3, 32, 32, generator=generator) * 255
        yield {"images": images, "present": present, "valid": torch.ones(4, 32, 32, dtype=torch.bool), "ids": ["a"] * 4}


def _trained(folder: Path, batches: Any = _batches, **options: Any) -> RRMNet:
    torch.manual_seed(0)
    network = RRMNet(3, "resnet38", **SMALL)
    rule = RegionRule(rule="paper", ratio=0.4, crf=DenseCRF(iterations=1))
    cam = {"scales": [1.0, 0.5], "average": "feature", "dropout": True}
    losses = {"classification": "multilabel-soft-margin", "cross_entropy": "balanced"}
    task = OneStepTask(network, rule, cam, losses, {"weight": 0})
    optimizer = build_optimizer(network.parameter_groups(), lr=1e-3)
    fit(task, batches, optimizer, LoopOptions(STEPS, 4, 0, checkpoint_every=1, **options), Run(folder, {"test": 1}))
    return network


def _assert_close(first: RRMNet, second: RRMNet) -> None:
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("without_code")
def test_training_is_the_same_and_so_are_the_names(tmp_path: Path) -> None:
    plain, compiled = _trained(tmp_path / "plain"), _trained(tmp_path / "compiled", compile=True)
    assert all(part._compiled_call_impl is not None for part in (compiled.backbone, compiled.head))
    assert list(plain.state_dict()) == list(compiled.state_dict())
    _assert_close(plain, compiled)
    save_weights(tmp_path / "weights.pth", compiled)
    RRMNet(3, "resnet38", **SMALL).load_state_dict(read_weights(tmp_path / "weights.pth")["weights"])


@pytest.mark.usefixtures("without_code")
def test_a_run_goes_on_with_or_without_and_in_parts(tmp_path: Path) -> None:
    expected = _trained(tmp_path / "plain", accumulate=2)

    def interrupted(start: int) -> Iterator[dict[str, Any]]:
        yield from islice(_batches(start), 2)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        _trained(tmp_path / "run", interrupted, accumulate=2, compile=True)
    _assert_close(expected, _trained(tmp_path / "run", accumulate=2))


def test_without_a_compiler_there_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (str(tmp_path / "no-compiler"),))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(RRMError, match=r"runtime.compile: expected torch.compile to work, got .*set it to false"):
        _trained(tmp_path / "run", compile=True)


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    def broken(start: int) -> Iterator[dict[str, Any]]:
        raise RRMError("photos: expected")

    with pytest.raises(RRMError, match="photos: expected"):
        _trained(tmp_path / "run", broken, compile=True)


def test_what_is_compiled() -> None:
    network = RRMNet(3, "resnet38", **SMALL)
    assert network.parts_to_compile() == [network.backbone, network.head]
    assert AffinityNet(3, "resnet38", width=1 / 16, units=(1, 1, 1, 1)).parts_to_compile() == []
