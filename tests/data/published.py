"""Miniatures of VOC 2012, SBD and COCO in the formats in which these are published."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix

from rrm.datasets.voc import VOC_CLASSES, encode_mask
from rrm.datasets.voc2012 import Download, Release

SIZE = (6, 9)  # (H, W) of all photos
TRAIN, VAL, TEST = ("2007_000001", "2008_000002"), ("2007_000003", "2009_000004"), ("2008_000009",)
SBD_TRAIN, SBD_VAL = ("2008_000002", "2010_000005", "2007_000003"), ("2011_000006", "2009_000004")
TRAIN_AUG = ("2007_000001", "2008_000002", "2010_000005", "2011_000006")
LABELLED = sorted({*TRAIN, *VAL, *SBD_TRAIN, *SBD_VAL})


def jpeg(name: str) -> bytes:
    """A photo with colours of its own."""
    pixels = np.random.default_rng([ord(letter) for letter in name]).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def class_of(name: str) -> int:
    """The one class in a photo."""
    return int(name[-1]) + 10


def annotation(name: str) -> bytes:
    label = VOC_CLASSES[class_of(name) - 1]
    return (
        f"<annotation><folder>VOC2012</folder><filename>{name}.jpg</filename><object><name>{label}</name>"
        "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>2</ymax></bndbox></object></annotation>"
    ).encode()


def official_mask(name: str) -> np.ndarray:
    """The class in the upper rows, and a border to be ignored."""
    mask = np.zeros(SIZE, np.uint8)
    mask[:2], mask[2] = class_of(name), 255
    return mask


def contours(name: str) -> np.ndarray:
    """SBD's mask: the class at the left."""
    mask = np.zeros(SIZE, np.uint8)
    mask[:, :4] = class_of(name)
    return mask


def mat(mask: np.ndarray, *, do_compression: bool = True) -> bytes:
    """A file `cls/<id>.mat` of SBD."""
    boundaries = np.empty((20, 1), object)
    for row in range(20):
        boundaries[row, 0] = csc_matrix(mask == row + 1)
    present = np.setdiff1d(np.unique(mask), [0])[:, None]
    buffer = io.BytesIO()
    content = {"Boundaries": boundaries, "Segmentation": mask, "CategoriesPresent": present}
    savemat(buffer, {"GTcls": content}, do_compression=do_compression)
    return buffer.getvalue()


def _listing(ids: Any) -> bytes:
    return "".join(f"{name}\n" for name in ids).encode()


def voc_files() -> dict[str, bytes]:
    """What is in VOCtrainval, by path below VOC2012: photos and annotations of objects in all photos."""
    files = {f"JPEGImages/{name}.jpg": jpeg(name) for name in [*LABELLED, "2012_000007"]}
    files |= {f"Annotations/{name}.xml": annotation(name) for name in [*LABELLED, "2012_000007"]}
    files |= {f"SegmentationClass/{name}.png": encode_mask(official_mask(name)) for name in (*TRAIN, *VAL)}
    lists = {"train": TRAIN, "val": VAL, "trainval": (*TRAIN, *VAL)}
    return files | {f"ImageSets/Segmentation/{name}.txt": _listing(ids) for name, ids in lists.items()}


def test_files() -> dict[str, bytes]:
    """What is in VOC2012test, by path below VOC2012."""
    files = {f"JPEGImages/{name}.jpg": jpeg(name) for name in TEST}
    files |= {f"Annotations/{name}.xml": annotation(name) for name in TEST}
    return files | {"ImageSets/Segmentation/test.txt": _listing(TEST)}


def sbd_files() -> dict[str, bytes]:
    """What is in SBD's benchmark, by path below benchmark_RELEASE/dataset."""
    files = {f"cls/{name}.mat": mat(contours(name)) for name in dict.fromkeys([*SBD_TRAIN, *SBD_VAL])}
    return files | {"train.txt": _listing(SBD_TRAIN), "val.txt": _listing(SBD_VAL)}


def write_tar(path: Path, folder: str, files: Mapping[str, bytes | tarfile.TarInfo]) -> Path:
    """A tar file, gzipped where its name says so; a `TarInfo` stands for a member without content."""
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        for name, content in files.items():
            member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content) if isinstance(content, bytes) else 0
            archive.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path


def write_folder(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def release(**md5: str) -> Release:
    """The miniature's counts, and MD5s of `trainval`, `test` and `sbd`."""
    downloads = {name: Download(f"{name}.tar", "1 kB", f"http://example.org/{name}.tar", md5.get(name, "0")) for name in
                 ("trainval", "test", "sbd")}  # fmt: skip
    return Release(**downloads, counts={"train": 2, "val": 2, "trainval": 4, "train_aug": 4, "test": 1})


def polygon(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def coco(split: str) -> dict[str, Any]:
    """Annotations: an object on another, a crowd beside them, and a photo without objects."""
    images = [
        {
            "id": number,
            "file_name": f"COCO_{split}_{number:012d}.jpg",
            "height": SIZE[0],
            "width": SIZE[1],
            "license": 1,
        }
        for number in (7, 8, 9)
    ]
    crowd = {"counts": [0, 6, 42, 6], "size": list(SIZE)}  # first and last column
    annotations = [
        {"id": 1, "image_id": 7, "category_id": 3, "iscrowd": 0, "area": 4.0, "segmentation": [polygon(2, 2, 4, 4)]},
        {"id": 2, "image_id": 7, "category_id": 1, "iscrowd": 0, "area": 20.0, "segmentation": [polygon(1, 1, 6, 5)]},
        {"id": 3, "image_id": 7, "category_id": 90, "iscrowd": 1, "area": 12.0, "segmentation": crowd},
        {"id": 4, "image_id": 9, "category_id": 90, "iscrowd": 0, "area": 4.0,
         "segmentation": [polygon(0, 0, 2, 2), polygon(5, 0, 7, 2)]},
    ]  # fmt: skip
    names = {90: "traffic light", 1: "person", 3: "car"}  # not in the order of their ids
    categories = [{"id": number, "name": name, "supercategory": "thing"} for number, name in names.items()]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def write_coco(root: Path, **contents: Mapping[str, Any]) -> list[Path]:
    """Photos below `root/images` and one annotation file a split, `instances_<split>.json`; gives the latter."""
    paths = []
    for split, content in contents.items():
        write_folder(root / "images" / split, {entry["file_name"]: jpeg(split) for entry in content["images"]})
        paths.append(root / f"instances_{split}.json")
        paths[-1].write_text(json.dumps(content))
    return paths
