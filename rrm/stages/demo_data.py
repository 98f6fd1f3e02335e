"""Stage `demo-data`: the embedded demo data set, in VOC layout, from a seed."""

from __future__ import annotations

from rrm.datasets.demo import generate_demo
from rrm.stages.call import Call


def run(call: Call) -> None:
    """Write the data set into the output's folder; the output is its manifest, written last."""
    generate_demo(call.output.parent, **call.options["demo"])
