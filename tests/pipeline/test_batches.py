"""Photos in batches: the same results as one by one, in the same order, in few passes of the network."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rrm import crf as dense_crf
from rrm import inference
from rrm.crf import DenseCRF
from rrm.metrics import confusion_matrices, confusion_matrix
from rrm.networks import build_network
from rrm.parallel import map_alike, prefetched
from rrm.shards import Shard, in_whole_windows
from rrm.stages import evaluate, predict
from rrm.stages.call import Call
from rrm.stages.trained import save_trained
from rrm.store import Store, StoreWriter

CLASSES = ["cat", "dog", "cow"]
SIZES = [(40, 56), (56, 40), (40, 56), (33, 47), (40, 56), (56, 40)]
NAMES = [f"photo{number}" for number in range(len(SIZES))]
VIEWS = {"scales": [1.0, 0.5], "flip": True, "merge": "mean", "precision": "float32"}
CAM = {"cam": {"scales": [1.0, 0.5], "average": "feature", "exponent": 4.0}, "precision": "float32"}
OPTIONS: dict[str, dict[str, Any]] = {
    "mean": {"views": VIEWS},
    "max": {"views": VIEWS | {"merge": "max"}},
    "cam, given labels": {**CAM, "image_labels": "given"},
    "cam, predicted labels": {**CAM, "image_labels": "predicted"},
}
RUNTIME = {"device": "cpu", "log_seconds": 60, "crf_workers": 0, "compile": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, masks and a network, whose classes are all seen somewhere."""
    made = tmp_path_factory.mktemp("batches")
    random = np.random.default_rng(0)
    attrs = {"splits": {"val": NAMES}, "classes": CLASSES}
    with StoreWriter(made / "photos.h5", "photos", {}, "-", attrs) as writer:
        for name, size in zip(NAMES, SIZES, strict=True):
            coarse = torch.from_numpy(random.uniform(0, 255, (1, 3, 5, 5)))
            image = torch.nn.functional.interpolate(coarse, size)[0].permute(1, 2, 0).byte().numpy()
            writer.add(name, {"image": image, "present": np.array([1, 0, 1], np.uint8)})
    with StoreWriter(made / "masks.h5", "masks", {}, "-", {"split": "val", "classes": CLASSES}) as writer:
        for name, (height, width) in zip(NAMES, SIZES, strict=True):
            mask = random.integers(0, len(CLASSES) + 1, (2 * height, 2 * width), np.uint8)
            mask[0] = 255
            writer.add(name, {"mask": mask})
    torch.manual_seed(0)
    options = {"backbone": "resnet38", "options": {"width": 1 / 16, "units": (1, 1, 1, 1), "batch_norm": "train"}}
    network = build_network("rrm", num_classes=len(CLASSES), backbone="resnet38", **options["options"])
    torch.nn.init.normal_(network.head.fc8_seg_conv2.weight, std=0.3)
    identity = {"stage": "one_step", "code": "-", "options": {}}
    save_trained(made / "weights.pth", network, "rrm", CLASSES, options, identity)
    return made


def predicted(folder: Path, out: Path, which: str) -> dict[str, np.ndarray]:
    inputs = {"photos": folder / "photos.h5", "model": folder / "weights.pth"}
    predict.run(Call("predict", inputs, out, {**OPTIONS[which], "split": "val"}, RUNTIME))
    store = Store(out, "probabilities")
    assert list(store.ids) == NAMES
    return {name: store.read(name, "probabilities") for name in store.ids}


@pytest.mark.parametrize("which", list(OPTIONS))
@pytest.mark.parametrize("pixels", [7000, 1 << 17])
def test_predictions_do_not_depend_on_the_batch(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str, pixels: int
) -> None:
    monkeypatch.setitem(inference.PASS_PIXELS, "cpu", pixels)
    together = predicted(folder, tmp_path / "together.h5", which)
    monkeypatch.setitem(inference.PASS_PIXELS, "cpu", 1)
    alone = predicted(folder, tmp_path / "alone.h5", which)
    for name, size in zip(NAMES, SIZES, strict=True):
        assert together[name].shape == (len(CLASSES) + 1, *size)
        np.testing.assert_allclose(together[name].astype(np.float32), alone[name].astype(np.float32), atol=1e-3)
    first = together["photo0"].astype(np.float32)
    assert all(np.abs(first - together[name]).max() > 0.01 for name in ("photo2", "photo4")), "each is its own"


def test_views_are_mirrored_merged_and_made_together(folder: Path) -> None:
    network, seen = predict.load_trained(folder / "weights.pth", "cpu").network, []
    forward = network.forward_segmentation
    network.forward_segmentation = lambda x: seen.append(tuple(x.shape)) or forward(x)
    photos = Store(folder / "photos.h5", "photos")
    images = [photos.read(name, "image") for name in ("photo0", "photo2")]
    got = inference.segmentation_probabilities(network, images, VIEWS)
    assert seen == [(4, 3, 40, 56), (4, 3, 20, 28)]
    with torch.inference_mode():
        whole = network.normalize(inference.as_batch(images))
        half = torch.nn.functional.interpolate(whole, scale_factor=0.5, mode="bilinear")
        views = [inference.resize(forward(each), (40, 56)).softmax(1) for each in (whole, half)]
        mirrored = [inference.resize(forward(each.flip(3)), (40, 56)).softmax(1).flip(3) for each in (whole, half)]
    torch.testing.assert_close(got, torch.stack([*views, *mirrored]).mean(0), atol=1e-5, rtol=1e-4)
    assert (views[0] - mirrored[0]).abs().max() > 1e-3


@pytest.mark.parametrize("compiled", [True, False])
def test_scores_in_batches_are_those_of_one_photo_at_a_time(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    predicted(folder, tmp_path / "probabilities.h5", "mean")
    stores = [("photos", "photos"), ("masks", "masks")]
    opened = [Store(folder / f"{name}.h5", kind) for name, kind in stores]
    crf = DenseCRF.preset("rrm-inference", iterations=3)
    found = Store(tmp_path / "probabilities.h5", "probabilities")
    scorer, read = evaluate.Scorer(crf, len(CLASSES), "cpu"), evaluate.Stores(*opened, found)
    alone = [scorer.one((name, read.only(name))) for name in NAMES]
    if not compiled:  # as on a GPU: whole batches in torch
        monkeypatch.setattr(dense_crf, "has_compiled_lattice", lambda: False)
    together = list(scorer.batched(read, NAMES))
    pixels = [4 * height * width - 2 * width for height, width in SIZES]
    for one, other, scored in zip(alone, together, pixels, strict=True):
        for kind in ("plain", "crf"):
            assert one[kind].sum() == other[kind].sum() == scored
            assert np.abs(one[kind] - other[kind]).sum() <= 0.001 * scored
    assert any((one["plain"] != one["crf"]).any() for one in alone)


def test_the_stage_scores_in_batches_on_a_device(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predicted(folder, tmp_path / "probabilities.h5", "mean")
    inputs = {"photos": folder / "photos.h5", "masks": folder / "masks.h5"}
    inputs["probabilities"] = tmp_path / "probabilities.h5"
    options = {"split": "val", "crf": {"iterations": 2}}
    scored = {}

    def scored_in_batches(scorer: Any, pool: Any, stores: Any, ids: Any, share: Any) -> Any:
        return in_whole_windows(partial(scorer.batched, stores), ids, share)

    for way in ("processes", "batches"):
        if way == "batches":
            monkeypatch.setattr(evaluate.Scorer, "scored", scored_in_batches)
        evaluate.run(Call("evaluate", inputs, tmp_path / f"{way}.h5", options, RUNTIME))
        store = Store(tmp_path / f"{way}.h5", "confusion")
        assert list(store.ids) == NAMES
        scored[way] = np.stack([store.read(name, "crf") for name in store.ids])
    np.testing.assert_array_equal(scored["processes"], scored["batches"])


def test_matrices_of_a_batch() -> None:
    random = np.random.default_rng(0)
    predictions, targets = random.integers(0, 4, (3, 5, 6), np.uint8), random.integers(0, 4, (3, 5, 6), np.uint8)
    targets[1], predictions[2, 0, 0], targets[2, 0, 0] = 255, 255, 255
    batch = confusion_matrices(torch.from_numpy(predictions), torch.from_numpy(targets), 3)
    for got, prediction, target in zip(batch, predictions, targets, strict=True):
        np.testing.assert_array_equal(got, confusion_matrix(prediction, target, 3))
    assert batch.sum((1, 2)).tolist() == [30, 0, 29]


# ---- reading ahead ----


def test_items_are_taken_ahead_in_order_and_no_further() -> None:
    taken: list[int] = []
    third = threading.Event()

    def items() -> Iterator[int]:
        for number in range(10):
            taken.append(number)
            if number == 2:
                third.set()
            yield number

    source = prefetched(items(), ahead=2)
    assert next(source) == 0
    assert third.wait(10), "two more are taken while the first is used"
    assert taken == [0, 1, 2]
    assert list(source) == list(range(1, 10))


def test_an_error_comes_where_its_item_would() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("bad")

    source = prefetched(items(), ahead=3)
    assert next(source) == 1
    with pytest.raises(KeyError, match="bad"):
        next(source)


def test_whoever_stops_early_leaves_no_thread() -> None:
    before = threading.active_count()
    source = map_alike(lambda batch: batch, iter(range(1000)), lambda item: 0, lambda item: 1, 3)
    assert next(source) == 0
    source.close()
    assert threading.active_count() == before


def test_threads_use_the_gpu_of_the_thread_that_starts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = threading.local()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: getattr(threads, "gpu", 0))
    monkeypatch.setattr(torch.cuda, "set_device", partial(setattr, threads, "gpu"))

    def used() -> list[tuple[int, int]]:
        items = (torch.cuda.current_device() for _ in range(5))
        found = map_alike(lambda batch: [(at, torch.cuda.current_device()) for at in batch], items, str, lambda _: 1, 2)
        return list(found)

    assert used() == [(0, 0)] * 5
    torch.cuda.set_device(1)
    assert used() == [(1, 1)] * 5
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: pytest.fail("a context for a process that uses no GPU"))
    assert list(prefetched(iter("ab"))) == ["a", "b"]


def test_batches_are_alike_bounded_and_in_order() -> None:
    batches: list[list[int]] = []

    def doubled(batch: list[int]) -> list[int]:
        batches.append(batch)
        return [2 * item for item in batch]

    items = [1, 2, 3, 4, 5, 6, 7, 8, 100, 9]
    assert list(map_alike(doubled, items, lambda item: item % 2, lambda item: item, 10)) == [2 * item for item in items]
    assert all(len({item % 2 for item in batch}) == 1 for batch in batches)
    assert all(sum(batch) <= 10 or len(batch) == 1 for batch in batches)
    assert [1, 3, 5] in batches and [2, 4] in batches and [100] in batches


def test_batches_do_not_depend_on_where_a_share_begins() -> None:
    ids = [f"photo{number}" for number in range(200)]
    sizes = {name: number % 3 + 1 for number, name in enumerate(ids)}

    def batches(names: Sequence[str]) -> Iterator[str]:
        return map_alike(lambda batch: ["+".join(batch)] * len(batch), names, sizes.get, lambda name: sizes[name], 20)

    whole = dict(zip(ids, batches(ids), strict=True))
    assert len(set(whole.values())) > 10
    for parts in (1, 2, 3, 7, 300):
        shares = [Shard(part, parts).of(ids) for part in range(1, parts + 1)]
        assert dict(found for share in shares for found in in_whole_windows(batches, ids, share)) == whole
