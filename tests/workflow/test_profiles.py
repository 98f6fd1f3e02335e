"""Profiles for clusters: Snakemake knows every key, rules and resources fit the workflow, networks go to GPUs."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from snakemake.cli import get_argument_parser

from tests.workflow.project import REPOSITORY, Project, small_config

PROFILES = sorted(path.parent.name for path in REPOSITORY.glob("profiles/*/config.yaml"))
PLUGINS = {
    "slurm": "snakemake_executor_plugin_slurm",
    **dict.fromkeys(("pbs", "lsf", "sge", "kubernetes"), "snakemake_executor_plugin_cluster_generic"),
}
PARTITION = {"slurm": "slurm_partition", "pbs": "queue", "lsf": "queue", "sge": "queue"}
RULE = re.compile(r"^ *rule (\w+):\n(.*?)(?=^ *rule |\Z)", flags=re.MULTILINE | re.DOTALL)
NETWORKS = {"classifier", "one_step", "method", "affinity", "step_two", "bound", "pseudo_masks", "predict", "evaluate"}
FIGURES = {"figure2", "figure3", "label_quality", "gallery"}
OWN_PHOTOS = {"photo_facts", "own_masks"}


def profile(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(REPOSITORY.joinpath("profiles", name, "config.yaml").read_text())
    return content


def rules() -> dict[str, str]:
    """Text of each rule."""
    texts = [path.read_text() for path in sorted(REPOSITORY.glob("workflow/rules/*.smk"))]
    return dict(match.groups() for text in texts for match in RULE.finditer(text))


def test_the_executors_have_a_profile() -> None:
    assert set(PROFILES) == {"default", *PLUGINS}


@pytest.mark.parametrize("name", PROFILES)
def test_snakemake_knows_every_key(name: str) -> None:
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
    assert on_gpus == NETWORKS | FIGURES | OWN_PHOTOS
    if name in PARTITION:
        sent = {rule for rule, resources in given.items() if resources.get(PARTITION[name]) == "gpu"}
        assert sent == on_gpus
        submitted = {rule for rule, text in known.items() if "localrule: True" not in text}
        assert {rule for rule in submitted if rule in NETWORKS or rule.startswith("merge")} <= set(given)


@pytest.mark.parametrize("name", [*PLUGINS])
def test_jobs_ask_for_what_they_need(name: str, clone: Project) -> None:
    config = small_config()
    config["runtime"] = {"device": "cuda", "shards": {"predict": 2}}
    clone.configure(config)
    shown = clone.snakemake(
        "--dry-run", "--workflow-profile", f"profiles/{name}", "all", "results/demo/gallery/index.html"
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    jobs = re.findall(r"^(?:local)?rule (\w+):\n(?:    .*\n)*?    resources: (.*)$", shown.stdout, flags=re.MULTILINE)
    asked = {rule: dict(each.split("=", 1) for each in text.split(", ") if "=" in each) for rule, text in jobs}
    assert {rule for rule, resources in asked.items() if resources.get("gpu", "0") != "0"} == (
        (NETWORKS - {"affinity"}) | FIGURES
    )
    assert {asked[rule]["mem_mb"] for rule in ("one_step", "evaluate", "merge_predict")} == {"24000", "16000"}
    assert (asked["one_step"]["runtime"], asked["pack_photos"]["runtime"]) == ("1440", "60")
    if name in PARTITION:
        assert asked["one_step"][PARTITION[name]] == "gpu" != asked["merge_predict"][PARTITION[name]]


# What a program of each scheduler prints when a job is handed to it: there is no such scheduler here.
PRINTED = {
    "pbs": ("qsub", "4711.server"),
    "lsf": ("bsub", "Job <4711> is submitted to queue <gpu>."),
    "sge": ("qsub", "4711"),
    "kubernetes": ("kubectl", "job.batch/rrm-one-step-4711"),
}
ASKED = {
    "pbs": "-V -N one_step -q gpu -j oe -o .snakemake/cluster_logs/ -l select=1:ncpus=4:mem=24000mb:ngpus=GPUS"
    " -l walltime=86400",
    "lsf": "-J one_step -q gpu -oo .snakemake/cluster_logs/%J.log -n 4 -R span[hosts=1] rusage[mem=24000MB]"
    " -M 24000MB -W 1440 -gpu num=GPUS",
    "sge": "-terse -V -cwd -S /bin/sh -N one_step -q gpu.q -j y -o .snakemake/cluster_logs/ -pe smp 4 -l h_rt=86400"
    " -l mem_free=6000M -l gpu=GPUS",
    "kubernetes": "create --output name --filename -",
}


def stand_in(folder: Path, program: str, script: str) -> dict[str, str]:
    """A program in place of a scheduler's, and the environment that finds it."""
    path = folder / "bin" / program
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return os.environ | {"PATH": f"{path.parent}:{os.environ['PATH']}"}


@pytest.mark.parametrize("gpus", [0, 2])
@pytest.mark.parametrize("name", PRINTED)
def test_a_job_is_handed_to_the_scheduler_with_what_it_asks_for(name: str, gpus: int, tmp_path: Path) -> None:
    program, printed = PRINTED[name]
    script = f"printf '%s\\n' \"$@\" >asked; [ {program} = kubectl ] && cat >manifest; echo '{printed}'"
    environment = stand_in(tmp_path, program, script)
    shutil.copytree(REPOSITORY / "profiles", tmp_path / "profiles")
    resources = SimpleNamespace(mem_mb=24000, runtime=1440, gpu=gpus, queue="gpu")
    command = profile(name)["cluster-generic-submit-cmd"].format(rule="one_step", threads=4, resources=resources)
    shell = ["sh", "-c", f'{command} "/shared/my job.sh"']  # as the plugin does
    done = subprocess.run(shell, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == printed.removeprefix("Job <").split("> is")[0].removeprefix("job.batch/")
    asked = " ".join((tmp_path / "asked").read_text().splitlines())
    expected = ASKED[name].replace("GPUS", str(gpus)).removesuffix(" -gpu num=0")  # which LSF refuses
    if name != "kubernetes":
        assert asked == f"{expected} /shared/my job.sh"
        return
    assert asked == expected
    pod = yaml.safe_load((tmp_path / "manifest").read_text())["spec"]
    assert pod["activeDeadlineSeconds"] == 86400
    container = pod["template"]["spec"]["containers"][0]
    assert (container["command"], container["workingDir"]) == (["sh", "/shared/my job.sh"], str(tmp_path))
    assert container["resources"]["limits"] == {"memory": "24000M", "nvidia.com/gpu": gpus}
    mounted = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert mounted == {"project": "/rrm", "shm": "/dev/shm"}
    assert bool(pod["template"]["spec"]["tolerations"]) == (gpus > 0)


QSTAT_F = (
    'case "$*" in *-x*) printf "Job Id: 1\\n    job_state = F\\n    Exit_status = {}\\n" ;;'
    ' *) echo "qstat: 1 Job has finished, use -x or -H to obtain historical job information" >&2; exit 35 ;; esac'
)
STATES = [
    ("pbs", "qstat", "printf 'Job Id: 1\n    job_state = R\n'", "running"),
    ("pbs", "qstat", QSTAT_F.format(0), "success"),
    ("pbs", "qstat", QSTAT_F.format(271), "failed"),
    ("pbs", "qstat", "printf 'Job Id: 1\n    job_state = C\n    exit_status = 1\n'", "failed"),
    ("pbs", "qstat", "echo 'qstat: Unknown Job Id 1' >&2; exit 153", "success"),
    ("pbs", "qstat", "echo 'qstat: cannot connect to server (errno=111)' >&2; exit 111", "running"),
    ("lsf", "bjobs", "echo PEND", "running"),
    ("lsf", "bjobs", "echo DONE", "success"),
    ("lsf", "bjobs", "echo EXIT", "failed"),
    ("lsf", "bjobs", "echo 'Job <1> is not found' >&2; exit 255", "success"),
    ("lsf", "bjobs", "echo 'LSF is down. Please wait ...' >&2; exit 255", "running"),
    ("sge", "qstat", "echo 'job_number: 1'", "running"),
    ("sge", "qstat", "echo 'error: commlib error: got select error' >&2; exit 1", "running"),
    ("sge", "qstat", "echo 'Following jobs do not exist: ' >&2; echo 1; exit 1", "success"),
    ("kubernetes", "kubectl", "echo", "running"),
    ("kubernetes", "kubectl", "echo SuccessCriteriaMet Complete", "success"),
    ("kubernetes", "kubectl", "echo FailureTarget Failed", "failed"),
    ("kubernetes", "kubectl", "echo 'Error from server (NotFound): jobs.batch 1 not found' >&2; exit 1", "failed"),
    ("kubernetes", "kubectl", "echo 'Unable to connect to the server' >&2; exit 1", "running"),
]


@pytest.mark.parametrize(("name", "program", "script", "state"), STATES)
def test_the_state_of_a_job_is_told_in_one_word(
    name: str, program: str, script: str, state: str, tmp_path: Path
) -> None:
    command = profile(name)["cluster-generic-status-cmd"].split()
    environment = stand_in(tmp_path, program, script)
    told = subprocess.run([*command, "1"], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    assert told.stdout == f"{state}\n"


@pytest.mark.parametrize(("failed", "status", "state"), [(0, 0, "success"), (0, 1, "failed"), (100, 137, "failed")])
def test_grid_engine_s_accounts_say_how_a_job_ended(failed: int, status: int, state: str, tmp_path: Path) -> None:
    stand_in(tmp_path, "qacct", f"printf 'jobnumber 1\nfailed {failed} : x\nexit_status {status}\n'")
    environment = stand_in(tmp_path, "qstat", "echo 'Following jobs do not exist: ' >&2; echo 1; exit 1")
    command = ["sh", "profiles/sge/status.sh", "1"]
    told = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    assert told.stdout == f"{state}\n"


def test_scripts_are_beside_the_profiles_that_call_them() -> None:
    for name in PROFILES:
        for key, value in profile(name).items():
            for script in re.findall(r"profiles/\S+\.sh", str(value)):
                assert (REPOSITORY / script).is_file(), script
            if key == "cluster-generic-cancel-cmd" and "/" in value:  # called as it is, without a shell
                assert os.access(REPOSITORY / value, os.X_OK)


def test_plugins_are_among_what_is_installed() -> None:
    locked = Path(REPOSITORY / "requirements.txt").read_text()
    for plugin in PLUGINS.values():
        assert importlib.import_module(plugin)
        assert f"{plugin.replace('_', '-')}==" in locked
