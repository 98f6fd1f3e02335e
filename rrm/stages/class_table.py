"""Stage `class-table`: IoU of each class, Table 3 (val) or Table 4 (test), reported and measured."""

from __future__ import annotations

import pandas as pd

from rrm.pipeline import evaluated_splits, models
from rrm.stages.call import Call
from rrm.stages.measured import Measured, read_measured
from rrm.stages.table5 import describe, test_note
from rrm.tables import mean_and_deviation, reported, write_table

SPLIT = {"3": "val", "4": "test"}


def _measured_rows(measured: Measured, model: str, split: str) -> list[dict[str, str]]:
    """One row with CRF and one without."""
    facts = describe(measured.config, model).facts
    known = {name: facts.get(name, "") for name in ("method", "citation", "supervision", "image_labels_at_test")}
    stores = measured.of_seeds(model, split)
    names = ["background", *stores[0].attrs["classes"]]
    rows = []
    for kind, crf in (("crf", "yes"), ("plain", "no")):
        scores = measured.scores(model, split, kind)
        classes = {name: mean_and_deviation([each.iou[k] for each in scores])[0] for k, name in enumerate(names)}
        mean, deviation = mean_and_deviation([each.mean_iou for each in scores])
        seeds = " ".join(map(str, sorted(measured.config.seeds)))
        about = {"crf": crf, "seeds": seeds, "images": str(len(stores[0])), "dataset": measured.config.dataset.name}
        rows.append({"source": "measured", **known, **classes, "mean": mean, "mean_std": deviation, **about})
    return rows


def run(call: Call) -> None:
    """Write the table."""
    number = call.options["table"]
    split, measured = SPLIT[number], read_measured(call)
    printed = reported(number).assign(source="reported", dataset="VOC 2012", supervision="L", crf="yes")
    rows = []
    for model in models(measured.config):
        if split in evaluated_splits(measured.config):
            rows += _measured_rows(measured, model, split)
        else:
            method = describe(measured.config, model).facts["method"]
            note = test_note(measured.config, model)
            rows.append({"source": "measured", "method": method, "dataset": measured.config.dataset.name, "note": note})
    table = pd.concat([printed, pd.DataFrame(rows)], ignore_index=True).fillna("")
    first = ["source", "method", "citation", "supervision", "image_labels_at_test", "crf"]
    last = [name for name in ("mean", "mean_std", "seeds", "images", "dataset", "note") if name in table]
    classes = [name for name in table if name not in (*first, *last)]
    write_table(call.output, table.reindex(columns=[*first, *classes, *last], fill_value=""))
