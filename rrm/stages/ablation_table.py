"""Stage `ablation-table`: Table 1 (share of reliable pixels) or Table 2 (pseudo labels and losses), on val."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from rrm.pipeline import LABELS, LOSSES, variant
from rrm.stages.call import Call
from rrm.stages.measured import Measured, read_measured
from rrm.tables import mean_and_deviation, reported, write_table

SHOWN = {"cam": "CAM", "rrm": "RRM"}


def _cells(measured: Measured, labels: str, ratio: float) -> dict[str, str]:
    """Mean IoU of both losses with CRF and without, in percent."""
    cells: dict[str, str] = {}
    for kind, suffix in (("crf", ""), ("plain", "_without_crf")):
        for loss in LOSSES:
            scores = measured.scores(variant(measured.config, labels, ratio, loss), "val", kind)
            mean, deviation = mean_and_deviation([each.mean_iou for each in scores])
            cells |= {f"{loss}{suffix}": mean, f"{loss}{suffix}_std": deviation}
    return cells


def _facts(measured: Measured) -> dict[str, str]:
    config = measured.config
    photos = len(measured.of_seeds("one_step", "val")[0])
    seeds = " ".join(map(str, sorted(config.seeds)))
    return {"seeds": seeds, "val_images": str(photos), "dataset": config.dataset.name}


def _paper(number: int, row: Sequence[str]) -> dict[str, str]:
    """What the paper prints in the row that begins so, empty where it has none."""
    table = reported(number)
    column = table.columns[0]
    found = table[table[column] == row[0]]
    return {f"paper_{loss}": found[loss].iloc[0] if len(found) else "" for loss in LOSSES}


def ratios(measured: Measured) -> pd.DataFrame:
    """Table 1."""
    rows = []
    for ratio in measured.config.ablation.ratios:
        shown = f"{ratio:g}" if ratio < 1 else f"{ratio:.1f}"
        cells = _cells(measured, "rrm", ratio)
        rows.append({"ratio": shown, **cells, **_paper(1, [shown]), **_facts(measured)})
    return pd.DataFrame(rows)


def pseudo_labels(measured: Measured) -> pd.DataFrame:
    """Table 2."""
    ratio = measured.config.one_step.mining.ratio
    rows = []
    for labels in reversed(LABELS):
        cells = _cells(measured, labels, ratio)
        rows.append(
            {"labels": SHOWN[labels], "ratio": f"{ratio:g}", **cells, **_paper(2, [SHOWN[labels]]), **_facts(measured)}
        )
    return pd.DataFrame(rows)


def run(call: Call) -> None:
    """Write the table."""
    table = {"1": ratios, "2": pseudo_labels}[call.options["table"]]
    write_table(call.output, table(read_measured(call)))
