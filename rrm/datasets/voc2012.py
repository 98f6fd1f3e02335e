"""PASCAL VOC 2012 with the masks of SBD, from the files that are published, as one folder in VOC layout.

Photos, annotations and lists come from VOC; SBD (Hariharan et al., "Semantic contours from inverse detectors", ICCV
2011) adds masks to photos of VOC that have none there. The list `train_aug` of 10,582 photos, on which the field
trains, is VOC's train with both lists of SBD, without VOC's val. Its masks are read by fully supervised bounds only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rrm.datasets.assembly import (
    LISTS,
    is_assembled,
    named_size,
    new_folder,
    refuse_occupied,
    write_lists,
    write_manifest,
)
from rrm.datasets.matlab import read_field
from rrm.datasets.published import Archive, Folder, md5_of, open_published
from rrm.datasets.voc import VOC_CLASSES, VocLayout, collect_faults, encode_mask, raise_faults
from rrm.errors import RRMError
from rrm.progress import say, tracked

Published = Folder | Archive
_VOC_FOLDERS = ("VOCdevkit/VOC2012", "VOC2012", "")
_SBD_FOLDERS = ("benchmark_RELEASE/dataset", "dataset", "")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Download:
    """A file that is published: its name, its size in words, where it is, and its MD5."""

    name: str
    size: str
    where: str
    md5: str

    def __str__(self) -> str:
        return f"{self.name} ({self.size}; {self.where})"


VOC_TRAINVAL = Download(
    "VOCtrainval_11-May-2012.tar",
    "2.0 GB",
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    "6cd6e144f989b92b3379bac3b3de84fd",
)
VOC_TEST = Download(
    "VOC2012test.tar",
    "1.8 GB",
    "from the evaluation server, http://host.robots.ox.ac.uk:8080, after registration",
    "9065beb292b6c291fad82b2725749fda",
)
SBD = Download(
    "benchmark.tgz",
    "1.4 GB",
    "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    "82b4d87ceb2ed10f6038a1cba92111cb",
)


@dataclass(frozen=True)
class Release:
    """What the published files must be.

    Attributes:
        trainval, test, sbd: the archives.
        counts: photos of each list.
    """

    trainval: Download = VOC_TRAINVAL
    test: Download = VOC_TEST
    sbd: Download = SBD
    counts: Mapping[str, int] = field(
        default_factory=lambda: MappingProxyType(
            {"train": 1464, "val": 1449, "trainval": 2913, "train_aug": 10582, "test": 1456}
        )
    )


def train_aug(train: Iterable[str], val: Iterable[str], sbd: Iterable[str]) -> tuple[str, ...]:
    """Ids of the field's training list: VOC's train and all of SBD, without VOC's val; sorted.

    Args:
        train, val: VOC's lists.
        sbd: both lists of SBD.

    Example:
        >>> train_aug(["b"], ["c"], ["a", "b", "c"])
        ('a', 'b')
    """
    return tuple(sorted({*train, *sbd} - set(val)))


def sbd_mask(data: bytes, name: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The class mask in one of SBD's files `cls/<id>.mat`.

    Args:
        data: the file's bytes, trusted with nothing.
        name: what messages call the file.
        size: (H, W) of the photo in pixels.

    Returns:
        (H, W) uint8: 0 = background, 1..20 = class; SBD marks no border to be ignored.

    Raises:
        RRMError: not such a file, another size, or other values.

    Example:
        >>> from io import BytesIO
        >>> from scipy.io import savemat
        >>> file = BytesIO()
        >>> savemat(file, {"GTcls": {"Segmentation": np.array([[0, 15, 15]], np.uint8)}})
        >>> sbd_mask(file.getvalue(), "a.mat", (1, 3)).tolist()
        [[0, 15, 15]]
    """
    try:
        mask = read_field(data, "GTcls", "Segmentation")
    except RRMError as error:
        raise RRMError(f"{name}: {error}: download it again") from None
    if mask.dtype.kind not in "ui" or mask.shape != size:
        raise RRMError(
            f"{name}: expected integers of the photo's size {size} (height, width), got {mask.dtype} of {mask.shape}: "
            "give the photos and masks of one release"
        )
    wrong = [int(value) for value in np.unique(mask) if not 0 <= value <= len(VOC_CLASSES)]
    if wrong:
        raise RRMError(f"{name}: expected class ids 0..{len(VOC_CLASSES)}, got {wrong[:10]}: download it again")
    return mask.astype(np.uint8)


def assemble_voc2012(
    out: Path,
    voc: Sequence[Path],
    sbd: Path,
    *,
    subset: bool = False,
    replace: bool = False,
    release: Release | None = None,
) -> bool:
    """Assemble VOC 2012 and SBD into one folder in VOC layout (`rrm.datasets.voc`).

    Lists: train, val, trainval, train_aug, and test where its photos are given. Masks: VOC's own files where it has
    them, else SBD's. Annotations of test photos are left out: they mark persons' parts, not all classes of a photo.

    Args:
        out: the folder to make, new or empty.
        voc: VOC's archives, or folders that they were extracted to.
        sbd: SBD's archive, or its folder.
        subset: do not insist on the official checksums and numbers of photos; the manifest says so.
        replace: overwrite what was assembled in `out`.
        release: what the sources must be; None: the official release.

    Returns:
        False where `out` was finished before, from the same sources.

    Raises:
        RRMErrors: sources that are missing, damaged, unsafe or not the official ones; lists with wrong numbers or
            photos in common; files missing; masks that do not fit their photos. All faults of one step at once;
            nothing is left in `out` then.
    """
    out, release, paths = out.resolve(), release or Release(), [*voc, sbd]
    _require(voc, sbd, release)
    made_of = {"kind": "voc2012", "sources": [named_size(path) for path in paths], "subset": subset}
    if is_assembled(out, made_of):
        return False
    refuse_occupied(out, replace=replace)
    sums = {path: _checksum(path) for path in paths if path.is_file()}
    if not subset:
        _check_sums(voc, sbd, sums, release)
    sources = [open_published(path, _VOC_FOLDERS, "ImageSets") for path in voc]
    masks = open_published(sbd, _SBD_FOLDERS, "cls")
    lists = _lists(sources, masks, release, subset)
    files = _wanted(lists)
    made = [name for name in lists["train_aug"] if name not in set(lists["train"])]
    _check_present(files, sources, made, masks, release)
    with new_folder(out, replace=replace) as partial:
        _place(files, sources, partial)
        _write_masks(partial, lists["trainval"], made, masks)
        write_lists(partial, lists)
        checksums = {path.name: f"md5:{md5}" for path, md5 in sums.items()}
        facts = {"checksums": checksums, "masks": {"voc": len(lists["trainval"]), "sbd": len(made)}}
        write_manifest(partial, made_of, {"classes": list(VOC_CLASSES), **facts})
    return True


# ---- sources ----


def _require(voc: Sequence[Path], sbd: Path, release: Release) -> None:
    """Say of every source that is not there what it is and where to get it."""
    wanted = dict.fromkeys(voc, f"{release.trainval} or {release.test}") | {sbd: str(release.sbd)}
    faults = [
        f"{path}: expected {what}, or the folder it was extracted to, got nothing: download it or correct the path"
        for path, what in wanted.items()
        if not path.exists()
    ]
    raise_faults("VOC 2012", faults)


def _checksum(path: Path) -> str:
    say(f"checksum of {path}")  # minutes on a slow disk
    return md5_of(path)


def _check_sums(voc: Sequence[Path], sbd: Path, sums: Mapping[Path, str], release: Release) -> None:
    official: tuple[Download, ...] = (release.trainval, release.test)
    allowed = dict.fromkeys(voc, official) | {sbd: (release.sbd,)}
    faults = [
        f"{path}: expected MD5 {' or '.join(f'{each.md5} ({each.name})' for each in downloads)}, got "
        f"{sums[path]}: download it again, or give --subset for a copy packed anew"
        for path, downloads in allowed.items()
        if path in sums and sums[path] not in {each.md5 for each in downloads}
    ]
    raise_faults("VOC 2012", faults)


# ---- lists ----


def _lists(voc: Sequence[Published], sbd: Published, release: Release, subset: bool) -> dict[str, tuple[str, ...]]:
    """All lists by name, checked."""
    faults: list[str] = []
    train, val, test = (_ids(voc, f"{LISTS}/{name}.txt", faults) for name in ("train", "val", "test"))
    extra = [_ids([sbd], f"{name}.txt", faults) for name in ("train", "val")]
    if train is None or val is None:
        given = ", ".join(str(source.path) for source in voc)
        faults.append(f"{LISTS}: expected train.txt and val.txt, got none in {given}: add {release.trainval}")
    if None in extra:
        faults.append(f"{sbd.path}: expected SBD's train.txt and val.txt, got none: give {release.sbd}")
    raise_faults("lists of VOC 2012", faults)
    train, val = train or (), val or ()
    lists = {"train": train, "val": val, "trainval": tuple(sorted({*train, *val}))}
    lists["train_aug"] = train_aug(train, val, [name for ids in extra for name in ids or ()])
    if test and any(f"JPEGImages/{name}.jpg" in source for name in test for source in voc):
        lists["test"] = test
    raise_faults("lists of VOC 2012", [*_overlaps(lists), *(() if subset else _wrong_counts(lists, release))])
    return lists


def _ids(sources: Sequence[Published], name: str, faults: list[str]) -> tuple[str, ...] | None:
    """The ids of a list, from the first source that has it; None where none has."""
    for source in sources:
        for _, data in source.read([name]):
            ids = data.decode("utf-8-sig", errors="replace").split()
            counts = Counter(ids)
            faults += [
                f"{source.path}: {name}: expected image ids, each once, one a line, got {each!r}: correct the list"
                for each, count in counts.items()
                if count > 1 or not _ID.fullmatch(each)
            ]
            return tuple(counts)
    return None


def _overlaps(lists: Mapping[str, Sequence[str]]) -> Iterator[str]:
    splits = [name for name in ("train_aug", "train", "val", "test") if name in lists]
    for first, second in combinations(splits, 2):
        shared = sorted(set(lists[first]) & set(lists[second]))
        if shared and (first, second) != ("train_aug", "train"):
            yield (
                f"{first} and {second}: expected no photo in both, got {len(shared)}, such as {shared[0]!r}: "
                "give the lists of one release"
            )


def _wrong_counts(lists: Mapping[str, Sequence[str]], release: Release) -> Iterator[str]:
    for name, ids in lists.items():
        if len(ids) != release.counts[name]:
            yield (
                f"{name}: expected {release.counts[name]} photos, got {len(ids)}: give the official files, or --subset"
            )


# ---- files ----


def _wanted(lists: Mapping[str, Sequence[str]]) -> list[str]:
    """VOC's files that are taken over: photos of all lists, annotations but test's, official masks."""
    labelled = dict.fromkeys([*lists["trainval"], *lists["train_aug"]])
    files = [f"JPEGImages/{name}.jpg" for name in dict.fromkeys([*labelled, *lists.get("test", ())])]
    files += [f"Annotations/{name}.xml" for name in labelled]
    return files + [f"SegmentationClass/{name}.png" for name in lists["trainval"]]


def _check_present(
    files: Sequence[str], voc: Sequence[Published], made: Sequence[str], sbd: Published, release: Release
) -> None:
    given = ", ".join(str(source.path) for source in voc)
    faults = [
        f"{name}: expected it in {given}, got no such file: add {release.trainval}"
        for name in files
        if not any(name in source for source in voc)
    ]
    mats = (f"cls/{name}.mat" for name in made)
    faults += [f"{sbd.path}: expected {mat}, got no such file: give {release.sbd}" for mat in mats if mat not in sbd]
    raise_faults("files of VOC 2012", faults)


def _place(files: Sequence[str], sources: Sequence[Published], partial: Path) -> None:
    """Put each file into the folder, from the first source that has it."""
    left = set(files)

    def placed() -> Iterator[str]:
        for source in sources:
            targets = {name: partial / name for name in files if name in left and name in source}
            left.difference_update(targets)
            yield from source.place(targets)

    for _ in tracked(placed(), "photos, annotations, masks", len(files)):
        pass


def _write_masks(partial: Path, official: Sequence[str], made: Sequence[str], sbd: Published) -> None:
    """Make the masks that SBD adds; check these and the official ones against their photos."""
    layout, faults = VocLayout(partial), list[str]()

    def check_and_write() -> Iterator[Any]:
        for name in official:
            yield collect_faults(faults, layout.read_mask, name)
        for member, data in sbd.read([f"cls/{name}.mat" for name in made]):
            yield collect_faults(faults, _write_mask, layout, member, data)

    for _ in tracked(check_and_write(), "masks", len(official) + len(made)):
        pass
    raise_faults("masks of VOC 2012", [fault.replace(f"{partial}/", "") for fault in faults])


def _write_mask(layout: VocLayout, member: str, data: bytes) -> None:
    name = Path(member).stem
    mask = sbd_mask(data, member, layout.photo_size(name))
    layout.mask_path(name).write_bytes(encode_mask(mask))
