"""The examples of the documentation: Python runs, commands are ones that the command line knows.

The Python of a page runs from top to bottom in one namespace and a folder of its own (`tests/docs/pages.py`). A block
whose first line is `# not run: <why>` is left out, and readers see that line too.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from rrm.cli import build_parser
from tests.docs.pages import AFTER, BEFORE, prepare
from tests.prediction.conftest import weights, write_weights  # noqa: F401 - fixtures

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_RUN = re.compile(r"# not run: \S")


def blocks(page: str, language: str) -> Iterator[tuple[int, str]]:
    """Line of the text before each block of a language, and the block."""
    fence = re.compile(rf"^([ \t]*)```{language}\b[^\n]*\n(.*?)^\1```[ \t]*$", re.DOTALL | re.MULTILINE)
    for found in fence.finditer(page):
        yield page.count("\n", 0, found.start(2)), dedent(found[2])


def run_python(path: Path, names: dict[str, Any]) -> int:
    """Run the blocks of a page; a traceback shows the page's lines. Gives the number of blocks that ran."""
    count = 0
    for line, code in blocks(path.read_text(encoding="utf-8"), "python"):
        if not NOT_RUN.match(code):
            exec(compile("\n" * line + code, str(path), "exec"), names)
            count += 1
    return count


def commands(page: str) -> Iterator[list[str]]:
    """The words of each call of `rrm` in the blocks for a shell, up to a pipe or a redirection."""
    for _, block in blocks(page, "(?:bash|sh|console|shell)"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars=True)
            words.whitespace_split = True
            if next(words, "") == "rrm":
                yield list(takewhile(lambda word: not set(word) <= set("();<>|&"), words))


def _named(pages: list[Path], language: str) -> list[Any]:
    found = [page for page in pages if any(blocks(page.read_text(encoding="utf-8"), language))]
    return [pytest.param(page, id=page.relative_to(ROOT).as_posix()) for page in found]


@pytest.mark.parametrize("page", _named(PAGES, "python"))
def test_python_of_a_page_runs(
    page: Path,
    tmp_path: Path,
    weights: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    prepare(tmp_path, weights)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__", **BEFORE.get(page.name, lambda _: {})(tmp_path)}
    run_python(page, names)
    if page.name in AFTER:
        AFTER[page.name](tmp_path, names)


@pytest.mark.parametrize("page", _named(PAGES, "bash"))
def test_commands_of_a_page_are_known(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands(page.read_text(encoding="utf-8")):
        try:
            build_parser().parse_args(words)
        except SystemExit as end:
            if end.code:
                pytest.fail(f"{page.name}: `rrm {' '.join(words)}`\n{capsys.readouterr().err}")


def test_a_page_with_faults_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Text\n\n```python\na = 1\n```\n* in a list\n\n    ```python title='x'\n    a += 1\n    ```\n\n"
        "```python\n# not run: needs a cluster\nraise SystemExit\n```\n\n"
        "```bash\n$ rrm segmnet x \\\n  'y z' > out # why\nls | rrm\n```\n"
    )
    names: dict[str, Any] = {}
    assert run_python(page, names) == 2 and names["a"] == 2
    assert list(commands(page.read_text())) == [["segmnet", "x", "y z"]]
    page.write_text(page.read_text() + "\n```python\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as error:
        run_python(page, names)
    assert error.traceback[-1].lineno == page.read_text().splitlines().index("1 / 0")
