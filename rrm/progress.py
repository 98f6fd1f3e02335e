"""Progress of long work: a bar on a terminal, one plain line every few seconds elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def say(text: str = "", end: str = "\n") -> None:
    """Print a line on standard error. Once nobody can read it, nothing that goes there ends the work.

    A batch system sends SIGTERM to `tee` as well, and a line that comes after that has no reader: the state of a
    training has still to be saved. Nor does what Python keeps to write at the end then change the exit code.
    """
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except OSError:
        with suppress(OSError), open(os.devnull, "w") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), sys.stderr.fileno())


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


class Progress:
    """Reports steps done, values, rate and time left on standard error.

    Args:
        name: what is going on, at the start of each line.
        total: number of steps.
        done: steps already done, when work is resumed.
        seconds: least time between two lines where there is no terminal.
        unit_size: images a step, for the rate.

    Example:
        >>> progress = Progress("pack", total=2, seconds=60)
        >>> progress.update(1, {"loss": 0.5}); progress.close()
    """

    def __init__(self, name: str, total: int, *, done: int = 0, seconds: float = 10.0, unit_size: int = 1) -> None:
        self.name, self.total, self.done, self.seconds, self.unit_size = name, total, done, seconds, unit_size
        self._start = self._last = time.monotonic()
        self._first = done
        self._bar = tqdm(total=total, initial=done, desc=name, dynamic_ncols=True) if sys.stderr.isatty() else None

    def update(self, steps: int = 1, values: Mapping[str, float] | None = None) -> None:
        """Count `steps` more, with values worth showing."""
        self.done += steps
        if self._bar is not None:
            self._bar.set_postfix({k: f"{v:.4g}" for k, v in (values or {}).items()}, refresh=False)
            self._bar.update(steps)
        elif time.monotonic() - self._last >= self.seconds or self.done >= self.total:
            self._last = time.monotonic()
            self.line(values or {})

    def line(self, values: Mapping[str, float]) -> None:
        """Print one plain line."""
        spent = max(time.monotonic() - self._start, 1e-9)
        rate = (self.done - self._first) / spent
        left = _clock((self.total - self.done) / rate) if rate else "?"
        shown = "".join(f"  {k} {v:.4g}" for k, v in values.items())
        say(f"{self.name}  {self.done}/{self.total}{shown}  {rate * self.unit_size:.1f} images/s  ETA {left}")

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()


def tracked(items: Iterable[Item], name: str, total: int, seconds: float = 10.0) -> Iterator[Item]:
    """Yield `items`, reporting progress.

    Example:
        >>> list(tracked([1, 2], "count", 2, seconds=60))
        [1, 2]
    """
    progress = Progress(name, total, seconds=seconds)
    try:
        for item in items:
            yield item
            progress.update()
    finally:
        progress.close()
