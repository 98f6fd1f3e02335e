"""The one exception that users meet: its message is the whole report, printed without a traceback."""

from __future__ import annotations

from collections.abc import Sequence


class RRMError(Exception):
    """Bad input, configuration or state. The message says what, expected, got and what to do.

    Example:
        >>> str(RRMError("crop: expected a multiple of 8, got 13: choose 8 or 16"))
        'crop: expected a multiple of 8, got 13: choose 8 or 16'
    """


class RRMErrors(RRMError):
    """Several faults found in one pass, all of them in the message, one a line.

    Args:
        title: what was being checked.
        faults: one message each; at least one.

    Example:
        >>> error = RRMErrors("packing demo", ["a.jpg: missing", "b.jpg: truncated"])
        >>> len(error.faults)
        2
    """

    def __init__(self, title: str, faults: Sequence[str]) -> None:
        self.faults = list(faults)
        lines = "\n".join(f"  - {fault}" for fault in self.faults)
        super().__init__(f"{title}: {len(self.faults)} fault(s)\n{lines}")
