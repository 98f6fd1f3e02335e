"""The one training loop, for every stage that trains: seeded, resumable to the bit, mixed precision on a GPU.

Batch k, its augmentation and the random numbers of step k (dropout) are functions of (seed, k) alone. So the network,
the optimiser and the step are the whole state: a run that was killed at any moment goes on from its last checkpoint to
the same weights as an undisturbed one (on the CPU, to the bit).
"""

from __future__ import annotations

import hashlib
import json
import math
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from rrm.errors import RRMError
from rrm.progress import Progress
from rrm.schedules import set_learning_rate
from rrm.store import atomic_path

FORMAT = "rrm-weights-1"
Batch = dict[str, Any]


class Task(Protocol):
    """What is trained: a network and the loss terms of one batch."""

    network: nn.Module

    def losses(self, batch: Batch, progress: float) -> Mapping[str, Tensor]:
        """Loss terms whose sum is minimised; `progress` is the share of the steps done, 0..1."""
        ...


@dataclass(frozen=True)
class LoopOptions:
    """Options of the loop (see `rrm.config.Training`); `device` is a torch device name."""

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
    log_seconds: float = 10.0


def step_seed(seed: int, step: int) -> int:
    """Seed of the random numbers of one step.

    Example:
        >>> step_seed(0, 1) != step_seed(0, 2) and 0 <= step_seed(0, 1) < 2**63
        True
    """
    digest = hashlib.blake2b(f"{seed}:{step}".encode(), digest_size=8).digest()
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


def save_weights(path: Path, network: nn.Module, **facts: Any) -> None:
    """Write final weights with the facts that made them (options, code hash), atomically."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with atomic_path(path) as temporary:
        torch.save({"format": FORMAT, "weights": state, **facts}, temporary)


def read_weights(path: Path) -> dict[str, Any]:
    """Read a file of `save_weights` without unpickling anything but tensors and plain values.

    Returns:
        Mapping with `weights` (name -> tensor on the CPU) and the facts.

    Raises:
        RRMError: unreadable, truncated or foreign file.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged files
        first = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise RRMError(
            f"{path}: expected weights written by rrm, got an unreadable file ({first}): make it again"
        ) from None
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

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the resume checkpoint over the one before, atomically."""
        with atomic_path(self.checkpoint) as temporary:
            torch.save(dict(state), temporary)

    def load(self) -> dict[str, Any] | None:
        """The resume checkpoint, or None where there is none that can be read."""
        if not self.checkpoint.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged checkpoint costs time, not the result
            print(f"{self.checkpoint}: not readable ({type(error).__name__}): starting from step 0", file=sys.stderr)
            return None
        return state

    def keep_history_before(self, step: int) -> None:
        """Drop history lines of steps that will be done again."""
        if not self.history.exists():
            return
        lines = [line for line in self.history.read_text().splitlines() if _step_of(line) in range(step)]
        with atomic_path(self.history) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines))


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
    """Scalars of each step to the JSONL history and to TensorBoard, where it is installed."""

    def __init__(self, run: Run, start: int) -> None:
        run.keep_history_before(start)
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
        self._file.close()
        if self._board is not None:
            self._board.close()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)


def _split(batch: Batch, parts: int) -> Iterable[tuple[Batch, float]]:
    """Equal parts of a batch, each with its share of the images."""
    count = len(batch["images"])
    size = math.ceil(count / parts)
    for begin in range(0, count, size):
        end = min(begin + size, count)
        cut = {k: v[begin:end] if isinstance(v, Tensor | list) else v for k, v in batch.items()}
        yield cut, (end - begin) / count


def _to_device(batch: Batch, device: str) -> Batch:
    moved = {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
    moved["images"] = moved["images"].contiguous(memory_format=torch.channels_last)
    return moved


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
        self.half = options.device == "cuda" and options.precision != "float32"
        self.dtype = torch.float16 if options.precision == "float16" else torch.bfloat16
        self.scaler = torch.amp.GradScaler(options.device, enabled=self.half and self.dtype == torch.float16)

    def __call__(self, batch: Batch, step: int) -> dict[str, float]:
        options = self.options
        torch.manual_seed(step_seed(options.seed, step))
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        with record_function("rrm.transfer"):
            batch = _to_device(batch, options.device)
        for part, share in _split(batch, options.accumulate):
            with torch.autocast(options.device, dtype=self.dtype, enabled=self.half):
                terms = self.task.losses(part, step / options.steps)
            with record_function("rrm.backward"):
                total = torch.stack([term.float() for term in terms.values()]).sum()
                self.scaler.scale(total * share).backward()  # type: ignore[no-untyped-call]
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + float(term.detach()) * share
        return sums

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
    if state is None:
        return 0
    task.network.load_state_dict(state["network"])
    stepper.optimizer.load_state_dict(state["optimizer"])
    stepper.scaler.load_state_dict(state["scaler"])
    return int(state["step"])


def fit(
    task: Task,
    batches: Callable[[int], Iterable[Batch]],
    optimizer: torch.optim.Optimizer,
    options: LoopOptions,
    run: Run,
    name: str = "training",
) -> None:
    """Train `task.network` in place for `options.steps` steps, from the run's checkpoint where there is one.

    Args:
        task: network and losses.
        batches: called with the first step that is still to be done; yields that step's batch and those after it.
        optimizer: groups as made by `rrm.schedules.build_optimizer`.
        options: see `LoopOptions`.
        run: where checkpoints and history go.
        name: shown in progress lines.

    Raises:
        RRMError: a loss is not finite; the message has the step, the terms and the last good checkpoint.
        SystemExit: code 143 after SIGTERM, once the state is on disk.
    """
    if options.device == "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    task.network.to(options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    task.network.train()
    stepper = _Stepper(task, optimizer, options)
    start = _resume(task, stepper, run)
    progress = Progress(name, options.steps, done=start, seconds=options.log_seconds, unit_size=options.batch_size)
    with ExitStack() as stack:
        stack.callback(progress.close)
        stop = stack.enter_context(_StopRequest())
        recorder = stack.enter_context(_Recorder(run, start))
        for step, batch in zip(range(start, options.steps), batches(start), strict=False):
            lr = set_learning_rate(optimizer, step, options.steps, options.power, schedule=options.schedule)
            with record_function("rrm.step"):
                terms = stepper(batch, step)
                _check_finite(terms, step, run)
                with record_function("rrm.optimizer"):
                    stepper.apply()
            recorder.add(step, {**terms, "lr": lr})
            progress.update(1, {**terms, "lr": lr})
            done = step + 1
            if done % options.checkpoint_every == 0 or done == options.steps or stop.received:
                run.save(_state(task, stepper, done))
            if stop.received and done < options.steps:
                print(
                    f"{name}: stopped by SIGTERM after step {done}; the same command goes on from there",
                    file=sys.stderr,
                )
                raise SystemExit(143)
