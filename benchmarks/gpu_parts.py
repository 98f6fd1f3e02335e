"""What `benchmarks.gpu` measures: a function for each part, which gives results for `schema.json`.

Networks have random weights and a learning rate that leaves them as they are. Photos are made unless a folder is given,
and have the sizes of VOC's. Training is `rrm.training.fit` on batches from a packed store, as its stages run it, and
evaluation is the stages `predict` and `evaluate` themselves.
"""

from __future__ import annotations

import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.filtering import photos, probabilities
from benchmarks.harness import compare, time_summary
from benchmarks.training_step import CLASSES, STEP, Clock, side_of, watched
from rrm import crf as crf_module
from rrm.crf import DenseCRF
from rrm.datasets.augmentation import TrainTransform
from rrm.datasets.loading import train_loader
from rrm.gaussian import GaussianFilter, position_colour_features
from rrm.losses import DenseEnergyLoss
from rrm.networks import build_network
from rrm.recipes import NETWORK_RECIPES, ONE_STEP_RECIPES
from rrm.regions import RegionRule
from rrm.schedules import build_optimizer
from rrm.store import Store, StoreWriter
from rrm.tasks import OneStepTask, SegmentationTask
from rrm.training import LoopOptions, Run, Task, autocast, fit

Result = dict[str, Any]
STEPS_PLANNED = 20_000  # of both recipes
LEARNING_RATE = 1e-30  # gradients of random weights behind 100 layers of frozen batch norm are huge
VAL_PHOTOS = 1449
GIB = 1 << 30
CAP = 10.4 * GIB  # of a card of 11 GiB, without what the driver takes
NOMINAL_TFLOPS = {"H100": 989.4, "H200": 989.4}  # dense bfloat16 of the SXM cards
PRECISION = "bfloat16"
VIEWS = {"scales": [0.5, 1.0, 1.5, 2.0], "flip": True, "merge": "mean", "precision": PRECISION}
OTHERS = [(332, 500), (334, 500), (500, 333), (281, 500), (500, 500)]
VOC_SIZES = [(375, 500)] * 9 + [(333, 500)] * 4 + [(500, 375)] * 2 + OTHERS  # in the shares that VOC has them in
SMALL_SIZES = [(48, 64), (64, 48)]
BASES, FEW = 12, 4
SPREAD = 9  # of scores: about half of the probabilities of 21 classes are stored as 0, in one view
QUICK_NETWORKS: dict[str, dict[str, Any]] = {
    "one_step": {"width": 1 / 32, "units": [1, 1, 1, 1], "head_dilation": 2, "head_channels": 8},
    "step_two": {"width": 1 / 32, "layers": [1, 1, 1, 1]},
}
# Rows, columns, warps and stages of the exact kernel; the first are those of the package.
BLOCKS = [(64, 64, 4, 3), (64, 64, 4, 2), (64, 64, 4, 4), (64, 32, 4, 3), (128, 64, 8, 3), (128, 32, 4, 3)]


@dataclass(frozen=True)
class Asked:
    """How to measure: on which device, in which sizes, with which photos, for how many seconds at most."""

    device: str
    quick: bool
    photos: Path | None
    workers: int
    seconds: float

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"


def result(case: str, sides: Mapping[str, Any] | None = None, **facts: Any) -> Result:
    return {"case": case, "facts": facts, "sides": dict(sides or {})}


# ---- photos and networks ----


@dataclass(frozen=True)
class Data:
    """Packed photos, for training and as split `val`, and masks for them."""

    photos: Path
    masks: Path


def packed(folder: Path, count: int, asked: Asked) -> Data:
    """So many photos of VOC's sizes, from a few that are shifted; made ones get the noise of a camera."""
    data = Data(folder / "photos.h5", folder / "masks.h5")
    side, sizes = (64, SMALL_SIZES) if asked.quick else (500, VOC_SIZES)
    generator = np.random.default_rng(0)
    bases = [each.astype(np.int16) for each in photos(asked.photos, FEW if asked.quick else BASES, side, side)]
    if asked.photos is None:
        bases = [each + generator.normal(0, 6, each.shape).astype(np.int16) for each in bases]
    names = [f"photo{number}" for number in range(count)]
    attrs = {"splits": {"train": names, "val": names}, "classes": [f"class{number}" for number in range(CLASSES)]}
    with (
        StoreWriter(data.photos, "photos", {}, "", {**attrs, "long_side": None}, compression=None) as images,
        StoreWriter(data.masks, "masks", {}, "", {"split": "val", "classes": attrs["classes"]}) as masks,
    ):
        for number, name in enumerate(names):
            height, width = sizes[number % len(sizes)]
            image = np.roll(bases[number % len(bases)], 37 * number, axis=1)[:height, :width]
            present = np.zeros(CLASSES, np.uint8)
            present[generator.choice(CLASSES, (1, 2, 1, 3)[number % 4], replace=False)] = 1
            size = np.array([height, width], np.int32)
            images.add(name, {"image": image.clip(0, 255).astype(np.uint8), "present": present, "size": size})
            coarse = generator.choice([0, 0, 255, *(np.flatnonzero(present) + 1)], (8, 8)).astype(np.uint8)
            masks.add(name, {"mask": np.kron(coarse, np.ones((64, 64), np.uint8))[:height, :width]})
    return data


@dataclass(frozen=True)
class Trained:
    """What is trained, how, and with masks or without."""

    task: Task
    loop: Mapping[str, Any]
    labelled: bool


def loop_of(recipe: Mapping[str, Any], asked: Asked) -> dict[str, Any]:
    return {**recipe["train"], **({"crop": 33, "batch_size": 2} if asked.quick else {})}


def one_step_training(asked: Asked) -> Trained:
    """One-step RRM by the recipe of the authors' code."""
    recipe = ONE_STEP_RECIPES["reference"]
    torch.manual_seed(0)
    options = recipe["network"]["options"] | (QUICK_NETWORKS["one_step"] if asked.quick else {})
    network = build_network("rrm", num_classes=CLASSES, backbone=recipe["network"]["backbone"], **options)
    rule = RegionRule(**{**recipe["mining"], "crf": DenseCRF(**recipe["mining"]["crf"])})
    task = OneStepTask(network, rule, recipe["cam"], recipe["losses"], recipe["energy"])
    return Trained(task, loop_of(recipe, asked), labelled=False)


def step_two_training(asked: Asked) -> Trained:
    """DeepLab-v2 ResNet-101, its loss on three scales and their maximum."""
    recipe = NETWORK_RECIPES["deeplab-v2"]
    torch.manual_seed(0)
    options = recipe["network"]["options"] | (QUICK_NETWORKS["step_two"] if asked.quick else {})
    network = build_network("segmentation", num_classes=CLASSES, backbone=recipe["network"]["backbone"], **options)
    task = SegmentationTask(network, recipe["cross_entropy"], recipe["loss_scales"])
    return Trained(task, loop_of(recipe, asked), labelled=True)


# ---- training ----


def fitted(
    trained: Trained, data: Data, asked: Asked, steps: int, *, workers: int | None = None, compiled: bool = False
) -> Clock:
    """Train so many steps; once compiled, a network stays so. Batches end before the loop does: no checkpoint."""
    loop, clock = trained.loop, Clock(asked.device)
    how = LoopOptions(STEPS_PLANNED, loop["batch_size"], seed=0, precision=PRECISION, checkpoint_every=STEPS_PLANNED,
                      device=asked.device, compile=compiled, log_seconds=600)  # fmt: skip
    options = {name: value for name, value in loop["optimizer"].items() if name not in ("power", "schedule")}
    optimizer = build_optimizer(trained.task.network.parameter_groups(), **options | {"lr": LEARNING_RATE})
    with tempfile.TemporaryDirectory() as made, watched(clock):
        batches = partial(_batches, trained, data, asked, steps, asked.workers if workers is None else workers)
        fit(trained.task, batches, optimizer, how, Run(Path(made), {}))
    return clock


def _batches(trained: Trained, data: Data, asked: Asked, steps: int, workers: int, start: int) -> Any:
    loop = trained.loop
    transform = TrainTransform(loop["crop"], tuple(loop["scale"]), loop["flip"], scale_per=loop["scale_per"])
    masks = Store(data.masks, "masks") if trained.labelled else None
    return train_loader(Store(data.photos, "photos"), masks, "train", transform, batch_size=loop["batch_size"], seed=0,
                        start_step=start, steps=steps, workers=workers, device=asked.device)  # fmt: skip


def training_case(name: str, trained: Trained, asked: Asked, *, compiled: bool) -> Result:
    """A training's rate, the parts of its step, its memory, how busy the GPU is, and what it waits for."""
    side = "torch.compile" if compiled else "eager"
    with tempfile.TemporaryDirectory() as folder:
        data = packed(Path(folder), 16 if asked.quick else 64, asked)
        flop = network_flop(trained, data, asked)
        begin = time.perf_counter()
        fitted(trained, data, asked, 1 if asked.quick else 10, compiled=compiled)
        facts: dict[str, Any] = {"warm_up_seconds": round(time.perf_counter() - begin, 2)}
        sides = {side: measured(trained, data, asked, facts)}
        per_step = 1 / sides[side]["per_second"]["steps"]
        facts |= {"minutes_for_20000_steps": round(STEPS_PLANNED * per_step / 60, 2)}
        facts |= utilisation(flop, per_step, sides[side], asked)
        if asked.on_gpu:
            facts |= busy(trained, data, asked, per_step) | waits(trained, data, asked)
            if not compiled:
                sides["eager, cuDNN chooses by trial"] = by_trial(trained, data, asked)
            facts |= {"fits_11_gib": fits(trained, data, asked)}
    loop = trained.loop
    facts |= {"batch_size": loop["batch_size"], "crop": loop["crop"], "precision": PRECISION, "workers": asked.workers}
    return result(f"{name}, {loop['batch_size']} crops of {loop['crop']}x{loop['crop']}, {side}", sides, **facts)


def measured(trained: Trained, data: Data, asked: Asked, facts: dict[str, Any]) -> dict[str, Any]:
    """A side of some steps; their rate counts what lies between steps too."""
    first, steps = (1, 3) if asked.quick else (5, 60)
    if asked.on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    clock = fitted(trained, data, asked, first + steps)
    seconds, count = clock.seconds_after(first - 1), trained.loop["batch_size"]
    parts = clock.steps()[first:]
    side = side_of(parts, statistics.median(step[STEP] for step in parts), count)
    side["per_second"] = {"steps": round(steps / seconds, 4), "images": round(steps * count / seconds, 4)}
    facts |= {f"{name}_per_second": value for name, value in side["per_second"].items()}
    if asked.on_gpu:
        peaks = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
        facts |= {f"peak_{name}_gib": round(peak / GIB, 3) for name, peak in peaks.items()}
    return side


def by_trial(trained: Trained, data: Data, asked: Asked) -> dict[str, Any]:
    """The same with cuDNN's search for the fastest algorithms, which has to see each size first."""
    torch.backends.cudnn.benchmark = True
    try:
        fitted(trained, data, asked, 5)
        return measured(trained, data, asked, {})
    finally:
        torch.backends.cudnn.benchmark = False


def network_flop(trained: Trained, data: Data, asked: Asked) -> float:
    """FLOP of the convolutions and products of one step, two a multiply-add, counted while one runs."""
    from torch.utils.flop_counter import FlopCounterMode

    batch = next(iter(_batches(trained, data, asked, 1, 0, 0)))
    network = trained.task.network.to(asked.device, memory_format=torch.channels_last).train()
    with FlopCounterMode(display=False) as counter:
        with autocast(asked.device, PRECISION):
            terms = trained.task.losses(batch, 0.5)
        torch.stack([term.total.float() for term in terms.values()]).sum().backward()
    network.zero_grad(set_to_none=True)
    return float(counter.get_total_flops())


def utilisation(flop: float, per_step: float, side: Mapping[str, Any], asked: Asked) -> dict[str, Any]:
    """Model FLOPs utilisation: of the whole step, and of the parts in which the network runs."""
    stages = side["stages"]
    network = sum(stages[name]["median_ms"] for name in ("cam", "forward", "backward") if name in stages) / 1e3
    found: dict[str, Any] = {"network_tflop_per_step": round(flop / 1e12, 6)}
    rates = {"step": flop / per_step / 1e12, **({"network_parts": flop / network / 1e12} if "cam" in stages else {})}
    found |= {f"tflops_of_{name}": round(rate, 2) for name, rate in rates.items()}
    if asked.on_gpu:
        reached, card = matrix_tflops(), torch.cuda.get_device_name()
        found |= {"tflops_of_matrix_product": round(reached, 1)}
        found |= {f"utilisation_of_{name}": round(rate / reached, 4) for name, rate in rates.items()}
        nominal = next((value for key, value in NOMINAL_TFLOPS.items() if key in card), None)
        if nominal:
            found |= {f"nominal_utilisation_of_{name}": round(rate / nominal, 4) for name, rate in rates.items()}
    return found


def matrix_tflops(side: int = 8192) -> float:
    """What this card reaches in a large bfloat16 product, TFLOP/s."""
    first, second = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / statistics.median(milliseconds(lambda: first @ second)) / 1e9


def busy(trained: Trained, data: Data, asked: Asked, per_step: float, steps: int = 5) -> dict[str, Any]:
    """Share of a step in which kernels or copies run: their time by the profiler, the step's without it."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        fitted(trained, data, asked, steps, workers=0)
    spans = [
        (each.time_range.start, each.time_range.end)
        for each in seen.events()
        if each.device_type == DeviceType.CUDA and not getattr(each, "is_user_annotation", False)
    ]
    if not spans:
        return {"busy_share": None}
    at_work = covered(spans) / 1e6 / steps
    return {"busy_share": round(at_work / per_step, 4), "busy_ms_per_step": round(1e3 * at_work, 3),
            "kernels_per_step": len(spans) // steps}  # fmt: skip


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, reached = 0.0, -math.inf
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return total


def waits(trained: Trained, data: Data, asked: Asked, steps: int = 3) -> dict[str, Any]:
    """How often a step waits for the GPU, and where, beside the one time at its end."""
    found: Counter[str] = Counter()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            fitted(trained, data, asked, steps, workers=0)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for each in seen:
        if "synchroniz" in str(each.message):
            found[f"{Path(each.filename).name}:{each.lineno}"] += 1
    return {"host_waits_per_step": round(sum(found.values()) / steps, 2), "host_waits": dict(found.most_common(12))}


def fits(trained: Trained, data: Data, asked: Asked) -> bool:
    """Whether some steps do with the memory of a card of 11 GiB."""
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, CAP / whole))
    try:
        fitted(trained, data, asked, 4)
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return True


def one_step(asked: Asked) -> list[Result]:
    return [training_case("one-step RRM, ResNet-38", one_step_training(asked), asked, compiled=False)]


def one_step_compiled(asked: Asked) -> list[Result]:
    return [training_case("one-step RRM, ResNet-38", one_step_training(asked), asked, compiled=True)]


def step_two(asked: Asked) -> list[Result]:
    return [training_case("step two, DeepLab-v2 ResNet-101", step_two_training(asked), asked, compiled=False)]


def step_two_compiled(asked: Asked) -> list[Result]:
    return [training_case("step two, DeepLab-v2 ResNet-101", step_two_training(asked), asked, compiled=True)]


# ---- evaluation ----


def evaluation(asked: Asked) -> list[Result]:
    """Val of VOC: four scales, mirrored, CRF; all of its photos where the time suffices, else as many as it allows."""
    begin, few = time.monotonic(), 3 if asked.quick else 48
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        weights = spread_weights(folder, asked)
        evaluated(folder, weights, few, asked)  # compiles
        rate = sum(evaluated(folder, weights, few, asked).values()) / few
        left = asked.seconds - (time.monotonic() - begin)
        count = few if asked.quick else min(VAL_PHOTOS, max(few, int(0.75 * left / rate)))
        taken = evaluated(folder, weights, count, asked)
        writing = write_milliseconds(folder)
    each = {f"{stage}_ms_per_photo": round(1e3 * seconds / count, 2) for stage, seconds in taken.items()}
    minutes = round(sum(taken.values()) / count * VAL_PHOTOS / 60, 3)
    facts = {"photos": count, "views": VIEWS, "crf": "rrm-inference", "minutes_for_1449_photos": minutes}
    seconds = {f"{stage}_seconds": round(value, 2) for stage, value in taken.items()} | writing
    return [result("evaluation of val, ResNet-38", **facts, **each, **seconds)]


def write_milliseconds(folder: Path, most: int = 8) -> dict[str, Any]:
    """What it takes to write predictions of a photo again: the share of `predict` that no GPU makes faster."""
    stored = Store(folder / "predicted.h5", "probabilities")
    records = [stored[name] for name in stored.ids[:most]]
    threads = torch.get_num_threads()
    begin = time.perf_counter()
    with StoreWriter(folder / "again.h5", "probabilities", {}, "", threads=threads) as writer:
        for number, record in enumerate(records):
            writer.add(str(number), record)
    taken = time.perf_counter() - begin
    kept = [record["probabilities"] for record in records]
    share = sum(int(np.count_nonzero(each)) for each in kept) / sum(each.size for each in kept)
    return {
        "write_ms_per_photo": round(1e3 * taken / len(records), 2),
        "write_threads": threads,
        "share_not_zero": round(share, 4),
    }


def spread_weights(folder: Path, asked: Asked) -> Path:
    """Random weights whose scores spread as trained ones do: probabilities of 0 and 1 would be quick to store."""
    from rrm.stages.trained import save_trained

    network = one_step_training(asked).task.network.to(asked.device).eval()
    side = 64 if asked.quick else 321
    batch = torch.from_numpy(np.stack(photos(asked.photos, 1, side, side))).to(asked.device).permute(0, 3, 1, 2)
    with torch.no_grad():
        scores = network.forward_segmentation(network.normalize(batch.float()))
        for layer in network.head.score_layers:
            layer.weight.mul_(SPREAD / scores.std().clamp(min=1e-6))
            layer.bias.zero_()
    recipe = ONE_STEP_RECIPES["reference"]["network"]
    options = recipe["options"] | (QUICK_NETWORKS["one_step"] if asked.quick else {})
    identity = {"stage": "one_step", "options": {}, "code": "", "inputs": {}}
    built = {"backbone": recipe["backbone"], "options": options}
    save_trained(folder / "weights.pth", network, "rrm", [f"class{n}" for n in range(CLASSES)], built, identity)
    return folder / "weights.pth"


def evaluated(folder: Path, weights: Path, count: int, asked: Asked) -> dict[str, float]:
    """Seconds of the stages `predict` and `evaluate` on so many photos."""
    from rrm.stages import evaluate, predict
    from rrm.stages.call import Call

    data = packed(folder, count, asked)
    runtime = {"device": asked.device, "share_gpus": True, "workers": 0, "crf_workers": 0, "log_seconds": 60}
    inputs = {"photos": data.photos, "masks": data.masks, "model": weights, "probabilities": folder / "predicted.h5"}
    outputs = {predict: folder / "predicted.h5", evaluate: folder / "confusion.h5"}
    options: dict[str, Any] = {"split": "val", "views": VIEWS, "crf": asdict(DenseCRF.preset("rrm-inference"))}
    taken = {}
    for stage, output in outputs.items():
        begin, name = time.perf_counter(), stage.__name__.rpartition(".")[2]
        stage.run(Call(name, inputs, output, options, runtime, planned_code="benchmark"))
        taken[name] = time.perf_counter() - begin
    return taken


# ---- agreement ----


def parity(asked: Asked) -> list[Result]:
    """CRF, mining and energy on the CPU and on the device, the same numbers in."""
    side, height, width = (24, 20, 28) if asked.quick else (321, 375, 500)
    return [
        crf_parity(asked, side, side, 3, "psa"),
        crf_parity(asked, height, width, 21, "rrm-inference"),
        mining_parity(asked, side),
        energy_parity(asked, side),
    ]


def on_both(name: str, call: Callable[..., Any], inputs: Sequence[torch.Tensor], asked: Asked) -> tuple[Result, Any]:
    """Times of a call on the CPU and on the device, and what both gave, on the CPU."""
    there = [each.to(asked.device) for each in inputs]
    sides = {"cpu": partial(call, *inputs), f"device ({asked.device})": partial(call, *there)}
    compared = compare(name, sides, repeats=2 if asked.quick else 5, warmup=1)
    return compared, [each() for each in sides.values()]


def crf_parity(asked: Asked, height: int, width: int, classes: int, preset: str) -> Result:
    """Largest difference of a probability, and the share of pixels with the same label."""
    image = torch.from_numpy(photos(asked.photos, 1, width, height)[0])
    scores = torch.from_numpy(probabilities(classes, height, width, 0))
    name = f"CRF {width}x{height}, {classes} labels, {preset}"
    compared, (here, there) = on_both(name, DenseCRF.preset(preset), [image, scores], asked)
    same = (here.argmax(0) == there.cpu().argmax(0)).double().mean()
    compared["facts"] |= {"largest_difference": float((here - there.cpu()).abs().max()), "same_labels": float(same)}
    return compared


def mining_parity(asked: Asked, side: int, count: int = 4) -> Result:
    """Share of pixels with the same mined label."""
    images = torch.from_numpy(np.stack(photos(asked.photos, count, side, side)))
    maps = torch.from_numpy(np.stack([probabilities(CLASSES, side, side, item) for item in range(count)]))
    cams, present = maps / maps.amax((2, 3), keepdim=True), torch.zeros(count, CLASSES)
    for item in range(count):
        present[item, : (1, 2, 3, 2)[item % 4]] = 1
    compared, (here, there) = on_both("mined labels", RegionRule("reference").mine, [images, cams, present], asked)
    compared["facts"] |= {"same_labels": float((here == there.cpu()).double().mean())}
    return compared


def energy_parity(asked: Asked, side: int, count: int = 4) -> Result:
    """Relative difference of the value, and the largest of the gradient beside its largest element."""
    images = torch.from_numpy(np.stack(photos(asked.photos, count, side, side))).permute(0, 3, 1, 2).contiguous()
    scores = torch.from_numpy(np.stack([probabilities(21, side, side, item) for item in range(count)]))
    loss = DenseEnergyLoss(weight=1.0)

    def both(images: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = scores.clone().requires_grad_()
        value = loss(images, leaf)
        return value.detach(), torch.autograd.grad(value, leaf)[0]

    compared, (here, there) = on_both("energy and its gradient", both, [images, scores], asked)
    pairs = [(one, other.cpu()) for one, other in zip(here, there, strict=True)]
    differences = [float((one - other).abs().max() / one.abs().max()) for one, other in pairs]
    compared["facts"] |= dict(zip(("difference_of_value", "difference_of_gradient"), differences, strict=True))
    return compared


def tests(asked: Asked) -> list[Result]:
    """The tests that want a GPU; what they print is in the log."""
    root = Path(__file__).resolve().parents[1]
    chosen = ["tests/method/test_losses.py"] if asked.quick else ["tests/method", "tests/training/test_waiting.py"]
    options = ["-q", "-ra", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib", "-k", "gpu"]
    command = [sys.executable, "-m", "pytest", *options, *chosen]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    print(done.stdout[-6000:], done.stderr[-2000:], flush=True)
    last = (done.stdout.strip().splitlines() or ["no output"])[-1]
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    return [result("tests that want a GPU", exit_status=done.returncode, last_line=last, **counts)]


# ---- kernels ----


def kernels(asked: Asked) -> list[Result]:
    """The Gaussian filters: Triton's kernels against plain torch, with the blocks of the exact kernel varied."""
    if not asked.on_gpu:
        return [result("Gaussian filters", left_out="needs a GPU")]
    sizes = ((16, 321, 321, 3), (4, 160, 160, 21))
    return [
        *(exact_case(4, 160, 160, channels) for channels in (3, 21, 40)),
        *(lattice_case(*size) for size in sizes),
        crf_case(16, 321, 321, 3),
    ]


def exact_case(batch: int, height: int, width: int, channels: int) -> Result:
    """Filtering with all pairs, for each choice of blocks and with plain torch."""
    from rrm.gaussian import exact_triton

    features = position_colour_features(coloured(batch, height, width), 50.0, 15.0)
    values = torch.rand(batch, channels, height * width, device="cuda").softmax(dim=1).transpose(1, 2)
    times: dict[str, list[float]] = {}
    for blocks in BLOCKS:
        names = zip(("_ROWS", "_COLUMNS", "_WARPS", "_STAGES"), blocks, strict=True)
        with mock.patch.multiple(exact_triton, **dict(names), _PADDING=128):
            kernel = GaussianFilter(features, "exact")
            times[f"blocks of {blocks}"] = milliseconds(partial(kernel.apply, values))
    with plain_torch():
        times["plain torch"] = milliseconds(partial(GaussianFilter(features, "exact").apply, values))
    pairs = batch * (height * width) ** 2
    rate = pairs / statistics.median(times[f"blocks of {BLOCKS[0]}"]) * 1e3
    name = f"all pairs of {batch} x {height * width} points, {channels} channels"
    return result(name, summaries(times), exponentials_per_second=rate)


def lattice_case(batch: int, height: int, width: int, channels: int) -> Result:
    """Building and filtering."""
    features = position_colour_features(coloured(batch, height, width), 80.0, 13.0)
    values = torch.rand(batch, channels, height * width, device="cuda").softmax(dim=1).transpose(1, 2).contiguous()
    times = {}
    for name, context in (("Triton", nullcontext), ("plain torch", plain_torch)):
        with context():
            kernel = GaussianFilter(features, "lattice")
            times[f"filter, {name}"] = milliseconds(partial(kernel.apply, values))
            times[f"build, {name}"] = milliseconds(partial(GaussianFilter, features, "lattice"))
    return result(f"lattice of {batch} x {height * width} points, {channels} channels", summaries(times))


def crf_case(batch: int, height: int, width: int, classes: int) -> Result:
    """A whole dense CRF of 10 iterations, building included."""
    images = coloured(batch, height, width).permute(0, 2, 3, 1).contiguous().byte()
    coarse = torch.randn(batch, classes, 8, 8, device="cuda") * 3
    probs = F.interpolate(coarse, size=(height, width), mode="bilinear").softmax(dim=1)
    times = {}
    for name, context in (("Triton", nullcontext), ("plain torch", plain_torch)):
        with context():
            times[name] = milliseconds(partial(DenseCRF(), images, probs))
    return result(f"CRF of {batch} photos of {width}x{height}, {classes} labels", summaries(times))


def coloured(batch: int, height: int, width: int) -> torch.Tensor:
    """Images with regions of like colour, 0..255."""
    coarse = torch.rand(batch, 3, 12, 12, device="cuda") * 255
    fine = torch.rand(batch, 3, height, width, device="cuda") * 20
    return (F.interpolate(coarse, size=(height, width), mode="bilinear") + fine).clamp(0, 255)


@contextmanager
def plain_torch() -> Iterator[None]:
    """Leave Triton out."""
    crf_module._position_filter.cache_clear()
    with mock.patch("rrm.gaussian.filter.uses_triton", return_value=False):
        yield
    crf_module._position_filter.cache_clear()


def milliseconds(call: Callable[[], Any]) -> list[float]:
    """Several times, by the GPU's clock; what the GPU waits for counts."""
    from triton.testing import do_bench

    times: list[float] = do_bench(call, warmup=100, rep=400, return_mode="all")
    return times if len(times) > 1 else times + do_bench(call, warmup=1, rep=1, return_mode="all")


def summaries(times: Mapping[str, list[float]]) -> dict[str, Any]:
    reference = statistics.median(next(iter(times.values())))
    return {name: time_summary(each, reference) for name, each in times.items()}
