"""Files that mutation starts from, all made here: small valid ones of every kind, and nasty ones that are known."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import pickle
import struct
import tarfile
import tempfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image, PngImagePlugin

from tests.data import published
from tests.fuzz.mutations import _jpeg_segments, png_file, tar_bytes

HEIGHT, WIDTH = 6, 8


def _pixels(height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _saved(image: Image.Image, kind: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "text"
    exif.get_ifd(0x8769)[0x9000] = b"0232"
    return exif


def _bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return png_file([(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100_000))), (b"IEND", b"")])


def many_scans(height: int, width: int, count: int) -> bytes:
    """A progressive JPEG with one of its scans many times: each takes the time of a whole image."""
    parts = _jpeg_segments(_saved(_pixels(height, width), "JPEG", progressive=True, quality=5))
    scan = min((part for part in parts if part[1] == 0xDA), key=len)
    return b"".join([*parts[:-1], *[scan] * count, parts[-1]])


def voc_photos() -> list[bytes]:
    comment = PngImagePlugin.PngInfo()
    comment.add_text("Raw profile type exif", "\nexif\n8\n4578696600", zip=True)
    image = _pixels()
    return [
        _saved(image, "JPEG"),
        _saved(image, "JPEG", progressive=True, exif=_exif()),
        _saved(image.convert("CMYK"), "JPEG"),
        _saved(image.convert("L"), "JPEG", restart_marker_blocks=1),
        _saved(image, "PNG", exif=_exif()),
        _saved(image.convert("P"), "PNG", transparency=0, pnginfo=comment),
        _saved(image.convert("LA"), "PNG"),
        _saved(Image.fromarray(np.arange(48, dtype=np.uint16).reshape(6, 8)), "PNG"),
        _saved(image, "PNG", save_all=True, append_images=[image.rotate(90)]),
        _bomb(100_000, 100_000),
        _bomb(2**31 - 1, 2**31 - 1),
        many_scans(HEIGHT, WIDTH, 200),
    ]


def photos() -> list[bytes]:
    image = _pixels()
    grey = image.convert("L")
    tiffs = [
        _saved(image, "TIFF", compression=how) for how in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    ]
    tiffs += [_saved(image.convert("1"), "TIFF", compression=how) for how in ("group3", "group4", "tiff_ccitt")]
    tiffs += [_saved(image, "TIFF", tiffinfo={322: 16, 323: 16}, compression="tiff_adobe_deflate")]
    tiffs += [_saved(image, "TIFF", save_all=True, append_images=[grey], exif=_exif())]
    tiffs += [_saved(Image.fromarray(np.full((6, 8), 0.5, np.float32)), "TIFF"), _saved(image, "TIFF", big_tiff=True)]
    return [
        *voc_photos(),
        *tiffs,
        _saved(image, "BMP"),
        _saved(image.convert("P"), "BMP"),
        _saved(image.convert("1"), "BMP"),
        _saved(image, "WEBP", exif=_exif()),
        _saved(image.convert("RGBA"), "WEBP", lossless=True, save_all=True, append_images=[image.convert("RGBA")]),
        _saved(image.convert("P"), "GIF"),
        _saved(grey, "GIF", save_all=True, append_images=[grey.rotate(90)], transparency=0, interlace=1),
        _saved(image, "PPM"),
        _saved(grey, "PPM"),
        b"P3 # text\n2 2 255\n" + b"0 128 255 " * 4,
        b"P2\n2 2\n65535\n0 1 65535 3\n",
        b"P1\n3 2\n101\n010\n",
        b"P5\n2 2\n65535\n" + bytes(8),
        b"Pf\n2 2\n-1.0\n" + bytes(16),
    ]


def masks() -> list[bytes]:
    from rrm.datasets.voc import encode_mask

    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[2:4], labels[5] = 2, 255
    return [
        encode_mask(labels),
        _saved(Image.fromarray(labels), "PNG"),
        _saved(Image.fromarray(labels).convert("1"), "PNG"),
        _saved(Image.fromarray(labels).convert("P"), "PNG", bits=4),
        _saved(_pixels(), "PNG"),
        _bomb(100_000, 100_000),
    ]


# ---- labels and lists ----

_LAUGHS = "".join(f'<!ENTITY l{k} "{f"&l{k - 1};" * 10}">' for k in range(1, 10))


def annotations() -> list[bytes]:
    whole = published.annotation("2007_000001").decode()
    two = (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotation>\n <size><width>8</width></size>\n <object>\n'
        "  <name>cat</name>\n  <part><name>head</name></part>\n  <difficult>1</difficult>\n </object>\n"
        " <object><name>dog</name></object>\n</annotation>\n"
    )
    texts = [
        whole,
        two,
        "<annotation><object><name>traffic light</name></object></annotation>",
        "<annotation/>",
        f'<!DOCTYPE a [<!ENTITY l0 "cat">{_LAUGHS}]><annotation><object><name>&l9;</name></object></annotation>',
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><object><name>&x;</name></object></annotation>',
        '<!DOCTYPE a SYSTEM "http://localhost/a.dtd"><annotation/>',
        '<!DOCTYPE a [<!ATTLIST object name CDATA "cat">]><annotation><object/></annotation>',
        "<annotation>" + "<object>" * 5000 + "</object>" * 5000 + "</annotation>",
        "<annotation " + " ".join(f'a{k}="x"' for k in range(2000)) + "/>",
        '<?xml version="1.0" encoding="latin-1"?><annotation><object><name>cat</name></object></annotation>',
    ]
    return [text.encode() for text in texts] + [two.replace("utf-8", "utf-16").encode("utf-16")]


def tables() -> list[bytes]:
    return [
        b"image,labels\na,cat\nb,dog;traffic light\n",
        b"\xef\xbb\xbfimage,labels\r\na,cat dog\r\n",
        b'image,labels\n"a","traffic light"\n"b ""x""",dog\n',
        b"image,labels\na," + b"cat;" * 5000 + b"\n",
        b'image,labels\na,"cat\n' + b"x" * 140_000,
        b"image,labels\n" + b"".join(b"i%d,cat\n" % k for k in range(500)) + b"a,dog\n",
    ]


def lists() -> list[bytes]:
    return [
        b"a\nb\n",
        b"\xef\xbb\xbfa\r\nc/d\r\n\r\n",
        b"a\n../b\n/etc/passwd\n",
        b"2007_000001\n" * 3,
        b"a\n" + b"x" * 5000,
        b"a" * 255,
    ]


def class_names() -> list[bytes]:
    return [
        b"cat\ndog\ntraffic light\n",
        b"\xef\xbb\xbfcat\r\n\r\ndog",
        b"".join(b"c%d\n" % k for k in range(254)),
        b"cat\ncat\nbackground\n",
    ]


def coco() -> list[bytes]:
    images = [{"id": k, "file_name": f"{name}.jpg", "height": HEIGHT, "width": WIDTH} for k, name in enumerate("ab", 1)]
    categories = [{"id": 1, "name": "cat"}, {"id": 7, "name": "traffic light"}]
    polygons = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 4, 0, 4, 4.5, 0, 4]], "iscrowd": 0}
    runs = {
        "id": 2,
        "image_id": 2,
        "category_id": 7,
        "segmentation": {"counts": [10, 20, 18], "size": [HEIGHT, WIDTH]},
        "iscrowd": 1,
    }
    packed = {**runs, "id": 3, "segmentation": {"counts": ":d0:", "size": [HEIGHT, WIDTH]}, "iscrowd": 0}
    deep: Any = []
    for _ in range(500):
        deep = [deep]
    contents = [
        {"images": images, "annotations": [polygons, runs], "categories": categories},
        {"images": images, "annotations": [packed], "categories": categories},
        {
            "images": [{**images[0], "height": 10**6, "width": 10**6}],
            "annotations": [polygons],
            "categories": categories,
        },
        {"images": images, "annotations": [{**polygons, "segmentation": deep}], "categories": categories},
        {"images": images[:1], "annotations": [{**polygons, "id": k} for k in range(50)], "categories": categories},
    ]
    return [json.dumps(content).encode() for content in contents] + [b"[" * 100_000]


def own_tables() -> list[bytes]:
    return [
        *tables(),
        b"filename;class\na.jpg;cat|dog\n",
        b"a.jpg,cat\nc/a.jpg,dog;traffic light\n",
        b"image,cat,dog\na,1,0\nb,0,yes\n",
        b'image,choice,id\na,"{""choices"":[""cat"",[{""x"":""dog""}]]}",1\nb,[1],2\n',
        b"image,choice\na," + b"[" * 100_000 + b"\n",
    ]


def own_json() -> list[bytes]:
    result = [
        {"type": "choices", "value": {"choices": ["cat"], "taxonomy": [["x", "dog"]], "rectanglelabels": ["cat"]}},
        {"type": "relation", "from_id": "a", "to_id": "b"},
    ]
    tasks = [
        {
            "data": {"image": "/data/upload/1/0a1b2c3d-a.jpg"},
            "annotations": [{"was_cancelled": False, "result": result}],
        },
        {"data": {"photo": "/data/local-files/?d=c%2Fa.jpg"}, "annotations": []},
    ]
    minimal = [
        {"image": "a.jpg", "choice": {"choices": ["cat"]}, "label": [{"polygonlabels": ["dog"]}]},
        {"photo": "https://x/c/a.jpg?y=b", "choice": "cat", "label": [{"format": "rle", "brushlabels": ["cat"]}]},
    ]
    deep: Any = "cat"
    for _ in range(900):
        deep = [deep]
    deepest = [{"image": "a.jpg", "choice": deep, "label": [{"labels": deep}]}]
    return [*coco(), *(json.dumps(content).encode() for content in (tasks, minimal, deepest))]


def own_xml() -> list[bytes]:
    images = '<image name="a.jpg"><tag label="cat"/><box label="dog" outside="1"/></image><image name="c/a"/>'
    texts = [
        f"<annotations><version>1.1</version>{images}</annotations>",
        "<annotations/>",
        "<annotations><image/></annotations>",
    ]
    return [text.encode() for text in texts] + [b"<a>" * 50_000]


# ---- configuration ----


def configs() -> list[bytes]:
    small = (
        "seeds: [0]\ndataset: {kind: demo, name: demo, demo: {size: 64, train: 5}}\n"
        "classifier:\n  train: &loop\n    steps: 2\n    batch_size: 2\n    crop: 32\n"
        "    optimizer: {kind: sgd, lr: 1.0e-3, weight_decay: 0}\n"
        "one_step:\n  recipe: reference\n  network: {backbone: resnet38, options: {width: 0.0625}}\n"
        "  train:\n    <<: *loop\n    steps: 3\n    scale: [0.7, 1.3]\n"
        "pseudo_masks: {crf: {branch: segmentation}}\n"
        "step_two:\n  mobile: {label: x, recipe: light, pseudo_masks: crf, train: {steps: 2}}\n"
        "bounds: {}\nevaluation: {views: {scales: [1.0], flip: true}}\n"
    )
    laughs = "a0: &a0 [x]\n" + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 10))
    merges = "a0: &a0 {x: 1}\n" + "".join(
        f"a{k}: &a{k} {{<<: [{', '.join([f'*a{k - 1}'] * 10)}]}}\n" for k in range(1, 8)
    )
    texts = [
        small,
        "dataset: {kind: voc, name: x, root: /data, classes: [cat]}\nclassifier: {enabled: false}\n",
        laughs + "dataset: *a9\n",
        "dataset: &d\n  name: *d\n  demo: *d\n",
        "methods: &m {sec: *m}\n",
        merges + "dataset: *a7\n",
        "dataset: " + "[" * 400,
        "- " * 400 + "x",
        "dataset: !!python/object/apply:os.system ['true']\n",
        "seeds: [" + "9" * 5000 + "]\n",
        "x: 2001-99-99\n",
        "? [a, b]\n: c\n1: 2\nnull: 3\n",
    ]
    return [text.encode() for text in texts]


def rates() -> list[bytes]:
    seconds, sizes = ("start_seconds", "unit_seconds", "tflop_per_unit"), ("memory", "gpu_memory")
    rate = {
        "stage": "train",
        **dict.fromkeys(seconds, 0.5),
        **dict.fromkeys(sizes, 10),
        "start_bytes": 1,
        "unit_bytes": 2,
    }
    whole = {"format": 1, "machine": {"cpu": "x", "threads": 1}, "entries": {"abc": rate}}
    return [json.dumps(whole).encode(), b"{}", b"[" * 100_000, b'{"machine": {}, "entries": {}}']


# ---- archives ----

_VOC = "VOCdevkit/VOC2012"


def _odd_member(kind: bytes, link: str = "", **fields: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo(fields.pop("name", f"{_VOC}/JPEGImages/a.jpg"))
        member.type, member.linkname = kind, link
        archive.addfile(member)
    return buffer.getvalue()[:1024]


def long_header(kind: bytes, size: int) -> bytes:
    """A tar header that announces a name, or a list of facts, of so many bytes."""
    head = bytearray(_odd_member(b"0")[:512])
    head[124:136] = b"%011o\0" % size
    head[156:157] = kind
    head[148:156] = b"%06o\0 " % (sum(head[:148]) + 256 + sum(head[156:]))
    return bytes(head)


def _bomb_of_names() -> bytes:
    """Two MB of gzip whose one member's name has 300."""
    packer = zlib.compressobj(1, wbits=31)
    parts = [packer.compress(long_header(tarfile.GNUTYPE_LONGNAME, 300 << 20))]
    parts += [packer.compress(bytes(1 << 20)) for _ in range(300)]
    return b"".join([*parts, packer.flush()])


def archives() -> list[bytes]:
    members = [(f"{_VOC}/ImageSets/Segmentation/train.txt", b"a\n"), (f"{_VOC}/JPEGImages/a.jpg", bytes(600))]
    whole = tar_bytes(members)
    pax = io.BytesIO()
    with tarfile.open(fileobj=pax, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in [*members, (f"{_VOC}/{'long/' * 40}é.txt", b"x")]:
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = len(content), {"comment": "x", "mtime": "1.5"}
            archive.addfile(member, io.BytesIO(content))
    kinds = (tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE)
    odd = [(tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "../../x"), *((kind, "") for kind in kinds)]
    return [
        whole,
        gzip.compress(whole, mtime=0),
        pax.getvalue(),
        *(whole[:-1024] + _odd_member(kind, link) + bytes(1024) for kind, link in odd),
        *(tar_bytes([(name, b"x")]) + whole for name in ("../../escape", "/tmp/escape", f"{_VOC}/../../x")),
        tar_bytes([(name.removeprefix(f"{_VOC}/"), content) for name, content in members]),
        tar_bytes([(f"./{name}", content) for name, content in members], "w:xz"),
        long_header(tarfile.XHDTYPE, 600) + b"18 path=../../../x\n" + bytes(493 + 512) + whole,
        _bomb_of_names(),
    ]


def submissions() -> list[bytes]:
    from rrm.datasets.voc import encode_mask
    from rrm.submission import FOLDER, write_archive

    mask = encode_mask(np.zeros((HEIGHT, WIDTH), np.uint8))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar.gz"
        write_archive(path, [("a", mask), ("b", encode_mask(np.full((HEIGHT, WIDTH), 20, np.uint8)))])
        whole = path.read_bytes()
    others = [[(f"{FOLDER}/a.png", _bomb(100_000, 100_000))], [("../a.png", mask)], [(f"{FOLDER}/a.png", mask[:40])]]
    return [whole, *(gzip.compress(tar_bytes(each), mtime=0) for each in others), _bomb_of_names()]


# ---- MATLAB ----

_MAT_HEADER = 128


def unpacked_mat(data: bytes) -> bytes | None:
    """What the one compressed element of a file holds."""
    try:
        return zlib.decompressobj().decompress(data[_MAT_HEADER + 8 :], 1 << 20)
    except zlib.error:
        return None


def packed_mat(content: bytes, level: int = 1) -> bytes:
    packed = zlib.compress(content, level)
    return published.mat(np.zeros((1, 1), np.uint8))[:_MAT_HEADER] + struct.pack("<II", 15, len(packed)) + packed


def mats() -> list[bytes]:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:3] = 7
    bomb = struct.pack("<II", 14, 300 << 20) + bytes(300 << 20)
    return [
        published.mat(mask),
        published.mat(mask, do_compression=False),
        packed_mat(bomb),
        published.mat(mask.astype(np.float64)),
    ]


# ---- weights ----


def params() -> list[bytes]:
    def array(shape: tuple[int, ...], magic: int = 0xF993FAC9, flag: int = 0) -> bytes:
        size = {0: 4, 1: 8, 2: 2}.get(flag, 1) * int(np.prod(shape))
        code = "q" if magic >= 0xF993FAC8 else "I"
        head = struct.pack("<I", magic) + (struct.pack("<i", 0) if magic > 0xF993FAC8 else b"")
        count = struct.pack("<i", len(shape)) if magic >= 0xF993FAC8 else b""
        return head + count + struct.pack(f"<{len(shape)}{code}iii", *shape, 1, 0, flag) + bytes(size)

    def file(arrays: list[bytes], names: list[bytes]) -> bytes:
        texts = b"".join(struct.pack("<Q", len(name)) + name for name in names)
        return struct.pack("<QQQ", 0x112, 0, len(arrays)) + b"".join(arrays) + struct.pack("<Q", len(names)) + texts

    kinds = [
        array((2, 3)),
        array((4,), 0xF993FACA, 1),
        array((), 0xF993FACA),
        array((2,), 0xF993FAC8, 2),
        array((3,), 1),
    ]
    return [
        file(kinds[:1], [b"arg:conv1a_weight"]),
        file(kinds, [b"arg:conv1a_weight", b"aux:bn7_moving_var", b"x", b"arg:res2a_branch1_weight", "é".encode()]),
        file([array((2**40, 2**40))[:60]], [b"x"]),
        file([array((0,) * 30)], [b"x"]),
    ]


class _Bad:
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("1",)


def _torch_bytes(content: Any, *, old: bool = False) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


def weights() -> list[bytes]:
    import torch

    state = OrderedDict(weight=torch.ones(2, 3), bias=torch.zeros(2, dtype=torch.float16), count=torch.tensor(3))
    shared = torch.arange(6.0)
    contents: list[Any] = [
        state,
        {"state_dict": state, "epoch": 3, "text": "x"},
        {
            "a": shared[::2],
            "b": shared.view(2, 3).T,
            "c": torch.nn.Parameter(torch.ones(1)),
            "d": torch.ones(2).expand(1000, 2),
        },
        {"format": 1, "weights": {}, "list": [1, 2.5, None, (True,)], "sparse": torch.eye(2).to_sparse()},
    ]
    new, old = [_torch_bytes(each) for each in contents], [_torch_bytes(each, old=True) for each in contents[:3]]
    return [*new, *old, pickle.dumps(_Bad()), _torch_bytes(_Bad()), _torch_bytes(_Bad(), old=True), huge_storage()]


def huge_storage() -> bytes:
    """A file of the old format that announces a storage of 2**36 numbers."""
    import torch

    data = _torch_bytes({"a": torch.ones(70_001)}, old=True)
    small, large = struct.pack("<BI", 0x4A, 70_001), b"\x8a\x05" + (2**36).to_bytes(5, "little")
    return data[: data.index(small)] + data[data.index(small) :].replace(small, large)[:2000]


def trained() -> list[bytes]:
    from rrm.networks import build_network
    from rrm.training import FORMAT

    def made(kind: str, backbone: str, options: dict[str, Any]) -> dict[str, Any]:
        weights = build_network(kind, num_classes=1, backbone=backbone, **options).state_dict()
        build = {"kind": kind, "num_classes": 1, "backbone": backbone, "options": options}
        identity = {"stage": "one_step", "code": "x", "options": {}}
        return {"format": FORMAT, "weights": weights, "build": build, "classes": ["cat"], "identity": identity}

    small = made("segmentation", "vgg16", {"width": 1 / 64})
    lists = made("rrm", "resnet50", {"width": 1 / 64, "layers": (1, 1, 1, 1), "head": "light"})
    others = [{**small, "build": {}}, {**small, "identity": None}, {**small, "weights": {}}, {**small, "classes": 3}]
    builds = [{**small["build"], "num_classes": 2}, {**small["build"], "options": {"width": 1000}}]
    contents = [small, lists, *others, *({**small, "build": build} for build in builds)]
    return [_torch_bytes(each) for each in contents]


# ---- stores ----


def stores() -> list[bytes]:
    from rrm.store import StoreWriter

    found = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.h5"
        for compression, records in itertools.product(("gzip", None), (1, 3)):
            with StoreWriter(path, "masks", {"a": 1}, "code", {"split": "val"}, compression=compression) as writer:
                for number in range(records):
                    writer.add(f"id{number}", {"mask": np.full((80, 60), number, np.uint8), "x": np.ones(3)})
            found.append(path.read_bytes())
        found += [_tampered(path, found[0], change) for change in _TAMPERINGS]
    return found


def _tampered(path: Path, data: bytes, change: Any) -> bytes:
    path.write_bytes(data)
    with h5py.File(path, "a", locking=False) as file:
        change(file)
    return path.read_bytes()


def _replace(file: Any, name: str, **how: Any) -> None:
    del file[name]
    file.create_dataset(name, **how)


def _external_link(file: Any) -> None:
    del file["index"]
    file["index"] = h5py.ExternalLink("/etc/passwd", "/x")


def _soft_loop(file: Any) -> None:
    del file["index"]
    file["index"] = h5py.SoftLink("/index")


def _with_index(change: Callable[[dict[str, Any]], object]) -> Callable[[Any], None]:
    """A change of the index, its checksum right."""
    from rrm.store import _index_checksum

    def tamper(file: Any) -> None:
        index = json.loads(file["index"][()].tobytes())
        change(index)
        data = np.frombuffer(json.dumps(index).encode(), np.uint8)
        _replace(file, "index", data=data)
        header = {name: value.decode() for name, value in file.attrs.items() if isinstance(value, bytes)}
        file.attrs["index_crc32"] = _index_checksum(data, header)

    return tamper


_HUGE = {"shape": (2**40,), "dtype": "u1", "chunks": (2**20,), "compression": "gzip"}
_TAMPERINGS = (
    _external_link,
    _soft_loop,
    lambda file: _replace(file, "index", **_HUGE),
    lambda file: _replace(file, "00000000.mask", **_HUGE),
    lambda file: _replace(file, "index", shape=(100,), dtype="u1", external=[("/etc/passwd", 0, 100)]),
    lambda file: _replace(file, "index", data=["text"] * 3, dtype=h5py.string_dtype()),
    lambda file: _replace(file, "index", data=3),
    lambda file: _replace(file, "index", data=h5py.Empty("u1")),
    lambda file: file.attrs.__setitem__("kind", h5py.Empty("S1")),
    lambda file: file.attrs.__setitem__("version", [1, 2, 3]),
    lambda file: file.attrs.__setitem__("config", np.zeros(3, [("a", "i4"), ("b", "f4")])),
    lambda file: file.attrs.__setitem__("code", "text"),
    lambda file: (file.pop("index"), file.create_group("index")),
    *map(
        _with_index,
        (
            lambda index: index.pop("ids"),
            lambda index: index.update(ids=3),
            lambda index: index.update(ids=[[1]]),
            lambda index: index["ids"].append("x"),
            lambda index: index.update(crc32=[3]),
            lambda index: index.update(crc32=[{"a/../index": 0, "../x": None}]),
            lambda index: index.update(attrs=[]),
        ),
    ),
)
