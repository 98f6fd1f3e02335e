"""Image-level labels from every source that is known, and the photos that they mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rrm.datasets.image_labels import match_images, read_image_labels
from rrm.errors import RRMError, RRMErrors

WANTED = {"a.jpg": ("cat", "traffic light"), "b.jpg": ("cat",)}
CVAT = """<annotations><version>1.1</version><meta/>
<image id="0" name="a.jpg"><tag label="cat"/><box label="traffic light" xtl="1"/></image>
<image id="1" name="b.jpg"><polygon label="cat" points="0,0;1,1;2,0"/></image></annotations>"""
COCO = {
    "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
    "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "traffic light"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 7},
        {"id": 2, "image_id": 1, "category_id": 9},
        {"id": 3, "image_id": 2, "category_id": 7},
    ],
}
STUDIO = [
    {
        "data": {"image": "/data/upload/1/0a1b2c3d-a.jpg"},
        "annotations": [
            {"result": [{"type": "choices", "value": {"choices": ["cat"]}}]},
            {
                "result": [
                    {"type": "rectanglelabels", "value": {"x": 1, "rectanglelabels": ["traffic light"]}},
                    {"type": "relation", "from_id": "1", "to_id": "2", "direction": "right"},
                ]
            },
            {"was_cancelled": True, "result": [{"type": "choices", "value": {"choices": ["dog"]}}]},
        ],
    },
    {
        "data": {"photo": "/data/local-files/?d=photos/b.jpg"},
        "annotations": [{"result": [{"type": "taxonomy", "value": {"taxonomy": [["animal", "cat"]]}}]}],
    },
    {"data": {"image": "s3://bucket/c.jpg"}, "annotations": []},
]
MINIMAL = [
    {"image": "a.jpg", "choice": {"choices": ["cat", "traffic light"]}, "id": 1},
    {"image": "b.jpg", "label": [{"x": 3, "rectanglelabels": ["cat"]}], "annotator": 1},
]
NAMED = [
    {
        "photo": "https://bucket.example/a.jpg?X-Amz-Date=1&X-Amz-Signature=2f.b",
        "animal": {"choices": ["cat", "traffic light"]},
        "note": "far",
    },
    {"photo": "https://bucket.example/b.jpg?X-Amz-Date=1", "animal": "cat", "note": "dark"},
]
BRUSHED = [
    {"image": "a.jpg", "labels": [{"format": "rle", "rle": [1], "brushlabels": ["cat", "traffic light"]}]},
    {"image": "b.jpg", "kinds": [{"taxonomy": [["animal", "cat"]]}]},
]


def _voc(folder: Path) -> Path:
    for name, labels in WANTED.items():
        objects = "".join(f"<object><name>{label}</name></object>" for label in labels)
        folder.joinpath(name).with_suffix(".xml").write_text(f"<annotation>{objects}</annotation>")
    return folder


TEXTS = {
    "quoted.csv": 'image,labels\na.jpg,"cat, traffic light"\nb.jpg,cat\n',
    "unquoted.csv": "filename,label\na.jpg,cat,traffic light\nb.jpg,cat\n",
    "long.csv": "label,image,who\ntraffic light;,a.jpg,me\ncat,a.jpg,me\ncat,b.jpg,you\n",
    "flags.csv": "image,cat,traffic light\na.jpg,1,1\nb.jpg,1,0\n",
    "semicolons.csv": "image;labels\na.jpg;cat|traffic light\nb.jpg;cat\n",
    "headless.csv": "a.jpg,cat;traffic light\nb.jpg,cat\n",
    "headless backwards.csv": "cat;traffic light,a.jpg\ncat,b.jpg\n",
    "exported.csv": "image,labels\na.jpg,cat;traffic light\n\nb.jpg,cat\n,\n",
    "tabs.tsv": "\ufeffimage\tlabels\r\na.jpg\tcat;traffic light\r\nb.jpg\tcat\r\n",
    "choices.csv": 'image,choice,id\na.jpg,"{""choices"":[""cat"",""traffic light""]}",1\nb.jpg,cat,2\n',
    "cvat.xml": CVAT,
    "coco.json": json.dumps(COCO),
    "studio.json": json.dumps(STUDIO),
    "minimal.json": json.dumps(MINIMAL),
    "named.json": json.dumps(NAMED),
    "brushed.json": json.dumps(BRUSHED),
    "text.json": json.dumps(
        [{"image": "a.jpg", "label": ["cat", "traffic light"]}, {"image": "b.jpg", "label": "cat"}]
    ),
}


@pytest.mark.parametrize("name", [*TEXTS, "voc"])
def test_every_source_gives_the_same_labels(name: str, tmp_path: Path) -> None:
    source = tmp_path / name
    if name == "voc":
        source = _voc(tmp_path)
    else:
        source.write_bytes(TEXTS[name].encode())
    photos = {stem: tmp_path / "photos" / f"{stem}.jpg" for stem in ("a", "b", "c")}
    labels, faults = read_image_labels(source).labels, list[str]()
    matched = match_images(labels, photos, faults)
    assert faults == []
    assert {f"{photo}.jpg": labels[told] for photo, (told,) in matched.items()} == WANTED


def test_a_known_class_is_not_divided_at_its_spaces(tmp_path: Path) -> None:
    source = tmp_path / "labels.csv"
    source.write_text("image,labels\na,traffic light\nb,cat dog\n")
    known = read_image_labels(source, ["traffic light", "cat", "dog"]).labels
    assert known == {"a": ("traffic light",), "b": ("cat", "dog")}
    assert read_image_labels(source).labels["a"] == ("light", "traffic")


def test_photos_without_labels_are_told_from_photos_that_nobody_looked_at(tmp_path: Path) -> None:
    source = tmp_path / "labels.csv"
    source.write_text("image,labels\na,cat\nb,\n")
    assert read_image_labels(source).labels == {"a": ("cat",), "b": ()}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "got nothing: check the path"),
        ("a.zip", "", "got a file .zip"),
        ("a.csv", "image,labels\n", "expected a header"),
        ("a.csv", "x.jpg,1,0\ny.jpg,0,1\n", "expected a header that names the 3 columns"),
        ("a.csv", "image,labels\n,cat\n", "row 2: expected 2 cells, got none for the image"),
        ("a.csv", "image,labels\nx.jpg,background\n", "none that means background"),
        ("a.csv", "image,labels\nx.jpg\n", "row 2: expected 2 cells, got 1"),
        ("a.csv", "image,cat,dog\nx.jpg,1,maybe\n", "0 or 1 for each of 2 classes"),
        ("a.json", "{", "expected JSON"),
        ("a.json", "{}", "got other JSON"),
        ("a.json", json.dumps({**COCO, "annotations": [{"id": 5, "image_id": 9, "category_id": 7}]}), "annotation 5"),
        ("a.json", json.dumps([{"annotations": []}]), "got JSON without 'data'"),
        ("a.json", json.dumps([{"data": {"text": "x"}, "annotations": []}]), "task 1: expected the name of an image"),
        ("a.json", json.dumps([{"image": "a.jpg", "animal": "cat"}]), "got 1 tasks with animal, image: export as JSON"),
        ("a.xml", "<annotation/>", "expected `annotations`"),
        ("a.xml", '<!DOCTYPE a [<!ENTITY b "c">]><annotations>&b;</annotations>', "EntitiesForbidden"),
        ("folder", {}, "expected VOC's XML files in it"),
    ],
)
def test_what_is_wrong_is_told(name: str, content: Any, message: str, tmp_path: Path) -> None:
    source = tmp_path / name
    if content == {}:
        source.mkdir()
    elif content is not None:
        source.write_text(content)
    with pytest.raises(RRMError, match=message):
        read_image_labels(source)


def test_all_faulty_rows_are_told_at_once(tmp_path: Path) -> None:
    source = tmp_path / "labels.csv"
    source.write_text("image,labels\na\nb,cat\nc\n")
    with pytest.raises(RRMErrors) as error:
        read_image_labels(source)
    assert len(error.value.faults) == 2


def _coco_with(category: int) -> str:
    images = [{"id": 1, "file_name": "a"}, {"id": 2, "file_name": "good"}]
    annotations = [{"image_id": image, "category_id": each} for image, each in ((1, 7), (1, category), (2, 7))]
    return json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "cat"}]})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "image,labels\na\ngood,cat\na,dog\n"),
        ("a.csv", "image,cat,dog\na,1,maybe\ngood,1,0\na,1,0\n"),
        ("a.csv", "image,labels\na,background;cat\ngood,cat\n"),
        ("a.json", _coco_with(9)),
        ("a.json", json.dumps([{"annotations": []}, {"data": {"image": "good.jpg"}, "annotations": [
            {"result": [{"value": {"choices": ["cat"]}}]}]}])),
        ("a.json", json.dumps([{"image": "a.jpg", "choice": "\ud800"}, {"image": "good.jpg", "choice": "cat"}])),
        ("folder", "<annotation><object><name>cat</name></object></annotation>"),
    ],
)  # fmt: skip
def test_faults_are_collected_and_their_images_left_out(name: str, content: str, tmp_path: Path) -> None:
    source, faults = tmp_path / name, list[str]()
    if name == "folder":
        source.mkdir()
        (source / "a.xml").write_text("<annotation>")
        (source / "good.xml").write_text(content)
    else:
        source.write_text(content)
    labels = read_image_labels(source, faults=faults).labels
    assert {Path(image).stem: found for image, found in labels.items()} == {"good": ("cat",)}
    assert len(faults) == 1
    with pytest.raises(RRMErrors) as error:
        read_image_labels(source)
    assert error.value.faults == faults


def test_names_mean_the_photo_with_most_of_their_folders() -> None:
    photos = {name: Path(f"{name}.jpg") for name in ("one/x/cat", "two/x/cat", "dog.v2", "dog")}
    faults: list[str] = []
    matched = match_images(["data/two/x/cat.jpg", "dog.v2.jpg", "dog", "cat.jpg", "cow.jpg"], photos, faults)
    assert matched == {"two/x/cat": ["data/two/x/cat.jpg"], "dog.v2": ["dog.v2.jpg"], "dog": ["dog"]}
    assert [fault.split(":")[0] for fault in faults] == ["cat.jpg", "cow.jpg"]
