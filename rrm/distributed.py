"""Training in several processes, one a GPU, started by torchrun: who is who, sums over all, and ends that hang nobody.

Each process has its part of each batch. Gradients are added up here, one reduction of large buckets after the backward
pass, and not by `DistributedDataParallel`: that wants every call of the network to go through its own `forward`, where
the tasks call several methods, some without gradients, and a split batch has several backward passes.

With one process, everything here does nothing.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from rrm.errors import RRMError
from rrm.lease import FOLDER, choosing, give_back, hold, lease, too_few_gpus
from rrm.progress import say

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others, which may be writing a checkpoint or compiling a kernel."""
_BUCKET = 8 * 2**20  # numbers
_BATCH_NORM = nn.modules.batchnorm._BatchNorm
_STORE: list[Any] = []  # the one of this process, once it has joined the others


def processes() -> int:
    """Number of processes of this training, from the variables that torchrun sets; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", "0")) if processes() > 1 else 0


def is_first() -> bool:
    """Whether this is the process that writes files and progress lines.

    Example:
        >>> is_first(), processes()
        (True, 1)
    """
    return rank() == 0


def processes_here() -> int:
    """Number of processes of this training on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if processes() > 1 else 1


def tell(text: str) -> None:
    """Print a line on standard error, once for all processes."""
    if is_first():
        say(text)


@contextmanager
def joined(device: str, shared: bool = False) -> Iterator[None]:
    """Meet the other processes, and part from them at the end.

    On GPUs each process gets one of its own as torch's current device, leased for as long as it lives, and NCCL;
    elsewhere Gloo. A process ends when torchrun does, whatever ended that.

    Args:
        device: `"cpu"` or `"cuda"`.
        shared: take the GPUs of the processes' numbers, whether other jobs use them or not.

    Raises:
        RRMError: more processes than GPUs, or the variables that torchrun sets are incomplete.
    """
    if processes() == 1:
        yield
        return
    if device == "cuda" and torch.cuda.device_count() < processes_here():
        raise too_few_gpus(torch.cuda.device_count(), processes_here())
    threading.Thread(target=_end_with_launcher, args=(os.getppid(),), daemon=True).start()
    try:
        store, number, size = next(rendezvous("env://", timeout=TIMEOUT))
    except (ValueError, RuntimeError) as error:
        raise RRMError(f"processes: expected to be started by torchrun, got WORLD_SIZE alone ({error})") from None
    _STORE[:] = [store]
    if device == "cuda":
        _take_gpu(store, shared)
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        store=dist.PrefixStore("training", store),  # type: ignore[attr-defined]
        rank=number,
        world_size=size,
        timeout=TIMEOUT,
    )
    try:
        yield
    except SystemExit:  # agreed upon by all
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()  # not after an error: it would wait for processes that wait for this one


def take_gpu(shared: bool = False) -> None:
    """Make a GPU that no other job has leased torch's current device, where `joined` has not done so already.

    Args:
        shared: leave torch's choice, whether other jobs use that GPU or not.
    """
    if processes() == 1 and not shared:
        torch.cuda.set_device(lease(visible_gpus())[0])


def visible_gpus() -> list[str]:
    """UUIDs of the GPUs that torch sees, in its order; `CUDA_VISIBLE_DEVICES` is respected."""
    return [str(torch.cuda.get_device_properties(place).uuid) for place in range(torch.cuda.device_count())]


def _take_gpu(store: Any, shared: bool) -> None:
    cards, place = visible_gpus(), int(os.environ["LOCAL_RANK"])
    if not shared:
        place = leased_together(store, cards, place, processes_here())
    torch.cuda.set_device(place)


def leased_together(store: Any, cards: Sequence[str], place: int, wanted: int, folder: Path = FOLDER) -> int:
    """Lease a GPU for each of the processes of a training on one machine, all at once.

    The first one waits for them and gives them to the others while nobody else can choose, so that each process holds
    the lease of its own until it ends.

    Args:
        store: torch's, which all processes see.
        cards: names, as for `rrm.lease.lease`.
        place: number of this process on its machine, from 0.
        wanted: number of processes on this machine.
        folder: where the lock files lie.

    Returns:
        The place of this process's card in `cards`.
    """
    machine = dist.PrefixStore(f"lease{os.environ.get('GROUP_RANK', '0')}", store)  # type: ignore[attr-defined]
    if place:
        _until(lambda: machine.check(["places"]))
        own = json.loads(machine.get("places"))[place]
        hold(cards[own], folder)
        machine.add("held", 1)
        return int(own)
    with choosing(cards, wanted, folder) as places:
        for other in places[1:]:
            give_back(cards[other], folder)
        machine.set("places", json.dumps(places))
        _until(lambda: machine.add("held", 0) == wanted - 1)
    return places[0]


def _until(ready: Callable[[], bool]) -> None:
    """Wait without end: a process that waits for one that is gone ends with torchrun."""
    while not ready():
        time.sleep(0.2)


def _end_with_launcher(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(1)
    os._exit(1)


def first_to_fail() -> bool:
    """Whether this process is the first one to ask, so that the message of one fault is printed once."""
    if not _STORE:
        return is_first()
    try:
        return bool(_STORE[0].add("failures", 1) == 1)
    except RuntimeError:  # torchrun is gone
        return True


@contextmanager
def _together() -> Iterator[None]:
    """What all processes do at once: where one is gone, or does not come, the others end too."""
    try:
        yield
    except RuntimeError as error:
        first = str(error).splitlines()[0][:120]
        raise RRMError(
            f"processes: expected all {processes()} to go on, process {rank()} lost another one ({first}): look for "
            "what ended that; the same command goes on from the last checkpoint"
        ) from None


def total(numbers: Tensor) -> Tensor:
    """Sum over all processes.

    Args:
        numbers: of the same shape and dtype in each process, on its device.

    Returns:
        The sum; `numbers` themselves with one process.
    """
    if processes() == 1:
        return numbers
    result = numbers.clone()
    with _together():
        dist.all_reduce(result)
    return result


def same_everywhere(number: int) -> bool:
    """Whether all processes give the same number."""
    if processes() == 1:
        return True
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    ends = torch.tensor([number, -number], device=device)
    with _together():
        dist.all_reduce(ends, op=dist.ReduceOp.MAX)
    return bool(ends[0] == -ends[1])


def meet() -> None:
    """Wait until all processes are here."""
    if processes() > 1:
        with _together():
            dist.barrier()


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Put into each gradient its sum over all processes; the same parameters have one in each."""
    if processes() > 1:
        _sum_in_buckets([parameter.grad for parameter in parameters if parameter.grad is not None])


def average_statistics(network: nn.Module) -> None:
    """Put into the running statistics of batch norm that trains their mean over all processes.

    Those of `SyncBatchNorm` are the same everywhere already.
    """
    if processes() == 1:
        return
    layers = [layer for layer in network.modules() if isinstance(layer, _BATCH_NORM) and layer.training]
    own = [layer for layer in layers if not isinstance(layer, nn.SyncBatchNorm)]
    running = [b for layer in own for b in (layer.running_mean, layer.running_var) if b is not None]
    _sum_in_buckets(running)
    for statistic in running:
        statistic.div_(processes())


def share_batch_norm(network: nn.Module, device: str) -> None:
    """Let batch norm that trains see the batch of all processes, in place; on GPUs, for torch has that for no other."""
    if processes() > 1 and device == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]


def _sum_in_buckets(tensors: list[Tensor]) -> None:
    """Replace each tensor by its sum over all processes; a few large reductions are faster than many small ones."""
    bucket: list[Tensor] = []
    for place, tensor in enumerate(tensors):
        bucket.append(tensor)
        if place + 1 == len(tensors) or sum(each.numel() for each in bucket) >= _BUCKET:
            sums = total(torch.cat([each.flatten() for each in bucket]))
            for each, part in zip(bucket, torch.split(sums, [each.numel() for each in bucket]), strict=True):
                each.copy_(part.view_as(each))
            bucket = []
