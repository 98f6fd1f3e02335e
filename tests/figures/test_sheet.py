"""Drawing on plain arrays: sizes, texts and legend of a sheet, colours, bytes of a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from rrm.errors import RRMError
from rrm.figures import (
    DPI,
    HEIGHT,
    NO_LABEL,
    WIDTH,
    Panel,
    deepest,
    draw_sheet,
    heat_panel,
    label_panel,
    photo_panel,
    save_sheet,
    shown_labels,
)

CLASSES = [f"class{k}" for k in range(1, 21)]


def labels(*values: int, size: tuple[int, int] = (30, 40)) -> np.ndarray:
    """Vertical stripes of the given labels."""
    return np.tile(np.repeat(np.array(values, np.uint8), -(-size[1] // len(values)))[: size[1]], (size[0], 1))


def photo(size: tuple[int, int] = (30, 40)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("shown", [[0, 3, 7], [5], [0, 255], [*range(21), 255]])
def test_the_legend_holds_exactly_what_is_shown(shown: list[int]) -> None:
    rows = [[photo_panel(photo()), label_panel(labels(*shown, size=(30, 44)))]]
    names = {0: "0 background", 255: NO_LABEL}
    figure = draw_sheet(rows, ["Photo", "Labels"], CLASSES)
    assert shown_labels(rows) == shown
    assert sorted(legend(figure)) == sorted(names.get(k, f"{k} class{k}") for k in shown)


def test_a_sheet_without_labels_has_a_bar_and_no_legend() -> None:
    figure = draw_sheet([[heat_panel(np.zeros((30, 40)), photo())]], ["CAM"], bar="score")
    assert not figure.legends
    assert "score" in [text.get_text() for text in figure.texts]


def test_headings_are_lettered_and_numbers_lie_in_their_regions() -> None:
    mask = labels(0, 4, 255, 9)
    figure = draw_sheet([[photo_panel(photo()), label_panel(mask)]] * 2, ["Photo", "Truth"], CLASSES)
    assert [text.get_text() for text in figure.texts] == ["(a) Photo", "(b) Truth"]
    numbers = [text for axes in figure.axes for text in axes.texts]
    assert [text.get_text() for text in numbers] == ["4", "9"] * 2
    for text in numbers:
        column, row = text.get_position()
        assert mask[round(row), round(column)] == int(text.get_text())


@pytest.mark.parametrize("size", [(30, 40), (60, 20), (20, 90), (333, 500)], ids=["4:3", "tall", "wide", "VOC"])
@pytest.mark.parametrize(("columns", "count"), [(3, 6), (6, 4), (9, 6), (4, 1)])
def test_sheets_fit_a_page_and_keep_the_aspect(size: tuple[int, int], columns: int, count: int) -> None:
    row = [photo_panel(photo(size), "2007_000000: class"), *[label_panel(labels(0, 1, size=size), "mIoU 50.0")] * 8]
    figure = draw_sheet([row[:columns]] * count, ["A method with a long name"] * columns, CLASSES)
    width, height = figure.get_size_inches()
    assert width <= WIDTH + 1e-6 and height <= HEIGHT + 1e-6
    for axes in figure.axes:
        box = axes.get_position()
        assert box.width * width / (box.height * height) == pytest.approx(size[1] / size[0])
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= 1 and box.y1 <= 1


def test_texts_overlap_neither_each_other_nor_the_panels() -> None:
    row = [
        label_panel(labels(*range(21), 255, size=(30, 44)), f"a long note on photo {k}: more than fits")
        for k in range(7)
    ]
    headings = ["Photo", "Ground truth", *(f"RRM two-step ResNet-10{k}" for k in range(5))]
    figure = draw_sheet([row, row], headings, CLASSES)
    canvas = FigureCanvasAgg(figure)
    parts = (*figure.texts, *figure.axes, *figure.legends)
    boxes = [each.get_window_extent(canvas.get_renderer()).shrunk(0.98, 0.9) for each in parts]
    overlapping = [(a, b) for k, a in enumerate(boxes) for b in boxes[:k] if a.overlaps(b)]
    assert overlapping == []
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= -1 for box in boxes)


def test_bytes_are_the_same_whatever_the_users_settings(tmp_path: Path) -> None:
    import matplotlib as mpl

    facts = {"Title": "Figure", "Description": "Größe: what, which run"}
    rows = [[photo_panel(photo(), "$x"), label_panel(labels(0, 1, 255))]]
    for name, settings in (("a", {}), ("b", {"font.size": 30, "savefig.dpi": 30, "savefig.bbox": "tight"})):
        with mpl.rc_context(settings):
            save_sheet(draw_sheet(rows, ["Photo", "Labels"], CLASSES), tmp_path / f"{name}.png", facts)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert image.text == facts  # type: ignore[attr-defined]
        assert image.info["dpi"] == pytest.approx((DPI, DPI), abs=0.01)


def test_heat_covers_more_of_the_photo_where_scores_are_high() -> None:
    black, white = np.zeros((1, 2, 3), np.uint8), np.full((1, 2, 3), 255, np.uint8)
    scores = np.array([[0.0, 1.0]])
    through = heat_panel(scores, white).picture.astype(int) - heat_panel(scores, black).picture
    assert (through[0, 0] > through[0, 1]).all()


def test_large_pictures_are_reduced_and_keep_their_labels() -> None:
    panel = label_panel(labels(0, 3, 255, size=(3000, 2000)))
    assert panel.picture.shape == (1000, 667, 3)
    assert panel.labels is not None and set(np.unique(panel.labels)) == {0, 3, 255}


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_the_deepest_place_is_inside(height: int, width: int, seed: int) -> None:
    region = np.random.default_rng(seed).random((height, width)) < 0.5
    region[0, 0] = True
    row, column = deepest(region)
    assert region[int(row), int(column)]


def test_a_thin_region_of_a_large_picture_has_a_place() -> None:
    region = np.zeros((600, 600), bool)
    region[:, 301] = True
    assert deepest(region)[1] == 301


@pytest.mark.parametrize(
    ("rows", "headings", "beside", "message"),
    [
        ([], ["Photo"], [], "expected rows of 1 panels"),
        ([[]], [], [], "expected rows of 0 panels"),
        ([[photo_panel(photo())]], ["a", "b"], [], "expected rows of 2 panels, one a heading, got [1]"),
        ([[photo_panel(photo())]], ["a"], ["x", "y"], "expected 1 texts beside the rows, got 2"),
        ([[label_panel(labels(0, 21))]], ["a"], [], "expected labels 0..20 and 255, got [21]"),
    ],
)
def test_wrong_input_is_named(rows: list[list[Panel]], headings: list[str], beside: list[str], message: str) -> None:
    with pytest.raises(RRMError) as error:
        draw_sheet(rows, headings, CLASSES, beside=beside)
    assert message in str(error.value)


def test_scores_of_another_size_are_named() -> None:
    with pytest.raises(RRMError, match="expected the photo's size"):
        heat_panel(np.zeros((2, 2)), photo())
