"""A project in which every result exists, made by hand, with Snakemake's record of what made it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.workflow.project import Project, clone_into, small_config


@pytest.fixture
def clone(tmp_path: Path) -> Project:
    """The project without results."""
    project = clone_into(tmp_path)
    project.configure(small_config())
    return project


@pytest.fixture(scope="session")
def _finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, set[str]]:
    project = clone_into(tmp_path_factory.mktemp("finished"))
    project.configure(small_config())
    outputs = project.planned()
    for output in outputs:
        path = project.root / "results" / output
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("made by hand")
    touched = project.snakemake("--touch", "--forceall")
    assert touched.returncode == 0, touched.stderr
    return project, outputs


@pytest.fixture
def everything(_finished: tuple[Project, set[str]]) -> set[str]:
    """All outputs that the configuration plans from nothing."""
    return _finished[1]


@pytest.fixture
def finished(_finished: tuple[Project, set[str]], tmp_path: Path) -> Project:
    """A copy of the project with all results done."""
    shutil.copytree(_finished[0].root, tmp_path / "project")
    return Project(tmp_path / "project")
