"""Stage `training-curves`: the loss terms of every network over the steps of its training, one figure a data set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from rrm.stages.call import Call
from rrm.store import atomic_path

_POINTS = 200  # of a curve: the figure stays small however long a training was
_COLOUR = "#1b6ca8"


def read_history(path: Path) -> pd.DataFrame:
    """Loss terms of one training: a row a step, a column a term."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return pd.DataFrame([json.loads(line) for line in lines]).set_index("step").drop(columns="lr")


def mean_history(histories: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Mean over seeds, step by step.

    Example:
        >>> first, second = (pd.DataFrame({"energy": [value]}, index=[0]) for value in (1.0, 2.0))
        >>> mean_history([first, second])["energy"].tolist()
        [1.5]
    """
    return pd.concat(histories).groupby(level=0, sort=True).mean()


def smoothed(values: pd.Series[float], points: int = _POINTS) -> pd.DataFrame:
    """A curve of few points: `mean` of neighbouring steps, and `low` to `high`, which hold four fifths of them.

    Example:
        >>> smoothed(pd.Series([1.0, 3.0, 5.0, 5.0]), points=2)["mean"].to_dict()
        {0: 2.0, 2: 5.0}
    """
    size = max(1, -(-len(values) // points))
    groups = values.groupby((values.index // size) * size)
    return pd.DataFrame({"mean": groups.mean(), "low": groups.quantile(0.1), "high": groups.quantile(0.9)})


def _curve(axes: Any, values: pd.Series[float]) -> None:
    curve = smoothed(values)
    axes.fill_between(curve.index, curve["low"], curve["high"], color=_COLOUR, alpha=0.2, linewidth=0)
    axes.plot(curve.index, curve["mean"], color=_COLOUR, linewidth=1.2)


def draw(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """A row of panels a network, a column a loss term; each panel has a scale of its own."""
    terms = list(dict.fromkeys(str(term) for history in histories.values() for term in history))
    if not terms:
        figure = Figure(figsize=(6, 1))
        figure.text(0.5, 0.5, "No training history lies beside the weights.", ha="center", va="center")
        return figure
    figure = Figure(figsize=(1 + 3 * len(terms), 0.6 + 1.7 * len(histories)), layout="constrained")
    panels = figure.subplots(len(histories), len(terms), squeeze=False)
    for row, (model, history) in zip(panels, histories.items(), strict=True):
        for axes, term in zip(row, terms, strict=True):
            if term not in history:
                axes.set_axis_off()
                continue
            _curve(axes, history[term])
            axes.set_title(f"{model}: {str(term).replace('_', ' ')}", fontsize=9)
            axes.set_xlabel("step", fontsize=8)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.tick_params(labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)
    return figure


def run(call: Call) -> None:
    """Write the figure (SVG, the same bytes for the same histories) from the histories beside the weights.

    Inputs are named `SEED:MODEL`; a network whose training left no history (a fitted classifier) has no row.
    """
    found: dict[str, list[pd.DataFrame]] = {}
    for name in call.inputs:
        history = call.input(name).with_suffix(".history.jsonl")
        if history.is_file():
            found.setdefault(name.partition(":")[2], []).append(read_history(history))
    figure = draw({model: mean_history(histories) for model, histories in found.items()})
    with mpl.rc_context({"svg.hashsalt": "rrm"}), atomic_path(call.output) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
