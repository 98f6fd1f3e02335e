"""What `rrm init` does: a folder of own photos and their image-level labels, checked, divided and made into a project.

All faults are found in one pass and nothing is written then. What is only odd is written to the project's folder
`check`, with pictures of it. The photos are put in VOC layout, upright, so that masks lie over what people see.
"""

from __future__ import annotations

import csv
import hashlib
import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from rrm.datasets.assembly import new_folder, refuse_occupied, write_lists
from rrm.datasets.image_labels import match_images, name_faults, read_image_labels
from rrm.datasets.published import link_or_copy
from rrm.datasets.splitting import check_division, split_photos
from rrm.datasets.voc import collect_faults, raise_faults
from rrm.errors import RRMError, RRMErrors
from rrm.limits import checked_id
from rrm.own_project import Start, refuse_project, write_project
from rrm.photo_checks import PhotoFacts, alike, contact_sheet, inspect
from rrm.photos import orientation, read_photo
from rrm.progress import tracked
from rrm.segment_files import Source
from rrm.segmenting import find_photos

MAX_PIXELS = 50_000_000
"""As `dataset.max_pixels`."""
_MOST_CLASSES = 254
_FEW = 5  # photos of a class below which the summary warns


@dataclass(frozen=True)
class Wishes:
    """How photos are taken in.

    Attributes:
        labels: source of the labels (`rrm.datasets.image_labels`); None: photos lie in a folder for each class.
        classes: names of the classes in the order of their labels; empty: those of the labels, sorted.
        background: a photo that is listed without classes shows none of them; otherwise it counts as unlabelled.
        skip_faulty: leave faulty photos and labels out in place of refusing all.
        val: share of the labelled photos that is held out, to see how well labels are found on new photos.
        seed: of the division.
    """

    labels: Path | None = None
    classes: tuple[str, ...] = ()
    background: bool = False
    skip_faulty: bool = False
    val: float = 0.2
    seed: int = 0


@dataclass(frozen=True)
class OwnData:
    """Photos and labels, checked.

    Attributes:
        files: of all photos, by name.
        facts: of the photos, by name.
        labels: classes of the labelled photos.
        classes: names of the classes, in the order of their labels.
        groups: photos that look alike.
        splits: names of the photos of `train` and `val`.
        left_out: faults of what was left out.
    """

    files: Mapping[str, Path]
    facts: Mapping[str, PhotoFacts]
    labels: Mapping[str, tuple[str, ...]]
    classes: tuple[str, ...]
    groups: Sequence[Sequence[str]]
    splits: Mapping[str, Sequence[str]]
    left_out: Sequence[str]

    @property
    def unlabelled(self) -> list[str]:
        """Photos that are segmented but not trained on."""
        return [name for name in self.files if name not in self.labels]

    @property
    def has_background_photos(self) -> bool:
        """Whether photos show none of the classes."""
        return not all(self.labels.values())

    def counts(self) -> list[tuple[str, int, int, int]]:
        """Class, and the photos that show it: all, of train, of val."""
        every, *parts = (
            Counter(label for name in names for label in self.labels[name])
            for names in (self.labels, self.splits["train"], self.splits["val"])
        )
        return [(each, every[each], *(part[each] for part in parts)) for each in self.classes]  # type: ignore[misc]

    def notes(self) -> dict[str, list[str]]:
        """What is odd about photos, by name; those with nothing odd are left out."""
        notes: defaultdict[str, list[str]] = defaultdict(list)
        for name, facts in self.facts.items():
            notes[name] += facts.notes()
        for number, group in enumerate(self.groups, 1):
            for name in group:
                notes[name].append(f"alike {number}")
        for name in self.unlabelled:
            notes[name].append("unlabelled")
        return {name: odd for name, odd in notes.items() if odd}


def take_in(images: Sequence[str], out: Path, wishes: Wishes) -> OwnData:
    """Find photos and their labels, check them and divide them.

    Args:
        images: photos, folders and patterns.
        out: a folder that is left out.
        wishes: how.

    Raises:
        RRMErrors: every fault at once: photos that cannot be read, labels of no photo, names that are no classes.
        RRMError: a share or seed out of range, too few photos or classes.
    """
    check_division(wishes.val, wishes.seed)
    _check_classes(wishes.classes)
    faults: list[str] = []
    sources = find_photos(images, out, faults, videos=False)
    files = {source.name: source.path for source in sources if _usable(source, faults)}
    facts = _inspected(files, faults)
    if wishes.labels is None:
        told = _by_folders({name: files[name] for name in facts})
        facts = {name: facts[name] for name in told}
    else:
        told = collect_faults(faults, _by_source, wishes, files, faults) or {}
    found = {name: tuple(sorted(labels)) for name, labels in told.items() if labels or wishes.background}
    wrong = _wrongly_labelled(found, wishes.classes, faults)
    labels = {name: labels for name, labels in found.items() if name in facts and name not in wrong}
    if not wishes.skip_faulty or not any(labels.values()):
        raise_faults("own photos", faults)
    try:
        return _divided({name: files[name] for name in facts}, facts, labels, wishes, faults)
    except RRMError as error:
        if not faults:
            raise
        raise RRMErrors("own photos", [str(error), *dict.fromkeys(faults)]) from None  # too little is left without them


def _divided(
    files: Mapping[str, Path],
    facts: Mapping[str, PhotoFacts],
    labels: Mapping[str, tuple[str, ...]],
    wishes: Wishes,
    faults: Sequence[str],
) -> OwnData:
    classes = wishes.classes or tuple(sorted({label for each in labels.values() for label in each}))
    if not 1 <= len(classes) <= _MOST_CLASSES:
        raise RRMError(
            f"labels: expected 1 to {_MOST_CLASSES} classes on {len(facts)} photos, got {len(classes)}: give --labels, "
            "or photos in a folder for each class"
        )
    groups = alike(facts)
    together = [kept for group in groups if (kept := [name for name in group if name in labels])]
    train, val = split_photos(labels, together, wishes.val, wishes.seed)
    splits = {"train": train, "val": val}
    return OwnData(files, facts, labels, classes, groups, splits, list(dict.fromkeys(faults)))


def _usable(source: Source, faults: list[str]) -> bool:
    """Whether the photo's name can stand in a list, one a line."""
    name = source.name
    if collect_faults(faults, checked_id, name) is None:
        return False
    if name == name.strip() and len(name.splitlines()) == 1:
        return True
    faults.append(
        f"{name!r}: expected a name without blanks at its ends and without line breaks, got it: rename the photo"
    )
    return False


def _by_folders(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """Labels from the names of the photos' folders; one file in several folders is the first of them, with all."""
    firsts: dict[str, str] = {}
    found: dict[str, set[str]] = {}
    sizes = Counter(path.stat().st_size for path in files.values())
    for name, path in files.items():
        same = hashlib.sha256(path.read_bytes()).hexdigest() if sizes[path.stat().st_size] > 1 else name
        first = firsts.setdefault(same, name)
        folder, within, _ = name.partition("/")
        found.setdefault(first, set()).update([folder.strip()] * bool(within))
    return found


def _by_source(wishes: Wishes, files: Mapping[str, Path], faults: list[str]) -> dict[str, set[str]]:
    """Labels from a source, by the photos' names."""
    assert wishes.labels is not None
    read = read_image_labels(wishes.labels, wishes.classes, faults).labels
    matched = match_images(read, files, faults)
    return {name: {label for each in told for label in read[each]} for name, told in matched.items()}


def _inspected(files: Mapping[str, Path], faults: list[str]) -> dict[str, PhotoFacts]:
    facts = {}
    for name, path in tracked(files.items(), "check photos", len(files)):
        photo = collect_faults(faults, read_photo, path, MAX_PIXELS)
        if photo is not None:
            facts[name] = inspect(photo)
    return facts


def _check_classes(classes: Sequence[str]) -> None:
    """Refuse names that no class can have, and doubled ones."""
    doubled = [
        f"classes: expected different names, got {name!r} {count} times: leave one"
        for name, count in Counter(classes).items()
        if count > 1
    ]
    raise_faults("classes", [*name_faults({"classes": classes}), *doubled])


def _wrongly_labelled(found: Mapping[str, Iterable[str]], classes: Sequence[str], faults: list[str]) -> set[str]:
    """Photos with labels that are not among the classes, or that no class can have; messages on them are appended."""
    wrong = name_faults(found)
    for name, labels in found.items():
        if classes and (others := sorted(set(labels) - set(classes))):
            fault = f"{name}: expected labels among {', '.join(classes)}, got {others}: correct it or add the class"
            wrong[fault] = [name]
    faults += wrong
    return {name for names in wrong.values() for name in names}


# ---- the folder ----


def make_project(folder: Path, images: Sequence[str], wishes: Wishes, start: Start) -> str:
    """Take photos in and write the project's folder.

    Args:
        folder: new or empty.
        images: photos, folders and patterns.
        wishes: how.
        start: what the project trains from, and how long.

    Returns:
        A summary for people.

    Raises:
        RRMErrors: `take_in`. RRMError: the folder holds something.
    """
    folder = folder.resolve()
    refuse_project(folder)
    refuse_occupied(folder)
    start.values()  # before all photos are read
    data = take_in(images, folder, wishes)
    with new_folder(folder) as partial:
        _write_data(partial / "data", data)
        _write_check(partial / "check", data)
        write_project(partial, folder.name, start, background=data.has_background_photos)
    return summary(folder, data)


def _write_data(root: Path, data: OwnData) -> None:
    """Photos, lists, classes and labels in VOC layout."""
    for name, path in tracked(data.files.items(), "take photos in", len(data.files)):
        _place(path, root / "JPEGImages", name)
    write_lists(root, data.splits)
    (root / "classes.txt").write_text("".join(f"{each}\n" for each in data.classes), encoding="utf-8")
    rows = [[name, ";".join(labels)] for name, labels in data.labels.items()]
    _write_csv(root / "labels.csv", ["image", "labels"], rows)


def _place(source: Path, folder: Path, name: str) -> None:
    """Link or copy a photo that a data set's reader takes as people see it; write any other one anew, upright."""
    with Image.open(source) as image:
        suffix = {"JPEG": ".jpg", "PNG": ".png"}.get(image.format or "")
        plain = image.mode in ("L", "RGB") and orientation(image) == 1 and not image.has_transparency_data
    if suffix and plain:
        link_or_copy(source, folder / f"{name}{suffix}")
        return
    target = folder / f"{name}.jpg"
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(read_photo(source, MAX_PIXELS)).save(target, "JPEG", quality=95, subsampling=0)


def _write_check(folder: Path, data: OwnData) -> None:
    """Tables of photos and classes, pictures of odd photos, and what was left out."""
    folder.mkdir()
    notes = data.notes()
    split_of = {name: split for split, names in data.splits.items() for name in names}
    rows: list[list[Any]] = [
        [name, path, facts.size[1], facts.size[0], f"{facts.brightness:.0f}", f"{facts.contrast:.0f}",
         split_of.get(name, ""), ";".join(data.labels.get(name, ())), ";".join(notes.get(name, ()))]
        for (name, path), facts in zip(data.files.items(), data.facts.values(), strict=True)
    ]  # fmt: skip
    header = ["image", "file", "width", "height", "brightness", "contrast", "split", "labels", "notes"]
    _write_csv(folder / "photos.csv", header, rows)
    _write_csv(folder / "classes.csv", ["class", "photos", "train", "val"], data.counts())
    if data.left_out:
        text = "".join(f"{fault}\n" for fault in data.left_out)
        (folder / "left_out.txt").write_text(text, "utf-8", "backslashreplace")
    if odd := _sheet_rows(data, notes):
        contact_sheet(odd).save(folder / "suspicious.png")


def _sheet_rows(data: OwnData, notes: Mapping[str, Sequence[str]]) -> dict[str, list[tuple[str, Path]]]:
    """Odd photos by what is odd, alike ones beside each other."""
    rows: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for name, odd in notes.items():
        for note in odd:
            if not note.startswith("alike"):
                rows[note].append((name, data.files[name]))
    for number, group in enumerate(data.groups, 1):
        rows["alike (the number says which)"] += [(f"{number}: {name}", data.files[name]) for name in group]
    return dict(rows)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def summary(folder: Path, data: OwnData) -> str:
    """Counts for each class and what is worth a look, as text."""
    counts = data.counts()
    width = max(len("class"), *(len(each[0]) for each in counts))
    lines = [f"{folder}: {len(data.files)} photos, {len(data.classes)} classes, {len(data.labels)} photos labelled", ""]
    lines += [f"{name:{width}}  {every:>6}  {train:>5}  {val:>3}" for name, every, train, val in
              [("class", "photos", "train", "val"), *counts]]  # fmt: skip
    odd = Counter(
        note.partition(" ")[0] if note.startswith("alike") else note for odd in data.notes().values() for note in odd
    )
    few = [name for name, _, train, _ in counts if train < _FEW]
    lines.append("")
    if odd:
        told = ", ".join(f"{number} {note}" for note, number in odd.items())
        lines.append(f"look at {folder / 'check' / 'suspicious.png'}: {told}")
    if data.left_out:
        lines.append(f"left out: {len(data.left_out)} faults, listed in {folder / 'check' / 'left_out.txt'}")
    if few:
        lines.append(f"few photos to learn from (below {_FEW}): {', '.join(few)}")
    if data.unlabelled:
        lines.append(f"{len(data.unlabelled)} photos without labels: they get masks, and nothing is learned from them")
    lines += ["", f"next: cd {shlex.quote(str(folder))} && snakemake --cores {os.cpu_count() or 1}"]
    return "\n".join(lines)
