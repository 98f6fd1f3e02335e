"""Videos as photos: their frames, upright and as RGB of 8 bits. PyAV decodes them, which is an optional extra."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from rrm.errors import RRMError
from rrm.photos import MAX_PIXELS, Photo

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg")
"""Names of files that are taken for videos, in small or capital letters."""


def is_video(path: Path) -> bool:
    """True if a file has the name of a video.

    Example:
        >>> is_video(Path("clip.MP4")), is_video(Path("photo.jpg"))
        (True, False)
    """
    return path.suffix.lower() in SUFFIXES


def check_every(every: int) -> None:
    """Refuse steps below one frame.

    Example:
        >>> check_every(0)
        Traceback (most recent call last):
        ...
        rrm.errors.RRMError: every: expected at least 1 frame, got 0: use 25 for about one a second
    """
    if every < 1:
        raise RRMError(f"every: expected at least 1 frame, got {every}: use 25 for about one a second")


def frames(path: Path, every: int = 1, max_pixels: int = MAX_PIXELS) -> Iterator[tuple[int, Callable[[], Photo]]]:
    """Every n-th frame of a video's first picture stream, in the order in which they are shown.

    All frames are decoded, so that the numbers are right for any video; only those that are asked for are converted.

    Args:
        path: the video.
        every: 1 for all frames, n for frames 0, n, 2n and so on.
        max_pixels: most pixels of a frame.

    Yields:
        The frame's number, from 0 on, and a function that gives its photo, (H,W,3) uint8 RGB, turned as the video says.

    Raises:
        RRMError: a file that is no video or is damaged, when the damaged place is met; frames that are too large; PyAV
            is not installed.

    Example:
        >>> list(frames(Path("none.mp4")))
        Traceback (most recent call last):
        ...
        rrm.errors.RRMError: none.mp4: expected a video, got no file: check the path
    """
    check_every(every)
    with _opened(path) as (container, stream):
        if stream.width * stream.height > max_pixels:
            raise RRMError(
                f"{path}: expected at most {max_pixels} pixels a frame, got {stream.width} x {stream.height}: make it "
                "smaller or raise max_pixels"
            )
        stream.thread_type = "AUTO"
        for number, frame in islice(enumerate(container.decode(stream)), 0, None, every):
            yield number, partial(_upright, path, frame)


def expected_frames(path: Path, every: int = 1) -> int:
    """About how many frames `frames` gives, by the video's header; at least 1.

    Raises:
        RRMError: see `frames`.
    """
    with _opened(path) as (container, stream):
        count = stream.frames
        if not count and container.duration and stream.average_rate:
            count = round(container.duration / 1e6 * stream.average_rate)  # AV_TIME_BASE is a microsecond
        return max(1, -(-int(count) // every))


def _upright(path: Path, frame: Any) -> Photo:
    with _decoding(path):
        turned = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
    return np.ascontiguousarray(turned, np.uint8)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The open file and its first stream of pictures."""
    if not path.is_file():
        raise RRMError(f"{path}: expected a video, got no file: check the path")
    with _decoding(path) as av, av.open(str(path)) as container:
        if not container.streams.video:
            raise RRMError(f"{path}: expected a video with pictures, got sound alone: leave it out")
        yield container, container.streams.video[0]


@contextmanager
def _decoding(path: Path) -> Iterator[Any]:
    """The library; what it complains of in the block becomes one `RRMError`."""
    av = _library(path)
    try:
        yield av
    except av.error.FFmpegError as error:
        kind = f"{type(error).__name__} ({error.strerror})"
        raise RRMError(f"{path}: expected a video that FFmpeg can decode, got {kind}: save it again") from error


def _library(path: Path) -> Any:
    try:
        import av
    except ImportError:
        raise RRMError(
            f'{path}: expected the package av to read videos, it is not installed: pip install "rrm[video]"'
        ) from None
    return av
