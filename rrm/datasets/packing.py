"""Pack a data set in VOC layout into HDF5 stores: photos and image-level labels in one, masks apart.

The photo store is all that weakly supervised training reads. Masks of each split lie in a separate store, so
that a rule that is not given the training masks cannot open them, and `open_masks` refuses them to a weakly
supervised run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rrm.datasets.voc import VocLayout, collect_faults, raise_faults
from rrm.errors import RRMError
from rrm.store import Store, StoreWriter

TRAINING_SPLIT = "train"
SUBMISSION_SPLIT = "submission"
Progress = Callable[[int, int], None]
_log = logging.getLogger(__name__)


def reduce_photo(image: NDArray[np.uint8], long_side: int | None) -> NDArray[np.uint8]:
    """Shrink a photo with anti-aliasing so that its longer side is at most `long_side`; never enlarge it.

    Args:
        image: (H, W, 3) uint8.
        long_side: pixels; None keeps the photo.

    Returns:
        (H', W', 3) uint8; the same array when nothing is to be done.

    Example:
        >>> reduce_photo(np.zeros((100, 200, 3), np.uint8), 50).shape
        (25, 50, 3)
    """
    height, width = image.shape[:2]
    if long_side is None or max(height, width) <= long_side:
        return image
    ratio = long_side / max(height, width)
    size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def pack_photos(
    layout: VocLayout,
    splits: Sequence[str],
    out: str | os.PathLike[str],
    *,
    long_side: int | None = None,
    config: Mapping[str, Any],
    code: str,
    progress: Progress | None = None,
) -> None:
    """Write the store "photos": the photos and image-level labels of `splits`. No mask is opened.

    Record: `image` (H, W, 3) uint8 RGB; `size` (2,) int32, the original (H, W); `present` (C,) uint8, absent
    where the image is not labelled (allowed outside the training split). Labels of the split "submission" are not
    read: what annotations such photos have (VOC's test photos: persons' parts) are not all of their classes.
    Attributes: `splits` (split to its ids, in order), `classes`, `long_side`.

    Args:
        layout: the data set.
        splits: names of splits of `layout`.
        out: path of the store.
        long_side: longest side of the stored photos in pixels, never enlarged; None keeps the original size.
        config: resolved configuration of this stage.
        code: content hash of the code of this stage.
        progress: called with (done, total) after each photo.

    Raises:
        RRMErrors: all faults of lists, labels and photos at once; nothing is written then.
    """
    if long_side is not None and long_side < 1:
        raise RRMError(f"long_side: expected at least 1 pixel or null, got {long_side}: correct it")
    faults = layout.list_faults(splits)
    members = {split: list(layout.usable_ids(split)) for split in splits}
    attrs = {"splits": members, "classes": list(layout.classes), "long_side": long_side}
    jobs = [(split, name) for split, names in members.items() for name in names]
    # Pixels of photos hardly shrink (by 13 %), and unpacking them would take longer than all else that a crop needs.
    with StoreWriter(out, "photos", config, code, attrs, compression=None) as writer:
        for done, (split, name) in enumerate(jobs, 1):
            record = _photo_record(layout, name, split, long_side, faults)
            if not faults:
                writer.add(name, record)
            _tell(progress, done, len(jobs))
        raise_faults(f"data set {layout.root}", faults)


def _photo_record(
    layout: VocLayout, name: str, split: str, long_side: int | None, faults: list[str]
) -> dict[str, NDArray[Any]]:
    """The arrays of one photo; what is wrong with it is appended to `faults`."""
    record: dict[str, NDArray[Any]] = {}
    image = collect_faults(faults, layout.read_photo, name)
    if image is not None:
        record["image"] = reduce_photo(image, long_side)
        record["size"] = np.array(image.shape[:2], dtype=np.int32)
    if split == SUBMISSION_SPLIT:
        return record
    present = collect_faults(faults, layout.training_labels if split == TRAINING_SPLIT else layout.present, name)
    if present is not None:
        record["present"] = present
    return record


def pack_masks(
    layout: VocLayout,
    split: str,
    out: str | os.PathLike[str],
    *,
    config: Mapping[str, Any],
    code: str,
    progress: Progress | None = None,
) -> None:
    """Write the store "masks" of one split: `mask` (H, W) uint8 at the photo's original size, 255 = ignore.

    Attributes: `split`, `classes`. Masks are for evaluation and for fully supervised bounds.

    Args:
        layout, split, out, config, code, progress: as for `pack_photos`, with one split.

    Raises:
        RRMErrors: all faults of the list and its masks at once (missing, unreadable, RGB-painted, another
            size than the photo, class ids out of range); nothing is written then.
    """
    faults = layout.list_faults([split])
    names = layout.usable_ids(split)
    attrs = {"split": split, "classes": list(layout.classes)}
    with StoreWriter(out, "masks", config, code, attrs) as writer:
        for done, name in enumerate(names, 1):
            mask = collect_faults(faults, layout.read_mask, name)
            if not faults:
                writer.add(name, {"mask": mask})
            _tell(progress, done, len(names))
        raise_faults(f"masks of {split} in {layout.root}", faults)


def open_masks(path: str | os.PathLike[str], split: str, supervision: str) -> Store:
    """Open the ground-truth masks of a split, except the training masks of a weakly supervised run.

    Args:
        path: a store of kind "masks".
        split: the split whose masks are wanted.
        supervision: "full", or anything else for a weakly supervised run.

    Raises:
        RRMError: `split` or the store's own split is the training split and `supervision` is not "full"; or
            the store holds another split.

    Example:
        >>> try:
        ...     open_masks("train_masks.h5", "train", supervision="image")
        ... except RRMError as error:
        ...     print(str(error).split(", ")[0])
        train_masks.h5: expected no training mask in a run with supervision 'image'
    """
    _refuse_training_masks(path, split, supervision)
    store = Store(path, "masks")
    _refuse_training_masks(path, str(store.attrs.get("split")), supervision)
    if store.attrs.get("split") != split:
        raise RRMError(
            f"{path}: expected masks of split {split!r}, got {store.attrs.get('split')!r}: give the right file"
        )
    return store


def _refuse_training_masks(path: str | os.PathLike[str], split: str, supervision: str) -> None:
    if split == TRAINING_SPLIT and supervision != "full":
        raise RRMError(
            f"{path}: expected no training mask in a run with supervision {supervision!r}, "
            "got a request for split "
            f"{split!r}: set supervision to 'full' or leave the masks alone"
        )


def _tell(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)
    if done % 1000 == 0 or done == total:
        _log.info("packed %d of %d", done, total)
