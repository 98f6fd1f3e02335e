"""Stage `bound`: a network trained on the true masks of the training photos, an upper bound for weak runs."""

from __future__ import annotations

from rrm.datasets.packing import open_masks
from rrm.stages.call import Call
from rrm.stages.step_two import train_segmentation


def run(call: Call) -> None:
    """Write the weights of a fully supervised network."""
    train_segmentation(call, open_masks(call.input("masks"), "train", supervision="full"))
