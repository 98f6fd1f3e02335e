"""A data set that the workflow assembles from published files before it packs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rrm.store import Store
from tests.data import published as mini
from tests.workflow.project import Project
from tests.workflow.test_submission_plan import voc_config

MANIFEST = "results/mine/voc/manifest.json"


def archives(sources: Path) -> dict[str, Any]:
    """Section `dataset.sources` for the miniatures in a folder."""
    return {"voc": [f"{sources}/trainval.tar", f"{sources}/test.tar"], "sbd": f"{sources}/sbd.tgz", "subset": True}


def _config(sources: Path, **dataset: Any) -> dict[str, Any]:
    return voc_config(root=None, train="train_aug", sources=archives(sources), **dataset)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "sources"
    folder.mkdir()
    for name, files in {"trainval.tar": mini.voc_files(), "test.tar": mini.test_files()}.items():
        mini.write_tar(folder / name, "VOCdevkit/VOC2012", files)
    mini.write_tar(folder / "sbd.tgz", "benchmark_RELEASE/dataset", mini.sbd_files())
    return folder


def test_the_data_set_is_assembled_and_packed(clone: Project, sources: Path) -> None:
    clone.configure(_config(sources))
    assert {"mine/voc/manifest.json", "mine/photos.h5"} <= clone.planned()
    done = clone.snakemake("results/mine/photos.h5", "results/mine/masks_train.h5")
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = json.loads(clone.root.joinpath(MANIFEST).read_text())
    assert manifest["made_of"]["subset"] is True
    splits = Store(clone.root / "results/mine/photos.h5", "photos").attrs["splits"]
    assert splits == {"train": list(mini.TRAIN_AUG), "val": list(mini.VAL), "submission": list(mini.TEST)}
    assert clone.planned("results/mine/photos.h5") == set()
    again = clone.snakemake("--force", MANIFEST)
    assert again.returncode == 0, again.stdout + again.stderr
    moved = sources.rename(sources.with_name("moved"))
    clone.configure(_config(moved))
    assert "mine/voc/manifest.json" in clone.planned("results/mine/photos.h5")


def test_missing_sources_end_the_run_with_what_to_do(clone: Project, tmp_path: Path) -> None:
    clone.configure(_config(tmp_path / "nowhere"))
    done = clone.snakemake(MANIFEST)
    assert done.returncode != 0
    assert "VOCtrainval_11-May-2012.tar (2.0 GB; http://host.robots.ox.ac.uk" in done.stdout + done.stderr
    assert not clone.root.joinpath("results/mine/voc/JPEGImages").exists()
    assert "Traceback" not in done.stdout + done.stderr


def test_a_folder_given_as_root_is_not_assembled(clone: Project) -> None:
    clone.configure(voc_config())
    assert "mine/voc/manifest.json" not in clone.planned()
