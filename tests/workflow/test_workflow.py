"""The workflow as a user meets it: mistakes, config files, failing jobs, use as a module, linters."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import pytest

from rrm.config import json_schema
from tests.workflow.project import REPOSITORY, Project, small_config


def test_mistakes_are_named_all_at_once_before_any_job(clone: Project) -> None:
    config = small_config()
    config["one_step"]["mining"]["ratio"] = 7
    config["evaluation"]["colour"] = "red"
    clone.configure(config)
    done = clone.snakemake("--quiet")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "one_step.mining.ratio: Input should be less than or equal to 1, got 7" in done.stderr
    assert "evaluation.colour: expected a known key" in done.stderr
    assert "File " not in done.stderr
    assert not clone.root.joinpath("results").exists()


def test_config_files_of_the_command_line_stand_for_themselves(clone: Project) -> None:
    other = small_config() | {"cam_rows": []}
    other["dataset"] = other["dataset"] | {"name": "other"}
    del other["step_two"], other["bounds"], other["seeds"]
    Project(clone.root / "workflow").configure(other)
    clone.root.joinpath("mine.yaml").write_text("seeds: [4]\n")
    planned = clone.planned("--configfile", "workflow/config.yaml", "mine.yaml")
    assert {Path(output).parts[1] for output in planned if "seed" in output} == {"seed4"}
    assert not [output for output in planned if "demo/" in output or "step_two" in output or "bounds" in output]


def test_stages_run_and_a_failing_one_fails_the_call(clone: Project) -> None:
    config = small_config()
    config["dataset"]["demo"] = {"seed": 1, "size": 64, "train": 6, "val": 5, "test": 5}
    clone.configure(config)
    photos = "results/demo/photos.h5"
    done = clone.snakemake(photos)
    assert done.returncode == 0, done.stderr
    with h5py.File(clone.root / photos) as store:
        assert json.loads(store.attrs["config"])["dataset"]["demo"]["train"] == 6
    clone.root.joinpath("results/demo/classifier_weights").write_text("not weights")
    config["one_step"]["network"]["weights"] = "results/demo/classifier_weights"
    clone.configure(config)
    failed = clone.snakemake("results/demo/seed0/classifier.pth")
    log = clone.root.joinpath("results/demo/logs/seed0/classifier.log").read_text()
    assert failed.returncode == 1
    assert "rrm classifier: " in log
    assert "Traceback" not in log
    assert not clone.root.joinpath("results/demo/seed0/classifier.pth").exists()


def test_the_workflow_is_a_module_for_others(clone: Project) -> None:
    outer = clone.root / "outer"
    outer.mkdir()
    outer.joinpath("Snakefile").write_text(
        'configfile: "../config.yaml"\n'
        'module rrm:\n    snakefile: "../workflow/Snakefile"\n    config: config\n'
        "use rule * from rrm as rrm_*\n"
        "rule mine:\n    input: rules.rrm_table5.output\n    output: 'results/mine.csv'\n"
        "    default_target: True\n"
    )
    planned = Project(outer).planned()
    assert {"mine.csv", "table5.csv", "demo/seed0/one_step/weights.pth"} <= planned


def test_snakemake_lint_finds_nothing(clone: Project) -> None:
    done = clone.snakemake("--lint")
    assert done.returncode == 0, done.stdout + done.stderr


def test_schema_is_what_the_models_say() -> None:
    written = json.loads(REPOSITORY.joinpath("workflow/schemas/config.schema.json").read_text())
    assert written == json_schema(), "run `make schema`"


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt", "requirements-build.txt"])
def test_locks_pin_all_and_name_no_host(name: str) -> None:
    text = REPOSITORY.joinpath(name).read_text()
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    assert lines
    assert "://" not in text
    assert [line for line in lines if "==" not in line or "--hash=" not in line] == []


def _pins(name: str) -> set[str]:
    lines = REPOSITORY.joinpath(name).read_text().splitlines()
    return {line.strip("- \\") for line in lines if "==" in line}


def test_the_development_lock_holds_the_runtime_lock() -> None:
    assert _pins("requirements.txt") - _pins("requirements-dev.txt") == set()


def test_the_rules_environment_pins_what_the_lock_pins() -> None:
    pins = _pins("workflow/envs/rrm.yml")
    assert "torch" in {pin.split("==")[0] for pin in pins}
    assert pins - _pins("requirements.txt") == set()
