"""Processes: how each one is set up, and work over images in several of them, or in batches, with results in order.

Results are the same for any number of processes.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from multiprocessing.util import Finalize
from types import TracebackType
from typing import Self, TypeVar

from rrm.errors import RRMError

_THREADS: dict[int, ThreadPoolExecutor] = {}
_RANGES = 2  # for each thread
_FULL = 3  # full batches among which alike items are looked for
WINDOW = 64
"""Consecutive items among which alike ones are looked for at most; a window begins at each multiple of it."""
Item = TypeVar("Item")
Result = TypeVar("Result")


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc


def prepare_process(threads: int) -> None:
    """Set the threads of numeric libraries, and let the C library keep freed memory.

    By default glibc gives every large block back to the kernel, so each activation of a network is paged in anew: with
    MobileNetV2 on 16 crops of 256 pixels that was 0.6 of 1.0 seconds. Elsewhere than on Linux only the threads are set.

    Args:
        threads: >= 1.
    """
    import torch  # here: Snakemake reads this module for each call, and torch takes two seconds

    torch.set_num_threads(threads)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(_M_MMAP_MAX, 0)
            libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
            libc.mallopt(_M_TOP_PAD, 64 << 20)


def run_ranges(work: Callable[[int, int], Result], size: int, threads: int, parts: int | None = None) -> list[Result]:
    """Call `work(start, stop)` on ranges that cover 0..size, in several threads.

    The caller's thread and helpers take range after range. A helper that gets no processor on a busy machine takes
    none, so nobody waits for it.

    Args:
        work: releases Python's lock, and touches nothing that another range does, and no GPU.
        size: >= 0.
        threads: 1 or less works in the caller's thread, on a single range.
        parts: number of ranges; None gives a few a thread.

    Returns:
        Results in the order of the ranges.

    Example:
        >>> run_ranges(lambda start, stop: (start, stop), 8, 2)
        [(0, 2), (2, 4), (4, 6), (6, 8)]
    """
    if threads <= 1:
        return [work(0, size)]
    if threads not in _THREADS:
        _THREADS[threads] = ThreadPoolExecutor(threads - 1, thread_name_prefix="rrm-range")
    parts = min(size, _RANGES * threads if parts is None else parts)
    edges = [size * part // parts for part in range(parts + 1)]
    results: dict[int, Result] = {}
    numbers = iter(range(parts))

    def take() -> None:
        for part in numbers:  # one step of a range's iterator is atomic
            results[part] = work(edges[part], edges[part + 1])

    helpers = [_THREADS[threads].submit(take) for _ in range(threads - 1)]
    try:
        take()
    finally:
        running = [helper for helper in helpers if not helper.cancel()]
        wait(running)
    for helper in running:
        helper.result()
    return [results[part] for part in range(parts)]


def map_in_threads(function: Callable[[Item], Result], items: Sequence[Item], threads: int) -> list[Result]:
    """Apply a function that releases Python's lock to items, in several threads.

    Args:
        function: may use `run_ranges`.
        items: any number.
        threads: 1 or less works in the caller's thread.

    Returns:
        Results in the order of the items.

    Example:
        >>> map_in_threads(abs, [-1, 2], 2)
        [1, 2]
    """

    def several(start: int, stop: int) -> list[Result]:
        return [function(items[item]) for item in range(start, stop)]

    done = run_ranges(several, len(items), min(threads, len(items)), parts=len(items))
    return [result for results in done for result in results]


def _one_thread(name: str) -> ThreadPoolExecutor:
    """A thread with the current GPU of the one that asks for it: CUDA has one for each thread, at first the first."""
    cuda = sys.modules.get("torch.cuda")
    if cuda is None or not cuda.is_initialized():
        return ThreadPoolExecutor(1, name)
    return ThreadPoolExecutor(1, name, cuda.set_device, (cuda.current_device(),))


def prefetched(items: Iterable[Item], ahead: int = 1) -> Iterator[Item]:
    """Yield items that a thread of their own takes from `items` meanwhile; it uses the caller's current GPU.

    Args:
        items: what takes long in there should release Python's lock, as files and a GPU do.
        ahead: how many are taken before they are asked for, >= 1.

    Example:
        >>> list(prefetched(iter("abc")))
        ['a', 'b', 'c']
    """
    source, end = iter(items), object()
    thread = _one_thread("rrm-ahead")
    waiting = deque(thread.submit(next, source, end) for _ in range(ahead))
    try:
        while (item := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, source, end))
            yield item  # type: ignore[misc]
    finally:
        thread.shutdown(cancel_futures=True)


def map_alike(
    function: Callable[[list[Item]], Iterable[Result]],
    items: Iterable[Item],
    kind: Callable[[Item], Hashable],
    size: Callable[[Item], int],
    most: int,
) -> Iterator[Result]:
    """Apply a function to batches of items of one kind; results come in the order of the items.

    Items are taken in one thread and worked on in another, so neither waits for who takes the results. Which items
    share a batch depends on those between two multiples of `WINDOW` only.

    Args:
        function: gives a result for each item of a batch.
        items: any number.
        kind: which items may share a batch.
        size: of an item.
        most: sum of the sizes in a batch; an item that is larger is alone. A few times as much is held.

    Example:
        >>> list(map_alike(lambda words: [len(words)] * len(words), ["a", "bb", "c"], len, len, 8))
        [2, 1, 2]
    """

    def worked_on(window: list[Item]) -> list[Result]:
        alike: dict[Hashable, list[int]] = {}
        for place, item in enumerate(window):
            alike.setdefault(kind(item), []).append(place)
        results: dict[int, Result] = {}
        for places in alike.values():
            for batch in filled(places, lambda place: size(window[place]), most):
                results.update(zip(batch, function([window[place] for place in batch]), strict=True))
        return [results[place] for place in range(len(window))]

    windows = prefetched(filled(items, size, _FULL * most, WINDOW))
    for results in prefetched(map(worked_on, windows)):
        yield from results


def filled(
    items: Iterable[Item], size: Callable[[Item], int], most: int, window: int | None = None
) -> Iterator[list[Item]]:
    """Consecutive items in lists whose sizes sum to `most` at most; an item that is larger is alone.

    Args:
        items: any number; one more than is given is taken.
        size: of an item.
        most: in a list.
        window: no list goes beyond a multiple of so many items. None: any may.

    Example:
        >>> list(filled(["a", "bb", "c"], len, 3))
        [['a', 'bb'], ['c']]
    """
    held: list[Item] = []
    total = 0
    for number, item in enumerate(items):
        if held and (total + size(item) > most or (window is not None and number % window == 0)):
            yield held
            held, total = [], 0
        held.append(item)
        total += size(item)
    if held:
        yield held


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_THREADS.clear)  # a forked process has none of these threads


def prepare_worker(number: int = 0) -> None:
    """Set up a process that works for another one: one thread; signals are the parent's affair.

    A batch system sends signals to the whole group, and a trainer still needs its workers for the step it is in. A
    worker ends with its parent, whatever ended that.

    Args:
        number: not used; `DataLoader` gives each of its workers one.
    """
    del number
    prepare_process(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.excepthook = _tell_fault


def _tell_fault(kind: type[BaseException], fault: BaseException, trace: TracebackType | None) -> None:
    """As Python does, but for the thread that hands batches over: its parent has ended while it took one."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, fault, trace)


def end_workers() -> None:
    """Kill the processes that work for this one: they ignore SIGTERM, and may wait for what a dead one held."""
    for worker in multiprocessing.active_children():
        worker.kill()


@cache
def end_workers_at_exit() -> None:
    """Kill what `prepare_worker` set up and is left when Python ends: it sends SIGTERM to them, and waits for ever."""
    Finalize(None, _end_daemons, exitpriority=0)


def _end_daemons() -> None:
    for worker in multiprocessing.active_children():
        if worker.daemon:
            worker.kill()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class WorkerPool:
    """Processes that apply a function to items; with 0 workers the calling process does it.

    Args:
        workers: number of processes, >= 0. They start at the first use.

    Example:
        >>> with WorkerPool(0) as pool:
        ...     list(pool.map(abs, [-1, 2]))
        [1, 2]
    """

    def __init__(self, workers: int) -> None:
        if workers < 0:
            raise RRMError(f"workers: expected 0 or more processes, got {workers}")
        self.workers = workers
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield `function(item)` in the order of the items, a few items ahead.

        Args:
            function: importable by name, or a picklable object.
            items: may be a generator; it is read at most three items a worker ahead.

        Raises:
            RRMError: a worker died (killed, or out of memory).
        """
        if self.workers == 0:
            yield from map(function, items)
            return
        executor = self._started()
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(executor.submit(function, item))
                if len(waiting) >= 3 * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            end_workers()
            self.close()
            raise RRMError(
                "workers: expected all processes to live, one died (killed, or out of memory): the same command starts "
                "this stage again; with fewer runtime.crf_workers if memory was short"
            ) from None

    def _started(self) -> ProcessPoolExecutor:
        if self._executor is None:
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self.workers, mp_context=context, initializer=prepare_worker)
        return self._executor

    def close(self) -> None:
        """End the processes."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None
