"""ResNet-38 (Wu, Shen and van den Hengel: wide, shallow, pre-activation), the backbone of the paper.

Layer names are those of the weight files that the field passes around (`conv1a`, `b2`, `b2_1`, ... `b7`,
`bn7`), so such a file's keys need no renaming. Strides beyond the output stride become dilation, which keeps
the meaning of trained weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from rrm.errors import RRMError
from rrm.networks.base import Backbone, check_choice, scaled


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (kernel // 2)
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)


class BasicUnit(nn.Module):
    """Pre-activation residual unit of two 3x3 convolutions.

    Args:
        inputs, middle, outputs: channels.
        stride: of the first convolution and of the projection on the shortcut.
        first_dilation, dilation: of the first and of the second convolution.
        project: with a 1x1 convolution on the shortcut, which a change of shape needs.
    """

    def __init__(self, inputs: int, middle: int, outputs: int, stride: int = 1,
                 first_dilation: int = 1, dilation: int = 1, project: bool = False) -> None:  # fmt: skip
        super().__init__()
        self.bn_branch2a = nn.BatchNorm2d(inputs)
        self.conv_branch2a = _conv(inputs, middle, 3, stride, first_dilation)
        self.bn_branch2b1 = nn.BatchNorm2d(middle)
        self.conv_branch2b1 = _conv(middle, outputs, 3, 1, dilation)
        if project:
            self.conv_branch1 = _conv(inputs, outputs, 1)
        self.project, self.stride = project, stride

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn_branch2a(x))
        shortcut = self._shortcut(active) if self.project else x
        branch = self.conv_branch2a(active)
        branch = self.conv_branch2b1(F.relu(self.bn_branch2b1(branch)))
        return shortcut + branch  # type: ignore[no-any-return]

    def _shortcut(self, active: Tensor) -> Tensor:
        # Sampling first equals a stride in the 1x1 convolution. In channels_last on the CPU, with under 16
        # channels, oneDNN 3.12 (PyTorch 2.14) writes out of bounds in the gradient of such a stride. A pool of one
        # pixel samples like a convolution; torch.export took even widths amiss after a slice.
        sampled = F.avg_pool2d(active, 1, self.stride) if self.stride > 1 else active
        return self.conv_branch1(sampled)  # type: ignore[no-any-return]


class BottleneckUnit(nn.Module):
    """Pre-activation residual unit of 1x1, 3x3 and 1x1 convolutions, channel dropout before the last two."""

    def __init__(self, inputs: int, outputs: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.bn_branch2a = nn.BatchNorm2d(inputs)
        self.conv_branch2a = _conv(inputs, outputs // 4, 1)
        self.bn_branch2b1 = nn.BatchNorm2d(outputs // 4)
        self.conv_branch2b1 = _conv(outputs // 4, outputs // 2, 3, 1, dilation)
        self.bn_branch2b2 = nn.BatchNorm2d(outputs // 2)
        self.conv_branch2b2 = _conv(outputs // 2, outputs, 1)
        self.conv_branch1 = _conv(inputs, outputs, 1)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn_branch2a(x))
        branch = self.conv_branch2a(active)
        branch = self.dropout(F.relu(self.bn_branch2b1(branch)))
        branch = self.conv_branch2b1(branch)
        branch = self.dropout(F.relu(self.bn_branch2b2(branch)))
        return self.conv_branch1(active) + self.conv_branch2b2(branch)  # type: ignore[no-any-return]


class ResNet38(Backbone):
    """ResNet-38 up to the last batch norm and ReLU.

    Args:
        width: factor on all channel counts; 1 = as published (4,096 output channels).
        units: residual units in b2, b3, b4 and b5; b6 and b7 always follow with one each.
        output_stride: 8 (as published) or 4; at 4 all dilations from b4 on double.
        dilations: of b4, b5, b6 and b7; None: 1, 2, 4, 4 at output stride 8. Smaller ones fit small photos.
        dropout: rates of whole-channel dropout in b6 and b7.
        freeze_first: number of leading stages (conv1a, b2, b3, b4, b5, b6, b7) that are not trained.
        normalization: "imagenet" or "tensorflow".

    Shapes: (N,3,H,W) normalised -> (N, out_channels, ceil(H/stride), ceil(W/stride)), non-negative.
    Source: Wu et al. 2016, arXiv:1611.10080, model A1 with the dilations of arXiv:1803.10464.

    Example:
        >>> import torch
        >>> net = ResNet38(width=1 / 16, units=(1, 1, 1, 1))
        >>> net.eval()(torch.zeros(1, 3, 65, 64)).shape
        torch.Size([1, 256, 9, 8])
    """

    side_layers = ("b5.conv_branch2a", "b6.conv_branch2a")

    def __init__(self, width: float = 1.0, units: Sequence[int] = (3, 3, 6, 3), output_stride: int = 8,
                 dilations: Sequence[int] | None = None, dropout: Sequence[float] = (0.3, 0.5), freeze_first: int = 0,
                 normalization: str = "imagenet") -> None:  # fmt: skip
        super().__init__(normalization)
        check_choice("output_stride", output_stride, (4, 8))
        if not isinstance(units, Sequence) or len(units) != 4 or min(units) < 1:
            raise RRMError(f"units: expected four positive numbers of residual units, got {units!r}")
        if dilations is not None and (len(dilations) != 4 or min(dilations) < 1):
            raise RRMError(f"dilations: expected four positive numbers for b4 to b7, got {dilations!r}")
        if not isinstance(dropout, Sequence) or len(dropout) != 2 or not all(0 <= rate < 1 for rate in dropout):
            raise RRMError(f"dropout: expected two rates from 0 up to below 1, got {dropout!r}")
        if not 0 < width <= 1:
            raise RRMError(f"width: expected a factor above 0 and up to 1, got {width!r}")
        self.width, self.stride, self.units = width, output_stride, tuple(units)
        c64, c128, c256, c512, c1024, c2048, c4096 = (scaled(64 * 2**i, width) for i in range(7))
        last_stride, d = (2, 1) if output_stride == 8 else (1, 2)
        b4, b5, b6, b7 = dilations or (d, 2 * d, 4 * d, 4 * d)
        self.conv1a = _conv(3, c64, 3)
        self._add_stage("b2", units[0], c64, c128, c128, stride=2)
        self._add_stage("b3", units[1], c128, c256, c256, stride=2)
        self._add_stage("b4", units[2], c256, c512, c512, stride=last_stride, dilation=b4)
        self._add_stage("b5", units[3], c512, c512, c1024, first_dilation=b4, dilation=b5)
        self.b6 = BottleneckUnit(c1024, c2048, b6, dropout[0])
        self.b7 = BottleneckUnit(c2048, c4096, b7, dropout[1])
        self.bn7 = nn.BatchNorm2d(c4096)
        self.out_channels = c4096
        self.freeze_first(freeze_first)

    def _add_stage(self, name: str, units: int, inputs: int, middle: int, outputs: int, stride: int = 1,
                   first_dilation: int = 1, dilation: int = 1) -> None:  # fmt: skip
        first = BasicUnit(inputs, middle, outputs, stride, first_dilation, dilation, project=True)
        self.add_module(name, first)
        for index in range(1, units):
            self.add_module(f"{name}_{index}", BasicUnit(outputs, middle, outputs, 1, dilation, dilation))

    def stages(self) -> list[list[nn.Module]]:
        names = [["conv1a"]]
        for block, units in zip(("b2", "b3", "b4", "b5"), self.units, strict=True):
            names.append([block] + [f"{block}_{index}" for index in range(1, units)])
        names += [["b6"], ["b7", "bn7"]]
        return [[self.get_submodule(name) for name in stage] for stage in names]

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages()[:-1]:
            for module in stage:
                x = module(x)
        return F.relu(self.bn7(self.b7(x)))
