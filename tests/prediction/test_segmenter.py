"""`rrm.load` and `Segmenter.predict`: equal to the pipeline, bounded by image labels, clear about what they refuse."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import rrm
from rrm.cli import main
from rrm.config import Evaluation
from rrm.datasets.packing import reduce_photo
from rrm.datasets.voc import VOC_CLASSES
from rrm.errors import RRMError
from rrm.inference import for_storage
from rrm.metrics import confusion_matrix
from rrm.networks import build_network
from rrm.segmenter import CRF_PRESET, Views
from rrm.stages import evaluate, predict, submission
from rrm.stages.call import Call
from rrm.store import Store, StoreWriter
from rrm.submission import member_name
from tests.prediction.conftest import CLASSES, TINY, made_photo

ROOT = Path(__file__).resolve().parents[2]
CRF = {"bilateral_sigma_xy": 83, "bilateral_sigma_rgb": 5, "bilateral_weight": 4}
RUNTIME = {"device": "cpu", "crf_workers": 0, "log_seconds": 60}
PHOTOS = {"one": made_photo(40, 57), "two": made_photo(33, 24, seed=1)}
LONG_SIDE = 35
VIEWS = {
    "one": {"scales": [1.0], "flip": False, "merge": "mean"},
    "mean": {"scales": [0.75, 1.0, 1.5], "flip": True, "merge": "mean"},
    "max": {"scales": [1.0, 0.5], "flip": False, "merge": "max"},
}


class Pipeline:
    """The stages on `PHOTOS`, which are also files."""

    def __init__(self, folder: Path, weights: Path, long_side: int | None = None) -> None:
        self.folder, self.weights, self.long_side = folder, weights, long_side
        self.masks = {
            name: np.random.default_rng(len(name)).integers(0, 3, photo.shape[:2], np.uint8)
            for name, photo in PHOTOS.items()
        }
        splits = {split: list(PHOTOS) for split in ("val", "submission")}
        attrs = {"splits": splits, "classes": CLASSES, "long_side": long_side}
        with StoreWriter(folder / "photos.h5", "photos", {}, "-", attrs) as writer:
            for name, photo in PHOTOS.items():
                image = reduce_photo(photo, long_side)
                writer.add(name, {"image": image, "size": np.array(photo.shape[:2], np.int32)})
                Image.fromarray(photo).save(folder / f"{name}.png")
        with StoreWriter(folder / "masks.h5", "masks", {}, "-", {"split": "val", "classes": CLASSES}) as writer:
            for name, mask in self.masks.items():
                writer.add(name, {"mask": mask})

    def stage(self, module: Any, name: str, out: str, options: Mapping[str, Any], **inputs: str) -> Path:
        paths = {key: self.folder / value for key, value in inputs.items()}
        if name == "predict":
            paths["model"] = self.weights
        module.run(Call(name, paths, self.folder / out, options, RUNTIME))
        return self.folder / out

    def probabilities(self, views: str) -> Store:
        options = {"split": "val", "views": {**VIEWS[views], "precision": "float32"}}
        path = self.stage(predict, "predict", f"probabilities_{views}.h5", options, photos="photos.h5")
        return Store(path, "probabilities")


@pytest.fixture(scope="module", params=[None, LONG_SIDE], ids=["original", "reduced"])
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Pipeline:
    """Photos packed at their size, and reduced: the first is, the second is smaller than that anyway."""
    return Pipeline(tmp_path_factory.mktemp("pipeline"), weights, request.param)


# ---- the same as the pipeline ----


@pytest.mark.parametrize("views", sorted(VIEWS))
def test_probabilities_are_those_of_the_stage_predict(pipeline: Pipeline, segmenter: rrm.Segmenter, views: str) -> None:
    store = pipeline.probabilities(views)
    for name, photo in PHOTOS.items():
        packed = reduce_photo(photo, pipeline.long_side)
        seen = segmenter.predict(packed, crf=False, **VIEWS[views])
        np.testing.assert_array_equal(for_storage(seen.probabilities), store.read(name, "probabilities"))
        np.testing.assert_array_equal(seen.probabilities, store.read(name, "probabilities").astype(np.float32))


@pytest.mark.parametrize("views", ["one", "mean"])
def test_labels_are_those_of_the_stage_evaluate(pipeline: Pipeline, segmenter: rrm.Segmenter, views: str) -> None:
    path = pipeline.probabilities(views).path.name
    inputs = {"photos": "photos.h5", "masks": "masks.h5", "probabilities": path}
    out = pipeline.stage(evaluate, "evaluate", f"confusion_{views}.h5", {"split": "val", "crf": CRF}, **inputs)
    confusion = Store(out, "confusion")
    for name, photo in PHOTOS.items():
        for kind, crf in (("plain", False), ("crf", True)):
            seen = segmenter.predict(photo, crf=crf, long_side=pipeline.long_side, **VIEWS[views])
            assert seen.probabilities.shape == (3, *photo.shape[:2])
            expected = confusion_matrix(seen.labels, pipeline.masks[name], len(CLASSES))
            np.testing.assert_array_equal(expected, confusion.read(name, kind))


@pytest.mark.parametrize("crf", [True, False])
def test_masks_are_those_of_the_stage_submission(
    pipeline: Pipeline, segmenter: rrm.Segmenter, tmp_path: Path, crf: bool
) -> None:
    inputs = {"photos": "photos.h5", "probabilities": pipeline.probabilities("one").path.name}
    archive = pipeline.stage(submission, "submission", f"{crf}.tar.gz", {"crf": CRF if crf else None}, **inputs)
    files = [str(pipeline.folder / f"{name}.png") for name in PHOTOS]
    how = [] if crf else ["--no-crf"]
    how += [] if pipeline.long_side is None else ["--long-side", str(pipeline.long_side)]
    command = ["segment", str(pipeline.weights), *files, "--out", str(tmp_path / "out"), "--device", "cpu", *how]
    assert main(command) == 0
    with tarfile.open(archive) as opened:
        for name, photo in PHOTOS.items():
            member = opened.extractfile(member_name(name))
            assert member is not None
            expected = member.read()
            assert (tmp_path / "out" / "masks" / f"{name}.png").read_bytes() == expected
            segmenter.predict(photo, crf=crf, long_side=pipeline.long_side).save_mask(tmp_path / "api.png")
            assert (tmp_path / "api.png").read_bytes() == expected


def test_the_crf_is_that_of_the_configuration() -> None:
    assert rrm.DenseCRF(**Evaluation().crf.model_dump()) == rrm.DenseCRF.preset(CRF_PRESET) == rrm.DenseCRF(**CRF)


# ---- what a prediction holds ----


def test_paths_images_and_arrays_give_the_same(segmenter: rrm.Segmenter, tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    Image.fromarray(PHOTOS["one"]).save(path)
    seen = [segmenter.predict(image) for image in (path, str(path), Image.open(path), PHOTOS["one"])]
    for each in seen:
        assert each.labels.dtype == np.uint8 and each.probabilities.dtype == np.float32
        np.testing.assert_array_equal(each.labels, seen[0].labels)
        np.testing.assert_array_equal(each.labels, each.probabilities.argmax(0))
        np.testing.assert_allclose(each.probabilities.sum(0), 1, atol=1e-3)


def test_a_crf_of_ones_own(segmenter: rrm.Segmenter) -> None:
    photo = PHOTOS["one"]
    without, idle = segmenter.predict(photo, crf=False), segmenter.predict(photo, crf=rrm.DenseCRF(iterations=0))
    np.testing.assert_array_equal(without.labels, idle.labels)
    strong = segmenter.predict(photo, crf=rrm.DenseCRF(gaussian_weight=50))
    assert (strong.labels != without.labels).any()


@pytest.mark.parametrize("views", [Views(), Views(crf=False, tile=64), Views(long_side=50, scales=(1, 0.5), flip=True)])
def test_a_batch_is_what_each_photo_gives_alone(segmenter: rrm.Segmenter, views: Views) -> None:
    sizes = [(40, 57), (70, 90), (57, 40), (40, 57), (1, 1)]
    photos = [made_photo(*size, seed=seed) for seed, size in enumerate(sizes)]
    named = [None, None, ["dog"], ["cat"], []]
    options = {field.name: getattr(views, field.name) for field in fields(Views)}
    together = segmenter.predict_batch(photos, named, views)
    for photo, labels, seen in zip(photos, named, together, strict=True):
        alone = segmenter.predict(photo, image_labels=labels, **options)
        assert seen.labels.shape == photo.shape[:2]
        np.testing.assert_allclose(seen.probabilities, alone.probabilities, atol=0.01)  # the CRF magnifies last bits
        assert (seen.labels == alone.labels).mean() > 0.99
    assert not together[-1].labels.any() and together[2].classes_found in (("dog",), ())
    few = segmenter.predict_batch(photos[:2], probabilities=False)
    assert [seen.scores for seen in few] == [None, None]
    assert segmenter.predict_batch([]) == []


def test_batches_that_are_refused(segmenter: rrm.Segmenter) -> None:
    with pytest.raises(RRMError, match="image_labels: expected those of 2 photos, got 1: give one a photo"):
        segmenter.predict_batch([PHOTOS["one"], PHOTOS["two"]], [["cat"]])
    with pytest.raises(RRMError, match="image: expected at most 100 pixels"):
        segmenter.predict_batch([PHOTOS["one"]], max_pixels=100)


@pytest.mark.parametrize("crf", [True, False])
@pytest.mark.parametrize("named", [[], ["dog"], ("cat", "dog")])
def test_image_labels_make_the_other_classes_impossible(segmenter: rrm.Segmenter, crf: bool, named: list[str]) -> None:
    seen = segmenter.predict(PHOTOS["one"], image_labels=named, crf=crf)
    absent = [label for label, name in enumerate(CLASSES, 1) if name not in named]
    assert not seen.probabilities[absent].any() and set(seen.classes_found) <= set(named)
    np.testing.assert_allclose(seen.probabilities.sum(0), 1, atol=1e-5)


@pytest.mark.parametrize("named", [["cow"], ["cat", "cow"], "cat"])
def test_image_labels_that_are_no_classes(segmenter: rrm.Segmenter, named: Any) -> None:
    with pytest.raises(RRMError, match="image_labels: expected a list of names among cat, dog, got"):
        segmenter.predict(PHOTOS["one"], image_labels=named)


def test_probabilities_that_were_not_kept(segmenter: rrm.Segmenter) -> None:
    seen = segmenter.predict(PHOTOS["one"], crf=False, probabilities=False)
    np.testing.assert_array_equal(seen.labels, segmenter.predict(PHOTOS["one"], crf=False).labels)
    with pytest.raises(RRMError, match=r"predict\(\.\.\., probabilities=True\)"):
        _ = seen.probabilities


def test_overlays_leave_the_background_alone(segmenter: rrm.Segmenter) -> None:
    photo = PHOTOS["one"]
    seen = segmenter.predict(photo, crf=False)
    overlay, inside = seen.overlay(photo), seen.labels > 0
    assert overlay.shape == photo.shape and inside.any() and not inside.all()
    np.testing.assert_array_equal(overlay[~inside], photo[~inside])
    assert (overlay[inside] != photo[inside]).any()
    np.testing.assert_array_equal(seen.overlay(photo, opacity=0), photo)
    with pytest.raises(RRMError, match="overlay: expected the photo of these"):
        seen.overlay(PHOTOS["two"])


def test_masks_are_palette_files(segmenter: rrm.Segmenter, tmp_path: Path) -> None:
    seen = segmenter.predict(PHOTOS["one"], crf=False)
    seen.save_mask(tmp_path / "new" / "mask.png")
    with Image.open(tmp_path / "new" / "mask.png") as opened:
        assert opened.mode == "P" and opened.getpalette()[3:9] == [128, 0, 0, 0, 128, 0]
        np.testing.assert_array_equal(np.asarray(opened), seen.labels)
    with pytest.raises(RRMError, match=r"ends in \.png"):
        seen.save_mask(tmp_path / "mask.jpg")
    assert repr(seen).startswith("Prediction(40 x 57: ")


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (7, 300)])
def test_small_and_narrow_photos(segmenter: rrm.Segmenter, size: tuple[int, int]) -> None:
    assert segmenter.predict(made_photo(*size)).labels.shape == size


@pytest.mark.parametrize("scales", [(), (0,), (-1.0,), (float("inf"),), (float("nan"),)])
def test_scales_that_are_refused(segmenter: rrm.Segmenter, scales: tuple[float, ...]) -> None:
    with pytest.raises(RRMError, match="scales: expected at least one number, all > 0"):
        segmenter.predict(PHOTOS["one"], scales=scales)


def test_sides_that_are_refused(segmenter: rrm.Segmenter) -> None:
    with pytest.raises(RRMError, match="long_side: expected at least 1 pixel, got 0"):
        segmenter.predict(PHOTOS["one"], long_side=0)


def test_a_merge_that_is_refused(segmenter: rrm.Segmenter) -> None:
    with pytest.raises(RRMError, match="merge: expected one of"):
        segmenter.predict(PHOTOS["one"], merge="median")


# ---- files ----


def test_second_step_networks_are_opened_too(tmp_path: Path, write_weights: Callable[..., Path]) -> None:
    opened = rrm.load(write_weights(tmp_path / "w.pth", kind="segmentation", stage="step_two"), device="cpu")
    assert repr(opened) == "Segmenter(DeepLab, 2 classes, 'cpu')"
    assert opened.predict(PHOTOS["two"]).labels.shape == (33, 24)


def test_published_files_need_classes_and_give_the_same(
    weights: Path, segmenter: rrm.Segmenter, tmp_path: Path
) -> None:
    torch.save(segmenter.network.state_dict(), tmp_path / "published.pth")
    opened = rrm.load(tmp_path / "published.pth", "cpu", classes=CLASSES, network=TINY)
    expected = segmenter.predict(PHOTOS["one"], crf=False)
    np.testing.assert_array_equal(opened.predict(PHOTOS["one"], crf=False).labels, expected.labels)
    with pytest.raises(RRMError, match="got another file"):
        rrm.load(tmp_path / "published.pth")
    with pytest.raises(RRMError, match="expected the segmentation branch of 20 classes"):
        rrm.load(tmp_path / "published.pth", classes=VOC_CLASSES, network=TINY)
    with pytest.raises(RRMError, match="expected all of ResNet-38"):
        rrm.load(tmp_path / "published.pth", classes=CLASSES, network={**TINY, "width": 1 / 8})
    backbone = {name: value for name, value in segmenter.network.state_dict().items() if "backbone." in name}
    torch.save(backbone, tmp_path / "backbone.pth")
    with pytest.raises(RRMError, match="expected the segmentation branch"):
        rrm.load(tmp_path / "backbone.pth", classes=CLASSES, network=TINY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 3}, r"unknown option\(s\) \['depth'\]"),
        ({"num_classes": 3}, "network: expected options of RRMNet by name"),
        ([1], "network: expected options of RRMNet by name"),
        ({"backbone": "mobilenet_v2"}, "expected a network with a ResNet-38 backbone"),
    ],
)
def test_options_of_published_networks_that_are_refused(weights: Path, options: Any, message: str) -> None:
    with pytest.raises(RRMError, match=message):
        rrm.load(weights, classes=CLASSES, network=options)


def test_files_without_a_trained_segmentation_branch(tmp_path: Path, write_weights: Callable[..., Path]) -> None:
    for kind, stage in (("rrm", "classifier"), ("affinity", "affinity")):
        with pytest.raises(RRMError, match=f"a trained segmentation branch, got one of stage '{stage}'"):
            rrm.load(write_weights(tmp_path / "w.pth", kind=kind, stage=stage))


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("no weights")
    for name in ("text.pth", "absent.pth"):
        with pytest.raises(RRMError, match=name):
            rrm.load(tmp_path / name)


def test_other_arguments_that_are_refused(weights: Path) -> None:
    with pytest.raises(RRMError, match="device: expected one of"):
        rrm.load(weights, device="gpu")
    with pytest.raises(RRMError, match="network: expected no options without classes"):
        rrm.load(weights, network=TINY)
    for classes in ([], ["cat", "cat"], "cat", [str(number) for number in range(255)]):
        with pytest.raises(RRMError, match="classes: expected 1 to 254 different names"):
            rrm.Segmenter(None, classes)


# ---- the ways in ----


def test_torch_hub_opens_weights(weights: Path, segmenter: rrm.Segmenter) -> None:
    opened = torch.hub.load(str(ROOT), "rrm_segmenter", weights, source="local", device="cpu")
    expected = segmenter.predict(PHOTOS["two"], crf=False)
    np.testing.assert_array_equal(opened.predict(PHOTOS["two"], crf=False).labels, expected.labels)


def test_import_and_command_line_stay_light() -> None:
    code = "import sys, rrm, rrm.cli; rrm.cli.build_parser(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def test_the_network_itself_is_what_predicts() -> None:
    torch.manual_seed(3)
    network = build_network("rrm", num_classes=2, **TINY).eval()
    one, other = (rrm.Segmenter(network, names) for names in (CLASSES, ["a", "b"]))
    photo = made_photo(20, 20)
    assert one.predict(photo, crf=False).classes == ("cat", "dog")
    np.testing.assert_array_equal(other.predict(photo, crf=False).labels, one.predict(photo, crf=False).labels)
