"""The one exception that users meet: its message is the whole report, printed without a traceback."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NO_MEMORY = re.compile("out of memory|not enough memory|allocate (shared )?memory")

_LONGEST = 4000  # characters of a line


class RRMError(Exception):
    r"""Bad input, configuration or state. The message says what, expected, got and what to do.

    Messages name what files hold: characters that would change a terminal are written as escapes, and what is too long
    is cut.

    Example:
        >>> str(RRMError("crop: expected a multiple of 8, got 13: choose 8 or 16"))
        'crop: expected a multiple of 8, got 13: choose 8 or 16'
        >>> print(RRMError("a\x1b[2J.jpg: expected a photo"))
        a\x1b[2J.jpg: expected a photo
    """

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(map(_printable, message.split("\n"))))


def _printable(line: str) -> str:
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
    return line if line.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


_SHOWN = 20  # faults that a message shows: one cause often has thousands of them


class RRMErrors(RRMError):
    """Several faults found in one pass: all of them in `faults`, the first 20 in the message, one a line.

    Args:
        title: what was being checked.
        faults: one message each; at least one.

    Example:
        >>> error = RRMErrors("packing demo", ["a.jpg: missing", "b.jpg: truncated"])
        >>> len(error.faults)
        2
        >>> str(RRMErrors("packing", [f"{k}.jpg: missing" for k in range(23)])).endswith("and 3 more")
        True
    """

    def __init__(self, title: str, faults: Sequence[str]) -> None:
        self.faults = list(faults)
        lines = [f"  - {fault}" for fault in self.faults[:_SHOWN]]
        lines += [f"  ... and {len(self.faults) - _SHOWN} more"] * (len(self.faults) > _SHOWN)
        super().__init__("\n".join([f"{title}: {len(self.faults)} fault(s)", *lines]))


def memory_fault(error: BaseException) -> str | None:
    """First line of an error of Python, NumPy or torch that says that memory ran out; None for any other error.

    Example:
        >>> memory_fault(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB."))
        'CUDA out of memory. Tried to allocate 2 GiB.'
        >>> memory_fault(RuntimeError("CUDA error: an illegal memory access was encountered"))
    """
    if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
        return None
    return (str(error).splitlines() or ["MemoryError"])[0][:120]
