"""The workflow as a user meets it: mistakes, config files, failing jobs, use as a module, linters."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import h5py
import pytest
import yaml

from rrm.config import json_schema
from rrm.key_page import key_page
from tests.workflow.project import REPOSITORY, Project, clone_into, small_config


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
    config["one_step"]["network"] |= {"weights": "results/demo/classifier_weights", "start": "nothing"}
    clone.configure(config)
    failed = clone.snakemake("results/demo/seed0/classifier.pth")
    log = clone.root.joinpath("results/demo/logs/seed0/classifier.log").read_text()
    assert failed.returncode == 1
    assert "rrm classifier: " in log
    assert "Traceback" not in log
    assert not clone.root.joinpath("results/demo/seed0/classifier.pth").exists()


SECOND = """
module others:
    snakefile: "../rrm/workflow/Snakefile"
    config: yaml.safe_load(open("others.yaml"))
    prefix: "deep/others"

use rule * from others as others_*

rule both:
    input: rules.beetles_table5.output, rules.others_table5.output
"""


def test_the_workflow_is_a_module_for_others(tmp_path: Path) -> None:
    """The Snakefile of docs/module.md and a second configuration beside it: planned whole, run as far as data go."""
    text = REPOSITORY.joinpath("docs", "module.md").read_text()
    example = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[0]
    tmp_path.joinpath("rrm", "docs").mkdir(parents=True)
    tmp_path.joinpath("rrm", "docs", "recipes.md").write_text("recipes")
    clone_into(tmp_path / "rrm")
    outer = Project(tmp_path / "outer")
    outer.root.mkdir()
    outer.root.joinpath("Snakefile").write_text(example + SECOND)
    for name, photos in (("beetles", 6), ("others", 9)):
        config = small_config()
        config["dataset"]["demo"] = {"size": 64, "train": photos, "val": 5, "test": 5}
        outer.root.joinpath(f"{name}.yaml").write_text(yaml.safe_dump(config))
    plan = outer.snakemake("--dry-run", "both", "beetles_pages")
    assert plan.returncode == 0, plan.stdout + plan.stderr
    outputs = set(re.findall(r"^    output: (.*)$", plan.stdout + plan.stderr, flags=re.MULTILINE))
    assert {path.split("/results/")[0] for path in outputs} == {"beetles", "deep/others"}
    assert {f"{prefix}/results/demo/seed0/one_step/weights.pth" for prefix in ("beetles", "deep/others")} <= outputs
    done = outer.snakemake("sizes.txt")
    assert done.returncode == 0, done.stdout + done.stderr
    with h5py.File(outer.root / "beetles" / "results" / "demo" / "photos.h5") as store:
        assert json.loads(store.attrs["config"])["dataset"]["demo"]["train"] == 6
    left = {path.name for path in outer.root.iterdir()} - {".snakemake", "Snakefile", "beetles.yaml", "others.yaml"}
    assert left == {"beetles", "sizes.txt"}


def test_the_catalog_finds_what_its_standardised_usage_asks_for() -> None:
    entry = yaml.safe_load(REPOSITORY.joinpath(".snakemake-workflow-catalog.yml").read_text())
    assert set(entry["usage"]) == {"mandatory-flags", "software-stack-deployment", "report"}
    for name in ("README.md", "config/README.md", "workflow/Snakefile", "workflow/envs/rrm.yml"):
        assert REPOSITORY.joinpath(name).is_file()
    named = re.findall(r"\]\(\.\./([^)]+)\)|--configfile (\S+) ", REPOSITORY.joinpath("config/README.md").read_text())
    assert named and [path for pair in named for path in pair if path and not REPOSITORY.joinpath(path).exists()] == []


def test_snakemake_lint_finds_nothing(clone: Project) -> None:
    done = clone.snakemake("--lint")
    assert done.returncode == 0, done.stdout + done.stderr


def test_schema_is_what_the_models_say() -> None:
    written = json.loads(REPOSITORY.joinpath("workflow/schemas/config.schema.json").read_text())
    assert written == json_schema(), "run `make schema`"
    assert REPOSITORY.joinpath("docs/configuration.md").read_text() == key_page() + "\n", "run `make schema`"


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
    project = tomllib.loads(REPOSITORY.joinpath("pyproject.toml").read_text())["project"]
    needed = {requirement.split(">=")[0] for requirement in project["dependencies"]}
    assert needed - {pin.split("==")[0] for pin in pins} == set()
    assert pins - _pins("requirements.txt") == set()
