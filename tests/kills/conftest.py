"""One prepared session for the tests of whole workflows, and packed photos for those of single stages."""

from __future__ import annotations

from pathlib import Path

import pytest

from rrm.cli import main
from tests.kills.session import LAYERS, Session

SEED = 5  # of `make test`; its kills are of all kinds
TARGETS = ("results/tiny/seed0/step_two/vgg16/confusion_val.h5", "results/label_quality.csv")
"""One of each kind of stage; the other tables and figures add nothing but time."""


@pytest.fixture(scope="session")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A session whose undisturbed run is done."""
    if not Path("/proc/self/task").exists():
        pytest.skip("looks for processes in /proc (Linux)")
    prepared = Session(tmp_path_factory.mktemp("session"), SEED, TARGETS, patience=600)
    prepared.prepare()
    return prepared


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed photos of the small demo."""
    folder = tmp_path_factory.mktemp("photos")
    config = ["--config", *map(str, LAYERS)]
    manifest, packed = folder / "voc" / "manifest.json", folder / "photos.h5"
    assert main(["demo-data", *config, "--out", str(manifest)]) == 0
    assert main(["pack-photos", *config, "--in", f"manifest={manifest}", "--out", str(packed)]) == 0
    return packed
