"""Rates of this machine: what a step or a photo of each job takes in seconds, memory and bytes on disk (`rrm plan`).

Nothing here is estimated. Each stage runs as a process of its own, as the workflow runs it, with few steps or photos
and then with more, until the longer run lasts five seconds longer: the difference is what a step or a photo takes, the
rest is the start of a job. Photos are the demo's, drawn at the configuration's size; weights are random, and the
learning rate is so low that they stay as they are. Compressed stores of real photos are larger than those of the demo.
Merges are measured on records that the stage has written, given out again and again under new names. Memory is looked
at once a second, of a job with all its workers.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from rrm.config import Config
from rrm.cost import Job, network_of, num_classes, photo_size, tflop_per_unit
from rrm.errors import RRMError
from rrm.limits import TEXT_BYTES, read_file
from rrm.pipeline import Layout, network_section, stage_options
from rrm.shards import KINDS, own_share, shard_path
from rrm.store import Store, StoreWriter
from rrm.usage import Usage, processor, tree_memory

_NO_COST = {"steps", "checkpoint_every", "seed", "ratio", "split", "weights", "weights_format"}
_LEARNING_RATE = 1e-12  # leaves weights as they are, so that random ones behind frozen batch norms overflow nowhere
_LOOK = 1.0  # seconds between two looks at the memory of a job
_LASTING = 5.0  # seconds by which the longer run has to last longer
_FIRST = {"step": 2, "photo": 5}
_MOST = {"step": 2000, "photo": 500}
_MOST_MERGED = 5000


@dataclass(frozen=True)
class Rate:
    """What one kind of job was measured to take.

    Attributes:
        stage: a key of `rrm.pipeline.STAGES`, or `merge <stage>`.
        start_seconds: of a job, without its steps or photos.
        unit_seconds: of a step or a photo.
        memory: peak bytes of the job's process and its workers together, what they share counted once
            (`rrm.usage.tree_memory`; where that knows nothing, peak resident bytes of the process alone).
        gpu_memory: peak bytes of torch on the GPU; 0 on the CPU.
        start_bytes: written by a job, without what grows with its photos.
        unit_bytes: written for a photo; none by a merge, whose store takes the place of its shards.
        tflop_per_unit: counted (`rrm.cost.tflop_per_unit`).
    """

    stage: str
    start_seconds: float
    unit_seconds: float
    memory: int
    gpu_memory: int
    start_bytes: float
    unit_bytes: float
    tflop_per_unit: float


@dataclass(frozen=True)
class Rates:
    """Rates of one machine: `machine` says which, `entries` holds them by `rate_key`."""

    machine: Mapping[str, Any]
    entries: Mapping[str, Rate] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text of a rates file."""
        entries = {key: asdict(rate) for key, rate in self.entries.items()}
        return json.dumps({"format": 1, "machine": dict(self.machine), "entries": entries}, indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> Rates:
        """Read a rates file.

        Raises:
            RRMError: it cannot be read, or holds something else.
        """
        try:
            return TypeAdapter(cls).validate_json(read_file(path, TEXT_BYTES))
        except (OSError, ValueError) as error:
            raise RRMError(
                f"{path}: expected rates written by `rrm plan --measure --rates FILE`, got {_short(error)}: "
                "measure them on the machine in question"
            ) from error


def rate_key(config: Config, job: Job) -> str:
    """Name of a kind of job: the same for all jobs that cost the same a step or a photo.

    Args:
        config: the configuration.
        job: one of `rrm.cost.planned_jobs`.

    Returns:
        Hash of stage, options, network and size of the photos, without what changes no step: numbers of steps, seeds,
        shares of reliable pixels, start weights. A merge has neither options nor a network.
    """
    what: list[Any] = [job.task, photo_size(config), num_classes(config)]
    if not job.merges:
        what.append(_pruned(stage_options(config, job.stage, **dict[str, Any](job.wildcards))))
    if not job.merges and job.stage not in ("evaluate", "classifier"):
        kind, section = network_of(config, job)
        what += [kind, section.backbone, section.options]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def _pruned(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    named = {key for key in ("pseudo_masks",) if isinstance(value.get(key), str)}
    costs = set() if _is_loop(value) else {"steps"}  # those of a random walk
    return {key: _pruned(each) for key, each in value.items() if key not in (_NO_COST | named) - costs}


def _is_loop(section: Mapping[str, Any]) -> bool:
    return "batch_size" in section


def measure_rates(
    config: Config, jobs: Sequence[Job], device: str, threads: int, tell: Callable[[str], None] = print
) -> Rates:
    """Run each kind of job on this machine, in a temporary folder.

    Args:
        config: the configuration.
        jobs: of `rrm.cost.planned_jobs`.
        device: `"cpu"` or `"cuda"`.
        threads: of each process.
        tell: called with a line for each kind that is measured.

    Raises:
        RRMError: a stage failed; its last lines are in the message.
    """
    kinds: dict[str, Job] = {}
    for job in jobs:
        kinds.setdefault(rate_key(config, job), job)
    with tempfile.TemporaryDirectory(prefix="rrm-rates-") as folder:
        bench = _Bench(config, Path(folder), device, threads)
        entries = {}
        for number, (key, job) in enumerate(kinds.items(), 1):
            entries[key] = bench.rate(job)
            rate = entries[key]
            tell(f"{number}/{len(kinds)} {job.task} {job.name}: {rate.unit_seconds:.4g} s a {job.unit}")
    return Rates(_machine(device, threads), entries)


@dataclass(frozen=True)
class _Measured:
    seconds: float
    memory: int
    gpu_memory: int
    written: int


class _Bench:
    """Runs jobs of a configuration on made photos, with as many steps or photos as asked for."""

    def __init__(self, config: Config, folder: Path, device: str, threads: int) -> None:
        self.config, self.folder, self.threads = config, folder, threads
        self.warm: set[str] = set()
        self.runtime = config.runtime.model_dump(mode="json", exclude={"threads"}) | {"device": device}

    def rate(self, job: Job) -> Rate:
        """Measure one kind of job: ever longer runs, until the last is long enough beside the first."""
        first = few = _FIRST[job.unit]
        most = _MOST_MERGED if job.merges else _MOST[job.unit]
        if job.task not in self.warm:
            self._run(job, few)  # fills caches of compiled code and of files
            self.warm.add(job.task)
        short = long = self._run(job, few)
        unit = short.seconds / few
        while long.seconds - short.seconds < _LASTING and few < most:
            few = min(most, max(few + 1, min(first + math.ceil(1.3 * _LASTING / unit), 8 * few)))
            long = self._run(job, few)
            unit = max(1e-6, (long.seconds - short.seconds) / (few - first))
        bytes_each = (long.written - short.written) / (few - first) if job.unit == "photo" else 0.0
        return Rate(
            stage=job.task,
            start_seconds=max(0.0, short.seconds - first * unit),
            unit_seconds=unit,
            memory=long.memory,
            gpu_memory=long.gpu_memory,
            start_bytes=max(0.0, short.written - first * bytes_each),
            unit_bytes=bytes_each,
            tflop_per_unit=tflop_per_unit(self.config, job),
        )

    def _run(self, job: Job, units: int) -> _Measured:
        output = self.folder / "out" / f"{job.task}-{job.name.replace('/', '-')}.h5"
        for old in self._written(output):
            old.unlink()
        if job.merges:
            return _Measured(*self._timed(job, self._merge_command(job, output, units)), 0)
        photos = units if job.unit == "photo" else _FIRST["photo"]
        measured = self._call(job, self._inputs(job, photos), output, units)
        return _Measured(*measured, sum(path.stat().st_size for path in self._written(output)))

    @staticmethod
    def _written(output: Path) -> list[Path]:
        """The output and what lies beside it under its name: history and checkpoints."""
        return [path for each in output.parent.glob(f"{output.stem}.*") for path in _files(each)]

    def _call(self, job: Job, inputs: Mapping[str, Path], output: Path, units: int) -> tuple[float, int, int]:
        """Run one job as a process; give its seconds, its peak memory with its workers, and that on the GPU."""
        options = self._options(job, units)
        output.parent.mkdir(parents=True, exist_ok=True)
        command = [job.stage, "--out", str(output), f"--options={json.dumps(options)}"]
        command += [f"--in={name}={path}" for name, path in inputs.items()]
        return self._timed(job, [*command, f"--runtime={json.dumps(self.runtime)}", f"--threads={self.threads}"])

    def _options(self, job: Job, units: int) -> dict[str, Any]:
        options = _shortened(stage_options(self.config, job.stage, **dict[str, Any](job.wildcards)), units)
        return {**options, **({"split": "val"} if "split" in options else {})}

    def _timed(self, job: Job, arguments: Sequence[str]) -> tuple[float, int, int]:
        took = self.folder / "usage.json"
        command = [sys.executable, "-m", "rrm", *arguments, f"--usage={took}"]
        begin = time.perf_counter()
        code, told, held = _watched(command, os.environ | {"OMP_NUM_THREADS": str(self.threads)})
        seconds = time.perf_counter() - begin
        if code:
            last = "\n".join(told.splitlines()[-5:])
            raise RRMError(f"rrm {job.task} {job.name}, to be measured, failed:\n{last}")
        usage = Usage.read(took)
        return seconds, max(held, usage.peak_memory), usage.peak_gpu_memory

    def _merge_command(self, job: Job, output: Path, photos: int) -> list[str]:
        """The command that merges two shards of so many photos, after the shards have been written."""
        folder = self.folder / f"{output.stem}.shards"
        shutil.rmtree(folder, ignore_errors=True)
        whole = Store(self._store(replace(job, merges=False)), KINDS)
        ids = [f"{number:06d}" for number in range(photos)]
        for part in (1, 2):
            share, attrs = own_share({"shard": f"{part}/2"}, ids, whole.attrs)
            with StoreWriter(shard_path(folder, part, 2), whole.kind, whole.config, whole.code, attrs) as writer:
                for name in share:
                    writer.add(name, whole[whole.ids[int(name) % len(whole)]])
        whole.close()
        return ["merge", str(folder), "--shards", "2", "--out", str(output)]

    # ---- what the jobs read ----

    def _inputs(self, job: Job, photos: int) -> dict[str, Path]:
        data = self._data(photos)
        inputs = {"photos": data.photos}
        if job.stage == "evaluate":
            predicted = self._store(replace(job, stage="predict"), photos)
            return inputs | {"masks": data.masks("val"), "probabilities": predicted}
        if job.stage in ("predict", "pseudo-masks", "affinity"):
            inputs["model"] = self._weights_of(job)
            if job.stage == "pseudo-masks" and self.config.pseudo_masks[job.name].random_walk:
                inputs["affinity"] = self._made(Job("affinity", {"masks": job.name}, 1, 1, "step"))
        elif job.stage in ("one-step", "method"):
            inputs |= self._start()
        elif job.stage in ("step-two", "bound"):
            inputs |= self._labels(job, data)
            if network_section(self.config, job.name).warm_start:
                inputs["start"] = self._one_step()
        return inputs

    def _start(self) -> dict[str, Path]:
        return {"start": self._classifier()} if self.config.classifier.enabled else {}

    def _classifier(self) -> Path:
        return self._made(Job("classifier", {}, 1, 1, "step"))

    def _one_step(self) -> Path:
        return self._made(Job("one-step", {"model": "one_step"}, 1, 1, "step"))

    def _weights_of(self, job: Job) -> Path:
        """Weights of the network that a job predicts with, after one step."""
        if job.stage != "predict":
            masks = self.config.pseudo_masks[job.name]
            uses_classifier = masks.network == "classifier"
            return self._classifier() if uses_classifier else self._one_step()
        group = job.name.partition("/")[0]
        stage = {"methods": "method", "step_two": "step-two", "bounds": "bound"}.get(group, "one-step")
        model = "one_step" if group == "cam" else job.name
        return self._made(Job(stage, {"model": model}, 1, 1, "step"))

    def _made(self, job: Job) -> Path:
        """Output of one step of a training job, made once."""
        output = self.folder / "made" / f"{job.stage}-{job.name.replace('/', '-')}.pth"
        if not output.exists():
            self._call(job, self._inputs(job, _FIRST["photo"]), output, 1)
        return output

    def _labels(self, job: Job, data: Layout) -> dict[str, Path]:
        """What the network of a job is trained on."""
        section = network_section(self.config, job.name)
        if job.stage == "step-two":
            return {"masks": self._pseudo_masks(data)}
        if section.labels != "masks" and not data.labels(section.labels).exists():
            sparse = Job("sparse-labels", {"labels": section.labels}, 1, 1, "photo")
            self._call(sparse, {"masks": data.masks("train")}, data.labels(section.labels), 1)
        return {"masks": data.labels(section.labels)}

    @staticmethod
    def _pseudo_masks(data: Layout) -> Path:
        """A store of pseudo masks that holds the demo's masks."""
        output = data.pseudo_masks(0, "made")
        if not output.exists():
            masks = Store(data.masks("train"), "masks")
            output.parent.mkdir(parents=True, exist_ok=True)
            with StoreWriter(output, "pseudo_masks", {}, "", attrs=dict(masks.attrs)) as writer:
                for name in masks.ids:
                    writer.add(name, {"mask": masks.read(name, "mask")})
        return output

    def _store(self, job: Job, photos: int = _FIRST["photo"]) -> Path:
        """What a stage that goes through photos writes for so many, made once."""
        output = self._data(photos).run / f"{job.stage}-{job.name.replace('/', '-')}.h5"
        if not output.exists():
            self._call(job, self._inputs(job, photos), output, photos)
        return output

    def _data(self, photos: int) -> Layout:
        """Packed stores of `photos` training photos and as many of val, made once."""
        from rrm.datasets.demo import DEMO_CLASSES, generate_demo
        from rrm.datasets.packing import pack_masks, pack_photos
        from rrm.datasets.voc import VocLayout

        data = Layout(self.folder, f"photos{photos}")
        if data.photos.exists():
            return data
        side = min(512, max(64, *photo_size(self.config)))
        generate_demo(data.run / "voc", size=side, train=photos, val=photos, test=5)
        extra = [f"class{number}" for number in range(num_classes(self.config) - len(DEMO_CLASSES))]
        layout = VocLayout(data.run / "voc", classes=(*DEMO_CLASSES, *extra))
        for split in ("train", "val"):
            pack_masks(layout, split, data.masks(split), config={}, code="")
        pack_photos(layout, ("train", "val"), data.photos, config={}, code="")
        return data


def _watched(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str, int]:
    """Run a command; give its exit code, what it wrote to standard error, and the most memory seen of it."""
    how: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    held = 0
    with subprocess.Popen(command, env=environment, **how) as process:  # noqa: S603 (our own)
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    told = process.communicate(timeout=_LOOK)[1]
                    return process.returncode, told, held
                held = max(held, tree_memory(process.pid))
        finally:
            process.kill()  # where this was interrupted


def _shortened(options: Any, steps: int) -> Any:
    """The options of a stage with another number of steps, random weights, and a learning rate that changes nothing."""
    if not isinstance(options, Mapping):
        return options
    changed = {"lr": _LEARNING_RATE, "weights": None}
    changed |= {"steps": steps, "checkpoint_every": steps} if _is_loop(options) else {}
    return {key: changed[key] if key in changed else _shortened(value, steps) for key, value in options.items()}


def _files(path: Path) -> Iterator[Path]:
    yield from (each for each in ([path] if path.is_file() else path.rglob("*")) if each.is_file())


def _machine(device: str, threads: int) -> dict[str, Any]:
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    return {"device": name, "threads": threads, "torch": torch.__version__, "python": platform.python_version()}


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:80]}"
