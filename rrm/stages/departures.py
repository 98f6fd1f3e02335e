"""Stage `departures`: what each network's configuration sets otherwise than its recipe, a row a key."""

from __future__ import annotations

import pandas as pd

from rrm.config import Config, Method, OneStep, StepTwo, departures
from rrm.stages.call import Call
from rrm.tables import write_table

COLUMNS = ["network", "recipe", "key", "value"]


def run(call: Call) -> None:
    """Write the table; a configuration that follows its recipes gives a header only."""
    config = Config.model_validate(call.options["config"])
    sections: dict[str, OneStep | StepTwo | Method] = {"one_step": config.one_step}
    for group in ("methods", "step_two", "bounds"):
        sections |= {f"{group}/{name}": section for name, section in getattr(config, group).items()}
    rows = []
    for network, section in sections.items():
        for departure in departures(section):
            key, _, value = departure.partition("=")
            recipe = section.kind if isinstance(section, Method) else section.recipe
            rows.append([network, recipe, key, value])
    write_table(call.output, pd.DataFrame(rows, columns=COLUMNS))
