"""The paper's tables: figures as reported, and this run's as measured.

A measured cell is computed here from the confusion matrices of its photos and from nothing else; reported figures come
from `rrm/reported/` and have no way into a measured cell.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from rrm.errors import RRMError, RRMErrors
from rrm.metrics import SegmentationScores, scores_of
from rrm.store import Store, atomic_path

COLUMNS = [
    "source",
    "method",
    "citation",
    "backbone",
    "start_weights",
    "supervision",
    "image_labels_at_test",
    "extra_data",
    "end_to_end",
    "masks_cleaned",
    "scales",
    "flip",
    "val",
    "val_std",
    "val_without_crf",
    "val_without_crf_std",
    "val_images",
    "test",
    "test_std",
    "test_without_crf",
    "test_without_crf_std",
    "test_images",
    "seeds",
    "dataset",
    "recipe",
    "departures",
    "note",
]
"""Columns of `results/table5.csv`; mIoU in percent.

`val` and `test` are with CRF in measured rows and as printed in reported ones. `masks_cleaned`: whether classes that
are not among a photo's labels were removed from the pseudo masks; `scales` and `flip` are the views at test.
"""

_VOC_IMAGES = {"val": 1449, "test": 1456}


@dataclass(frozen=True)
class Row:
    """What is known of a measured row beside its figures: columns of the table that have text."""

    model: str
    facts: Mapping[str, str]


def reported(number: int | str) -> pd.DataFrame:
    """One of the paper's tables as printed, text as it stands, in percent.

    Example:
        >>> reported(2).values.tolist()
        [['CAM', '46.1', '55.7'], ['RRM', '48.5', '62.6']]
    """
    with resources.files("rrm.reported").joinpath(f"table{number}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file, keep_default_na=False, dtype=str)


def reported_rows() -> pd.DataFrame:
    """The paper's 19 rows of Table 5, marked `reported`.

    Example:
        >>> len(reported_rows()), set(reported_rows()["source"])
        (19, {'reported'})
    """
    rows = reported(5)
    rows = rows.assign(source="reported", dataset="VOC 2012", seeds="", val_images=str(_VOC_IMAGES["val"]))
    rows["test_images"] = [str(_VOC_IMAGES["test"]) if test != "" else "" for test in rows["test"]]
    return rows.reindex(columns=COLUMNS, fill_value="").astype(str)


def total_confusion(store: Store, kind: str) -> npt.NDArray[np.int64]:
    """Sum of the confusion matrices of all photos of a store.

    Args:
        store: kind "confusion".
        kind: `"plain"` or `"crf"`.
    """
    return np.asarray(sum(store.read(name, kind) for name in store.ids), np.int64)


def scores_of_store(store: Store, kind: str) -> SegmentationScores:
    """Scores over all photos of a store of kind "confusion"; `kind` is `"plain"` or `"crf"`."""
    return scores_of(total_confusion(store, kind))


def _cells(stores: Sequence[Store], split: str) -> dict[str, str]:
    """Mean and standard deviation over seeds, in percent."""
    cells = {f"{split}_images": str(len(stores[0].ids))}
    for kind, name in (("crf", split), ("plain", f"{split}_without_crf")):
        values = [scores_of_store(store, kind).mean_iou for store in stores]
        cells[name], cells[f"{name}_std"] = mean_and_deviation(values)
    return cells


def mean_and_deviation(values: Sequence[float]) -> tuple[str, str]:
    """Mean and standard deviation over seeds as percent with two digits; the latter is empty for a single seed.

    Example:
        >>> mean_and_deviation([0.5, 0.52]), mean_and_deviation([0.5])
        (('51.00', '1.41'), ('50.00', ''))
    """
    percent = [100 * value for value in values]
    return f"{statistics.fmean(percent):.2f}", f"{statistics.stdev(percent):.2f}" if len(percent) > 1 else ""


def measured_row(row: Row, confusions: Mapping[tuple[int, str], Store]) -> dict[str, str]:
    """One measured row.

    Args:
        row: its model and its text columns.
        confusions: stores of kind "confusion" by (seed, split), of this model.

    Raises:
        RRMError: seeds were not scored on the same photos.
    """
    seeds = sorted({seed for seed, _ in confusions})
    cells = {"source": "measured", "seeds": " ".join(map(str, seeds)), **row.facts}
    for split in sorted({split for _, split in confusions}):
        stores = [confusions[seed, split] for seed in seeds]
        if any(store.ids != stores[0].ids for store in stores):
            raise RRMError(
                f"{row.model} {split}: expected the same photos for all seeds, got different ones: evaluate again"
            )
        cells |= _cells(stores, split)
    return cells


def check_sources(
    stores: Mapping[tuple[int, str, str], Store], expected: Mapping[tuple[int, str, str], Mapping[str, Any]]
) -> None:
    """Refuse matrices that were not made with this configuration.

    Args:
        stores: by (seed, model, split).
        expected: for the same keys, facts that the store's attributes must hold.

    Raises:
        RRMErrors: every store that holds something else.
    """
    faults = []
    for key, store in stores.items():
        for name, value in expected[key].items():
            if store.attrs.get(name) != value:
                faults.append(f"{store.path}: {name}: made with another configuration: run `snakemake` for it again")
    if faults:
        raise RRMErrors("tables", faults)


def write_table5(path: Path, measured: Sequence[Mapping[str, str]]) -> None:
    """Write reported and measured rows as CSV, atomically."""
    rows = pd.DataFrame([{column: row.get(column, "") for column in COLUMNS} for row in measured], dtype=str)
    write_table(path, pd.concat([reported_rows(), rows], ignore_index=True))


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, atomically."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)


def per_class_table(store: Store) -> pd.DataFrame:
    """Per-class IoU in percent without and with CRF, background first and the mean last."""
    names = ["background", *store.attrs["classes"], "mean"]
    columns = {}
    for kind in ("plain", "crf"):
        scores = scores_of_store(store, kind)
        columns[kind] = [round(100 * float(value), 2) for value in [*scores.iou, scores.mean_iou]]
    return pd.DataFrame(columns, index=pd.Index(names, name="class"))
