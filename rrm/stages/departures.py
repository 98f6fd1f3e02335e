"""Stage `departures`: what each network's configuration sets otherwise than its recipe, a row a key."""

from __future__ import annotations

import pandas as pd

from rrm.config import Config, OneStep, StepTwo, departures
from rrm.stages.call import Call
from rrm.tables import write_table

COLUMNS = ["network", "recipe", "key", "value"]


def run(call: Call) -> None:
    """Write the table; a configuration that follows its recipes gives a header only."""
    config = Config.model_validate(call.options["config"])
    sections: dict[str, OneStep | StepTwo] = {"one_step": config.one_step}
    sections |= {f"step_two/{name}": section for name, section in config.step_two.items()}
    sections |= {f"bounds/{name}": section for name, section in config.bounds.items()}
    rows = []
    for network, section in sections.items():
        for departure in departures(section):
            key, _, value = departure.partition("=")
            rows.append([network, section.recipe, key, value])
    write_table(call.output, pd.DataFrame(rows, columns=COLUMNS))
