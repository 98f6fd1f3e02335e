"""Batches are a pure function of (seed, step): resume, workers, ranks; and the content of a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rrm.datasets import (
    StepBatches,
    TrainTransform,
    VocLayout,
    eval_items,
    loading,
    open_masks,
    pack_masks,
    pack_photos,
    split_ids,
    train_loader,
)
from rrm.errors import RRMError
from rrm.store import Store, StoreWriter

Batch = dict[str, Any]
TRANSFORM = TrainTransform(24)


@pytest.fixture
def stores(tree, tmp_path: Path) -> tuple[Store, Store]:
    pack_photos(tree.layout(), ["train", "val"], tmp_path / "p.h5", config={}, code="")
    pack_masks(tree.layout(), "train", tmp_path / "m.h5", config={}, code="")
    return Store(tmp_path / "p.h5", "photos"), open_masks(tmp_path / "m.h5", "train", "full")


def load(stores: tuple[Store, Store | None], **options: Any) -> list[Batch]:
    settings = {"transform": TRANSFORM, "batch_size": 2, "seed": 3, "start_step": 0, "steps": 9}
    return list(train_loader(*stores, "train", **{**settings, **options}))


def assert_same(first: Iterable[Batch], second: Iterable[Batch]) -> None:
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys() and a["ids"] == b["ids"] and a["step"] == b["step"]
        for name in a:
            if isinstance(a[name], torch.Tensor):
                assert torch.equal(a[name], b[name]), name


# ---- content ----


def test_batch_has_the_promised_shapes_and_types(stores) -> None:
    batch = load(stores, batch_size=3)[4]
    kinds = {name: (tuple(v.shape), v.dtype) for name, v in batch.items() if isinstance(v, torch.Tensor)}
    assert kinds == {
        "images": ((3, 3, 24, 24), torch.float32),
        "valid": ((3, 24, 24), torch.bool),
        "present": ((3, 3), torch.float32),
        "labels": ((3, 24, 24), torch.int64),
    }
    assert batch["step"] == 4 and len(batch["ids"]) == 3
    assert batch["images"].is_contiguous() and 0 <= batch["images"].min() < 50 < 200 < batch["images"].max() <= 255
    assert (batch["labels"][~batch["valid"]] == 255).all()


def test_labels_belong_to_their_images(stores) -> None:
    photos, masks = stores
    for batch in load(stores, transform=TrainTransform(40, scale=(1, 1), flip=False)):
        for number, name in enumerate(batch["ids"]):
            valid = batch["valid"][number]
            image = batch["images"][number][:, valid].reshape(3, 20, 30).permute(1, 2, 0)
            np.testing.assert_array_equal(image.numpy(), photos.read(name, "image"))
            np.testing.assert_array_equal(batch["labels"][number][valid].reshape(20, 30), masks.read(name, "mask"))
            np.testing.assert_array_equal(batch["present"][number], photos.read(name, "present"))


def test_without_masks_there_are_no_labels(stores) -> None:
    with_masks, without = load(stores), load((stores[0], None))
    assert all("labels" not in batch for batch in without)
    for batch in with_masks:
        del batch["labels"]
    assert_same(with_masks, without)  # masks change nothing else


# ---- order ----


@pytest.mark.parametrize("batch_size", [1, 2, 5, 7, 12])
def test_every_image_comes_once_an_epoch(stores, batch_size: int) -> None:
    names = [name for batch in load(stores, batch_size=batch_size, steps=20) for name in batch["ids"]]
    assert all(len(batch["ids"]) == batch_size for batch in load(stores, batch_size=batch_size, steps=3))
    epochs = [tuple(names[at : at + 5]) for at in range(0, len(names) - 4, 5)]
    assert all(sorted(epoch) == list("abcde") for epoch in epochs)
    assert len(set(epochs)) > 1 or len(epochs) < 4


def test_seeds_differ(stores) -> None:
    orders = {tuple(n for b in load(stores, seed=seed) for n in b["ids"]) for seed in range(5)}
    assert len(orders) == 5


def test_augmentation_differs_between_visits(stores) -> None:
    views = [
        batch["images"][number]
        for batch in load(stores, batch_size=5, steps=6)
        for number, name in enumerate(batch["ids"])
        if name == "a"
    ]
    assert len(views) == 6
    assert not any(torch.equal(a, b) for k, a in enumerate(views) for b in views[:k])


def test_scale_is_drawn_once_a_batch_or_once_an_image(stores) -> None:
    def sizes(scale_per: Any) -> list[set[int]]:
        transform = TrainTransform(64, scale=(0.5, 2.0), scale_per=scale_per)
        batches = load(stores, transform=transform, batch_size=4)
        return [{int(valid.any(0).sum()) for valid in batch["valid"]} for batch in batches]

    per_batch, per_image = sizes("batch"), sizes("image")
    assert all(len(widths) == 1 for widths in per_batch) and len(set.union(*per_batch)) > 5
    assert all(len(widths) > 1 for widths in per_image)


# ---- resume, workers, ranks ----


@pytest.mark.parametrize("start", [1, 4, 8, 9])
def test_resume_gives_the_batches_of_an_uninterrupted_run(stores, start: int) -> None:
    whole, rest = load(stores), load(stores, start_step=start)
    assert len(rest) == 9 - start
    assert_same(whole[start:], rest)


def test_a_long_run_has_the_same_beginning(stores) -> None:
    assert_same(load(stores, steps=4), load(stores, steps=400)[:4])


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(stores, workers: int) -> None:
    alone = load(stores)  # also opens the handles in this process, before the fork
    assert_same(alone, load(stores, workers=workers))
    assert_same(alone[5:], load(stores, workers=workers, start_step=5))


def test_spawned_workers_change_nothing(stores) -> None:
    photos, masks = stores
    loader = train_loader(photos, masks, "train", TRANSFORM, batch_size=2, seed=3, start_step=0, steps=4, workers=2)
    loader.loader.multiprocessing_context = "spawn"
    assert_same(load(stores, steps=4), loader)


def test_a_loader_can_be_read_twice_and_knows_its_length(stores) -> None:
    photos, masks = stores
    loader = train_loader(photos, masks, "train", TRANSFORM, batch_size=2, seed=3, start_step=2, steps=6)
    assert len(loader) == 4
    assert_same(list(loader), list(loader))


def test_ranks_share_the_batch(stores) -> None:
    whole = load(stores, batch_size=4)
    parts = [load(stores, batch_size=4, rank=rank, world_size=2) for rank in range(2)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert first["ids"] == batch["ids"][::2] and second["ids"] == batch["ids"][1::2]
        assert torch.equal(first["images"], batch["images"][::2])
        assert torch.equal(second["labels"], batch["labels"][1::2])


# ---- refusing ----


@pytest.mark.parametrize(
    "options",
    [
        {"start_step": 10},
        {"start_step": -1},
        {"workers": -1},
        {"batch_size": 0},
        {"seed": -1},
        {"batch_size": 3, "world_size": 2},
        {"rank": 2, "world_size": 2},
    ],
)
def test_bad_settings_are_refused(stores, options: dict[str, Any]) -> None:
    with pytest.raises(RRMError, match=r"expected .* got .*: "):
        load(stores, **options)


def test_unknown_split_is_refused(stores) -> None:
    with pytest.raises(RRMError, match="expected a split of train, val, got 'test'"):
        split_ids(stores[0], "test")


def test_missing_masks_and_labels_are_all_named(tree, stores, tmp_path: Path, faults_of: Callable[..., Any]) -> None:
    with StoreWriter(tmp_path / "pseudo.h5", "pseudo_masks", {}, "", {"classes": ["horse"]}) as writer:
        writer.add("a", {"mask": np.zeros((20, 30), np.uint8)})
    masks = Store(tmp_path / "pseudo.h5", ("masks", "pseudo_masks"))
    faults = faults_of(lambda: StepBatches(stores[0], masks, "train", TRANSFORM, 2, 0))
    assert len(faults) == 5 and sum("expected a mask" in fault for fault in faults) == 4
    assert "['horse']" in faults[-1]
    (tree.root / "Annotations/v1.xml").unlink()
    pack_photos(tree.layout(), ["val"], tmp_path / "unlabelled.h5", config={}, code="")
    faults = faults_of(lambda: StepBatches(Store(tmp_path / "unlabelled.h5", "photos"), None, "val", TRANSFORM, 2, 0))
    assert len(faults) == 1 and "'v1'" in faults[0]


def test_damage_in_a_worker_is_reported(stores) -> None:
    photos, masks = stores
    data = bytearray(photos.path.read_bytes())
    at = data.find(photos.read("c", "image").tobytes())
    photos.close()
    data[at + 7] ^= 255
    photos.path.write_bytes(data)
    with pytest.raises(RRMError, match="CRC-32"):
        load((Store(photos.path, "photos"), masks), workers=2)


@pytest.mark.parametrize(
    ("told", "raised"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), RRMError),
        (ConnectionResetError(104, "Connection reset by peer"), RRMError),  # while it handed a batch over
        (EOFError(), RRMError),
        (RuntimeError("another fault"), RuntimeError),
    ],
)
def test_lost_workers_are_named(told: Exception, raised: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "end_workers", lambda: None)  # those of other tests go on
    with pytest.raises(raised, match="another fault|one died .killed, or out of memory"), loading.naming_lost_workers():
        raise told


# ---- evaluation ----


def test_eval_items_come_whole_and_in_order(tree, tmp_path: Path) -> None:
    (tree.root / "Annotations/v1.xml").unlink()
    tree.photo("v2", size=(60, 20))
    pack_photos(tree.layout(), ["train", "val"], tmp_path / "p.h5", long_side=30, config={}, code="")
    items = list(eval_items(Store(tmp_path / "p.h5", "photos"), "val"))
    assert [item.id for item in items] == ["v2", "v1"]
    assert [item.image.shape for item in items] == [(10, 30, 3), (20, 30, 3)]
    assert [item.size for item in items] == [(20, 60), (20, 30)]
    assert items[0].present is not None and items[0].present.tolist() == [0, 1, 0] and items[1].present is None


# ---- real data ----


def test_real_photos(voc_mini: Path, tmp_path: Path) -> None:
    layout = VocLayout(voc_mini)
    names = layout.ids("train")[:8]
    attrs = {"splits": {"train": names}, "classes": list(layout.classes)}
    with StoreWriter(tmp_path / "p.h5", "photos", {}, "", attrs, compression=None) as writer:
        for name in names:
            writer.add(name, {"image": layout.read_photo(name), "present": layout.training_labels(name)})
    with StoreWriter(tmp_path / "m.h5", "pseudo_masks", {}, "") as writer:
        for name in names:
            writer.add(name, {"mask": layout.read_mask(name)})
    stores = Store(tmp_path / "p.h5", "photos"), Store(tmp_path / "m.h5", ("masks", "pseudo_masks"))
    counts: Counter[str] = Counter()
    for batch in load(stores, transform=TrainTransform(256), batch_size=4, steps=4, workers=2):
        counts.update(batch["ids"])
        for labels, present in zip(batch["labels"], batch["present"], strict=True):
            shown = set(labels.unique().tolist()) - {0, 255}
            assert shown <= set((present.nonzero().ravel() + 1).tolist())
        inside = batch["valid"][:, None].expand_as(batch["images"])
        assert 60 < batch["images"][inside].mean() < 180
    assert set(counts.values()) == {2}
