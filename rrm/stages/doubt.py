"""Stage `doubt`: photos by how doubtful their predictions are, the most doubtful first: where to look, and to label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from rrm.stages.call import Call
from rrm.stages.label_agreement import Facts, found_classes
from rrm.store import Store
from rrm.tables import write_table

COLUMNS = ["image", "split", "doubt", "labels", "predicted", "missed", "added", "confidence", "mined"]


def doubt(facts: Facts) -> float:
    """1 minus the mean probability of a photo's pixels times the overlap of predicted classes and labels, 0..1.

    Example:
        >>> sure = {"pixels": np.array([5, 5]), "confidence": np.array([4.0, 4.0])}
        >>> doubt({**sure, "present": np.array([1])}), doubt({**sure, "present": np.array([0])})
        (0.19999999999999996, 1.0)
    """
    confidence = float(facts["confidence"].sum() / facts["pixels"].sum())
    if "present" not in facts:
        return 1 - confidence
    ours, theirs = facts["present"] > 0, found_classes(facts)
    either = int((ours | theirs).sum())
    return 1 - confidence * (int((ours & theirs).sum()) / either if either else 1.0)


def _row(name: str, split: str, facts: Facts, classes: Sequence[str]) -> list[str]:
    found = found_classes(facts)
    present = facts["present"] > 0 if "present" in facts else np.zeros_like(found)
    shown = (present, found, present & ~found, found & ~present & ("present" in facts))
    named = [";".join(each for each, there in zip(classes, flags, strict=True) if there) for flags in shown]
    shares = [facts["confidence"].sum(), *([facts["mined"].sum()] if "mined" in facts else [])]
    total = facts["pixels"].sum()
    return [name, split, f"{doubt(facts):.3f}", *named, *(f"{100 * share / total:.1f}" for share in shares)]


def _rows(store: Store) -> Iterator[list[str]]:
    for split, names in store.attrs["splits"].items():
        for name in names:
            row = _row(name, split, store[name], store.attrs["classes"])
            yield row + [""] * (len(COLUMNS) - len(row))


def run(call: Call) -> None:
    """Write the table."""
    rows = sorted(_rows(Store(call.input("facts"), "photo_facts")), key=lambda row: (-float(row[2]), row[0]))
    write_table(call.output, pd.DataFrame(rows, columns=COLUMNS))
