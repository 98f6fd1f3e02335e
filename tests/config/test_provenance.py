"""The code hash of a stage: follows imports, ignores comments and docstrings."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import rrm
from rrm.pipeline import STAGES
from rrm.provenance import modules_of

PACKAGE = Path(rrm.__file__).parent


def test_stages_hash_the_modules_they_use() -> None:
    assert {"rrm.metrics", "rrm.crf", "rrm.stages.evaluate"} <= set(modules_of("rrm.stages.evaluate"))
    assert "rrm.regions" not in modules_of("rrm.stages.evaluate")
    assert {"rrm.regions", "rrm.losses", "rrm.training"} <= set(modules_of("rrm.stages.one_step"))
    assert "rrm.regions" not in modules_of("rrm.stages.pack_photos")
    assert "rrm.networks.resnet38" in modules_of("rrm.stages.predict")


def _hashes(folder: Path) -> list[str]:
    modules = [stage.module for stage in STAGES.values()]
    code = f"from rrm.provenance import code_hash\nprint(*[code_hash(m) for m in {modules!r}])"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_what_a_page_is_made_of_is_code(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "rrm", ignore=shutil.ignore_patterns("__pycache__"))
    before = _hashes(tmp_path)
    with (tmp_path / "rrm" / "gallery" / "style.css").open("a") as file:
        file.write("\n")
    changed = {stage for stage, old, new in zip(STAGES, before, _hashes(tmp_path), strict=True) if old != new}
    assert changed == {"gallery", "page"}


def test_comments_change_nothing_and_code_changes_its_stages(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "rrm", ignore=shutil.ignore_patterns("__pycache__"))
    before = _hashes(tmp_path)
    metrics = tmp_path / "rrm" / "metrics.py"
    text = metrics.read_text()
    metrics.write_text("# a comment\n" + text.replace('"""Counts of', '"""Numbers of'))
    assert _hashes(tmp_path) == before
    metrics.write_text(text.replace("size = len(targets), num_classes + 1", "size = len(targets), num_classes + 1 + 0"))
    changed = {s for s, old, new in zip(STAGES, before, _hashes(tmp_path), strict=True) if old != new}
    assert "evaluate" in changed and "one-step" not in changed and "pack-photos" not in changed
