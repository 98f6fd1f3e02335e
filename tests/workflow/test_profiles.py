"""Profiles for clusters: Snakemake knows every key, rules and resources fit the workflow, networks go to GPUs."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from snakemake.cli import get_argument_parser

from tests.workflow.project import REPOSITORY, Project, small_config

PROFILES = sorted(path.parent.name for path in REPOSITORY.glob("profiles/*/config.yaml"))
PLUGINS = {
    "slurm": "snakemake_executor_plugin_slurm",
    **dict.fromkeys(("pbs", "lsf", "sge"), "snakemake_executor_plugin_cluster_generic"),
    "kubernetes": "snakemake_executor_plugin_kubernetes",
}
PARTITION = {"slurm": "slurm_partition", "pbs": "queue", "lsf": "queue", "sge": "queue"}
RULE = re.compile(r"^ *rule (\w+):\n(.*?)(?=^ *rule |\Z)", flags=re.MULTILINE | re.DOTALL)
NETWORKS = {"classifier", "one_step", "method", "affinity", "step_two", "bound", "pseudo_masks", "predict", "evaluate"}
FIGURES = {"figure2", "figure3", "label_quality"}


def profile(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(REPOSITORY.joinpath("profiles", name, "config.yaml").read_text())
    return content


def rules() -> dict[str, str]:
    """Text of each rule."""
    texts = [path.read_text() for path in sorted(REPOSITORY.glob("workflow/rules/*.smk"))]
    return dict(match.groups() for text in texts for match in RULE.finditer(text))


def needs_plugin(name: str) -> None:
    if name in PLUGINS:
        pytest.importorskip(PLUGINS[name], reason=f"profile {name}: {PLUGINS[name].replace('_', '-')} is not installed")


def test_the_executors_have_a_profile() -> None:
    assert set(PROFILES) == {"default", *PLUGINS}


@pytest.mark.parametrize("name", PROFILES)
def test_snakemake_knows_every_key(name: str) -> None:
    needs_plugin(name)
    folder = REPOSITORY / "profiles" / name
    parser = get_argument_parser(profiles=[str(folder)])
    known = {flag.removeprefix("--") for flag in parser._option_string_actions if flag.startswith("--")}
    assert set(profile(name)) <= known
    parsed, unknown = parser.parse_known_args([])
    assert unknown == []
    assert parsed.rerun_triggers and parsed.retries == profile(name).get("retries", 0)


@pytest.mark.parametrize("name", PROFILES)
def test_resources_are_those_of_rules_and_what_runs_a_network_is_sent_to_gpus(name: str) -> None:
    given, known = profile(name).get("set-resources", {}), rules()
    assert set(given) <= set(known)
    on_gpus = {rule for rule, text in known.items() if "gpu=PLAN.gpu(" in text}
    assert on_gpus == NETWORKS | FIGURES
    if name in PARTITION:
        sent = {rule for rule, resources in given.items() if resources.get(PARTITION[name]) == "gpu"}
        assert sent == on_gpus
        submitted = {rule for rule, text in known.items() if "localrule: True" not in text}
        assert {rule for rule in submitted if rule in NETWORKS or rule.startswith("merge")} <= set(given)


@pytest.mark.parametrize("name", [*PLUGINS])
def test_jobs_ask_for_what_they_need(name: str, clone: Project) -> None:
    needs_plugin(name)
    config = small_config()
    config["runtime"] = {"device": "cuda", "shards": {"predict": 2}}
    clone.configure(config)
    shown = clone.snakemake("--dry-run", "--workflow-profile", f"profiles/{name}", "all")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    jobs = re.findall(r"^(?:local)?rule (\w+):\n(?:    .*\n)*?    resources: (.*)$", shown.stdout, flags=re.MULTILINE)
    asked = {rule: dict(each.split("=", 1) for each in text.split(", ") if "=" in each) for rule, text in jobs}
    assert {rule for rule, resources in asked.items() if resources.get("gpu", "0") != "0"} == (
        (NETWORKS - {"affinity"}) | FIGURES
    )
    assert {asked[rule]["mem_mb"] for rule in ("one_step", "evaluate", "merge_predict")} == {"24000", "16000"}
    if name in PARTITION:
        assert asked["one_step"][PARTITION[name]] == "gpu" != asked["merge_predict"][PARTITION[name]]
        assert (asked["one_step"]["runtime"], asked["pack_photos"]["runtime"]) == ("1440", "60")


def test_scripts_are_beside_the_profiles_that_call_them() -> None:
    for name in PROFILES:
        for value in profile(name).values():
            for script in re.findall(r"profiles/\S+\.sh", str(value)):
                assert (REPOSITORY / script).is_file(), script


def test_plugins_are_in_the_project_s_groups() -> None:
    import tomllib

    groups = tomllib.loads(REPOSITORY.joinpath("pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {re.split(r"[<>=]", each)[0] for each in [*groups["workflow"], *groups["clusters"]]}
    assert {plugin.replace("_", "-") for plugin in PLUGINS.values()} <= named
    assert importlib.import_module("snakemake_executor_plugin_slurm")
    assert "snakemake-executor-plugin-slurm==" in Path(REPOSITORY / "requirements.txt").read_text()
