"""The data set of a configuration as a VOC layout on disk, for the stages that pack it.

One that the workflow made, the demo or an assembled one, lies beside its manifest, an input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rrm.datasets.demo import DEMO_CLASSES
from rrm.datasets.voc import VOC_CLASSES, VocLayout, read_classes
from rrm.stages.call import Call


def layout_of(call: Call) -> VocLayout:
    """The layout that the options name.

    Raises:
        RRMError: there is no such folder, or no file of the classes.
    """
    options: Mapping[str, Any] = call.options["dataset"]
    demo = options["kind"] == "demo"
    root = call.input("manifest").parent if demo or not options["root"] else Path(options["root"])
    return VocLayout(
        root=root,
        classes=_classes(root, options["classes"]) or (DEMO_CLASSES if demo else VOC_CLASSES),
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


def _classes(root: Path, classes: Sequence[str] | str | None) -> tuple[str, ...]:
    """Names of the classes: those given, or those in a file below the data set's folder."""
    return read_classes(root / classes) if isinstance(classes, str) else tuple(classes or ())
