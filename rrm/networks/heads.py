"""Segmentation heads: from a feature map to C + 1 class scores per cell.

All networks build their heads here and hold them as `head`, so weights move between networks that have the
same head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from rrm.errors import RRMError
from rrm.networks.base import check_choice, scaled

HEADS = ("reference", "light", "aspp")


class DilatedHead(nn.Module):
    """Two convolutions with a ReLU between them; the first 3x3 and dilated.

    Args:
        inputs, middle, outputs: channels.
        dilation: of every 3x3 convolution here.
        last_kernel: 3 (the paper's branch) or 1.

    Shapes: (N,inputs,h,w) -> (N,outputs,h,w).
    """

    def __init__(self, inputs: int, middle: int, outputs: int, dilation: int = 12,
                 last_kernel: int = 3) -> None:  # fmt: skip
        super().__init__()
        self.fc8_seg_conv1 = nn.Conv2d(inputs, middle, 3, padding=dilation, dilation=dilation)
        last_dilation = dilation if last_kernel == 3 else 1
        padding = last_dilation * (last_kernel // 2)
        self.fc8_seg_conv2 = nn.Conv2d(middle, outputs, last_kernel, padding=padding, dilation=last_dilation)

    @property
    def score_layers(self) -> list[nn.Conv2d]:
        """The layers that output scores."""
        return [self.fc8_seg_conv2]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc8_seg_conv2(F.relu(self.fc8_seg_conv1(x)))  # type: ignore[no-any-return]


class ASPPHead(nn.Module):
    """Atrous spatial pyramid pooling of DeepLab-v2: the sum of 3x3 convolutions, one per dilation rate."""

    def __init__(self, inputs: int, outputs: int, rates: Sequence[int] = (6, 12, 18, 24)) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(inputs, outputs, 3, padding=rate, dilation=rate) for rate in rates)

    @property
    def score_layers(self) -> list[nn.Conv2d]:
        """The layers that output scores."""
        return [branch for branch in self.branches if isinstance(branch, nn.Conv2d)]

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.branches[0](x)
        for branch in self.branches[1:]:
            scores = scores + branch(x)
        return scores


def build_head(kind: str, inputs: int, outputs: int, width: float = 1.0, channels: int | None = None,
               dilation: int | None = None,
               rates: Sequence[int] | None = None) -> DilatedHead | ASPPHead:  # fmt: skip
    """Segmentation head by name.

    Args:
        kind: "reference" (the paper's branch: two 3x3 convolutions, 512 channels between them, dilation 12),
            "light" (3x3 with 256 channels, dilation 2, then 1x1) or "aspp" (DeepLab-v2's, rates 6, 12, 18,
            24, summed).
        inputs, outputs: channels of the feature map and of the scores.
        width: factor on the default number of middle channels.
        channels, dilation: override the defaults of "reference" and "light".
        rates: overrides the default of "aspp".

    Raises:
        RRMError: unknown kind, or an option that this kind does not have.

    Example:
        >>> build_head("light", 1280, 21).fc8_seg_conv1.out_channels
        256
    """
    check_choice("head", kind, HEADS)
    if kind == "aspp":
        _refuse(kind, head_channels=channels, head_dilation=dilation)
        return ASPPHead(inputs, outputs, rates or (6, 12, 18, 24))
    _refuse(kind, head_rates=rates)
    default_channels, default_dilation, last_kernel = (512, 12, 3) if kind == "reference" else (256, 2, 1)
    return DilatedHead(inputs, channels or scaled(default_channels, width), outputs,
                       dilation or default_dilation, last_kernel)  # fmt: skip


def _refuse(kind: str, **options: Any) -> None:
    for name, value in options.items():
        if value is not None:
            raise RRMError(f"{name}: head {kind!r} has no such option, got {value!r}: leave it out")
