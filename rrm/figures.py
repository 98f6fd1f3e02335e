"""The paper's figures as pictures: label maps, heat maps, and a sheet of them with headings, a legend and notes.

Nothing is read here: all functions take arrays. A file's bytes follow from its arguments and the version of Matplotlib:
the fonts are those that Matplotlib brings, no setting of the user counts, and no time is written.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from PIL import Image

from rrm.datasets.packing import reduce_photo
from rrm.datasets.voc import voc_palette
from rrm.errors import RRMError
from rrm.labels import IGNORE
from rrm.store import atomic_path

Picture = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.uint8]
_Entry = tuple[int, str]

WIDTH, HEIGHT = 7.0, 9.0
"""Largest sheet, inches: two columns of a paper, and its page."""
DPI = 300
HEAT = "viridis"
NO_LABEL = "no label"
_LARGEST_PANEL, _GAP = 1.6, 0.05
_HEADING, _NOTE, _LINE, _LEGEND, _BAR = 7.5, 6.5, 0.125, 0.16, 0.3  # points of two texts; inches of lines
_LETTER = 0.057  # inches of a letter of a heading, rather too much than too little; 0.87 of it in a note
_LEAST_REGION = 0.01  # share of the picture from which on a class gets its number

_LARGEST_PICTURE = 1000  # pixels of a panel's longer side; more cannot be seen


@dataclass(frozen=True)
class Panel:
    """One picture of a sheet.

    Attributes:
        picture: (H,W,3) uint8 RGB.
        labels: (H,W) uint8 labels that `picture` shows: they get outlines and numbers, and the legend names them.
        outline: (H,W) bool, a region that is outlined, or None.
        note: a line of text below; a long one loses its middle.
    """

    picture: Picture
    labels: Labels | None = None
    outline: npt.NDArray[np.bool_] | None = None
    note: str = ""


def label_colours(labels: Labels) -> Picture:
    """Labels in VOC's colours, 255 (no label) in white.

    Args:
        labels: (H,W) uint8.

    Returns:
        (H,W,3) uint8 RGB.

    Example:
        >>> label_colours(np.array([[0, 1, 255]], np.uint8)).tolist()
        [[[0, 0, 0], [128, 0, 0], [255, 255, 255]]]
    """
    palette = voc_palette()
    palette[IGNORE] = 255
    return palette[labels]


def photo_panel(photo: Picture, note: str = "") -> Panel:
    """Panel of a photo (H,W,3) uint8; a very large one is reduced."""
    return Panel(reduce_photo(photo, _LARGEST_PICTURE), note=note)


def label_panel(labels: Labels, note: str = "") -> Panel:
    """Panel of a label map (H,W) uint8; a very large one is reduced."""
    seen = resize_labels(labels, reduce_photo(label_colours(labels), _LARGEST_PICTURE).shape[:2])
    return Panel(label_colours(seen), seen, note=note)


def heat_panel(
    scores: npt.NDArray[np.floating[Any]],
    photo: Picture,
    outline: npt.NDArray[np.bool_] | None = None,
    note: str = "",
) -> Panel:
    """Panel of scores laid over the grey photo: the higher a score, the less of the photo shows through.

    Args:
        scores: (H,W) float in 0..1; values outside are clipped.
        photo: (H,W,3) uint8 RGB.
        outline: (H,W) bool, a region that is outlined.
        note: a short text below.

    Raises:
        RRMError: sizes differ.

    Example:
        >>> heat_panel(np.zeros((2, 3)), np.zeros((2, 3, 3), np.uint8)).picture.shape
        (2, 3, 3)
    """
    if scores.shape != photo.shape[:2]:
        raise RRMError(f"scores: expected the photo's size {photo.shape[:2]}, got {scores.shape}: resize them")
    grey = photo.astype(np.float64) @ np.array([0.299, 0.587, 0.114]) / 255
    colour = mpl.colormaps[HEAT](np.clip(scores, 0, 1))[..., :3]
    opacity = 0.55 + 0.35 * np.clip(scores, 0, 1)[..., None]
    mixed = opacity * colour + (1 - opacity) * grey[..., None]
    return Panel(np.asarray((255 * mixed).round(), np.uint8), outline=outline, note=note)


def resize_labels(labels: Labels, size: tuple[int, int]) -> Labels:
    """Labels (H,W) uint8 at another (height, width): the nearest one of each pixel.

    Example:
        >>> resize_labels(np.array([[0, 7]], np.uint8), (1, 4)).tolist()
        [[0, 0, 7, 7]]
    """
    if labels.shape == size:
        return labels
    return np.asarray(Image.fromarray(labels).resize((size[1], size[0]), Image.Resampling.NEAREST))


def shown_labels(rows: Sequence[Sequence[Panel]]) -> list[int]:
    """Labels that the panels show, in ascending order; 255 is the last.

    Example:
        >>> shown_labels([[label_panel(np.array([[0, 2]], np.uint8))], [label_panel(np.array([[255]], np.uint8))]])
        [0, 2, 255]
    """
    maps = [panel.labels for row in rows for panel in row if panel.labels is not None]
    return sorted({int(label) for each in maps for label in np.unique(each)})


def deepest(region: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """A place well inside a region, where a number can be read.

    Args:
        region: (H,W) bool with at least one True.

    Returns:
        Row and column: of the pixels that survive the most erosions, the one nearest to their mean.

    Example:
        >>> deepest(np.array([[0, 0, 0, 0, 1], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]], bool))
        (2.0, 1.0)
    """
    step = max(1, max(region.shape) // 128)
    coarse = region[::step, ::step]
    coarse, step = (coarse, step) if coarse.any() else (region, 1)
    inside = coarse
    while inside.any():
        kept = inside
        padded = np.pad(inside, 1)
        inside = padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    places = np.argwhere(kept)
    row, column = places[np.square(places - places.mean(0)).sum(1).argmin()] * step
    return float(row), float(column)


def draw_sheet(
    rows: Sequence[Sequence[Panel]],
    headings: Sequence[str],
    classes: Sequence[str] = (),
    *,
    beside: Sequence[str] = (),
    bar: str = "",
) -> Figure:
    """Panels in rows and columns, lettered headings above, the legend of the shown classes below.

    Args:
        rows: rows of panels, one panel a heading.
        headings: of the columns; "(a)", "(b)" and so on are put before them.
        classes: names of the foreground classes in the order of their labels.
        beside: a text to the right of each row; none: no such column.
        bar: what the colours of heat panels mean; none: no bar.

    Returns:
        A figure of at most `WIDTH` x `HEIGHT` inches (higher with many rows), for `save_sheet`.

    Raises:
        RRMError: no rows, a row of another length than the headings, or a label without a class name.

    Example:
        >>> panel = label_panel(np.array([[0, 1]], np.uint8))
        >>> sheet = draw_sheet([[panel]], ["Ground truth"], ["cat"])
        >>> sheet.texts[0].get_text(), [text.get_text() for text in sheet.legends[0].get_texts()]
        ('(a) Ground truth', ['0 background', '1 cat'])
    """
    _check_sheet(rows, headings, classes, beside)
    sheet = _Sheet(rows, headings, classes, beside, bar)
    with _own_style():
        return sheet.draw()


def save_sheet(figure: Figure, path: Path, facts: Mapping[str, str]) -> None:
    """Write a figure as PNG, atomically; the same figure and facts give the same bytes.

    Args:
        figure: of `draw_sheet`.
        path: the file.
        facts: text that is stored in the file, by keyword, such as Title and Description.
    """
    with atomic_path(path) as temporary, _own_style():
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None, **facts})


@contextmanager
def _own_style() -> Iterator[None]:
    """Matplotlib's defaults but for a few, whatever the user's settings are; text is never taken for formulas."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams["font.family"] = ["DejaVu Sans"]
        mpl.rcParams["axes.linewidth"] = 0.5
        mpl.rcParams["text.parse_math"] = False
        yield


def _check_sheet(
    rows: Sequence[Sequence[Panel]], headings: Sequence[str], classes: Sequence[str], beside: Sequence[str]
) -> None:
    lengths = sorted({len(row) for row in rows})
    if lengths != [len(headings)] or not headings:
        raise RRMError(
            f"figure: expected rows of {len(headings)} panels, one a heading, got {lengths}: give each row one panel "
            "a column"
        )
    if beside and len(beside) != len(rows):
        raise RRMError(f"figure: expected {len(rows)} texts beside the rows, got {len(beside)}: give one a row or none")
    nameless = [label for label in shown_labels(rows) if len(classes) < label < IGNORE]
    if nameless:
        raise RRMError(f"figure: expected labels 0..{len(classes)} and {IGNORE}, got {nameless}: name their classes")


class _Sheet:
    """Sizes and places of all parts, in inches from the upper left corner."""

    def __init__(
        self,
        rows: Sequence[Sequence[Panel]],
        headings: Sequence[str],
        classes: Sequence[str],
        beside: Sequence[str],
        bar: str,
    ) -> None:
        self.rows, self.beside, self.bar = rows, beside, bar
        self.entries = [(label, _legend_name(label, classes)) for label in shown_labels(rows)]
        self.side = 1.9 if beside else 0.0
        columns = len(headings)
        self.panel = min(_LARGEST_PANEL, (WIDTH - self.side - (columns + 1) * _GAP) / columns)
        self._lay_out(headings)
        if self.height > HEIGHT:  # a page is all there is
            fixed = self.height - sum(self.heights)
            self.panel = max(0.5, self.panel * (HEIGHT - fixed) / sum(self.heights))
            self._lay_out(headings)

    def _lay_out(self, headings: Sequence[str]) -> None:
        self.width = max(3.3, len(headings) * (self.panel + _GAP) + _GAP + self.side)
        self.left = (self.width - self.side - len(headings) * (self.panel + _GAP) + _GAP) / 2
        self.headings = _lettered(headings, int(self.panel / _LETTER))
        self.top = (max(text.count("\n") for text in self.headings) + 1) * _LINE + _GAP
        self.heights = [max(self._size(panel)[1] for panel in row) for row in self.rows]
        self.notes = [any(panel.note for panel in row) * _LINE for row in self.rows]
        longest = max((len(name) for _, name in self.entries), default=1)
        self.columns = max(1, min(len(self.entries), int((self.width - 0.1) / (0.34 + 0.047 * longest))))
        lines = math.ceil(len(self.entries) / self.columns)
        self.legend = lines * _LEGEND + (0.06 if lines else 0)
        rows = sum(self.heights) + sum(self.notes) + _GAP * len(self.rows)
        self.height = self.top + rows + self.legend + (_BAR if self.bar else 0)

    def _size(self, panel: Panel) -> tuple[float, float]:
        """Width and height: a wide picture fills the panel's width, a tall one its height."""
        height, width = panel.picture.shape[:2]
        scale = self.panel / max(height, width)
        return width * scale, height * scale

    def draw(self) -> Figure:
        figure = Figure(figsize=(self.width, self.height), facecolor="white")
        for column, text in enumerate(self.headings):
            centre = self.left + column * (self.panel + _GAP) + self.panel / 2
            self._text(figure, centre, self.top - 0.03, text, size=_HEADING, ha="center", va="bottom")
        top = self.top
        for number, row in enumerate(self.rows):
            self._draw_row(figure, number, row, top)
            top += self.heights[number] + self.notes[number] + _GAP
        if self.bar:
            self._draw_bar(figure, top)
        if self.entries:
            self._draw_legend(figure)
        return figure

    def _draw_row(self, figure: Figure, number: int, row: Sequence[Panel], top: float) -> None:
        for column, panel in enumerate(row):
            width, height = self._size(panel)
            left = self.left + column * (self.panel + _GAP) + (self.panel - width) / 2
            place = top + (self.heights[number] - height) / 2
            _draw_panel(figure.add_axes(self._box(left, place, width, height)), panel)
            if panel.note:
                below, middle = place + height + 0.02, left + width / 2
                note = _shortened(panel.note, int(self.panel / (0.87 * _LETTER)))
                self._text(figure, middle, below, note, size=_NOTE, ha="center", va="top")
        if self.beside:
            left = self.left + len(row) * (self.panel + _GAP) + 0.05
            middle = top + self.heights[number] / 2
            self._text(figure, left, middle, self.beside[number], size=_NOTE, ha="left", va="center")

    def _box(self, left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
        bottom = self.height - top - height
        return left / self.width, bottom / self.height, width / self.width, height / self.height

    def _text(self, figure: Figure, left: float, top: float, text: str, size: float, ha: str, va: str) -> None:
        figure.text(left / self.width, 1 - top / self.height, text, fontsize=size, ha=ha, va=va, linespacing=1.1)

    def _draw_bar(self, figure: Figure, top: float) -> None:
        axes = figure.add_axes(self._box(self.width / 2 - 0.9, top + 0.02, 1.8, 0.07))
        axes.imshow(np.linspace(0, 1, 256)[None], cmap=HEAT, aspect="auto", extent=(0, 1, 0, 1))
        axes.set_yticks([])
        axes.set_xticks([0, 1])
        axes.tick_params(length=2, width=0.5, pad=1, labelsize=_NOTE)
        self._text(figure, self.width / 2, top + 0.11, self.bar, size=_NOTE, ha="center", va="top")

    def _draw_legend(self, figure: Figure) -> None:
        palette = label_colours(np.arange(256, dtype=np.uint8)[None])[0] / 255
        patches = [
            Patch(facecolor=tuple(palette[label]), edgecolor="0.4", linewidth=0.5, label=name)
            for label, name in _by_columns(self.entries, self.columns)
        ]
        figure.legend(
            handles=patches,
            loc="lower center",
            bbox_to_anchor=(0.5, 0),
            ncols=self.columns,
            fontsize=_NOTE + 0.5,
            frameon=False,
            borderpad=0.2,
            borderaxespad=0,
            handlelength=1.2,
            handleheight=0.8,
            handletextpad=0.4,
            columnspacing=1.0,
            labelspacing=0.35,
        )


def _legend_name(label: int, classes: Sequence[str]) -> str:
    if label == IGNORE:
        return NO_LABEL
    return f"{label} {'background' if label == 0 else classes[label - 1]}"


def _lettered(headings: Sequence[str], letters: int) -> list[str]:
    """Headings with "(a)" and so on, broken into at most three lines."""
    marked = [f"({chr(ord('a') + k)}) {heading}" for k, heading in enumerate(headings)]
    return ["\n".join(textwrap.wrap(text, max(8, letters), max_lines=3, placeholder="...")) for text in marked]


def _shortened(text: str, letters: int) -> str:
    """The text, without its middle where it is longer than so many letters."""
    if len(text) <= letters:
        return text
    kept = max(2, letters - 3)
    return f"{text[: kept // 2]}...{text[-(kept - kept // 2) :]}"


def _by_columns(entries: Sequence[_Entry], columns: int) -> list[_Entry]:
    """Entries in the order in which a legend takes them, column by column, so that its lines read on."""
    return [entry for column in range(columns) for entry in entries[column::columns]]


def _draw_panel(axes: Axes, panel: Panel) -> None:
    height, width = panel.picture.shape[:2]
    axes.imshow(panel.picture, aspect="auto", interpolation="auto")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("0.4")
    if panel.outline is not None:
        _draw_outline(axes, panel.outline, "white", 0.9)
    if panel.labels is not None:
        for label in np.unique(panel.labels):
            _draw_region(axes, panel.labels == label, int(label))
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)


def _draw_region(axes: Axes, region: npt.NDArray[np.bool_], label: int) -> None:
    """Outline and number of one class; background and pixels without label have none."""
    if label in (0, IGNORE):
        return
    _draw_outline(axes, region, "white", 0.4)
    if region.mean() >= _LEAST_REGION:
        row, column = deepest(region)
        stroke = [withStroke(linewidth=1.2, foreground="black")]
        axes.text(column, row, str(label), fontsize=5.5, color="white", ha="center", va="center", path_effects=stroke)


def _draw_outline(axes: Axes, region: npt.NDArray[np.bool_], colour: str, width: float) -> None:
    if min(region.shape) >= 2 and region.any() and not region.all():
        axes.contour(region.astype(np.float64), levels=[0.5], colors=colour, linewidths=width)
