"""Stage `sparse-labels`: scribbles or boxes of the training photos, derived from their masks."""

from __future__ import annotations

from rrm.datasets.packing import open_masks
from rrm.datasets.sparse import derive
from rrm.progress import tracked
from rrm.stages.call import Call
from rrm.store import StoreWriter


def run(call: Call) -> None:
    """Write a store of kind "masks" of the training split, whose masks are the derived labels, 255 without one."""
    masks, kind = open_masks(call.input("masks"), "train", supervision="full"), call.options["labels"]
    attrs = {**masks.attrs, "derived": kind}
    with StoreWriter(call.output, "masks", call.options, call.code, attrs=attrs) as writer:
        for name in tracked(masks.ids, kind, len(masks.ids), call.runtime["log_seconds"]):
            writer.add(name, {"mask": derive(masks.read(name, "mask"), kind)})
