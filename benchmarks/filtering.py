"""Dense CRF, mining and dense energy against pydensecrf and against the exact sum.

    python -m benchmarks.filtering --threads 2 --out results/benchmarks/filtering_2.json [--photos DIR] [--busy 2]

Photos are those of `--photos` (any JPEG files), or made ones of the demo, which have fewer colours than real ones.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.harness import busy_machine, compare, metadata, write
from rrm.crf import DenseCRF
from rrm.datasets.demo import generate_demo
from rrm.gaussian import GaussianFilter, position_colour_features
from rrm.losses import DenseEnergyLoss
from rrm.parallel import prepare_process
from rrm.regions import RegionRule

Photo = npt.NDArray[np.uint8]
Scores = npt.NDArray[np.float32]
PROCESSES = 2  # of the reference of the energy loss


def photos(folder: Path | None, count: int, width: int, height: int) -> list[Photo]:
    """RGB photos of a size, from a folder or made."""
    with tempfile.TemporaryDirectory() as made:
        if folder is None:
            generate_demo(made, size=512, train=6, val=6, test=6)
            folder = Path(made) / "JPEGImages"
        paths = sorted(folder.glob("*.jpg"))[:count]
        if len(paths) < count:
            raise SystemExit(
                f"benchmarks: expected {count} JPEG files in {folder}, got {len(paths)}: name another folder"
            )
        return [np.asarray(Image.open(path).convert("RGB").resize((width, height))).copy() for path in paths]


def probabilities(classes: int, height: int, width: int, seed: int) -> Scores:
    """Probabilities in blobs, as networks give them."""
    coarse = torch.randn(1, classes, 8, 8, generator=torch.Generator().manual_seed(seed)) * 3
    blobs: Scores = F.interpolate(coarse, size=(height, width), mode="bilinear")[0].softmax(0).numpy()
    return blobs


def crf_case(
    folder: Path | None,
    width: int,
    height: int,
    classes: int,
    preset: str,
    *,
    repeats: int,
    device: str,
    batch: int = 1,
) -> dict[str, Any]:
    """One CRF after another in pydensecrf, all at once in ours."""
    images = photos(folder, batch, width, height)
    scores = [probabilities(classes, height, width, seed) for seed in range(batch)]
    ours, theirs = DenseCRF.preset(preset), DenseCRF.preset(preset, backend="pydensecrf")
    at = [torch.from_numpy(each).to(device) for each in images]
    tensors = [torch.from_numpy(each).to(device) for each in scores]
    sides: dict[str, Callable[[], Any]] = {
        "pydensecrf": lambda: [theirs(image, each) for image, each in zip(images, scores, strict=True)],
        f"rrm ({device})": lambda: ours(at, tensors),
    }
    difference = max(
        float((q.cpu() - torch.from_numpy(theirs(image, each))).abs().max())
        for q, image, each in zip(ours(at, tensors), images, scores, strict=True)
    )
    name = f"CRF {width}x{height}, {classes} labels, {preset}" + (f", {batch} photos" if batch > 1 else "")
    return compare(name, sides, repeats=repeats, largest_difference=difference, iterations=ours.iterations)


def mining_case(folder: Path | None, repeats: int, device: str) -> dict[str, Any]:
    """Labels of a training batch: four crops with one to three classes, two exponents, so eight CRFs.

    The reference is only the eight CRFs; ours includes the rest of mining.
    """
    images = photos(folder, 4, 321, 321)
    counts = (1, 2, 3, 2)
    cams = torch.zeros(4, 20, 321, 321)
    present = torch.zeros(4, 20)
    for item, count in enumerate(counts):
        blobs = torch.from_numpy(probabilities(count + 1, 321, 321, item))[1:]
        cams[item, :count], present[item, :count] = blobs / blobs.amax((1, 2), keepdim=True), 1
    theirs, rule = DenseCRF.preset("psa", backend="pydensecrf"), RegionRule("reference")
    jobs = [
        (images[item], np.concatenate([background[None], cams[item, :count].numpy()]))
        for item, count in enumerate(counts)
        for background in ((1 - cams[item].amax(0).numpy()) ** exponent for exponent in (4, 32))
    ]
    batch = (torch.from_numpy(np.stack(images)).to(device), cams.to(device), present.to(device))
    sides: dict[str, Callable[[], Any]] = {
        "eight pydensecrf calls": lambda: [theirs(image, scores) for image, scores in jobs],
        f"rrm ({device})": lambda: rule.mine(*batch),
    }
    return compare("labels of 4 crops of 321x321, 2 to 4 labels, both exponents", sides, repeats=repeats)


def _filter_with_pydensecrf(image: Photo, scores: Scores) -> float:
    """One unnormalised bilateral filtering by pydensecrf, through a step of its mean field."""
    import pydensecrf.densecrf as package

    classes, height, width = scores.shape
    model = package.DenseCRF2D(width, height, classes)
    model.setUnaryEnergy(np.ascontiguousarray(-np.log(scores.clip(1e-5)).reshape(classes, -1), np.float32))
    model.addPairwiseBilateral(
        sxy=50, srgb=15, rgbim=image, compat=1, kernel=package.CONST_KERNEL, normalization=package.NO_NORMALIZATION
    )
    q, first, second = model.startInference()
    model.stepInference(q, first, second)
    return float(np.asarray(q)[0, 0])


_held: list[tuple[Photo, Scores]] = []


def _hold(items: list[tuple[Photo, Scores]]) -> None:
    prepare_process(1)
    _held.extend(items)


def _filter_held(item: int) -> float:
    return _filter_with_pydensecrf(*_held[item])


def energy_case(folder: Path | None, repeats: int, device: str) -> dict[str, Any]:
    """Energy loss, forward and backward, against a single filtering per image by pydensecrf in two processes."""
    images = photos(folder, 4, 160, 160)
    scores = [probabilities(21, 160, 160, seed) for seed in range(4)]
    tensor = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().to(device)
    leaf = torch.from_numpy(np.stack(scores)).to(device).requires_grad_()
    valid, labels = torch.ones(4, 160, 160, dtype=torch.bool), torch.full((4, 160, 160), 255)
    labels[:, 60:100, 60:100] = 1
    valid, labels = valid.to(device), labels.to(device)
    losses = {
        gradient: DenseEnergyLoss(1.0, sigma_xy=50, scale=1, gradient=gradient) for gradient in ("reference", "exact")
    }

    def ours(gradient: str) -> None:
        leaf.grad = None
        losses[gradient](tensor, leaf, valid, labels).backward()

    items = list(zip(images, scores, strict=True))
    with ProcessPoolExecutor(PROCESSES, get_context("spawn"), initializer=_hold, initargs=(items,)) as pool:
        sides: dict[str, Callable[[], Any]] = {
            f"pydensecrf, filter only, {PROCESSES} processes": lambda: list(pool.map(_filter_held, range(4))),
            f"rrm, reference gradient ({device})": partial(ours, "reference"),
            f"rrm, exact gradient ({device})": partial(ours, "exact"),
        }
        return compare("energy loss, forward and backward, 4 x 21 x 160x160", sides, repeats=repeats)


def exact_case(folder: Path | None, repeats: int, device: str) -> dict[str, Any]:
    """The lattice against the sum over all pairs of pixels."""
    images = torch.from_numpy(np.stack(photos(folder, 1, 96, 96))).permute(0, 3, 1, 2).float().to(device)
    features, values = position_colour_features(images, 30.0, 15.0), torch.rand(1, 96 * 96, 21, device=device)
    sides: dict[str, Callable[[], Any]] = {
        "exact": lambda: GaussianFilter(features, "exact").apply(values),
        f"lattice ({device})": lambda: GaussianFilter(features, "lattice").apply(values),
    }
    return compare("one filtering, 96x96, 21 channels", sides, repeats=repeats)


def run(folder: Path | None, repeats: int, device: str, only: str) -> list[dict[str, Any]]:
    """All cases, or those whose name holds `only`."""
    cases: dict[str, Callable[..., dict[str, Any]]] = {
        "crf-3": partial(crf_case, folder, 321, 321, 3, "psa"),
        "crf-21": partial(crf_case, folder, 500, 375, 21, "rrm-inference"),
        "crf-small": partial(crf_case, folder, 320, 240, 21, "rrm-inference"),
        "mining": partial(mining_case, folder),
        "energy": partial(energy_case, folder),
        "exact": partial(exact_case, folder),
    }
    if device != "cpu":
        cases["crf-batch"] = partial(crf_case, folder, 321, 321, 3, "psa", batch=16)
    return [case(repeats=repeats, device=device) for name, case in cases.items() if only in name]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="dense CRF, mining and dense energy against pydensecrf")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--busy", type=int, default=0, help="processes that keep processors busy meanwhile")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    prepare_process(options.threads)
    with busy_machine(options.busy):
        results = run(options.photos, options.repeats, options.device, options.only)
    source = "given photos" if options.photos else "made photos"
    for result in results:
        result["facts"]["photos"] = source
    write(options.out, results, metadata(options.threads, options.busy))


if __name__ == "__main__":
    main()
