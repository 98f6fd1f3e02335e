"""Photos a second of `rrm segment`, against its network and CRF alone.

    python -m benchmarks.segmenting --threads 2 --out results/benchmarks/segmenting.json [--photos DIR] [--only demo]

The first side is the least that can be done: photos lie in memory as arrays, one after the other goes through the
network (forward pass, resizing, softmax) and the CRF, and nothing is kept. The second does the same in the batches of
`rrm segment`. The third is `rrm segment`: JPEG files are read, masks and overlays written, each round into a new
folder; the weights are loaded already. Sides take turns in one process. Weights are random.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.filtering import photos
from benchmarks.harness import compare, metadata, write
from rrm.crf import DenseCRF
from rrm.inference import segmentation_probabilities
from rrm.networks import build_network
from rrm.parallel import prepare_process
from rrm.photos import Photo, read_photo
from rrm.segmenter import CRF_PRESET, Segmenter, Views
from rrm.segmenting import BATCH_PIXELS, Options, segment

VIEWS = Views().of_network()
MADE = 6  # photos that there are; the others are copies
SIDES = ("network and CRF alone", "network and CRF alone, in batches", "rrm segment")


@dataclass(frozen=True)
class Case:
    """A network, and photos of (width, height); every third stands upright."""

    classes: int
    size: tuple[int, int]
    photos: int
    network: dict[str, Any]


_LIGHT = {"kind": "rrm", "backbone": "mobilenet_v2", "output_stride": 16, "head": "light"}
_DEMO = {
    "kind": "rrm",
    "backbone": "resnet38",
    "width": 0.0625,
    "units": (1, 1, 1, 1),
    "output_stride": 4,
    "dilations": (1, 1, 1, 1),
    "head_dilation": 3,
}
CASES = {
    "voc, MobileNetV2": Case(20, (500, 375), 48, _LIGHT),
    "demo, narrow ResNet-38": Case(5, (64, 48), 720, _DEMO),
}


def write_photos(case: Case, source: Path | None, folder: Path) -> list[Photo]:
    """JPEG files in a folder, and what they hold, in the order of their names."""
    images = photos(source, MADE, *case.size)
    for number in range(case.photos):
        image = np.rot90(images[number % MADE]) if number % 3 == 2 else images[number % MADE]
        Image.fromarray(np.ascontiguousarray(image)).save(folder / f"{number:04d}.jpg", quality=90)
    return [read_photo(path) for path in sorted(folder.iterdir())]


def alone(segmenter: Segmenter, images: Sequence[Photo]) -> None:
    """Network and CRF, photo by photo."""
    crf = DenseCRF.preset(CRF_PRESET)
    for image in images:
        crf(image, segmentation_probabilities(segmenter.network, [image], VIEWS, segmenter.device)[0])


def batches(images: Sequence[Photo], most: int) -> Iterator[list[Photo]]:
    """Consecutive photos with `most` pixels at most."""
    held: list[Photo] = []
    for image in images:
        if held and sum(each[..., 0].size for each in [*held, image]) > most:
            yield held
            held = []
        held.append(image)
    yield held


def alone_in_batches(segmenter: Segmenter, images: Sequence[Photo]) -> None:
    """The same for several photos at a time: those of one size through the network, all through the CRF."""
    crf = DenseCRF.preset(CRF_PRESET)
    for batch in batches(images, BATCH_PIXELS[segmenter.device]):
        found: dict[int, torch.Tensor] = {}
        for shape in dict.fromkeys(image.shape for image in batch):
            places = [place for place, image in enumerate(batch) if image.shape == shape]
            alike = [batch[place] for place in places]
            scores = segmentation_probabilities(segmenter.network, alike, VIEWS, segmenter.device)
            found.update(zip(places, scores, strict=True))
        shown: Any = batch
        crf(shown, [found[place] for place in range(len(batch))])


def measure(name: str, case: Case, source: Path | None, repeats: int, device: str) -> dict[str, Any]:
    """All sides of a case."""
    torch.manual_seed(0)
    network = build_network(num_classes=case.classes, **case.network).to(device).eval()
    segmenter = Segmenter(network, [f"class {number}" for number in range(case.classes)], device)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "photos"
        folder.mkdir()
        images, number = write_photos(case, source, folder), count()

        def command() -> None:
            out = Path(made) / f"out{next(number)}"
            assert segment(segmenter, "", [str(folder)], out, Options(), log_seconds=3600) == (case.photos, 0)

        runs: list[Callable[[], None]] = [
            lambda: alone(segmenter, images),
            lambda: alone_in_batches(segmenter, images),
            command,
        ]
        title = f"{name}, {case.photos} photos of {case.size[0]}x{case.size[1]}"
        result = compare(
            title, dict(zip(SIDES, runs, strict=True)), repeats=repeats, classes=case.classes, device=device
        )
    for side in result["sides"].values():
        side["per_second"] = {"photos": round(case.photos / side["median_ms"] * 1e3, 2)}
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=9, help="rounds that count (default: 9)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--photos", type=Path, help="folder of JPEG files; default: made photos")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    options = parser.parse_args(arguments)
    prepare_process(options.threads)
    chosen = {name: case for name, case in CASES.items() if options.only in name}
    results = [measure(name, case, options.photos, options.repeats, options.device) for name, case in chosen.items()]
    for result in results:
        result["facts"]["photos"] = "given photos" if options.photos else "made photos"
    write(options.out, results, metadata(options.threads, 0))


if __name__ == "__main__":
    main()
