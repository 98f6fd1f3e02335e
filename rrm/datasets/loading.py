"""Training batches that are a pure function of (seed, step), and whole photos for evaluation.

Images come from an endless stream: one random permutation of the data set after another, each a function of
(seed, epoch). Batch k takes the elements k * batch_size to (k + 1) * batch_size - 1 of the stream, so no
image is ever left out, and a data set smaller than the batch works. The augmentation of each element is
seeded by (seed, step, position in the batch). So a run that is resumed at step k sees the batches that an
uninterrupted run would have seen, with any number of workers.

This stage feeds the training of both steps of the method; it implements no equation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from rrm.datasets.augmentation import TrainTransform
from rrm.errors import RRMError, RRMErrors
from rrm.parallel import end_workers, end_workers_at_exit, prepare_worker
from rrm.store import Store

_ORDER, _SCALE, _ITEM = 0, 1, 2  # separate the random streams that come from one seed


def split_ids(photos: Store, split: str) -> tuple[str, ...]:
    """Image ids of a split of a photo store, in the order of its list.

    Raises:
        RRMError: the store has no such split.
    """
    splits: dict[str, list[str]] = photos.attrs["splits"]
    if split not in splits:
        raise RRMError(f"{photos.path}: expected a split of {', '.join(splits)}, got {split!r}: pack that split too")
    return tuple(splits[split])


class StepBatches(Dataset[dict[str, Any]]):
    """The endless stream of augmented training items by place: item p belongs to step p // batch_size.

    Args:
        photos: store of kind "photos".
        masks: store with an array `mask` (kind "masks" or "pseudo_masks") for each image of the split, or
            None.
        split: split of `photos`.
        transform: augmentation.
        batch_size: images in a batch.
        seed: any non-negative integer.

    Raises:
        RRMError: batch size or seed out of range, different classes in the two stores.
        RRMErrors: images of the split without labels or without a mask.

    Items are dicts: `image` (crop, crop, 3) uint8, `valid` (crop, crop) bool, `present` (C,) uint8, `id` str,
    with masks `labels` (crop, crop) uint8, 255 = ignore.

    Example:
        >>> import tempfile
        >>> from rrm.store import StoreWriter
        >>> path = tempfile.mkdtemp() + "/photos.h5"
        >>> attrs = {"splits": {"train": ["a", "b"]}, "classes": ["cat"]}
        >>> record = {"image": np.zeros((9, 9, 3), np.uint8), "present": np.ones(1, np.uint8)}
        >>> with StoreWriter(path, "photos", {}, "", attrs) as writer:
        ...     for name in ("a", "b"):
        ...         writer.add(name, record)
        >>> photos = Store(path, "photos")
        >>> batches = StepBatches(photos, None, "train", TrainTransform(8), batch_size=4, seed=0)
        >>> sorted(batches[p]["id"] for p in batches.places(step=7))
        ['a', 'a', 'b', 'b']
    """

    def __init__(
        self,
        photos: Store,
        masks: Store | None,
        split: str,
        transform: TrainTransform,
        batch_size: int,
        seed: int,
    ) -> None:
        if batch_size < 1 or seed < 0:
            raise RRMError(f"expected batch_size >= 1 and seed >= 0, got {batch_size} and {seed}: correct them")
        self.photos, self.masks, self.transform = photos, masks, transform
        self.ids = split_ids(photos, split)
        self.batch_size, self.seed = batch_size, seed
        self._order: tuple[int, NDArray[np.int64]] | None = None
        _check_stores(photos, masks, self.ids)

    def places(self, step: int, rank: int = 0, world_size: int = 1) -> range:
        """Places in the stream that make batch `step`, or the share of one process of several."""
        return range(step * self.batch_size + rank, (step + 1) * self.batch_size, world_size)

    def __getitem__(self, place: int) -> dict[str, Any]:
        step, position = divmod(place, self.batch_size)
        name = self.ids[self._index(place)]
        scale = None
        if self.transform.scale_per == "batch":
            scale = self.transform.draw_scale(np.random.default_rng([self.seed, _SCALE, step]))
        generator = np.random.default_rng([self.seed, _ITEM, step, position])
        mask = None if self.masks is None else self.masks.read(name, "mask")
        item: dict[str, Any] = self.transform(self.photos.read(name, "image"), generator, mask, scale)
        return {**item, "present": self.photos.read(name, "present"), "id": name, "step": step}

    def _index(self, place: int) -> int:
        """Index of the image at a place of the stream."""
        epoch, offset = divmod(place, len(self.ids))
        if self._order is None or self._order[0] != epoch:
            generator = np.random.default_rng([self.seed, _ORDER, epoch])
            self._order = (epoch, generator.permutation(len(self.ids)))
        return int(self._order[1][offset])


def _check_stores(photos: Store, masks: Store | None, ids: Sequence[str]) -> None:
    faults = [
        f"{photos.path}: image {name!r}: expected image-level labels, got none: label it and pack again"
        for name in ids
        if "present" not in photos.names(name)
    ]
    if masks is not None:
        faults += [
            f"{masks.path}: image {name!r}: expected a mask, got none: write the masks of this split again"
            for name in ids
            if name not in masks
        ]
        expected, got = photos.attrs.get("classes"), masks.attrs.get("classes")
        if got is not None and got != expected:
            faults.append(f"{masks.path}: classes: expected {expected}, got {got}: use stores of one data set")
    if faults:
        raise RRMErrors("training data", faults)


class _Steps(Sampler[list[int]]):
    """The places of each batch from `start` to `stop` - 1."""

    def __init__(self, batches: StepBatches, start: int, stop: int, rank: int, world_size: int) -> None:
        self._batches, self._steps = batches, range(start, stop)
        self._rank, self._world_size = rank, world_size

    def __iter__(self) -> Iterator[list[int]]:
        return (list(self._batches.places(step, self._rank, self._world_size)) for step in self._steps)

    def __len__(self) -> int:
        return len(self._steps)


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack items of `StepBatches`; arrays stay uint8 or bool, which is a quarter of the bytes to send."""
    arrays = [name for name, value in items[0].items() if isinstance(value, np.ndarray)]
    batch: dict[str, Any] = {name: torch.from_numpy(np.stack([item[name] for item in items])) for name in arrays}
    return {**batch, "ids": [item["id"] for item in items], "step": items[0]["step"]}


class TrainLoader:
    """The batches of a run, as `train_loader` describes them; each `iter()` starts at the first of its steps.

    Args:
        loader: yields what `collate` makes.
        device: where the tensors of a batch are put.
    """

    def __init__(self, loader: DataLoader[dict[str, Any]], device: torch.device) -> None:
        self.loader, self.device = loader, device

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self._finish, self.loader)

    def _finish(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Move a batch to the device and give its tensors the types that training wants."""
        tensors = {
            name: value.to(self.device, non_blocking=True) for name, value in batch.items() if isinstance(value, Tensor)
        }
        images = tensors.pop("image").permute(0, 3, 1, 2)
        finished = {
            "images": images.to(torch.float32, memory_format=torch.contiguous_format),
            "valid": tensors["valid"],
            "present": tensors["present"].float(),
            "ids": batch["ids"],
            "step": batch["step"],
        }
        if "labels" in tensors:
            finished["labels"] = tensors["labels"].long()
        return finished


def train_loader(
    photos: Store,
    masks: Store | None,
    split: str,
    transform: TrainTransform,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    steps: int,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
) -> TrainLoader:
    """An iterable of the batches `start_step` to `steps` - 1 of a run.

    Args:
        photos, masks, split, transform, batch_size, seed: see `StepBatches`.
        start_step: first step to yield; 0 for a new run.
        steps: number of steps of the whole run, so `steps - start_step` batches come.
        workers: processes that prepare batches; 0 prepares them in this one. The batches do not depend on it.
        rank, world_size: this process takes images rank, rank + world_size, ... of each batch of
            `batch_size`.
        device: where the tensors of a batch are put; images travel as uint8.

    Yields:
        dict: `images` (N, 3, crop, crop) float32 in 0..255, RGB; `valid` (N, crop, crop) bool, False on
            padding; `present`
        (N, C) float32 of 0 and 1; `ids` list of N str; `step` int; with masks `labels` (N, crop, crop) int64,
        255 = ignore or padding. N = batch_size / world_size.

    Raises:
        RRMError: values out of range, or what `StepBatches` raises.
    """
    if not 0 <= start_step <= steps or workers < 0:
        raise RRMError(
            f"expected 0 <= start_step <= steps and workers >= 0, "
            f"got start_step {start_step}, steps {steps}, "
            f"workers {workers}: correct them"
        )
    if not 0 <= rank < world_size or batch_size % world_size:
        raise RRMError(
            f"batch_size: expected a multiple of the {world_size} processes (this one: {rank}), "
            f"got {batch_size}: change it"
        )
    batches = StepBatches(photos, masks, split, transform, batch_size, seed)
    device = torch.device(device)
    if workers:
        end_workers_at_exit()  # an error may hold an iterator, and its workers
    loader = DataLoader(
        batches,
        batch_sampler=_Steps(batches, start_step, steps, rank, world_size),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        worker_init_fn=prepare_worker,
    )
    return TrainLoader(loader, device)


@contextmanager
def naming_lost_workers() -> Iterator[None]:
    """Say in one line that a process that prepares batches died, and end the others.

    torch notices it anywhere in the block, not only where a batch is taken. One that died while it handed a batch over
    is noticed by the connection's end.

    Raises:
        RRMError: a worker died, or met a fault, whose message torch puts behind a traceback.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
            raise
        end_workers()
        raise RRMError(
            "workers: expected all processes that prepare batches to live, one died (killed, or out of memory): the "
            "same command goes on from the last checkpoint; with fewer runtime.workers if memory was short"
        ) from None
    except RRMError as error:
        _, trace, message = str(error).rpartition("rrm.errors.RRMError: ")
        if not trace:
            raise
        raise RRMError(message.strip()) from None


class EvalItem(NamedTuple):
    """A photo: `image` (H, W, 3) uint8 as stored, `present` (C,) uint8 or None, `size` original (H, W)."""

    id: str
    image: NDArray[np.uint8]
    present: NDArray[np.uint8] | None
    size: tuple[int, int]


def eval_items(photos: Store, split: str) -> Iterator[EvalItem]:
    """Whole photos of a split in the order of its list.

    Args:
        photos: store of kind "photos".
        split: a split of it.

    Yields:
        `EvalItem`. A prediction for `image` has to be resized to `size` before it meets a mask.
    """
    for name in split_ids(photos, split):
        arrays = photos[name]
        height, width = (int(side) for side in arrays["size"])
        yield EvalItem(name, arrays["image"], arrays.get("present"), (height, width))
