"""A copy of the project to plan and run in."""

from __future__ import annotations

import copy
import itertools
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
PARTS = ("Snakefile", "workflow", "profiles", "rrm")


@dataclass(frozen=True)
class Project:
    """A folder with the workflow, the package and a config file."""

    root: Path

    def snakemake(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Snakemake there, as a user does."""
        command = [sys.executable, "-m", "snakemake", "--cores", "8", "--nocolor", *arguments]
        return subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=False, timeout=600)

    def planned(self, *arguments: str) -> set[str]:
        """Outputs of the jobs that Snakemake would run, below `results/`."""
        done = self.snakemake("--dry-run", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return set(re.findall(r"^    output: results/(.*)$", done.stdout + done.stderr, flags=re.MULTILINE))

    def configure(self, config: Mapping[str, Any], comment: str = "") -> None:
        """Write the config file."""
        self.root.joinpath("config.yaml").write_text(comment + yaml.safe_dump(dict(config)))


def shown_in_head(config: str) -> list[dict[str, Any]]:
    """The pieces of YAML that the head of a file in `configs/` shows its readers."""
    text = REPOSITORY.joinpath("configs", config).read_text()
    head = "\n".join(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines()))
    pieces = re.findall(r"^#   [a-z_]+:.*(?:\n#   .*)*", head, flags=re.MULTILINE)
    return [yaml.safe_load(piece.replace("\n# ", "\n").removeprefix("# ")) for piece in pieces]


def small_config() -> dict[str, Any]:
    """The demo's configuration with two networks for step two and one bound, all with names of their own."""
    config: dict[str, Any] = yaml.safe_load(REPOSITORY.joinpath("config.yaml").read_text())
    network = {key: value for key, value in next(iter(config["step_two"].values())).items() if key != "views"}
    config["seeds"], config["ablation"] = [0], {}
    config["step_two"] = {name: copy.deepcopy(network) for name in ("plain", "warm")}
    config["bounds"] = {"full": copy.deepcopy(network)}
    config["step_two"]["warm"]["warm_start"] = config["bounds"]["full"]["warm_start"] = True
    return config


def clone_into(root: Path, repository: Path = REPOSITORY) -> Project:
    """Copy the workflow and the package, of another copy too."""
    for part in PARTS:
        source, ignore = repository / part, shutil.ignore_patterns("*.pyc")  # what Numba compiled stays
        if source.is_dir():
            shutil.copytree(source, root / part, ignore=ignore)
        else:
            shutil.copy2(source, root / part)
    return Project(root)
