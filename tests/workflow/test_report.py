"""The report: what it shows, and how a browser takes it."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest

from rrm.usage import Usage
from tests.figures.made_gallery import a_page
from tests.workflow.browser import Browser, find_browser
from tests.workflow.project import REPOSITORY, Project, clone_into, small_config

TABLE = "source,method,val,note\nreported,Other <method>,50.1,\nmeasured,Ours,41.25,\n"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unzipped report of a run whose results were written by hand, its pages made for real."""
    project = clone_into(tmp_path_factory.mktemp("report"))
    shutil.copytree(REPOSITORY / "docs", project.root / "docs")
    config = small_config()
    project.configure(config | {"step_two": {"plain": config["step_two"]["plain"]}, "bounds": {}, "cam_rows": []})
    _write_by_hand(project)
    gallery = a_page(project.root / "results" / "demo").relative_to(project.root)
    assert project.snakemake("--touch", "--forceall", "--", "all", str(gallery)).returncode == 0
    done = project.snakemake("--", "all", "pages")
    assert done.returncode == 0, done.stderr
    reported = project.snakemake("--report", "results/report.zip", "--", "all", "pages")
    assert reported.returncode == 0, reported.stderr
    with zipfile.ZipFile(project.root / "results" / "report.zip") as archive:
        archive.extractall(project.root)
    return project.root / "report"


def _write_by_hand(project: Project) -> None:
    for output in project.planned():
        path = project.root / "results" / output
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            shutil.copy(_a_picture(project.root), path)
        else:
            path.write_text(TABLE if path.suffix == ".csv" else "made by hand")
        if path.suffix == ".pth":
            lines = [
                {"step": step, "energy": -step / 9, "cross_entropy": 1 / (1 + step), "lr": 0.1} for step in range(900)
            ]
            path.with_suffix(".history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Usage(12.5, 11.0, 345 << 20, 0).write(project.root / "results/demo/usage/seed0/one_step/predict_val.json")


def _a_picture(folder: Path) -> Path:
    from PIL import Image

    path = folder / "picture.png"
    Image.new("RGB", (40, 30), (10, 90, 160)).save(path)
    return path


def _page(report: Path, name: str) -> str:
    (found,) = report.glob(f"data/raw/*/{name}")
    return found.read_text(encoding="utf-8")


def test_the_report_holds_tables_curves_times_and_configuration(report: Path) -> None:
    table = _page(report, "table5.html")
    assert "Other &lt;method&gt;" in table and '<td class="number">41.25</td>' in table and "<th>note</th>" not in table
    assert _page(report, "table5.csv") == TABLE
    times = _page(report, "run_times.html")
    assert "predict_val" in times and "345" in times
    assert "mining:" in _page(report, "config.html") and "ratio: " in _page(report, "config.html")
    assert "train.steps" in _page(report, "departures.html")
    assert "<td>classification loss</td>" in _page(report, "recipes.html")
    assert "data:image/png;base64," in _page(report, "gallery.html") and "<link rel=" in _page(report, "gallery.html")
    curves = _page(report, "training_curves.svg")
    assert "<svg" in curves and len(curves) < 400_000


@pytest.mark.skipif(find_browser() is None, reason="no Chromium on PATH (Debian: apt-get install chromium)")
def test_a_browser_shows_every_result_without_an_error(report: Path, tmp_path: Path) -> None:
    shown = "Object.entries(results).map(([path, each]) => [path, each.mime_type, each.data_uri])"
    with Browser(tmp_path / "profile") as browser:
        browser.open(report / "report.html")
        found = browser.evaluate(shown)
        kinds = {path: kind for path, kind, _ in found}
        assert {"text/html", "text/csv", "image/svg+xml"} <= set(kinds.values())
        for path, kind, link in found:
            assert (report / link).is_file(), path
            if kind.startswith("image/"):
                assert browser.evaluate(_loads(link)) > 0, path
        menu = browser.evaluate("document.body.innerText")
        for category in ("Tables", "Gallery", "Training", "Run times", "Configuration"):
            assert category in menu
        for _, kind, link in found:
            if kind == "text/html":
                browser.open(report / link)
                assert browser.evaluate("document.querySelectorAll('td, pre').length") > 0
        assert browser.errors == []


def _loads(link: str) -> str:
    """A script that gives the width of a picture, 0 where it does not load."""
    return (
        "new Promise(done => {const image = new Image(); image.onload = () => done(image.naturalWidth);"
        f" image.onerror = () => done(0); image.src = {json.dumps(link)};}})"
    )
