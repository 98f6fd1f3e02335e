"""AffinityNet: a backbone whose maps of three depths are joined to the features that affinities are taken from.

Layer names are those of the authors' weight files. Source: Ahn and Kwak 2018, arXiv:1803.10464, section 3.2, with the
channels of github.com/jiwoon-ahn/psa `network/resnet38_aff.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rrm.networks.backbones import BACKBONES, build_backbone
from rrm.networks.base import Network, check_choice, scaled

CHANNELS = (64, 128, 256)
"""Of the three projections, at width 1."""


class AffinityNet(Network):
    """1x1 projections of the backbone's output and two maps before it, joined and mixed.

    Args:
        num_classes: foreground classes of the data set; the features know no classes.
        backbone: "resnet38", "mobilenet_v2" or "resnet50".
        batch_norm: "frozen" or "train".
        backbone_options: keyword arguments of the backbone, such as `width`, `output_stride`, `freeze_first`.

    Shapes: (N,3,H,W) images made by `normalize` -> (N, 448 x width, ceil(H/stride), ceil(W/stride)).

    Example:
        >>> net = AffinityNet(5, "resnet38", width=1 / 16, units=(1, 1, 1, 1))
        >>> tuple(net(net.normalize(torch.zeros(2, 3, 32, 48))).shape)
        (2, 28, 4, 6)
    """

    def __init__(
        self, num_classes: int = 20, backbone: str = "resnet38", *, batch_norm: str = "frozen", **backbone_options: Any
    ) -> None:
        super().__init__(build_backbone(backbone, **backbone_options), num_classes)
        first, second = (conv.in_channels for conv in self.backbone.side_convolutions())
        outputs = [scaled(channels, self.backbone.width) for channels in CHANNELS]
        self.f8_3 = nn.Conv2d(first, outputs[0], 1, bias=False)
        self.f8_4 = nn.Conv2d(second, outputs[1], 1, bias=False)
        self.f8_5 = nn.Conv2d(self.backbone.out_channels, outputs[2], 1, bias=False)
        self.f9 = nn.Conv2d(sum(outputs), sum(outputs), 1, bias=False)
        self._finish([], batch_norm, None)
        nn.init.xavier_uniform_(self.f9.weight, gain=4)

    def parts_to_compile(self) -> list[nn.Module]:
        """None: each call hooks into the backbone, which compiled code would have to be made for anew."""
        return []

    def forward(self, x: Tensor) -> Tensor:
        """(N,3,H,W) normalised images -> affinity features (N,F,h,w)."""
        maps = self._maps(x)
        layers = (self.f8_3, self.f8_4, self.f8_5)
        joined = [F.elu(layer(each)) for layer, each in zip(layers, maps, strict=True)]
        return F.elu(self.f9(torch.cat(joined, dim=1)))

    def _maps(self, x: Tensor) -> list[Tensor]:
        """The backbone's two side maps and its output, all at the size of the output."""
        sides: list[Tensor] = []
        hooks = [conv.register_forward_pre_hook(partial(_keep, sides)) for conv in self.backbone.side_convolutions()]
        try:
            output = self.features(x)
        finally:
            for hook in hooks:
                hook.remove()
        size = (int(output.shape[2]), int(output.shape[3]))
        return [*(each if each.shape[2:] == size else F.adaptive_avg_pool2d(each, size) for each in sides), output]


def _keep(found: list[Tensor], _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    found.append(inputs[0])


def affinity_options(backbone: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Of the options of an `RRMNet`, those of its backbone and batch norm: an `AffinityNet` on the same backbone.

    Example:
        >>> affinity_options("resnet38", {"width": 0.5, "head": "light", "batch_norm": "train"})
        {'width': 0.5, 'batch_norm': 'train'}
    """
    check_choice("backbone", backbone, sorted(BACKBONES))
    known = {"batch_norm", *inspect.signature(BACKBONES[backbone]).parameters}
    return {name: value for name, value in options.items() if name in known}
