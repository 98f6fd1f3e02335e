"""Training crops a second: from the packed store, and from JPEG files with torchvision's transforms.

    python -m benchmarks.input_pipeline --workers 2 --out results/benchmarks/input_pipeline.json [--photos DIR]

Photos of 500x375 pixels, scaled by 0.7 to 1.3, mirrored at random, crops of 321 pixels, batches of 4, as one-step
training takes them. Both sides are DataLoaders with as many workers; each has its own, kept over the whole run, and a
round takes the next batches of each in turn. Nothing is done with a batch but to receive it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.filtering import photos
from benchmarks.harness import compare, metadata, write
from rrm.datasets.augmentation import IMAGENET_MEAN, TrainTransform
from rrm.datasets.loading import train_loader
from rrm.store import Store, StoreWriter

SIZE, CROP, SCALE, BATCH = (500, 375), 321, (0.7, 1.3), 4
PHOTOS = 12


class JpegCrops(Dataset[torch.Tensor]):
    """Crops by torchvision from JPEG files, over and over."""

    def __init__(self, files: Sequence[Path], count: int) -> None:
        from torchvision.transforms import v2

        self.files, self.count = files, count
        self.transform = v2.Compose(
            [
                v2.PILToTensor(),
                v2.ScaleJitter(target_size=SIZE[::-1], scale_range=SCALE),
                v2.RandomHorizontalFlip(),
                v2.RandomCrop(CROP, pad_if_needed=True, fill=dict.fromkeys([torch.Tensor], IMAGENET_MEAN)),
            ]
        )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.files[index % len(self.files)]) as image:
            crop: torch.Tensor = self.transform(image.convert("RGB"))
        return crop


def prepare(folder: Path, source: Path | None) -> tuple[list[Path], Store]:
    """The same photos as JPEG files and as a packed store."""
    images = photos(source, PHOTOS, *SIZE)
    names = [f"photo{number}" for number in range(PHOTOS)]
    files = [folder / f"{name}.jpg" for name in names]
    attrs = {"splits": {"train": names}, "classes": ["thing"]}
    with StoreWriter(folder / "photos.h5", "photos", {}, "", attrs, compression=None) as writer:
        for name, file, image in zip(names, files, images, strict=True):
            Image.fromarray(image).save(file, quality=90)
            with Image.open(file) as stored:
                writer.add(name, {"image": np.asarray(stored), "present": np.ones(1, np.uint8)})
    return files, Store(folder / "photos.h5", "photos")


def taking(batches: Iterator[Any], count: int) -> Callable[[], None]:
    """Takes the next `count` batches."""

    def take() -> None:
        for _ in range(count):
            next(batches)

    return take


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="DataLoader workers of each side (default: 2)")
    parser.add_argument("--batches", type=int, default=100, help="batches a round (default: 100)")
    parser.add_argument("--repeats", type=int, default=9, help="rounds that count (default: 9)")
    parser.add_argument("--photos", type=Path, help="folder of JPEG files; default: made photos")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files, store = prepare(Path(folder), options.photos)
        steps = options.batches * (options.repeats + 3)
        transform = TrainTransform(crop=CROP, scale=SCALE, scale_per="image")
        ours = train_loader(
            store,
            None,
            "train",
            transform,
            batch_size=BATCH,
            seed=0,
            start_step=0,
            steps=steps,
            workers=options.workers,
        )
        theirs = DataLoader(JpegCrops(files, steps * BATCH), batch_size=BATCH, num_workers=options.workers)
        sides = {
            "JPEG files, torchvision": taking(iter(theirs), options.batches),
            "packed store": taking(iter(ours), options.batches),
        }
        case = f"{options.batches * BATCH} crops of {CROP}, {options.workers} worker(s)"
        result = compare(case, sides, repeats=options.repeats, batch=BATCH, workers=options.workers)
    for side in result["sides"].values():
        side["per_second"] = {"crops": round(options.batches * BATCH / side["median_ms"] * 1e3, 1)}
    write(options.out, [result], metadata(1, 0))


if __name__ == "__main__":
    main()
