"""The one training loop, for every stage that trains: seeded, resumable to the bit, mixed precision on a GPU.

Batch k, its augmentation and the random numbers of step k (dropout) are functions of (seed, k) alone. So the network,
the optimiser and the step are the whole state: a run that was killed at any moment goes on from its last checkpoint to
the same weights as an undisturbed one (on the CPU, to the bit).

A batch may be split into parts, and each part's share over several processes (`rrm.distributed`). Either way the means
of the loss are those of the whole batch (`rrm.terms`), and so are the gradients.
"""

from __future__ import annotations

import hashlib
import json
import math
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from rrm.distributed import (
    average_statistics,
    is_first,
    meet,
    processes,
    rank,
    same_everywhere,
    share_batch_norm,
    sum_gradients,
    take_gpu,
    tell,
    total,
)
from rrm.errors import RRMError
from rrm.progress import Progress
from rrm.schedules import set_learning_rate
from rrm.store import atomic_path, naming_what_failed
from rrm.terms import Term
from rrm.torch_files import load_torch, save_torch

FORMAT = "rrm-weights-1"
COMPILER: Mapping[str, Any] = {"dynamic": False, "options": {"fallback_random": True}}
"""Arguments of `torch.compile`: code for each size, for crops have few, and the random numbers of code that is not."""
Batch = dict[str, Any]
Counts = Mapping[str, Tensor | None]
"""Counts of `rrm.terms.Term`, by the name of the term."""


class Task:
    """What is trained: a network and the loss terms of one batch.

    Args:
        network: changed by the training, in place.
    """

    def __init__(self, network: Any) -> None:
        self.network = network

    def prepare(self, batch: Batch) -> Batch:
        """A part of a split batch with what `counts` need and no gradient goes through, such as mined labels."""
        return batch

    def losses(self, batch: Batch, progress: float) -> Mapping[str, Term]:
        """Loss terms of a batch or of a prepared part, whose sum is minimised; `progress`: share of the steps done."""
        raise NotImplementedError

    def counts(self, batch: Batch) -> Counts:
        """The counts of the terms of a prepared batch; asked for where a batch is split, before the losses of a part.

        Here the losses are computed for them, without gradients; a task that knows its counts says them.
        """
        kept = [(buffer, buffer.clone()) for buffer in self.network.buffers()]
        with torch.no_grad():
            terms = self.losses(batch, 0.0)
            for buffer, before in kept:
                buffer.copy_(before)
        return {name: term.counts for name, term in terms.items()}


@dataclass(frozen=True)
class LoopOptions:
    """Options of the loop (see `rrm.config.Training`); `device` is a torch device name.

    `batch_size` is that of the whole batch, over all its parts and all processes.
    """

    steps: int
    batch_size: int
    seed: int
    accumulate: int = 1
    precision: str = "float32"
    power: float = 0.9
    schedule: str = "poly"
    clip_gradient: float | None = None
    checkpoint_every: int = 200
    device: str = "cpu"
    compile: bool = False
    log_seconds: float = 10.0


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Seed of the random numbers of one step, in one of several processes.

    Example:
        >>> step_seed(0, 1) != step_seed(0, 2) and 0 <= step_seed(0, 1) < 2**63
        True
    """
    text = f"{seed}:{step}:{rank}" if rank else f"{seed}:{step}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def pick_device(name: str) -> str:
    """`"cpu"` or `"cuda"` for `"auto"`, `"cpu"` or `"cuda"`.

    Raises:
        RRMError: `"cuda"` asked for where torch sees no GPU.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise RRMError(
            "device: expected a GPU, torch sees none: set runtime.device to auto or cpu, or repair the driver"
        )
    return "cuda" if name != "cpu" and available else "cpu"


def take_device(runtime: Mapping[str, Any]) -> str:
    """The device of a stage's job; on a GPU after waiting for one that no other job on this machine has (`rrm.lease`).

    Args:
        runtime: `device`, for `pick_device`, and `share_gpus`, which takes a GPU that others may use
            (`rrm.config.Runtime`).

    Returns:
        `"cpu"` or `"cuda"`, torch's current device being the one that was taken.
    """
    device = pick_device(runtime["device"])
    if device == "cuda":
        take_gpu(runtime.get("share_gpus", False))
    return device


def autocast(device: str, precision: str) -> torch.autocast:
    """Mixed precision, on a GPU; the CPU computes in float32 whatever is asked for.

    Args:
        device: `"cpu"` or `"cuda"`.
        precision: `"float32"`, `"bfloat16"` or `"float16"`.
    """
    dtype = torch.float16 if precision == "float16" else torch.bfloat16
    return torch.autocast(device, dtype=dtype, enabled=device == "cuda" and precision != "float32")


def save_weights(path: Path, network: nn.Module, **facts: Any) -> None:
    """Write final weights with the facts that made them (options, code hash), atomically."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_torch(path, {"format": FORMAT, "weights": state, **facts})


def read_weights(path: Path) -> dict[str, Any]:
    """Read a file of `save_weights`; its checksums have to be right.

    Returns:
        Mapping with `weights` (name -> tensor on the CPU) and the facts.

    Raises:
        RRMError: unreadable, truncated, damaged or foreign file.
    """
    try:
        content = load_torch(path)
    except RRMError as error:
        raise RRMError(f"{error}: delete it and run the stage that writes it again") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise RRMError(
            f"{path}: expected format {FORMAT}, got another file: give weights written by this version of rrm"
        )
    return content


class Run:
    """Resume checkpoints and history of one training, in a folder named after everything that determines it.

    Args:
        folder: parent of the runs' folders.
        identity: options, code hash and digests of the inputs; a run never resumes from another identity's checkpoint.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        text = json.dumps(identity, sort_keys=True)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint = self.folder / "last.pth"
        self.history = self.folder / "history.jsonl"
        self._writer: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the resume checkpoint over the one before, atomically."""
        self.settle()
        save_torch(self.checkpoint, state)

    def save_behind(self, state: Mapping[str, Any]) -> None:
        """Copy the state and write it while training goes on: of a ResNet-38 it is a gigabyte, of which disks take
        seconds.
        """
        self.settle()
        self._writer = self._writer or ThreadPoolExecutor(1, thread_name_prefix="rrm-checkpoint")
        self._writing = self._writer.submit(save_torch, self.checkpoint, _copied(state))

    def settle(self) -> None:
        """Wait until the last checkpoint is on the disk.

        Raises:
            RRMError: it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def load(self) -> dict[str, Any] | None:
        """The resume checkpoint, or None where there is none that can be read."""
        if not self.checkpoint.exists():
            return None
        try:
            state: dict[str, Any] = load_torch(self.checkpoint)
        except RRMError as error:  # a damaged checkpoint costs time, not the result
            tell(f"{error}: starting from step 0")
            return None
        return state

    def keep_history_before(self, step: int) -> None:
        """Drop history lines of steps that will be done again, and all but the last one of each step."""
        if not self.history.exists():
            return
        lines = {_step_of(line): f"{line}\n" for line in self.history.read_text(errors="replace").splitlines()}
        with atomic_path(self.history) as temporary:
            temporary.write_text("".join(lines[each] for each in sorted(lines) if each in range(step)))


def _copied(state: Any) -> Any:
    """The same values, tensors copied to the CPU's memory."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {key: _copied(value) for key, value in state.items()}
    return [_copied(value) for value in state] if isinstance(state, list) else state


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return -1


class _StopRequest:
    """Turns SIGTERM into a flag that the loop reads between two steps."""

    def __init__(self) -> None:
        self.received = False

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = True


class _Recorder:
    """Scalars of each step to the progress lines, the JSONL history and TensorBoard, where it is installed."""

    def __init__(self, run: Run, start: int, progress: Progress) -> None:
        run.keep_history_before(start)
        self._progress, self._history = progress, run.history
        self._file = run.history.open("a", encoding="utf-8")
        self._board: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._board = SummaryWriter(str(run.folder), purge_step=start)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.close()
        self._file.close()
        if self._board is not None:
            self._board.close()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        with naming_what_failed(self._history):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        self._progress.update(1, values)


def _split(batch: Batch, parts: int) -> Iterator[Batch]:
    """Equal parts of a batch."""
    count = len(batch["images"])
    size = math.ceil(count / parts)
    for begin in range(0, count, size):
        yield {k: v[begin : begin + size] if isinstance(v, Tensor | list) else v for k, v in batch.items()}


def _summed(counts: Sequence[Counts]) -> Counts:
    """Counts of the whole batch: over the parts here and over all processes."""
    parts = [{name: each for name, each in part.items() if each is not None} for part in counts]
    here = {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}
    if not here:
        return {}
    sums = torch.split(total(torch.cat(list(here.values()))), [len(each) for each in here.values()])
    return dict(zip(here, sums, strict=True))


def _to_device(batch: Batch, device: str) -> Batch:
    moved = {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
    moved["images"] = moved["images"].contiguous(memory_format=torch.channels_last)
    return moved


@contextmanager
def _compiling(network: Any, wanted: bool) -> Iterator[None]:
    """Let `torch.compile` make the code of a network's parts, in place: names and values of weights stay.

    Raises:
        RRMError: there is no compiler, or it fails; code is made at the first call of a part with inputs of a new kind.
    """
    if not wanted:
        yield
        return
    try:
        for part in network.parts_to_compile():
            part.compile(**COMPILER)
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "triton")):
            raise
        first = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise RRMError(
            f"runtime.compile: expected torch.compile to work, got {first}: install what it misses (a C++ compiler and "
            "Python's headers; on a GPU Triton), or set it to false"
        ) from error


def _check_finite(terms: Mapping[str, float], step: int, run: Run) -> None:
    if all(math.isfinite(value) for value in terms.values()):
        return
    shown = ", ".join(f"{name} {value:.6g}" for name, value in terms.items())
    good = str(run.checkpoint) if run.checkpoint.exists() else "none yet"
    raise RRMError(
        f"training: expected finite losses, got {shown} at step {step}: lower the learning rate or look at the batch; "
        f"last good checkpoint: {good}"
    )


class _Stepper:
    """One optimiser step: forward and backward over the parts of a batch, in the precision asked for."""

    def __init__(self, task: Task, optimizer: torch.optim.Optimizer, options: LoopOptions) -> None:
        self.task, self.optimizer, self.options = task, optimizer, options
        scaled = options.device == "cuda" and options.precision == "float16"
        self.scaler = torch.amp.GradScaler(options.device, enabled=scaled)

    def __call__(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Make the gradients of a step; gives what this process adds to each term, float64."""
        torch.manual_seed(step_seed(self.options.seed, step, rank()))
        self.optimizer.zero_grad(set_to_none=True)
        with record_function("rrm.transfer"):
            batch = _to_device(batch, self.options.device)
        parts = list(_split(batch, self.options.accumulate))
        whole = None
        if len(parts) > 1:
            with self._autocast():
                parts = [self.task.prepare(part) for part in parts]
            whole = self._counts(parts)
        sums: dict[str, Tensor] = {}
        for part in parts:
            with self._autocast():
                terms = self.task.losses(part, step / self.options.steps)
            if whole is None:
                whole = _summed([{name: term.counts for name, term in terms.items()}])
            added = {name: term.part(whole.get(name)).float() for name, term in terms.items()}
            with record_function("rrm.backward"):
                self.scaler.scale(torch.stack(list(added.values())).sum()).backward()  # type: ignore[no-untyped-call]
            for name, value in added.items():
                sums[name] = sums.get(name, 0) + value.detach().double()
        sum_gradients(self.task.network.parameters())
        average_statistics(self.task.network)
        return sums

    def _autocast(self) -> torch.autocast:
        return autocast(self.options.device, self.options.precision)

    def _counts(self, parts: Sequence[Batch]) -> Counts:
        """Counts of the whole batch before the losses of its parts; these draw the same random numbers as without."""
        devices = [torch.cuda.current_device()] if self.options.device == "cuda" else []
        with torch.random.fork_rng(devices), self._autocast():
            return _summed([self.task.counts(part) for part in parts])

    def apply(self) -> None:
        """Use the gradients of the last call."""
        if self.options.clip_gradient is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.task.network.parameters(), self.options.clip_gradient)
        self.scaler.step(self.optimizer)
        self.scaler.update()


def _state(task: Task, stepper: _Stepper, step: int) -> dict[str, Any]:
    return {
        "step": step,
        "network": task.network.state_dict(),
        "optimizer": stepper.optimizer.state_dict(),
        "scaler": stepper.scaler.state_dict(),
    }


def _resume(task: Task, stepper: _Stepper, run: Run) -> int:
    state = run.load()
    step = 0 if state is None else int(state["step"])
    if not same_everywhere(step):
        raise RRMError(
            f"{run.checkpoint}: expected the same checkpoint in all {processes()} processes, got another one: write to "
            "a file system that all machines share"
        )
    if state is not None:
        task.network.load_state_dict(state["network"])
        stepper.optimizer.load_state_dict(state["optimizer"])
        stepper.scaler.load_state_dict(state["scaler"])
    return step


class _Agreed:
    """Terms of the whole batch, and whether any process was told to stop.

    On a GPU they are on their way to the host, which has more to do; reading them waits for nothing that comes later.
    """

    def __init__(self, terms: Mapping[str, Tensor], stop: bool) -> None:
        self._names = list(terms)
        numbers = total(torch.stack([*terms.values(), next(iter(terms.values())).new_full((), stop)]))
        self._there: Any = None
        if numbers.is_cuda:
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._there = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._there.record()
        else:
            self._numbers = numbers

    def read(self) -> tuple[dict[str, float], bool]:
        """The terms by name, and whether to stop."""
        if self._there is not None:
            self._there.synchronize()
        *values, stops = self._numbers.tolist()
        return dict(zip(self._names, values, strict=True)), stops > 0


def fit(
    task: Task,
    batches: Callable[[int], Iterable[Batch]],
    optimizer: torch.optim.Optimizer,
    options: LoopOptions,
    run: Run,
    name: str = "training",
) -> None:
    """Train `task.network` in place for `options.steps` steps, from the run's checkpoint where there is one.

    Of several processes (`rrm.distributed.joined`) the first one writes; the networks of all stay the same.

    Args:
        task: network and losses.
        batches: called with the first step that is still to be done; yields that step's batch and those after it, each
            this process's part of it.
        optimizer: groups as made by `rrm.schedules.build_optimizer`.
        options: see `LoopOptions`.
        run: where checkpoints and history go.
        name: shown in progress lines.

    Raises:
        RRMError: a loss is not finite; the message has the step, the terms and the last good checkpoint. The network is
            then spoilt. Or `options.compile` where `torch.compile` does not work.
        SystemExit: code 143 after SIGTERM to any of the processes, once the state is on disk.
    """
    if options.device == "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    task.network.to(options.device, memory_format=torch.channels_last)
    task.network.train()
    share_batch_norm(task.network, options.device)
    stepper = _Stepper(task, optimizer, options)
    start = _resume(task, stepper, run)
    if start:
        tell(f"{name}: goes on after step {start}")
    with ExitStack() as stack:
        stack.enter_context(_compiling(task.network, options.compile))
        stop = stack.enter_context(_StopRequest())
        stack.callback(run.settle)
        recorder = stack.enter_context(_recorder(run, start, options, name)) if is_first() else None
        for step, batch in zip(range(start, options.steps), batches(start), strict=False):
            lr = set_learning_rate(optimizer, step, options.steps, options.power, schedule=options.schedule)
            with record_function("rrm.step"):
                agreed = _Agreed(stepper(batch, step), stop.received)
                with record_function("rrm.optimizer"):
                    stepper.apply()
                terms, stopping = agreed.read()
                _check_finite(terms, step, run)
            done = step + 1
            if recorder is not None:
                recorder.add(step, {**terms, "lr": lr})
                if stopping or done == options.steps:
                    run.save(_state(task, stepper, done))
                elif done % options.checkpoint_every == 0:
                    run.save_behind(_state(task, stepper, done))
            if stopping and done < options.steps:
                meet()  # torchrun ends all as soon as one has ended, and the first may still be writing
                tell(f"{name}: stopped by SIGTERM after step {done}; the same command goes on from there")
                raise SystemExit(143)


def _recorder(run: Run, start: int, options: LoopOptions, name: str) -> _Recorder:
    progress = Progress(name, options.steps, done=start, seconds=options.log_seconds, unit_size=options.batch_size)
    return _Recorder(run, start, progress)
