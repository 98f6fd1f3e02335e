"""Stage `resolved-config`: the whole configuration, recipes applied, as YAML."""

from __future__ import annotations

import yaml

from rrm.stages.call import Call
from rrm.store import atomic_path


def run(call: Call) -> None:
    """Write every key that has an effect on results with its value."""
    with atomic_path(call.output) as temporary:
        temporary.write_text(yaml.safe_dump(call.options["config"], sort_keys=False, width=120), encoding="utf-8")
