"""Fixtures for all tests: optional reference material (skipped where absent) and small made inputs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch is imported: tests compare bits of what several processes compute, and run side by side themselves.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(os.environ.get("RRM_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def _reference(relative: str) -> Path:
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"reference material {relative} is not on this machine (set RRM_SHARED to its folder)")
    return path


@pytest.fixture(scope="session")
def goldens() -> Path:
    """Folder with recorded inputs and outputs of the authors' code."""
    return _reference("goldens")


@pytest.fixture(scope="session")
def voc_mini() -> Path:
    """Folder with a few hundred real VOC 2012 photos in VOC layout."""
    return _reference("data/voc2012_mini")


@pytest.fixture(scope="session")
def mobilenet_weights() -> Path:
    """ImageNet MobileNetV2 weights of the TensorFlow flavour."""
    return _reference("weights/mobilenet_v2_imagenet.pth")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """A process that has the libraries loaded for the stages of a test, as Snakemake has one wait for them."""
    from rrm.preload import ADDRESS

    code = f"import os; from rrm import preload; preload.start(); print(os.getenv({ADDRESS!r}), flush=True); input()"
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    monkeypatch.setenv(ADDRESS, process.stdout.readline().strip())
    yield process
    process.kill()
    process.communicate()
