"""Stage `assemble`: PASCAL VOC 2012 with SBD, from the files that are published, in VOC layout."""

from __future__ import annotations

from pathlib import Path

from rrm.datasets.voc2012 import assemble_voc2012
from rrm.errors import RRMError
from rrm.stages.call import Call


def run(call: Call) -> None:
    """Assemble the data set in the output's folder; the output is its manifest."""
    sources = call.options["sources"]
    if sources is None:
        raise RRMError("dataset.sources: expected the files of VOC 2012 and SBD, got null: name them")
    voc, sbd = [Path(path) for path in sources["voc"]], Path(sources["sbd"])
    assemble_voc2012(call.output.parent, voc, sbd, subset=sources["subset"], replace=True)
