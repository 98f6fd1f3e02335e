"""What is fuzzed: readers of files, each with seeds made in code and the mutations that its format asks for."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.fuzz import seeds
from tests.fuzz.mutations import (
    BYTES,
    LARGEST,
    TEXT,
    Mutation,
    in_gzip,
    in_zip,
    jpeg_segment,
    json_value,
    png_chunk,
    splicing,
    tar_blocks,
    tar_field,
    tiff_field,
    tokens,
)

PIXELS = 1_000_000
"""The pixel limit that readers of images are given."""


@dataclass(frozen=True)
class Reader:
    """A reader under test.

    Attributes:
        name: in commands and reports.
        file: what is mutated, below the folder.
        make_seeds: valid files and some that are known to be nasty.
        mutations: that know the format; those of bytes are added.
        prepare: writes what else the reader needs into a folder and gives the call that reads.
    """

    name: str
    file: str
    make_seeds: Callable[[], list[bytes]]
    prepare: Callable[[Path], Callable[[], Any]]
    mutations: tuple[Mutation, ...] = field(default=())

    @cached_property
    def seeds(self) -> list[bytes]:
        return self.make_seeds()

    @cached_property
    def _all(self) -> tuple[Mutation, ...]:
        ours = self.mutations
        return (*BYTES, splicing(self.seeds), *ours * max(1, len(BYTES) // max(1, len(ours))))

    def mutate(self, rng: random.Random, data: bytes) -> bytes:
        """One to eight mutations on top of each other, mostly few."""
        for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5, 8))):
            data = rng.choice(self._all)(rng, data)[: max(LARGEST, len(data))]
        return data

    def mutated(self, rng: random.Random) -> bytes:
        """A seed as it is, now and then, or mutated."""
        data = rng.choice(self.seeds)
        if len(data) > LARGEST and rng.random() < 0.95:  # bombs take long, even to be refused
            data = self.seeds[0]
        return data if rng.random() < 0.01 else self.mutate(rng, data)


# ---- photos and masks ----


def _photo(folder: Path) -> Callable[[], Any]:
    from rrm.photos import read_photo

    return partial(read_photo, folder / "photo", max_pixels=PIXELS)


def _layout(folder: Path, **options: Any) -> Any:
    from rrm.datasets.voc import VocLayout

    for below in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
        (folder / below).mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(folder / "JPEGImages" / "a.jpg")
    return VocLayout(folder, classes=("cat", "dog", "traffic light"), max_pixels=PIXELS, **options)


def _voc_photo(folder: Path) -> Callable[[], Any]:
    return partial(_layout(folder).read_photo, "a")


def _mask(folder: Path) -> Callable[[], Any]:
    return partial(_layout(folder).read_mask, "a")


# ---- labels and lists ----


def _annotation(folder: Path) -> Callable[[], Any]:
    return partial(_layout(folder).training_labels, "a")


def _labels(folder: Path) -> Callable[[], Any]:
    return lambda: _layout(folder, labels="labels.csv").training_labels("a")


def _list(folder: Path) -> Callable[[], Any]:
    layout = _layout(folder, lists={"train": "train"})

    def read() -> None:
        from rrm.errors import RRMError

        for name in layout.ids("train")[:3]:
            for reader in (layout.read_photo, layout.read_mask, layout.present):
                try:
                    reader(name)
                except RRMError as error:
                    assert "expected" in str(error)  # noqa: PT017

    return read


def _classes(folder: Path) -> Callable[[], Any]:
    from rrm.datasets.voc import VocLayout, read_classes

    return lambda: VocLayout(folder, classes=read_classes(folder / "classes.txt"))


def _coco(folder: Path) -> Callable[[], Any]:
    import shutil

    from rrm.datasets.coco import assemble_coco

    (folder / "images").mkdir()
    (folder / "annotations").mkdir()
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(folder / "images" / name)

    def read() -> None:
        shutil.rmtree(folder / "out", ignore_errors=True)
        assemble_coco(folder / "out", folder / "images", [folder / "annotations" / "instances_train2014.json"])

    return read


def _own_labels(name: str) -> Callable[[Path], Callable[[], Any]]:
    from rrm.datasets.image_labels import match_images, read_image_labels

    def prepare(folder: Path) -> Callable[[], Any]:
        photos = {name: folder / f"{name}.jpg" for name in ("a", "b", "c/a")}
        return lambda: match_images(read_image_labels(folder / name, ("traffic light",), []).labels, photos, [])

    return prepare


# ---- archives, masks in them ----


def _published(folder: Path) -> Callable[[], Any]:
    from rrm.datasets.published import open_published

    def read() -> None:
        source = open_published(folder / "voc.tar", ("VOCdevkit/VOC2012", ""), "ImageSets")
        names = ("JPEGImages/a.jpg", "ImageSets/Segmentation/train.txt")
        list(source.read(names))
        list(source.place({name: folder / "placed" / str(number) for number, name in enumerate(names)}))

    return read


def _submission(folder: Path) -> Callable[[], Any]:
    from rrm.submission import check_archive

    sizes = {"a": (6, 8), "b": (6, 8)}
    return partial(check_archive, folder / "submission.tar.gz", list(sizes), sizes, 20)


def _sbd(folder: Path) -> Callable[[], Any]:
    from rrm.datasets.voc2012 import sbd_mask

    return lambda: sbd_mask((folder / "a.mat").read_bytes(), "a.mat", (6, 8))


# ---- configuration and own files ----


def _config(folder: Path) -> Callable[[], Any]:
    from rrm.config import load

    return partial(load, folder / "config.yaml")


def _rates(folder: Path) -> Callable[[], Any]:
    from rrm.rates import Rates

    return lambda: Rates.read(folder / "rates.json").to_json()


def _store(folder: Path) -> Callable[[], Any]:
    from contextlib import closing

    from rrm.store import Store

    def read() -> None:
        with closing(Store(folder / "masks.h5", "masks")) as store:
            for name in store.ids:
                store[name]

    return read


# ---- weights ----


def _params(folder: Path) -> Callable[[], Any]:
    from rrm.networks.weights import read_weights

    return partial(read_weights, folder / "net.params")


def _weights(folder: Path) -> Callable[[], Any]:
    from rrm.networks.weights import read_weights

    return partial(read_weights, folder / "net.pth")


def _trained(folder: Path) -> Callable[[], Any]:
    from rrm.stages.trained import load_trained

    return partial(load_trained, folder / "weights.pth", "cpu")


def _resumed(folder: Path) -> Callable[[], Any]:
    from rrm.training import Run

    run = Run(folder / "runs", {"code": "x"})
    file = folder / "last.pth"

    def read() -> None:
        run.checkpoint.write_bytes(file.read_bytes())
        run.load()

    return read


def _mat_content() -> Mutation:
    from tests.fuzz.seeds import packed_mat, unpacked_mat

    def mutate(rng: random.Random, data: bytes) -> bytes:
        content = unpacked_mat(data)
        return data if content is None else packed_mat(rng.choice(BYTES)(rng, content))

    return mutate


_XML = tokens(
    b"<object>", b"</object>", b"<name>cat</name>", b"<part><name>x</name></part>", b"<!DOCTYPE a [", b"]>",
    b'<!ENTITY x "y">', b'<!ENTITY % p SYSTEM "file:///etc/passwd">', b"&x;", b"&#0;", b"&#xD800;",
    b"<![CDATA[", b"]]>", b"<!--", b"-->", b"<?xml version='1.0' encoding='utf-7'?>", b"encoding='shift_jis'",
    b"encoding='x'", b"encoding='utf-16'", b" xmlns:a='b'", b"a:", b"<a b='", b"\0", b"\xff",
)  # fmt: skip
_CSV = tokens(
    b"image,labels", b",", b";", b'"', b'""', b"\n", b"\r", b"\0", b"a", b"cat", b"traffic light", b" ",
    b"../a", b"\xff", b"\xef\xbb\xbf", b"x" * 1000,
)  # fmt: skip
_LIST = tokens(
    b"a", b"../a", b"/etc/passwd", b"..", b".", b"\n", b"\r", b"\0", b"a/b", b"\xff", b"\xef\xbb\xbf", b"~",
    b"x" * 300, b"\xe2\x80\xa8", b"\x1b[2J", b"CON", b"a ", b"\x1c",
)  # fmt: skip
_YAML = tokens(
    b"&a ", b"*a", b"<<: *a\n", b"[", b"]", b"{", b"}", b"- ", b"? ", b": ",
    b"!!python/object/apply:os.system ['x']", b"!!binary ", b"!!set ", b"!!timestamp ", b"2001-99-99",
    b"1:99:99", b"!!int ", b"!!float ", b"!!omap ", b"!!pairs ", b"!!null ", b"!!map ", b"!!str ", b"!x ",
    b"---\n", b"...\n", b"%YAML 9.9\n", b"%TAG ! tag:x\n", b"|", b">", b"'", b'"', b'"\\ud800"', b'"\\x00"',
    b"null", b".nan", b".inf", b"~", b"=", b"dataset: ", b"step_two: ", b"methods: ", b"x: ",
    b"0x" + b"f" * 5000, b"\t", b"#",
)  # fmt: skip
_PICKLE = tokens(
    b"cos\nsystem\n(S'x'\ntR", b"c__builtin__\neval\n", b"cbuiltins\nbytearray\n", b"ctorch\nFloatTensor\n",
    b"R", b"(", b"t", b"l", b"b", b"Q", b"\x80\x04", b"J\xff\xff\xff\x7f",
    b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", b"K\x01", b"}", b"]", b")", b".", b"q\0",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nSize\n", b"ccollections\nOrderedDict\n", b"h\0",
    b"X\xff\xff\xff\x7f",
)  # fmt: skip
_TAR = (tar_field, tar_field, tar_blocks)
_TORCH = (in_zip(*BYTES, _PICKLE), in_zip(_PICKLE), _PICKLE)

READERS: dict[str, Reader] = {
    each.name: each
    for each in (
        Reader("photo", "photo", seeds.photos, _photo, (png_chunk, jpeg_segment, tiff_field)),
        Reader("voc-photo", "JPEGImages/a.jpg", seeds.voc_photos, _voc_photo, (png_chunk, jpeg_segment, tiff_field)),
        Reader("mask", "SegmentationClass/a.png", seeds.masks, _mask, (png_chunk,)),
        Reader("annotation", "Annotations/a.xml", seeds.annotations, _annotation, (_XML, *TEXT)),
        Reader("labels", "labels.csv", seeds.tables, _labels, (_CSV, *TEXT)),
        Reader("list", "ImageSets/Segmentation/train.txt", seeds.lists, _list, (_LIST, *TEXT)),
        Reader("classes", "classes.txt", seeds.class_names, _classes, (_LIST, *TEXT)),
        Reader("coco", "annotations/instances_train2014.json", seeds.coco, _coco, (json_value, json_value, *TEXT)),
        Reader("own-csv", "own.csv", seeds.own_tables, _own_labels("own.csv"), (_CSV, *TEXT)),
        Reader("own-json", "own.json", seeds.own_json, _own_labels("own.json"), (json_value, json_value, *TEXT)),
        Reader("own-xml", "own.xml", seeds.own_xml, _own_labels("own.xml"), (_XML, *TEXT)),
        Reader("config", "config.yaml", seeds.configs, _config, (_YAML, *TEXT)),
        Reader("rates", "rates.json", seeds.rates, _rates, (json_value, json_value, *TEXT)),
        Reader("tar", "voc.tar", seeds.archives, _published, (*_TAR, in_gzip(*_TAR, *BYTES))),
        Reader("submission", "submission.tar.gz", seeds.submissions, _submission, (in_gzip(*_TAR, *BYTES),)),
        Reader("mat", "a.mat", seeds.mats, _sbd, (_mat_content(),)),
        Reader("params", "net.params", seeds.params, _params),
        Reader("weights", "net.pth", seeds.weights, _weights, _TORCH),
        Reader("trained", "weights.pth", seeds.trained, _trained, _TORCH),
        Reader("checkpoint", "last.pth", seeds.weights, _resumed, _TORCH),
        Reader("store", "masks.h5", seeds.stores, _store),
    )
}
