"""The commands around the stages: doctor, completion, exit codes, JSON."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shtab

from rrm.cli import SHELLS, build_parser, main
from rrm.doctor import Finding, check_configuration, check_disks, check_packages
from rrm.store import StoreWriter

ROOT = Path(__file__).resolve().parents[2]


def rrm(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rrm", *arguments]
    return subprocess.run(command, cwd=cwd, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_doctor_runs_what_it_reports_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    healthy = main(["doctor", "--json"])
    told = json.loads(capsys.readouterr().out)
    names = {finding["name"]: finding for finding in told["findings"]}
    assert told["ok"] == (healthy == 0) == (not [f for f in told["findings"] if f["status"] == "broken"])
    for name in ("CRF, lattice on the processor", "CRF, pydensecrf", "energy loss, cpu"):
        assert names[name]["status"] == "ok", names[name]
    assert "torch 2" in names["packages"]["found"]
    assert all(finding["fix"] for finding in told["findings"] if finding["status"] != "ok")

    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    assert main(["doctor"]) == 1
    said = capsys.readouterr()
    assert re.search(r"^broken  CRF, pydensecrf: .*\n +-> .*pydensecrf2", said.out, flags=re.MULTILINE)
    assert re.match(r"rrm doctor: \d+ of \d+ broken: .*CRF, pydensecrf.*: the arrows say what to do\n$", said.err)


def test_doctor_names_packages_that_are_wrong() -> None:
    wanted = ["numpy>=1", "pillow>=999", "no-such-package>=2", 'no-such-either; extra == "export"', 'x; extra == "y"']
    found = by_name(list(check_packages(wanted)))
    assert set(found) == {"pillow", "no-such-package", "no-such-either", "packages"}
    assert (found["pillow"].status, found["no-such-package"].status) == ("broken", "broken")
    assert found["no-such-package"].fix == "python -m pip install 'no-such-package>=2'"
    assert found["no-such-either"].status == "note"
    assert found["no-such-either"].fix == "python -m pip install 'rrm[export]'"
    assert found["packages"].found == f"numpy {np.__version__}"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder that even root cannot write to")
def test_doctor_tries_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/proc")
    here = by_name(list(check_disks()))["results (working folder)"]
    assert here.status == "broken" and "not writable" in here.found and here.fix


def test_doctor_finds_what_a_configuration_lacks(tmp_path: Path) -> None:
    config = [ROOT / "configs" / "voc_light.yaml", tmp_path / "own.yaml"]
    config[1].write_text(
        f"dataset: {{root: {tmp_path}}}\none_step: {{network: {{weights: no/such.pth}}}}\nruntime: {{device: cpu}}\n"
    )
    findings = list(check_configuration(config))
    told = "\n".join(map(str, findings))
    assert {finding.status for finding in findings} == {"broken"}
    assert "one_step.network.weights: expected a file, got no/such.pth" in told
    assert f"dataset.root: {tmp_path}/ImageSets/Segmentation/" in told
    config[1].write_text("colour: red\n")
    named = ["dataset.root", "one_step.network.weights", "colour"]
    assert [f.found.split(":")[0] for f in check_configuration(config)] == named
    assert [f.status for f in check_configuration([ROOT / "config.yaml"])] == ["ok"]


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_is_a_script_of_its_shell(shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["completion", shell]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    assert "one-step" in script.read_text() and "--workflow" not in script.read_text()
    if shutil.which(shell) and shell != "tcsh":  # tcsh reads no script without running it
        assert subprocess.run([shell, "-n", script], capture_output=True, check=False).stderr == b""
    assert shell in shtab.SUPPORTED_SHELLS


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("rrm sco", ["scores"]),
        ("rrm doctor --j", ["--json"]),
        ("rrm completion z", ["zsh"]),
        ("rrm scores my", ["my.h5"]),
        ("rrm segment my.h5 ph", ["photo.jpg"]),
        ("rrm plan --config my", ["my.h5"]),
    ],
)
def test_bash_completes(typed: str, expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", "bash"])
    tmp_path.joinpath("my.h5").touch()
    tmp_path.joinpath("photo.jpg").touch()
    words = typed.split()
    script = (
        f"{capsys.readouterr().out}\nCOMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}\n"
        f"compopt() {{ :; }}; _shtab_rrm rrm {words[-1]} {words[-2]}\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
    )
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout.split(), done.stderr) == (expected, "")


def test_scores_are_json_for_scripts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "confusion_val.h5"
    with StoreWriter(path, "confusion", {}, "code", attrs={"split": "val", "classes": ["cat"]}) as writer:
        writer.add("photo", {"plain": np.array([[6, 2], [0, 2]]), "crf": np.diag([8, 2])})
    assert main(["scores", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "plain": {"background": 75, "cat": 50, "mean": 62.5},
        "crf": {"background": 100, "cat": 100, "mean": 100},
    }


def test_too_little_memory_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A crop that no machine has the memory for."""
    own = tmp_path / "own.yaml"
    own.write_text("classifier: {train: {crop: 100000000}}\nruntime: {device: cpu, workers: 0}\n")
    config = ["--config", str(ROOT / "config.yaml"), str(ROOT / "tests" / "tiny.yaml"), str(own)]
    manifest, photos = tmp_path / "voc" / "manifest.json", tmp_path / "photos.h5"
    assert main(["demo-data", *config, "--out", str(manifest)]) == 0
    assert main(["pack-photos", *config, "--in", f"manifest={manifest}", "--out", str(photos)]) == 0
    capsys.readouterr()
    assert main(["classifier", *config, "--in", f"photos={photos}", "--out", str(tmp_path / "weights.pth")]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("rrm classifier: expected enough memory, got Unable to allocate") and "accumulate" in told
    assert not (tmp_path / "weights.pth").exists()


def documented_codes() -> set[int]:
    rows = re.findall(r"^\| (\d+) \|", ROOT.joinpath("docs", "command-line.md").read_text(), flags=re.MULTILINE)
    return {int(code) for code in rows}


def test_exit_codes_are_those_of_the_documentation(tmp_path: Path) -> None:
    assert rrm("check", str(ROOT / "config.yaml"), cwd=tmp_path).returncode == 0
    bad = rrm("check", "missing.yaml", cwd=tmp_path)
    assert (bad.returncode, bad.stdout) == (1, "")
    assert bad.stderr.startswith("rrm check: missing.yaml: 1 fault(s)\n  - expected a readable YAML file, got")
    wrong = rrm("scors", cwd=tmp_path)
    assert wrong.returncode == 2 and "scores" in wrong.stderr
    running = subprocess.Popen(
        [sys.executable, "-m", "rrm", "doctor"],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert running.stdout is not None and running.stdout.readline().startswith("ok")
    running.send_signal(signal.SIGINT)
    assert "Traceback" not in running.communicate(timeout=60)[1]
    # 143 is what tests/training/test_loop.py and test_distributed.py send SIGTERM for.
    assert documented_codes() == {0, 1, 2, running.returncode, 143} == {0, 1, 2, 130, 143}
    assert documented_codes() == set(map(int, re.findall(r"\b(\d+) ", (build_parser().epilog or ""))))
