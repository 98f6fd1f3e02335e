"""What is installed is pinned by hashes, and nothing that is read decides what runs: lint rules that are in force."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rrm.config import load
from rrm.errors import RRMErrors

REPOSITORY = Path(__file__).resolve().parents[1]
LOCKS = sorted(REPOSITORY.glob("requirements*.txt"))
PINNED = re.compile(r"[a-z0-9][a-z0-9._-]*(\[[a-z0-9,-]+\])?==\S+( ; .+)?")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
SOURCES = [*REPOSITORY.glob("rrm/**/*.py"), *REPOSITORY.glob("benchmarks/*.py"), *REPOSITORY.glob("workflow/*.py")]
SOURCES.append(REPOSITORY / "hubconf.py")
UNSAFE = {
    "eval(text)": "S307",
    "exec(text)": "S102",
    "importlib.import_module(text)": "TID251",
    "yaml.load(text, Loader=yaml.Loader)": "S506",
    "yaml.unsafe_load(text)": "TID251",
    "pickle.loads(text)": "S301",
    "import marshal": "TID251",
    "np.load(text)": "TID251",
    "ElementTree.parse(text)": "S314",
    "subprocess.run(text, shell=True)": "S602",
    "subprocess.getoutput(text)": "S605",
    "os.system(text)": "S605",
    "os.popen(text)": "S605",
    "os.execl(text, text)": "S606",
    "tempfile.mktemp()": "S306",
    "archive.extractall(text)": "S202",
}
IMPORTS = "import importlib, os, pickle, subprocess, tarfile, tempfile, yaml\nimport numpy as np\n"
IMPORTS += "from xml.etree import ElementTree\narchive = tarfile.open(text)\n"


def _requirements(lock: Path) -> list[list[str]]:
    """Each requirement of a lock file, with its options."""
    text = "\n".join(line for line in lock.read_text().splitlines() if not line.lstrip().startswith("#"))
    return [re.split(r"\s+(?=--)", line.strip()) for line in text.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_package_is_pinned_with_its_hashes(lock: Path) -> None:
    requirements = _requirements(lock)
    assert requirements
    for name, *hashes in requirements:
        assert PINNED.fullmatch(name), name
        assert hashes and all(HASH.fullmatch(each) for each in hashes), name


def test_what_runs_is_what_is_developed_with() -> None:
    runtime, development = (
        {name: set(hashes) for name, *hashes in _requirements(REPOSITORY / f"requirements{kind}.txt")}
        for kind in ("", "-dev")
    )
    assert {name: development.get(name) for name in runtime} == runtime


def test_installing_insists_on_hashes() -> None:
    recipes = REPOSITORY.joinpath("Makefile").read_text().replace("\\\n", " ")
    installs = re.findall(r"\bpip install [^;\n]*", recipes)
    assert len(installs) >= 3
    assert all("--require-hashes" in line or ("--no-deps" in line and "--editable ." in line) for line in installs)
    (packages,) = (each for each in yaml.safe_load(REPOSITORY.joinpath("environment.yml").read_text())["dependencies"]
                   if isinstance(each, dict))  # fmt: skip
    assert packages == {"pip": ["-r requirements.txt"]}  # hashes in the file are insisted on


def test_linters_refuse_what_turns_text_into_code() -> None:
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")
    if ruff is None:
        pytest.skip("ruff is not installed")
    command = [ruff, "check", "--no-cache", "--output-format=json", "--stdin-filename=rrm/unsafe.py", "-"]
    text = IMPORTS + "\n".join(UNSAFE) + "\n"
    told = subprocess.run(command, input=text, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    first = IMPORTS.count("\n") + 1
    found = {(each["location"]["row"] - first, each["code"]) for each in json.loads(told.stdout)}
    missed = [line for row, (line, code) in enumerate(UNSAFE.items()) if (row, code) not in found]
    assert missed == []


def test_nothing_is_unpickled_or_imported_by_a_name_from_elsewhere() -> None:
    wrong, loads = [], 0
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name, options = ast.unparse(node.func), {each.arg: ast.unparse(each.value) for each in node.keywords}
            loads += name == "torch.load"
            unsafe = name == "torch.load" and options.get("weights_only") != "True"
            if unsafe or name == "__import__" or options.get("allow_pickle", "False") != "False":
                wrong.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")
    assert wrong == []
    assert loads >= 1


def test_rules_quote_what_they_hand_to_the_shell() -> None:
    ours = {"threads", "params.code", "params.launch", "params.stage"}  # a number, a hash, our own words
    fields = []
    for path in REPOSITORY.glob("workflow/rules/*.smk"):
        for command in re.findall(r'^ +shell:\n((?: +"[^\n]*"\n)+)', path.read_text(), flags=re.MULTILINE):
            fields += re.findall(r"\{([^{}]+)\}", command)
    assert len(fields) > 50
    assert {field for field in fields if not field.endswith(":q")} <= ours


@pytest.mark.parametrize(
    "text",
    [
        "__use_yte__: true\n?open('made', 'w'): 1\n",
        "__use_yte__: true\n__definitions__:\n  - open('made', 'w')\n",
        "seeds: !!python/object/apply:builtins.open [made, w]\n",
        "seeds: [?open('made', 'w')]\n",
    ],
)
def test_a_configuration_is_no_program(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    evil = tmp_path / "evil.yaml"
    evil.write_text(text)
    with pytest.raises(RRMErrors):
        load(REPOSITORY / "config.yaml", evil)
    assert [path.name for path in tmp_path.iterdir()] == ["evil.yaml"]
