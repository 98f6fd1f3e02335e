"""Peak memory of the dense CRF, ours and pydensecrf's, and of the energy loss.

    python -m benchmarks.memory --threads 2 --out results/benchmarks/memory.json [--photos DIR] [--device cuda]

Each figure is from a fresh process, which first imports, makes the inputs and works on a small image (so that compiled
code and thread pools are there already), gives freed memory back, and then runs once. On the CPU the figure is the
highest resident memory of that run less what was resident before it: results count, inputs do not. On a GPU it is the
highest memory that torch has allocated there, less what it had before. Several processes each; the median and the range
are reported. The first side of each case is what the ratios compare with.

The reference calls pydensecrf as its documentation does, with nothing of ours around it.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import resource
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.filtering import Photo, Scores, photos, probabilities
from benchmarks.harness import memory_summary, metadata, write
from rrm.crf import DenseCRF
from rrm.losses import DenseEnergyLoss

Work = Callable[[], Any]
SMALL = 40  # largest side of what warms up
MIB = 1 << 20
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Case:
    """A size of inputs: images of `width` x `height`, `classes` probabilities a pixel, `count` of them."""

    name: str
    width: int
    height: int
    classes: int
    count: int = 1


def crf_by_pydensecrf(images: list[Photo], scores: list[Scores], preset: str, device: str) -> Work:
    """The CRF by the C++ package alone."""
    import pydensecrf.densecrf as package

    del device
    crf = DenseCRF.preset(preset)

    def solve(image: Photo, each: Scores) -> Any:
        classes, height, width = each.shape
        model = package.DenseCRF2D(width, height, classes)
        model.setUnaryEnergy(-np.log(each.clip(1e-5)).reshape(classes, -1))
        model.addPairwiseGaussian(sxy=crf.gaussian_sigma, compat=crf.gaussian_weight)
        sigmas = {"sxy": crf.bilateral_sigma_xy, "srgb": crf.bilateral_sigma_rgb}
        model.addPairwiseBilateral(**sigmas, rgbim=image, compat=crf.bilateral_weight)
        return np.array(model.inference(crf.iterations))

    return lambda: [solve(image, each) for image, each in zip(images, scores, strict=True)]


def crf_by_rrm(images: list[Photo], scores: list[Scores], preset: str, device: str) -> Work:
    """The CRF by ours, on a device."""
    crf = DenseCRF.preset(preset)
    if device == "cpu":
        return partial(crf, images, scores)
    return partial(crf, [_on(each, device) for each in images], [_on(each, device) for each in scores])


def energy_by_rrm(images: list[Photo], scores: list[Scores], options: dict[str, Any], device: str) -> Work:
    """Energy of a batch, forward and backward, nothing labelled."""
    loss = DenseEnergyLoss(1.0, **options)
    leaf = _on(np.stack(scores), device).requires_grad_()
    batch = _on(np.stack(images), device).permute(0, 3, 1, 2)
    return lambda: loss(batch, leaf).backward()


def _on(array: np.ndarray[Any, Any], device: str) -> torch.Tensor:
    return torch.from_numpy(array).to(device)


def resident() -> float:
    """Resident memory of this process, MiB."""
    return _status("VmRSS")


def highest_resident() -> float:
    """The most that was resident since `forget_highest`, or since the start where the system cannot forget, MiB."""
    if STATUS.exists():
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forget_highest() -> None:
    """Begin again; without it a process inherits the peak of the one that started it."""
    if RESET.exists():
        RESET.write_text("5")


def _status(field: str) -> float:
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[field].split()[0]) / 1024


def give_back() -> None:
    """Give freed memory to the system, so that a run cannot take it unseen."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def peak_of(work: Work, device: str) -> float:
    """The most memory that a run takes on top of what is held before it, MiB."""
    give_back()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = work()
        torch.cuda.synchronize()
        peak = (torch.cuda.max_memory_allocated() - before) / MIB
    else:
        forget_highest()
        start = resident()
        kept = work()
        peak = highest_resident() - start
    del kept
    return peak


def measure(folder: Path | None, case: Case, side: Callable[..., Work], threads: int, device: str) -> float:
    """Peak of one side in this process, which must be a fresh one."""
    torch.set_num_threads(threads)
    images = photos(folder, case.count, case.width, case.height)
    scores = [probabilities(case.classes, case.height, case.width, item) for item in range(case.count)]
    small = [np.ascontiguousarray(each[:SMALL, :SMALL]) for each in images]
    for _ in range(2):
        side(small, [np.ascontiguousarray(each[:, :SMALL, :SMALL]) for each in scores], device=device)()
    return peak_of(side(images, scores, device=device), device)


def in_fresh_processes(repeats: int, *arguments: Any) -> list[float]:
    """Figures of `measure`, one process after the other."""
    peaks = []
    for _ in range(repeats):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            peaks.append(pool.submit(measure, *arguments).result())
    return peaks


def cases(device: str) -> dict[str, tuple[Case, dict[str, tuple[Callable[..., Work], str]]]]:
    """Inputs, and what works on them, each with the device whose memory counts."""
    crfs = {
        f"crf-{classes}": (
            Case(f"CRF {width}x{height}, {classes} labels, {preset}", width, height, classes),
            {
                "pydensecrf": (partial(crf_by_pydensecrf, preset=preset), "cpu"),
                f"rrm ({device})": (partial(crf_by_rrm, preset=preset), device),
            },
        )
        for width, height, classes, preset in ((321, 321, 3, "psa"), (500, 375, 21, "rrm-inference"))
    }
    kinds: dict[str, dict[str, Any]] = {
        "reference gradient": {},
        "exact gradient": {"gradient": "exact"},
        "exact kernel on a grid of 32": {"form": "paper", "gradient": "exact", "grid": 32, "include_self": True},
    }
    energies = {
        f"rrm, {name} ({device})": (partial(energy_by_rrm, options=options), device) for name, options in kinds.items()
    }
    energy = Case("energy loss, forward and backward, 4 x 21 x 321x321", 321, 321, 21, count=4)
    return {**crfs, "energy": (energy, energies)}


def run(folder: Path | None, repeats: int, threads: int, device: str, only: str) -> list[dict[str, Any]]:
    """All cases, or those whose name holds `only`."""
    results = []
    for name, (case, sides) in cases(device).items():
        if only not in name:
            continue
        peaks = {
            side: in_fresh_processes(repeats, folder, case, work, threads, where)
            for side, (work, where) in sides.items()
        }
        reference = statistics.median(next(iter(peaks.values())))
        summaries = {side: memory_summary(each, reference) for side, each in peaks.items()}
        results.append({"case": case.name, "facts": {}, "sides": summaries})
    return results


def main(given: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="peak memory of CRF and energy")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes a figure")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", default="", help="cases whose name holds this: crf-3, crf-21, energy")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args(given)
    results = run(asked.photos, asked.repeats, asked.threads, asked.device, asked.only)
    for result in results:
        result["facts"]["photos"] = "given photos" if asked.photos else "made photos"
    write(asked.out, results, metadata(asked.threads, 0))


if __name__ == "__main__":
    main()
