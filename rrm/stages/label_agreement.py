"""Stage `label-agreement`: predicted classes beside image-level labels, for each class and split.

Without masks there is no IoU; how often a network finds the classes that people named is what can be known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from rrm.stages.call import Call
from rrm.store import Store
from rrm.tables import write_table

LEAST = 0.01
"""Share of a photo's pixels from which on a class counts as predicted."""
Facts = Mapping[str, npt.NDArray[Any]]
COLUMNS = ["split", "class", "photos", "found", "recall", "precision", "confidence", "mined"]


def found_classes(facts: Facts) -> npt.NDArray[np.bool_]:
    """(C,) bool: the classes that are predicted in a photo."""
    pixels = facts["pixels"]
    return np.asarray(pixels[1:] >= LEAST * pixels.sum()) & (pixels[1:] > 0)


def agreement(photos: Sequence[Facts], names: Sequence[str]) -> pd.DataFrame:
    """Rows for background, each class, and all classes together, in percent; `COLUMNS` without `split`.

    Args:
        photos: labelled photos (`rrm.stages.photo_facts`).
        names: of the foreground classes.

    Example:
        >>> cat = {"present": np.array([1, 0]), "pixels": np.array([6, 4, 0]), "confidence": np.array([3, 3.0, 0]),
        ...        "mined": np.array([2, 1, 0])}
        >>> agreement([cat], ["cat", "dog"]).values.tolist()[1]
        ['cat', '1', '1', '100.0', '100.0', '75.0', '10.0']
    """
    present = np.stack([facts["present"] > 0 for facts in photos])
    found = np.stack([found_classes(facts) for facts in photos])
    pixels, sure, mined = (np.stack([facts[name] for facts in photos]) for name in ("pixels", "confidence", "mined"))
    sizes = pixels.sum(1)
    rows = [["background", "", "", "", "", _percent(sure[:, 0].sum(), pixels[:, 0].sum()),
             _percent(mined[:, 0].sum(), sizes.sum())]]  # fmt: skip
    for place, name in enumerate(names):
        ours, theirs = present[:, place], found[:, place]
        rows.append([name, *_overlap(ours, theirs), _percent(sure[:, place + 1].sum(), pixels[:, place + 1].sum()),
                     _percent(mined[ours, place + 1].sum(), sizes[ours].sum())])  # fmt: skip
    rows.append(["all classes", *_overlap(present, found), _percent(sure.sum(), pixels.sum()),
                 _percent(mined.sum(), sizes.sum())])  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS[1:])


def _overlap(present: npt.NDArray[np.bool_], found: npt.NDArray[np.bool_]) -> list[str]:
    """Labels, those that are found, recall and precision."""
    both = int((present & found).sum())
    return [str(int(present.sum())), str(both), _percent(both, present.sum()), _percent(both, found.sum())]


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}" if whole else ""


def run(call: Call) -> None:
    """Write the table."""
    store = Store(call.input("facts"), "photo_facts")
    tables = []
    for split, names in store.attrs["splits"].items():
        labelled = [store[name] for name in names if "present" in store.names(name)]
        if labelled:
            tables.append(agreement(labelled, store.attrs["classes"]).assign(split=split))
    write_table(call.output, pd.concat(tables)[COLUMNS].assign(**call.options))
