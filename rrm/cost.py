"""What a configuration computes: its jobs, their steps and photos, and the FLOPs of each (`rrm plan`).

FLOPs are counted, two a multiply-add, on networks without memory (device "meta"). Those of CRFs, of the energy and of
the optimiser are not among them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rrm.config import Config
from rrm.errors import RRMError
from rrm.pipeline import (
    judged_splits,
    masks_section,
    method_section,
    network_section,
    one_step_section,
    scored_models,
    shard_count,
    submitted_models,
    variants,
)
from rrm.shards import Shard

VOC_COUNTS: Mapping[str, int] = {"train": 1464, "train_aug": 10_582, "val": 1449, "trainval": 2913, "test": 1456}
"""Photos in VOC 2012's lists and in the augmented one, for a data set that is not on this disk yet."""
VOC_SIZE = (375, 500)  # height and width of most of VOC's photos


@dataclass(frozen=True)
class Job:
    """Jobs of one kind: what they run and how much of it.

    Attributes:
        stage: a key of `rrm.pipeline.STAGES`.
        wildcards: the stage's, without the seed.
        count: number of such jobs.
        units: steps or photos of one job.
        unit: which of the two.
        merges: they merge the shards of that stage's stores.
    """

    stage: str
    wildcards: Mapping[str, str]
    count: int
    units: int
    unit: Literal["step", "photo"]
    merges: bool = False

    @property
    def name(self) -> str:
        """What the job works on, such as `one_step` or `bounds/vgg16`; empty where a stage has but one job."""
        return self.wildcards.get("model", self.wildcards.get("masks", ""))

    @property
    def task(self) -> str:
        """The stage, or `merge <stage>`."""
        return f"merge {self.stage}" if self.merges else self.stage


# ---- the jobs of a configuration ----


def photo_counts(config: Config) -> dict[str, int]:
    """Number of photos of each split: the generator's, those of the lists on disk, or VOC's by the list's name.

    Raises:
        RRMError: a list is neither on disk nor one of VOC's.
    """
    data = config.dataset
    if data.kind == "demo":
        return {"train": data.demo.train, "val": data.demo.val, "test": data.demo.test}
    named = {"train": data.train, "val": data.val, "test": data.test, "submission": data.submission}
    return {split: _listed(config, name) for split, name in named.items() if name}


def _listed(config: Config, name: str) -> int:
    path = Path(config.dataset.root or ".", "ImageSets", "Segmentation", f"{name}.txt")
    if path.is_file():
        return sum(bool(line.strip()) for line in path.read_text(encoding="utf-8").splitlines())
    if name not in VOC_COUNTS:
        raise RRMError(
            f"{path}: expected the list, or a name of {', '.join(VOC_COUNTS)}, got neither: correct dataset.root"
        )
    return VOC_COUNTS[name]


def planned_jobs(config: Config) -> list[Job]:
    """All jobs of a configuration that train, mine, predict or score, in the order of the data flow."""
    return [*_training_jobs(config), *_photo_jobs(config)]


def _training_jobs(config: Config) -> Iterator[Job]:
    def job(stage: str, steps: int, **wildcards: str) -> Job:
        return Job(stage, wildcards, len(config.seeds), steps, "step")

    if config.classifier.enabled and config.classifier.train:
        yield job("classifier", config.classifier.train.steps)
    for name in ["one_step", *variants(config)]:
        yield job("one-step", one_step_section(config, name).train.steps, model=name)
    for name, method in config.methods.items():
        yield job("method", method.train.steps, model=f"methods/{name}")
    for name in _used_masks(config):
        if walk := config.pseudo_masks[name].random_walk:
            yield job("affinity", walk.train.steps, masks=name)
    for name, network in config.step_two.items():
        yield job("step-two", network.train.steps, model=f"step_two/{name}")
    for name, network in config.bounds.items():
        yield job("bound", network.train.steps, model=f"bounds/{name}")


def _photo_jobs(config: Config) -> Iterator[Job]:
    counts, seeds = photo_counts(config), len(config.seeds)
    if config.classifier.enabled and config.classifier.linear:
        yield Job("classifier", {}, seeds, counts["train"], "photo")
    for name in _used_masks(config):
        yield from _in_shards(config, "pseudo-masks", {"masks": name}, counts["train"])
    for split in judged_splits(config):
        yield from _in_shards(config, "predict", {"model": "one_step", "split": split}, counts[split])
    submitted = submitted_models(config)
    for model, splits in scored_models(config).items():
        for split in [*splits, *(["submission"] if model in submitted else [])]:
            scored = {"model": model, "split": split}
            yield from _in_shards(config, "predict", scored, counts[split])
            if split != "submission":
                yield from _in_shards(config, "evaluate", scored, counts[split])


def _in_shards(config: Config, stage: str, wildcards: Mapping[str, str], photos: int) -> Iterator[Job]:
    """Jobs that share a stage's photos, as many of each number of photos as there are, and those that merge."""
    parts, seeds = shard_count(config, stage), len(config.seeds)
    sizes = Counter(len(Shard(part, parts).of(range(photos))) for part in range(1, parts + 1))
    for size, number in sizes.items():
        yield Job(stage, wildcards, seeds * number, size, "photo")
    if parts > 1:
        yield Job(stage, wildcards, seeds, photos, "photo", merges=True)


def _used_masks(config: Config) -> list[str]:
    return list(dict.fromkeys(network.pseudo_masks for network in config.step_two.values()))


# ---- what they compute ----


def photo_size(config: Config) -> tuple[int, int]:
    """Height and width of a typical packed photo."""
    data = config.dataset
    if data.kind == "demo":
        return data.demo.size, data.demo.size
    factor = min(1.0, (data.long_side or VOC_SIZE[1]) / VOC_SIZE[1])
    return round(VOC_SIZE[0] * factor), round(VOC_SIZE[1] * factor)


def num_classes(config: Config) -> int:
    """Foreground classes of the data set.

    Raises:
        RRMError: they stand in a file that cannot be read.
    """
    if config.dataset.kind == "demo":
        from rrm.datasets.demo import DEMO_CLASSES

        return len(DEMO_CLASSES)
    classes = config.dataset.classes
    if isinstance(classes, str):
        from rrm.datasets.voc import read_classes

        return len(read_classes(Path(config.dataset.root or ".", classes)))
    return len(classes) if classes else 20


def tflop_per_unit(config: Config, job: Job) -> float:
    """TFLOP of the networks in one step or on one photo.

    Args:
        config: the configuration.
        job: one of `planned_jobs`.

    Returns:
        2 FLOP a multiply-add / 1e12; 0 for what runs no network.
    """
    if job.stage == "evaluate" or job.merges:
        return 0.0
    kind, section = network_of(config, job)
    network = _meta_network(kind, section, num_classes(config))
    if job.unit == "step":
        return _step_flop(config, job, network) / 1e12
    return sum(_forward_flop(network, *view) for view in _photo_views(config, job)) / 1e12


def network_of(config: Config, job: Job) -> tuple[str, Any]:
    """Kind and section `network` of the network that a job runs."""
    group, name = job.name.partition("/")[0], job.name
    if job.stage == "affinity":
        return "affinity", config.one_step.network
    if group in ("step_two", "bounds"):
        return "segmentation", network_section(config, name).network
    if group == "methods":
        return "rrm", method_section(config, name).network
    return "rrm", config.one_step.network


def _meta_network(kind: str, section: Any, classes: int) -> Any:
    import torch

    from rrm.networks import affinity_options, build_network

    options = affinity_options(section.backbone, section.options) if kind == "affinity" else section.options
    with torch.device("meta"):
        return build_network(kind, num_classes=classes, backbone=section.backbone, **options).eval()


def _step_flop(config: Config, job: Job, network: Any) -> float:
    loop, loss_scales, cam_scales = _step_parts(config, job)
    sizes = [max(1, int(loop.crop * scale)) for scale in loss_scales]
    method = "forward_classification" if job.stage == "classifier" else "forward"
    trained = sum(_forward_flop(network, method, (side, side), backward=True) for side in sizes)
    cam = [max(1, int(loop.crop * scale)) for scale in cam_scales]
    return float(loop.batch_size * (trained + sum(_forward_flop(network, "forward_cam", (side, side)) for side in cam)))


def _step_parts(config: Config, job: Job) -> tuple[Any, Sequence[float], Sequence[float]]:
    """Loop, scales of the loss and scales of the CAM of a training job."""
    if job.stage == "one-step":
        section = one_step_section(config, job.name)
        return section.train, [1.0], section.cam.scales
    if job.stage in ("step-two", "bound"):
        network = network_section(config, job.name)
        return network.train, network.loss_scales, []
    if job.stage == "affinity":
        walk = masks_section(config, job.name).random_walk
        return walk.train if walk else None, [1.0], []
    if job.stage == "method":
        return method_section(config, job.name).train, [1.0], []
    return config.classifier.train, [1.0], []


def _photo_views(config: Config, job: Job) -> list[tuple[str, tuple[int, int]]]:
    """Method of the network and size of each view of a photo."""
    height, width = photo_size(config)

    def views(how: str, scales: Sequence[float], flip: bool = False) -> list[tuple[str, tuple[int, int]]]:
        sizes = [(max(1, int(height * s)), max(1, int(width * s))) for s in scales]
        return [(how, size) for size in sizes for _ in range(1 + flip)]

    if job.stage == "classifier" and config.classifier.linear:
        return views("forward_cam", config.classifier.linear.scales, config.classifier.linear.flip)
    if job.stage == "pseudo-masks":
        masks = masks_section(config, job.name)
        seen = [] if masks.source == "segmentation" else views("forward_cam", masks.cam_scales)
        return seen + (
            [] if masks.source == "cam" else views("forward_segmentation", masks.views.scales, masks.views.flip)
        )
    if job.name.startswith("cam/"):
        return views("forward_cam", config.one_step.cam.scales)
    group = job.name.partition("/")[0]
    own = network_section(config, job.name).views if group in ("step_two", "bounds") else None
    chosen = own or config.evaluation.views
    return views("forward_segmentation", chosen.scales, chosen.flip)


def _forward_flop(network: Any, method: str, size: tuple[int, int], *, backward: bool = False) -> float:
    """FLOP of one image through a method of a network, with the gradients of its weights where asked for."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, torch.set_grad_enabled(backward):
        output = getattr(network, method, network)(torch.zeros(1, 3, *size, device="meta"))
        if backward:
            parts = output if isinstance(output, tuple) else (output,)
            torch.stack([part.sum() for part in parts if part.requires_grad]).sum().backward()  # type: ignore[no-untyped-call]
    return float(counter.get_total_flops())
