"""The data set of a configuration as a VOC layout on disk, for the stages that pack it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rrm.datasets.demo import DEMO_CLASSES
from rrm.datasets.voc import VOC_CLASSES, VocLayout
from rrm.stages.call import Call


def layout_of(call: Call) -> VocLayout:
    """The layout that the options name; the demo's lies beside its manifest, an input."""
    options: Mapping[str, Any] = call.options["dataset"]
    demo = options["kind"] == "demo"
    classes = options["classes"] or (DEMO_CLASSES if demo else VOC_CLASSES)
    return VocLayout(
        root=call.input("manifest").parent if demo else Path(options["root"]),
        classes=tuple(classes),
        labels=options["labels"],
        lists={
            "train": options["train"],
            "val": options["val"],
            "test": "test" if demo else options["test"],
            "submission": options["submission"],
        },
        background_images=options["background_images"],
        max_pixels=options["max_pixels"],
    )
