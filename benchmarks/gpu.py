"""The Gaussian filters on a GPU: Triton's kernels against plain torch, with the blocks of the exact kernel varied.

    python -m benchmarks.gpu

Prints a JSON line for each case: median milliseconds, and for the exact kernel exponentials a second. Made images.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F

from rrm.crf import DenseCRF
from rrm.gaussian import GaussianFilter, exact_triton, position_colour_features

# Rows, columns, warps and stages of the exact kernel; the first are those of the package.
BLOCKS = [(64, 64, 4, 3), (64, 64, 4, 2), (64, 64, 4, 4), (64, 32, 4, 3), (128, 64, 8, 3), (128, 32, 4, 3)]


def main() -> None:
    """Measure and print all cases."""
    print(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__}))
    for channels in (3, 21, 40):
        exact_cases(4, 160, 160, channels)
    for batch, height, width, channels in ((16, 321, 321, 3), (4, 160, 160, 21)):
        lattice_cases(batch, height, width, channels)
    crf_case(16, 321, 321, 3)


def exact_cases(batch: int, height: int, width: int, channels: int) -> None:
    """Filtering with all pairs, for each choice of blocks and with plain torch."""
    features = position_colour_features(images(batch, height, width), 50.0, 15.0)
    values = torch.rand(batch, channels, height * width, device="cuda").softmax(dim=1).transpose(1, 2)
    pairs = batch * (height * width) ** 2
    for blocks in BLOCKS:
        names = zip(("_ROWS", "_COLUMNS", "_WARPS", "_STAGES"), blocks, strict=True)
        with mock.patch.multiple(exact_triton, **dict(names), _PADDING=128):
            kernel = GaussianFilter(features, "exact")
            time = median(lambda kernel=kernel: kernel.apply(values))
        report("exact", channels=channels, blocks=blocks, ms=time, exponentials_per_second=pairs / time * 1e3)
    with plain_torch():
        kernel = GaussianFilter(features, "exact")
        report("exact, plain torch", channels=channels, ms=median(lambda: kernel.apply(values)))


def lattice_cases(batch: int, height: int, width: int, channels: int) -> None:
    """Building and filtering."""
    features = position_colour_features(images(batch, height, width), 80.0, 13.0)
    values = torch.rand(batch, channels, height * width, device="cuda").softmax(dim=1).transpose(1, 2).contiguous()
    for name, context in both():
        with context():
            kernel = GaussianFilter(features, "lattice")
            build = median(lambda: GaussianFilter(features, "lattice"))
            report(f"lattice{name}", batch=batch, channels=channels, build_ms=build,
                   filter_ms=median(lambda kernel=kernel: kernel.apply(values)))  # fmt: skip


def crf_case(batch: int, height: int, width: int, classes: int) -> None:
    """A whole dense CRF of 10 iterations, building included."""
    photos = images(batch, height, width).permute(0, 2, 3, 1).contiguous().byte()
    coarse = torch.randn(batch, classes, 8, 8, device="cuda") * 3
    probs = F.interpolate(coarse, size=(height, width), mode="bilinear").softmax(dim=1)
    for name, context in both():
        with context():
            report(f"CRF{name}", batch=batch, classes=classes, ms=median(lambda: DenseCRF()(photos, probs)))


def images(batch: int, height: int, width: int) -> torch.Tensor:
    """Images with regions of like colour, 0..255."""
    coarse = torch.rand(batch, 3, 12, 12, device="cuda") * 255
    fine = torch.rand(batch, 3, height, width, device="cuda") * 20
    return (F.interpolate(coarse, size=(height, width), mode="bilinear") + fine).clamp(0, 255)


@contextmanager
def plain_torch() -> Iterator[None]:
    """Leave Triton out."""
    with mock.patch("rrm.gaussian.filter.uses_triton", return_value=False):
        yield


def both() -> list[tuple[str, Callable[[], Any]]]:
    return [("", nullcontext), (", plain torch", plain_torch)]


def median(call: Callable[[], Any]) -> float:
    """Milliseconds, by the GPU's clock; what the GPU waits for counts."""
    from triton.testing import do_bench

    result: float = do_bench(call, warmup=200, rep=600, return_mode="median")
    return result


def report(case: str, **numbers: Any) -> None:
    print(json.dumps({"case": case, **numbers}), flush=True)


if __name__ == "__main__":
    main()
