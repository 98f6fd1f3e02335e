"""Stage `pack-masks`: the masks of one split, in a store of their own."""

from __future__ import annotations

from rrm.datasets.packing import pack_masks
from rrm.stages.call import Call
from rrm.stages.dataset import layout_of


def run(call: Call) -> None:
    """Write a store of kind "masks", or list every fault of the masks and write nothing."""
    pack_masks(layout_of(call), call.options["split"], call.output, config=call.options, code=call.code)
