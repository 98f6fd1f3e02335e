"""Stage `pack-photos`: photos and image-level labels of all splits in one store; no mask is opened."""

from __future__ import annotations

from rrm.datasets.packing import pack_photos
from rrm.stages.call import Call
from rrm.stages.dataset import layout_of


def run(call: Call) -> None:
    """Write a store of kind "photos", or list every fault of the data set and write nothing."""
    layout = layout_of(call)
    long_side = call.options["dataset"]["long_side"]
    pack_photos(layout, layout.splits, call.output, long_side=long_side, config=call.options, code=call.code)
