"""The documentation as a site: builds without a warning, asks nobody for anything, and says what is so."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import rrm
from tests.waiting import until
from tests.workflow.browser import Browser, find_browser

ROOT = Path(__file__).resolve().parents[2]
GAP = "…"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # the theme's notice of its successor, as in the Makefile
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return folder


class Assets(HTMLParser):
    """Addresses that a browser fetches by itself when it shows a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source") or (tag == "link" and values.get("rel") != "canonical"):
            self.found += [value for key in ("src", "href") if (value := values.get(key))]


def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        assets = Assets()
        assets.feed(page.read_text())
        assert assets.found
        assert [asset for asset in assets.found if "//" in asset] == [], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import\s*)[\"']?(https?:)?//", sheet.read_text()), sheet


@pytest.fixture
def served(site: Path) -> Iterator[str]:
    """Address of the site."""
    handler = partial(QuietHandler, directory=site)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves a folder and says nothing."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the library names it)
        del format, args


def shown(browser: Browser, address: str) -> None:
    browser.call("Page.navigate", url=address)
    until(lambda: browser.evaluate("location.href + document.readyState") == f"{address}complete", address, seconds=30)


@pytest.mark.skipif(find_browser() is None, reason="needs Chromium")
def test_pages_work_in_a_browser(served: str, tmp_path: Path) -> None:
    with Browser(tmp_path) as browser:
        shown(browser, f"{served}/index.html")
        assert browser.evaluate("document.querySelector('h1').innerText").startswith("Image-level labels in")
        shown(browser, f"{served}/api.html")
        ids = set(browser.evaluate("[...document.querySelectorAll('[id]')].map(each => each.id)"))
        assert {"rrm.segmenter.Segmenter.predict", "rrm.crf.DenseCRF.preset"} <= ids
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert browser.errors == []


def test_all_public_names_are_on_the_page_of_the_interface() -> None:
    shown = re.findall(r"^::: (\S+)$", ROOT.joinpath("docs", "api.md").read_text(), flags=re.MULTILINE)
    names = {name.rpartition(".")[2] for name in shown}
    assert set(rrm.__all__) - {"networks"} <= names
    assert {name for name in shown if name.startswith("rrm.networks.")}


def messages_of_the_code() -> Iterator[str]:
    """All texts of the package, with a gap for what is filled in."""
    for path in ROOT.joinpath("rrm").rglob("*.py"):
        tree = ast.parse(path.read_text())
        inside = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inside:
                yield node.value
    yield from ROOT.joinpath("Makefile").read_text().splitlines()


def quoted_messages() -> list[str]:
    page = ROOT.joinpath("docs", "troubleshooting.md").read_text()
    return re.findall(r"^### `(.+)`$", page, flags=re.MULTILINE)


def is_said(message: str, texts: list[str]) -> bool:
    """Whether one text has all of a message's parts between gaps, in their order; fixed parts are as long as can be."""
    parts = [part for part in message.split(GAP) if part.strip(" :.,()")]
    pattern = re.compile(".*?".join(map(re.escape, parts)), flags=re.DOTALL)
    return any(found and len(found[0]) < len(message) + 200 for text in texts if (found := pattern.search(text)))


def test_troubleshooting_quotes_messages_that_exist() -> None:
    texts = [text for text in messages_of_the_code() if len(text) < 1000]  # no docstrings of half a page
    quoted = quoted_messages()
    assert len(quoted) > 20
    assert [message for message in quoted if not is_said(message, texts)] == []
    assert not is_said(f"device: expected a GPU, torch sees {GAP}: buy one", texts)


def test_every_page_has_its_place_in_the_navigation(site: Path) -> None:
    linked = set(re.findall(r'href="([\w./-]+\.html)" class="md-nav__link"', site.joinpath("index.html").read_text()))
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in ROOT.glob("docs/**/*.md")}
    assert pages - {"index.html"} == linked - {"index.html"}
