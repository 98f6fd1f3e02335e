"""What `rrm doctor` looks at: versions, GPU, filters under CRF and energy, memory, disk, what a configuration names.

Each check gives findings. A finding that is broken stops some command; a note says what is slower or missing; both say
what to do.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np

import rrm
from rrm.config import Config, Network, load
from rrm.config import sections_of as sections
from rrm.errors import RRMError, RRMErrors

Status = Literal["ok", "note", "broken"]
_GIB = 2**30
_LITTLE_DISK, _NO_DISK = 10 * _GIB, _GIB
_LITTLE_MEMORY, _NO_MEMORY = 4 * _GIB, _GIB
_LITTLE_SHARED = 256 << 20  # a batch of 10 crops of 321 pixels is 16 MB, and each worker has two ready
_CLOSE = 1e-3  # of probabilities after mean field, between two filters (docs/filtering.md)


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        name: of what was looked at.
        status: "ok"; "note": something is slower or missing; "broken": some command fails.
        found: what is there.
        fix: what to do, where the status is not "ok".
    """

    name: str
    status: Status
    found: str
    fix: str = ""

    def __str__(self) -> str:
        lines = [f"{self.status:<6}  {self.name}: {self.found}"]
        return "\n".join([*lines, f"        -> {self.fix}"] if self.fix else lines)


def examine(configs: Sequence[Path] = ()) -> Iterator[Finding]:
    """Look at everything, one finding after the other.

    Args:
        configs: configuration files, later ones over earlier ones; none: configurations are left out.
    """
    yield from _installation()
    yield from _processors()
    yield from _memory()
    yield from check_disks()
    yield from _gpus()
    yield from _filters()
    if configs:
        yield from check_configuration(configs)


def as_json(findings: Sequence[Finding]) -> str:
    """The findings for a script: `{"ok": whether nothing is broken, "findings": [...]}`.

    Example:
        >>> as_json([Finding("GPU", "ok", "none")])[:11]
        '{"ok": true'
    """
    healthy = all(finding.status != "broken" for finding in findings)
    return json.dumps({"ok": healthy, "findings": [asdict(finding) for finding in findings]})


def _installation() -> Iterator[Finding]:
    folder = Path(rrm.__file__).parent
    yield Finding("rrm", "ok", f"{rrm.__version__} in {folder}")
    yield Finding("Python", "ok", f"{platform.python_version()} on {platform.platform()}")
    try:
        wanted = metadata.requires("rrm") or []
    except metadata.PackageNotFoundError:
        fix = f"python -m pip install --editable {folder.parent}"
        yield Finding("packages", "note", "not looked at, for rrm is not installed but runs from its folder", fix)
        return
    yield from check_packages(wanted)


def check_packages(wanted: Sequence[str]) -> Iterator[Finding]:
    """Look at the versions of packages.

    Args:
        wanted: requirements as in `pyproject.toml`, with markers for extras.

    Yields:
        A finding for each that is missing or of another version, then one for all that are as they should be.
    """
    from packaging.requirements import Requirement

    good = []
    for requirement in map(Requirement, wanted):
        extras = _extras_of(requirement)
        if not extras:
            continue
        got = _version(requirement.name)
        if got is not None and requirement.specifier.contains(got, prereleases=True):
            good.append(f"{requirement.name} {got}")
            continue
        status: Status = "note" if extras[0] and got is None else "broken"
        what = f"expected {requirement.specifier or 'any version'}, got {got or 'none'}"
        need = f"rrm[{extras[0]}]" if extras[0] else f"{requirement.name}{requirement.specifier}"
        only = f", needed only for the extra {extras[0]}" if extras[0] else ""
        yield Finding(requirement.name, status, what + only, f"python -m pip install '{need}'")
    yield Finding("packages", "ok", ", ".join(sorted(good, key=str.lower)))


def _extras_of(requirement: Any) -> list[str]:
    """Extras that ask for a requirement on this machine; [""] where rrm itself does."""
    marker = requirement.marker
    if marker is None or marker.evaluate({"extra": ""}):
        return [""]
    extras = metadata.metadata("rrm").get_all("Provides-Extra") or []
    return [each for each in extras if marker.evaluate({"extra": each})]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processors() -> Iterator[Finding]:
    from rrm.usage import processor

    usable, all_of_them = len(os.sched_getaffinity(0)), os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    yield Finding("processor", "ok", f"{processor()}, {usable} of {all_of_them} cores, OMP_NUM_THREADS {threads}")


def _memory() -> Iterator[Finding]:
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        entries = (line.split(":") for line in meminfo.read_text().splitlines())
        kib = {name: int(value.split()[0]) for name, value in entries}
        limit = _container_limit()
        total, free = kib["MemTotal"] << 10, kib["MemAvailable"] << 10
        what = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
        if limit is not None:
            what, free = f"{what}, this container may use {limit / _GIB:.1f} GiB", min(free, limit)
        fix = (
            "end other programs, run fewer jobs at a time (--cores), or lower batch_size (`accumulate` splits a batch)"
        )
        yield _rated("memory", what, free, _LITTLE_MEMORY, _NO_MEMORY, fix)
    shared = Path("/dev/shm")  # noqa: S108 (looked at only)
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        fix = "docker run --shm-size=2g, or runtime.workers: 0"
        yield _rated("shared memory of data workers", f"{free / _GIB:.2f} GiB free", free, _LITTLE_SHARED, 0, fix)


def _container_limit() -> int | None:
    """Bytes that the container or job may use, by its control group; None: no limit of its own."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        path = Path("/sys/fs/cgroup", name)
        text = path.read_text().strip() if path.is_file() else ""
        if text.isdigit() and int(text) < 2**60:
            return int(text)
    return None


def _rated(name: str, what: str, free: int, little: int, too_little: int, fix: str) -> Finding:
    status: Status = "broken" if free < too_little else "note" if free < little else "ok"
    return Finding(name, status, what, "" if status == "ok" else fix)


def check_disks() -> Iterator[Finding]:
    """Look at room and rights in the working folder and in that of temporary files."""
    folders = {"results (working folder)": Path.cwd(), "temporary files": Path(tempfile.gettempdir())}
    for name, folder in folders.items():
        free = shutil.disk_usage(folder).free
        what = f"{free / _GIB:.1f} GiB free in {folder}"
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            fix = "run in a folder of your own" if folder == Path.cwd() else "set TMPDIR to a folder of your own"
            yield Finding(name, "broken", f"{what}, not writable ({error.strerror})", fix)
            continue
        fix = f"make room in {folder}; `rrm plan --measure` says what a configuration takes"
        yield _rated(name, what, free, _LITTLE_DISK, _NO_DISK, fix)


def _gpus() -> Iterator[Finding]:
    import torch

    with warnings.catch_warnings(record=True) as told:  # torch says there why it cannot use a card
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if usable:
        yield from map(_gpu, range(torch.cuda.device_count()))
        return
    cards = sorted(Path("/dev").glob("nvidia[0-9]*"))
    if not cards:
        yield Finding("GPU", "ok", "none; everything runs on the processor")
        return
    reason = str(told[0].message).split("\n")[0] if told else f"torch {torch.__version__} sees none"
    needs = f"a driver for CUDA {torch.version.cuda}" if torch.version.cuda else "a build of torch with CUDA"
    fix = f"install {needs} (what does `nvidia-smi` say?), or set runtime.device to cpu"
    yield Finding("GPU", "broken", f"{', '.join(map(str, cards))} is there, but {reason}", fix)


def _gpu(index: int) -> Finding:
    import torch

    from rrm.gaussian.filter import uses_triton

    facts = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    memory = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
    what = f"{facts.name}, compute capability {facts.major}.{facts.minor}, {memory}"
    if uses_triton(torch.zeros(1, 1, 5, device=f"cuda:{index}")):
        return Finding(f"GPU {index}", "ok", what)
    fix = "expect CRF and energy to be slower: their kernels want Triton and compute capability 8.0"
    return Finding(f"GPU {index}", "note", f"{what}, without the compiled kernels", fix)


def _filters() -> Iterator[Finding]:
    """Run each way to filter, which compiles what is compiled at the first use, and compare the results."""
    import torch

    from rrm.gaussian import has_compiled_lattice

    lattice, told = _tried("CRF, lattice on the processor", lambda: _crf("lattice", "cpu"))
    if told.status == "ok" and not has_compiled_lattice():
        told = Finding(told.name, "note", "plain torch, which is slower", "python -m pip install numba")
    yield told
    others: dict[str, Callable[[], Any]] = {"CRF, pydensecrf": lambda: _crf("pydensecrf", "cpu")}
    if torch.cuda.is_available():
        others["CRF, lattice on the GPU"] = lambda: _crf("lattice", "cuda")
    for name, run in others.items():
        result, told = _tried(name, run)
        far = float(np.abs(result - lattice).max()) if result is not None and lattice is not None else 0.0
        if told.status == "ok" and far > _CLOSE:
            told = Finding(name, "broken", f"differs from the lattice by {far:.1e}", "report it with this list")
        yield told
    for device in ["cpu", *["cuda"] * torch.cuda.is_available()]:
        yield _tried(f"energy loss, {device}", lambda device=device: _energy(device))[1]  # type: ignore[misc]


def _tried(name: str, run: Callable[[], Any]) -> tuple[Any, Finding]:
    """Run it; a failure of any kind becomes a finding."""
    begin = time.monotonic()
    try:
        result = run()
    except Exception as error:
        message = (str(error).strip() or repr(error)).splitlines()[0][:200]
        fix = "install it again: python -m pip install --force-reinstall --no-cache-dir numba pydensecrf2"
        if "cannot cache" in message:
            fix = "set NUMBA_CACHE_DIR to a folder of your own, where compiled code is kept"
        return None, Finding(name, "broken", message, fix)
    return result, Finding(name, "ok", f"works, {time.monotonic() - begin:.1f} s with building")


def _photo() -> tuple[Any, Any]:
    """A made photo (40,48,3) of two regions and smooth probabilities (3,40,48)."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:40, :48]
    inside = (rows - 20) ** 2 + (columns - 24) ** 2 < 150
    image = (np.where(inside, 180, 60)[..., None] + rng.integers(0, 30, (40, 48, 3))).astype(np.uint8)
    scores = np.stack([np.where(inside, 0.3, 0.6), np.where(inside, 0.5, 0.2), np.full((40, 48), 0.2)])
    return image, scores.astype(np.float32)


def _crf(backend: str, device: str) -> Any:
    import torch

    from rrm.crf import DenseCRF

    image, scores = _photo()
    return DenseCRF(backend=backend)(torch.from_numpy(image), torch.from_numpy(scores).to(device)).cpu().numpy()


def _energy(device: str) -> None:
    import torch

    from rrm.losses import DenseEnergyLoss

    image, scores = (torch.from_numpy(each).to(device) for each in _photo())
    probs = scores[None].requires_grad_()
    valid = torch.ones(1, 40, 48, dtype=torch.bool, device=device)
    labels = torch.full((1, 40, 48), 255, device=device)
    DenseEnergyLoss()(image.permute(2, 0, 1)[None].float(), probs, valid, labels).backward()
    if probs.grad is None or not bool(torch.isfinite(probs.grad).all()):
        raise RRMError("expected a finite gradient, got none")


def check_configuration(configs: Sequence[Path]) -> Iterator[Finding]:
    """Look at what a configuration names: data set, start weights, GPUs.

    Args:
        configs: files, later ones over earlier ones.

    Yields:
        A finding for each fault, or one that says that there is none.
    """
    name = " + ".join(map(str, configs))
    try:
        config = load(*configs)
    except RRMErrors as error:
        for fault in error.faults:
            yield Finding(name, "broken", fault, "correct it; `rrm check` shows the whole configuration")
        return
    faults = [*_data_faults(config), *_weights_faults(config), *_device_faults(config)]
    if not faults:
        yield Finding(name, "ok", "valid, and all that it names is there")
    for what, fix in faults:
        yield Finding(name, "broken", what, fix)


def _data_faults(config: Config) -> Iterator[tuple[str, str]]:
    """Faults of the folder, lists and labels, or of the sources, that the data set names; photos are not opened."""
    from rrm.stages.call import Call
    from rrm.stages.dataset import layout_of

    dataset = config.dataset
    if dataset.root is not None:
        call = Call("doctor", {}, Path(os.devnull), {"dataset": dataset.model_dump(mode="json")})
        try:
            layout = layout_of(call)
            faults = layout.list_faults(layout.splits)
        except RRMErrors as error:
            faults = error.faults
        except RRMError as error:
            faults = [str(error)]
        yield from ((f"dataset.root: {fault}", "see docs/data.md for the layout") for fault in faults)
    for path in [*dataset.sources.voc, dataset.sources.sbd] if dataset.sources else []:
        if not Path(path).exists():
            yield f"dataset.sources: expected {path}, got nothing", "correct the path, or fetch it: docs/data.md"


def _weights_faults(config: Config) -> Iterator[tuple[str, str]]:
    for key, network in sections(Network, config):
        if network.weights is not None and not Path(network.weights).is_file():
            yield f"{key}.weights: expected a file, got {network.weights}", "correct the path; null starts at random"


def _device_faults(config: Config) -> Iterator[tuple[str, str]]:
    import torch

    from rrm.lease import too_few_gpus
    from rrm.training import pick_device

    runtime = config.runtime
    try:
        device = pick_device(runtime.device)
    except RRMError as error:
        yield f"runtime.{error}", "or run this on the machine that has the GPU"
        return
    if device == "cuda" and runtime.processes > torch.cuda.device_count():
        yield str(too_few_gpus(torch.cuda.device_count(), runtime.processes)), "or use a machine with more"
