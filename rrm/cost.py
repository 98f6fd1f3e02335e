"""What a configuration computes: its jobs, their steps and photos, and the FLOPs of each (`rrm plan`).

FLOPs are counted, two a multiply-add, on networks without memory (device "meta"): convolutions and matrix products of
all passes that training, mining and prediction make. Those of CRFs, of random walks, of the energy and of optimisers
(L-BFGS of the linear classifier among them) are left out, and so are figures and the gallery.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, Literal

from rrm.config import Config, Inference, OneStep, PseudoMasks, Training
from rrm.errors import RRMError
from rrm.pipeline import (
    drawn_models,
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
    for model, split in product(drawn_models(config), judged_splits(config)):
        yield from _in_shards(config, "predict", {"model": model, "split": split}, counts[split])
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
    own = {kind: section}

    @cache
    def network(kind: str) -> Any:
        return _meta_network(kind, own.get(kind, config.one_step.network), num_classes(config))

    step = job.unit == "step"
    passes = Counter(_step_passes(config, job, network(kind)) if step else _photo_passes(config, job))
    flop = sum(count * _flop(network(each.kind), each) for each, count in passes.items())
    return (_loop(config, job).batch_size if step else 1) * flop / 1e12


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
        return build_network(kind, num_classes=classes, backbone=section.backbone, **options)


@dataclass(frozen=True)
class _Pass:
    """One image through a method of a network, given by its kind; `backward`: with the gradients of its weights."""

    kind: str
    method: str
    size: tuple[int, int]
    backward: bool = False


def _passes(
    kind: str, method: str, size: tuple[int, int], scales: Sequence[float] = (1.0,), *, backward: bool = False
) -> list[_Pass]:
    """A pass at each scale, the sides rounded down as for activation maps and losses."""
    sizes = [(max(1, int(size[0] * scale)), max(1, int(size[1] * scale))) for scale in scales]
    return [_Pass(kind, method, each, backward) for each in sizes]


def _loop(config: Config, job: Job) -> Training:
    """The loop of a training job."""
    if job.stage == "one-step":
        return one_step_section(config, job.name).train
    if job.stage in ("step-two", "bound"):
        return network_section(config, job.name).train
    if job.stage == "method":
        return method_section(config, job.name).train
    walk = masks_section(config, job.name).random_walk if job.stage == "affinity" else None
    train = walk.train if walk else config.classifier.train
    assert train is not None
    return train


def _step_passes(config: Config, job: Job, network: Any) -> list[_Pass]:
    """What an image of a batch goes through in a step; `network` is the one that is trained."""
    loop = _loop(config, job)
    crop, parted = (loop.crop, loop.crop), min(loop.accumulate, loop.batch_size) > 1
    if job.stage == "classifier":
        return _passes("rrm", "forward_classification", crop, backward=True)
    if job.stage == "one-step":
        return _one_step_passes(one_step_section(config, job.name), network, crop, parted)
    if job.stage == "affinity":
        labels = _passes("rrm", "forward_cam", crop, masks_section(config, job.name).cam_scales)
        return labels + _counted_passes("affinity", "forward", crop, parted)
    if job.stage == "method":
        seeds = getattr(method_section(config, job.name), "seeds", None)
        labels = _passes("rrm", "forward_cam", crop, seeds.scales) * (1 + parted) if seeds else []
        return labels + _counted_passes("rrm", "forward_segmentation", crop, parted)
    scales = network_section(config, job.name).loss_scales
    return _passes("segmentation", "forward_segmentation", crop, scales, backward=True)


def _counted_passes(kind: str, method: str, crop: tuple[int, int], parted: bool) -> list[_Pass]:
    """A training pass; of a batch in parts after one without gradients, for the counts of its loss (`Task.counts`)."""
    return _passes(kind, method, crop) * parted + _passes(kind, method, crop, backward=True)


def _one_step_passes(section: OneStep, network: Any, crop: tuple[int, int], parted: bool) -> list[_Pass]:
    """A training pass, and those of the maps that labels are mined from: of a batch in parts before it, all scales."""
    from rrm.tasks import gives_cam

    known = not parted and gives_cam(network.train(), section.cam.dropout)  # the map of scale 1, by the training pass
    scales = [scale for scale in section.cam.scales if not (known and scale == 1.0)]
    return _passes("rrm", "forward", crop, backward=True) + _passes("rrm", "forward_cam", crop, scales)


def _photo_passes(config: Config, job: Job) -> list[_Pass]:
    """What a photo goes through."""
    size = photo_size(config)
    if job.stage == "classifier" and config.classifier.linear:
        linear = config.classifier.linear
        return _passes("rrm", "features", size, linear.scales) * (1 + linear.flip)
    if job.stage == "pseudo-masks":
        return _masks_passes(masks_section(config, job.name), size)
    if job.name.startswith("cam/"):
        labels = _passes("rrm", "forward_classification", size) if job.name == "cam/predicted" else []
        return labels + _passes("rrm", "forward_cam", size, config.one_step.cam.scales)
    own = network_section(config, job.name).views if job.name.startswith(("step_two/", "bounds/")) else None
    return _views_passes(network_of(config, job)[0], own or config.evaluation.views, size)


def _masks_passes(masks: PseudoMasks, size: tuple[int, int]) -> list[_Pass]:
    cam = [] if masks.source == "segmentation" else _passes("rrm", "forward_cam", size, masks.cam_scales)
    walk = _passes("affinity", "forward", size) if masks.random_walk else []
    return cam + walk + ([] if masks.source == "cam" else _views_passes("rrm", masks.views, size))


def _views_passes(kind: str, views: Inference, size: tuple[int, int]) -> list[_Pass]:
    """A pass for each view of a photo, the sides rounded as `rrm.inference` does."""
    sizes = [(max(1, round(size[0] * scale)), max(1, round(size[1] * scale))) for scale in views.scales]
    return [_Pass(kind, "forward_segmentation", each) for each in sizes] * (1 + views.flip)


def _flop(network: Any, each: _Pass) -> float:
    """FLOP of a pass; no gradient goes through a map that labels are mined from."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    network.eval()  # changes no count, and batch norms take a map of one cell
    with counter, torch.set_grad_enabled(each.backward):
        output: Any = getattr(network, each.method)(torch.zeros(1, 3, *each.size, device="meta"))
        if each.backward:
            parts = output._asdict() if hasattr(output, "_asdict") else {"": output}
            sums = [part.sum() for name, part in parts.items() if name != "cam" and part.requires_grad]
            torch.stack(sums).sum().backward()  # type: ignore[no-untyped-call]
    return float(counter.get_total_flops())
