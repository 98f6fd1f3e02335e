"""What `rrm own-masks` does for the workflow: masks and overlays of photos, and a list of them.

They lie in a folder beside the list that is called as it is: `segmented.csv` and `segmented/`. A call that was stopped
goes on where it was; one with other weights, options or labels makes all again.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from rrm.datasets.voc import VocLayout, raise_faults
from rrm.errors import RRMError
from rrm.provenance import file_digest, module_hash
from rrm.segment_files import Source
from rrm.segmenter import Segmenter, load
from rrm.segmenting import Options, find_photos, segment
from rrm.store import atomic_path
from rrm.tables import write_table
from rrm.training import take_device
from rrm.videos import is_video


def own_masks(model: Path, out: Path, options: Mapping[str, Any], runtime: Mapping[str, Any]) -> None:
    """Segment photos and list their classes.

    Args:
        model: weights.
        out: the list, a CSV file: image, and the share of each class in percent of its pixels.
        options: config section `segment` without `model`, and of `dataset` root, labels, long_side and max_pixels.
        runtime: config section `runtime`.

    Raises:
        RRMErrors: photos that could not be segmented; all others are done then.
    """
    data, folder = options["dataset"], out.with_suffix("")
    segmenter = load(model, take_device(runtime))
    inputs, faults = options["photos"] or [str(Path(data["root"], "JPEGImages"))], list[str]()
    sources = find_photos(inputs, folder, faults)
    raise_faults("photos to segment", faults)
    labels = out.with_name(f".{out.stem}_labels.csv") if options["image_labels"] and data["root"] else None
    if labels:
        _write_labels(labels, sources, segmenter, data)
    how = Options(
        write=tuple(options["write"]),
        labels=labels,
        **{name: options[name] for name in ("crf", "flip")},
        scales=tuple(options["scales"]),
        long_side=data["long_side"],
        max_pixels=data["max_pixels"],
    )
    digest = file_digest(model)
    key = hashlib.sha256(json.dumps([digest, how.identity(), module_hash("rrm.own_masks")]).encode()).hexdigest()
    before = folder.with_name(f".{folder.name}.key")
    same = before.is_file() and before.read_text() == key
    with atomic_path(before) as temporary:
        temporary.write_text(key)
    segment(segmenter, digest, inputs, folder, how, overwrite=not same, log_seconds=runtime["log_seconds"])
    photos = [source for source in sources if not is_video(source.path)]
    write_table(out, _shares(folder, photos, segmenter.classes))


def _write_labels(path: Path, sources: Sequence[Source], segmenter: Segmenter, data: Mapping[str, Any]) -> None:
    """Labels of the photos that are segmented, in a file; a photo without any may show every class."""
    layout = VocLayout(Path(data["root"]), segmenter.classes, labels=data["labels"])
    if data["labels"] != "xml":
        raise_faults(f"labels {data['labels']}", layout.list_faults(()))
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "labels"])
        for source in sources:
            present = layout.present(source.name)
            flags = np.ones(len(segmenter.classes), np.uint8) if present is None else present
            names = [name for name, there in zip(segmenter.classes, flags, strict=True) if there]
            writer.writerow([source.name, ";".join(names)])


def _shares(folder: Path, sources: Sequence[Source], classes: Sequence[str]) -> pd.DataFrame:
    """Percent of each photo's pixels by class."""
    names = ["background", *classes]
    rows = []
    for source in sources:
        path = folder / "masks" / f"{source.name}.png"
        try:
            with Image.open(path) as mask:
                counts = mask.histogram()[: len(names)]
        except OSError as error:
            raise RRMError(f"{path}: expected the mask that was written, got {error}: run the command again") from error
        shares = {name: f"{100 * count / sum(counts):.1f}" for name, count in zip(names, counts, strict=True)}
        rows.append({"image": source.name, **shares})
    return pd.DataFrame(rows, columns=["image", *names])
