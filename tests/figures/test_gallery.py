"""The gallery as a browser shows it: clicks, keys, filters, a phone, names that are code, and a run without truth."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rrm.errors import RRMError
from rrm.gallery import Pictures, in_one_file
from tests.figures.made_gallery import HOSTILE, MODELS, PHOTOS, a_page
from tests.workflow.browser import Browser, find_browser

LINKS = "[...document.querySelectorAll('[src], [href]')].map(one => one.src || one.href)"
"""A script that gives where everything on the page comes from, and leads to."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if find_browser() is None:
        pytest.skip("no Chromium on PATH (Debian: apt-get install chromium)")
    with Browser(tmp_path_factory.mktemp("profile"), (1200, 900)) as opened:
        yield opened
        assert opened.errors == []


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_page(tmp_path_factory.mktemp("page"))


def shown(browser: Browser) -> list[str]:
    """Names of the photos in the list."""
    names: list[str] = browser.evaluate("[...document.querySelectorAll('#grid .name')].map(each => each.textContent)")
    return names


def choose(browser: Browser, control: str, value: Any) -> None:
    """Set a control and tell the page, as a user's choice does."""
    browser.evaluate(
        f"(() => {{const one = document.getElementById('{control}'); one.value = {json.dumps(str(value))};"
        " for (const kind of ['input', 'change']) one.dispatchEvent(new Event(kind, {bubbles: true}));})()"
    )


def text_of(browser: Browser, control: str) -> str:
    return str(browser.evaluate(f"document.getElementById('{control}').innerText"))


def focused(browser: Browser) -> str:
    return str(browser.evaluate("document.activeElement.id || document.activeElement.className"))


def wider_than_the_screen(browser: Browser) -> list[str]:
    """What sticks out of the window to the right, but for what has a scroll bar of its own."""
    found: list[str] = browser.evaluate(
        "[...document.querySelectorAll('main, header, #filters, .told, .card, dialog[open] *')]"
        ".filter(one => one.checkVisibility() && one.getBoundingClientRect().right > innerWidth + 1)"
        ".map(one => one.tagName + '#' + one.id + '.' + one.className)"
    )
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    return found


def test_all_is_read_from_disk_and_names_are_text(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert len(shown(browser)) == PHOTOS and text_of(browser, "count") == "All 12 photos."
    assert "of the 240 of val" in text_of(browser, "about") and browser.evaluate("split.parentElement.hidden")
    loads = (
        "Promise.all(window.data.photos.flatMap(photo => Object.values(photo.images)).map(path => new Promise(done =>"
    )
    loads += (
        " {const one = new Image(); one.onload = () => done(true); one.onerror = () => done(false); one.src = path;})))"
    )
    assert all(browser.evaluate(loads))
    assert {"file", "data"} == {link.split(":")[0] for link in browser.evaluate(LINKS)}
    assert browser.evaluate("window.bad === undefined && document.querySelectorAll('main script').length === 0")
    assert HOSTILE in shown(browser) and HOSTILE in text_of(browser, "class")
    assert MODELS["step_two/big"] in text_of(browser, "score-tables")


def test_photos_are_filtered_and_sorted(browser: Browser, page: Path) -> None:
    browser.open(page)
    numbers = [f"2007_{number:06d}" for number in range(2, PHOTOS + 1)]
    assert shown(browser) == [HOSTILE, *numbers]
    choose(browser, "order", "best")
    assert shown(browser) == [*reversed(numbers), HOSTILE]
    choose(browser, "least", 50)
    assert shown(browser)[-1] == "2007_000006" and text_of(browser, "count") == "7 of 12 photos."
    choose(browser, "class", 1)
    assert shown(browser) == ["2007_000012", "2007_000009", "2007_000006"]
    assert "IoU of cat" in text_of(browser, "range")
    choose(browser, "most", 10)
    assert shown(browser) == [] and text_of(browser, "count") == "No photo is like that."
    browser.click("#reset")
    assert len(shown(browser)) == PHOTOS and focused(browser) == "class"
    choose(browser, "order", "doubtful")
    assert shown(browser)[0] == HOSTILE


def test_the_mouse_compares_layers(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.click("#layers label:nth-child(3)")
    assert browser.evaluate("document.querySelector('.card img.labels').src").endswith("-regions.png")
    browser.click("#grid li:nth-child(3) button")
    assert browser.evaluate("document.getElementById('viewer').open")
    assert text_of(browser, "viewer-title") == "2007_000003" and text_of(browser, "place") == "3 of 12"
    browser.click("#divider", across=0.25)
    assert 22 <= float(browser.evaluate("document.getElementById('divider').value")) <= 28
    assert browser.evaluate(
        "getComputedStyle(document.getElementById('left-side')).clipPath.includes(100 - divider.value + '%')"
    )
    browser.click("#strip button:last-child")
    assert browser.evaluate("document.querySelector('#right-side .labels').src").endswith("-truth.png")
    choose(browser, "left", "cam")
    assert browser.evaluate("document.querySelector('#left-side img').src").endswith("-cam.jpg")
    assert text_of(browser, "heat").startswith("CAM score")
    assert "25.0 %" in text_of(browser, "facts")
    browser.click("#close")
    assert not browser.evaluate("document.getElementById('viewer').open")


def test_the_keyboard_does_all(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.evaluate("document.querySelector('#grid button').focus()")
    browser.press("Enter")
    assert browser.evaluate("document.getElementById('viewer').open") and focused(browser) == "divider"
    for _ in range(3):
        browser.press("ArrowRight")
    told = "document.getElementById('divider').getAttribute('aria-valuetext')"
    assert browser.evaluate(told).startswith("53 % Photo, the rest RRM two-step")
    browser.press("2")
    assert browser.evaluate(told) == "53 % Photo, the rest CAM"
    browser.press("n")
    browser.press("n")
    browser.press("p")
    assert text_of(browser, "viewer-title") == "2007_000002"
    browser.press("Escape")
    assert not browser.evaluate("document.getElementById('viewer').open")
    assert browser.evaluate("document.activeElement.title") == "2007_000002"


def test_keys_work_after_a_click_on_what_is_made_anew(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.click("#grid button")
    browser.click("#strip button:nth-child(2)")
    first = text_of(browser, "viewer-title")
    browser.press("n")
    assert text_of(browser, "viewer-title") != first
    assert browser.evaluate("[...document.querySelectorAll('#strip button')].indexOf(document.activeElement)") == 1
    for _ in range(20):
        browser.click("#next")  # the last one disables it
    browser.press("p")
    assert browser.evaluate("document.getElementById('next').disabled") is False


@pytest.mark.parametrize("width", [360, 768])
def test_a_phone_shows_it_whole(browser: Browser, page: Path, width: int) -> None:
    browser.resize(width, 740)
    browser.open(page)
    assert wider_than_the_screen(browser) == []
    browser.click("#grid button")
    assert wider_than_the_screen(browser) == []
    assert browser.evaluate("document.getElementById('compare').getBoundingClientRect().width") > 250
    assert float(browser.evaluate("getComputedStyle(document.body).fontSize.replace('px', '')")) >= 14
    browser.call("Emulation.clearDeviceMetricsOverride")


@pytest.mark.parametrize("truth", [True, False])
def test_a_screen_reader_finds_a_name_for_everything(browser: Browser, tmp_path: Path, truth: bool) -> None:
    browser.open(a_page(tmp_path, truth=truth))
    controls = {"button", "combobox", "slider", "radio", "link", "img", "image", "table", "region", "dialog"}
    for opened in (False, True):
        if opened:
            browser.click("#grid button")
        nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
        seen = [node for node in nodes if not node["ignored"] and node["role"]["value"] in controls]
        assert len(seen) > 12
        assert [
            node for node in seen if not node.get("name", {}).get("value") and node["role"]["value"] != "table"
        ] == []
    headings = browser.evaluate("[...document.querySelectorAll('h1, h2')].map(one => one.tagName)")
    assert headings[0] == "H1" and headings.count("H1") == 1
    assert browser.evaluate("document.documentElement.lang") == "en"
    assert browser.evaluate("[...document.images].every(one => one.hasAttribute('alt'))")


def test_without_truth_there_is_doubt(browser: Browser, tmp_path: Path) -> None:
    browser.open(a_page(tmp_path, truth=False))
    assert browser.evaluate("['scores', 'confusion', 'range'].every(id => document.getElementById(id).hidden)")
    assert shown(browser)[0] == HOSTILE and shown(browser)[-1] == "2007_000012"
    assert "doubt" in browser.evaluate("document.querySelector('#grid .card').innerText")
    assert "IoU" not in browser.evaluate("document.querySelector('main').innerText")
    assert browser.evaluate("[...document.querySelectorAll('#label-table tbody tr')].map(one => one.innerText)")[0] == (
        "cat\t4\t4\t4"
    )
    browser.click("#grid button")
    assert "doubt" in text_of(browser, "facts")
    browser.press("Escape")
    assert text_of(browser, "about").startswith("12 photos of the 20 that are trained on (16) or held out (4)")
    choose(browser, "split", "val")
    assert shown(browser) == [f"2007_{number:06d}" for number in (3, 6, 9, 12)]
    assert "held out" in browser.evaluate("document.querySelector('#grid .card').innerText")
    assert browser.evaluate("document.querySelector('#label-table tbody tr').innerText") == "cat\t4\t4\t4"
    choose(browser, "split", "train")
    assert browser.evaluate("document.querySelector('#label-table tbody tr').innerText") == "cat\t0\t0\t0"
    browser.click("#reset")
    assert len(shown(browser)) == PHOTOS


def test_one_file_holds_it_all(browser: Browser, page: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.html"
    alone.write_text(in_one_file(page), encoding="utf-8")
    browser.open(alone)
    assert len(shown(browser)) == PHOTOS and HOSTILE in shown(browser)
    browser.click("#grid button")
    assert browser.evaluate("document.querySelector('#left-side img').naturalWidth") == 80
    assert all(link.startswith("data:") or "#" in link for link in browser.evaluate(LINKS))
    (page.parent / "data.js").rename(page.parent / "data.js.away")
    with pytest.raises(RRMError, match=r"expected data\.js beside it"):
        in_one_file(page)
    (page.parent / "data.js.away").rename(page.parent / "data.js")


def test_an_earlier_page_leaves_no_pictures(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path / "index.html")
    for number, content in ((1, b"one"), (2, b"two")):
        pictures.add(number, "cam:3", content)
    (tmp_path / "images" / "mine.txt").write_text("not of the page")
    again = Pictures(tmp_path / "index.html")
    assert again.add(1, "step_two/../../big", b"\x89PNG") == "images/0001-step-two-big.png"
    again.remove_others()
    assert sorted(path.name for path in tmp_path.glob("images/*")) == ["0001-step-two-big.png", "mine.txt"]
