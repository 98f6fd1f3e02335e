"""Backbones on torchvision's layers: MobileNetV2, dilated ResNets, VGG-16 as in DeepLab-LargeFOV.

Parameter names are torchvision's, so its ImageNet files load by `weights=path`. Nothing is downloaded.
Strides beyond the output stride become dilation. torchvision takes longer to import than torch itself, so it is
imported by what is built on it: jobs with a ResNet-38 do without.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from rrm.errors import RRMError
from rrm.networks.base import Backbone, check_choice, scaled
from rrm.networks.resnet38 import ResNet38

EXPANSION = 4  # output channels of a bottleneck unit by its inner ones


class SamePadConv2d(nn.Conv2d):
    """3x3 convolution of stride 2 with TensorFlow's SAME padding: an even side is padded only at its end."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        return super().forward(F.pad(x, (width % 2, 1, height % 2, 1)))


def _use_same_padding(module: nn.Module) -> None:
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3) and conv.stride == (2, 2):
            conv.__class__ = SamePadConv2d
            conv.padding = (0, 0)


def _dilate(module: nn.Module, output_stride: int) -> None:
    """Turn the strides of 3x3 convolutions beyond `output_stride` into dilation of those that follow."""
    stride = dilation = 1
    for conv in module.modules():
        if not isinstance(conv, nn.Conv2d) or conv.kernel_size != (3, 3):
            continue
        own = dilation
        if conv.stride == (2, 2) and stride == output_stride:
            dilation *= 2
            conv.stride = (1, 1)
        elif conv.stride == (2, 2):
            stride *= 2
        conv.dilation = conv.padding = (own, own)


class MobileNetV2(Backbone):
    """MobileNetV2's feature extractor.

    Args:
        output_stride: 8, 16 or 32.
        padding: "torch" (1 on all sides) or "same" (TensorFlow's, for weights that were trained with it).
        normalization: "imagenet" or "tensorflow", as the weights were trained.
        freeze_first: number of leading blocks of `features` (19 in all) that are not trained.
        width: torchvision's `width_mult`.

    Shapes: (N,3,H,W) normalised -> (N, 1280 for width <= 1, ceil(H/stride), ceil(W/stride)).
    Source: Sandler et al. 2018, arXiv:1801.04381.

    Example:
        >>> import torch
        >>> MobileNetV2(output_stride=16).eval()(torch.zeros(1, 3, 65, 64)).shape
        torch.Size([1, 1280, 5, 4])
    """

    side_layers = ("features.14.conv.0.0", "features.18.0")

    def __init__(self, output_stride: int = 16, padding: str = "torch", normalization: str = "imagenet",
                 freeze_first: int = 0, width: float = 1.0) -> None:  # fmt: skip
        super().__init__(normalization)
        check_choice("output_stride", output_stride, (8, 16, 32))
        check_choice("padding", padding, ("torch", "same"))
        from torchvision.models import mobilenet_v2

        model = mobilenet_v2(weights=None, width_mult=width)
        self.features = model.features
        self.stride, self.width, self.out_channels = output_stride, width, model.last_channel
        _dilate(self.features, output_stride)
        if padding == "same":
            _use_same_padding(self.features)
        self.freeze_first(freeze_first)

    def stages(self) -> list[list[nn.Module]]:
        return [[block] for block in self.features]

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)  # type: ignore[no-any-return]


class DilatedResNet(Backbone):
    """ResNet with bottleneck units (ResNet-50, -101) without its classifier.

    Args:
        layers: units in the four stages: (3, 4, 6, 3) is ResNet-50, (3, 4, 23, 3) ResNet-101.
        width: factor on all channel counts.
        output_stride: 8, 16 or 32.
        freeze_first: number of leading stages (stem, layer1 .. layer4) that are not trained.
        normalization: "imagenet", "tensorflow" or "caffe".
        variant: where a stage has its stride: "torchvision" in the 3x3 convolution, "caffe" in the 1x1 before it, as
            published; weights converted from Caffe want the second and `normalization="caffe"`.

    Shapes: (N,3,H,W) normalised -> (N, 2048 x width, ceil(H/stride), ceil(W/stride)).
    Source: He et al. 2015, arXiv:1512.03385; equal to torchvision's with `replace_stride_with_dilation`.

    Example:
        >>> import torch
        >>> DilatedResNet(layers=(1, 1, 1, 1), width=0.125).eval()(torch.zeros(1, 3, 65, 64)).shape
        torch.Size([1, 256, 9, 8])
    """

    side_layers = ("layer3.0.conv1", "layer4.0.conv1")

    def __init__(self, layers: Sequence[int] = (3, 4, 6, 3), width: float = 1.0, output_stride: int = 8,
                 freeze_first: int = 0, normalization: str = "imagenet",
                 variant: str = "torchvision") -> None:  # fmt: skip
        super().__init__(normalization)
        check_choice("output_stride", output_stride, (8, 16, 32))
        check_choice("variant", variant, ("torchvision", "caffe"))
        if not isinstance(layers, Sequence) or len(layers) != 4 or min(layers) < 1:
            raise RRMError(f"layers: expected four positive numbers of residual units, got {layers!r}")
        stem = scaled(64, width)
        self.conv1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs, stride, dilation = stem, 4, 1
        for index, units in enumerate(layers):
            planes, wanted = scaled(64 * 2**index, width), 1 if index == 0 else 2
            step = wanted if stride * wanted <= output_stride else 1
            next_dilation = dilation * wanted // step
            stage = _resnet_stage(inputs, planes, units, step, dilation, next_dilation, variant == "caffe")
            self.add_module(f"layer{index + 1}", stage)
            inputs, stride, dilation = planes * EXPANSION, stride * step, next_dilation
        self.out_channels, self.stride, self.width = inputs, output_stride, width
        self.freeze_first(freeze_first)

    def stages(self) -> list[list[nn.Module]]:
        layers = [[self.get_submodule(f"layer{index}")] for index in (1, 2, 3, 4)]
        return [[self.conv1, self.bn1], *layers]

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for (layer,) in self.stages()[1:]:
            x = layer(x)
        return x


def _resnet_stage(inputs: int, planes: int, units: int, stride: int, first_dilation: int,
                  dilation: int, stride_first: bool) -> nn.Sequential:  # fmt: skip
    """Units of one stage; `stride_first`: its stride is in the first unit's 1x1 convolution, not in the 3x3."""
    from torchvision.models.resnet import Bottleneck

    outputs = planes * EXPANSION
    projection = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    first = Bottleneck(inputs, planes, stride, projection, dilation=first_dilation)
    if stride_first:
        first.conv1.stride, first.conv2.stride = first.conv2.stride, first.conv1.stride
    blocks = [first]
    blocks += [Bottleneck(outputs, planes, dilation=dilation) for _ in range(1, units)]
    return nn.Sequential(*blocks)


class VGG16LargeFOV(Backbone):
    """VGG-16 up to fc7 as DeepLab-LargeFOV has it: pool4 and pool5 of stride 1, conv5 and fc6 dilated.

    Args:
        width: factor on all channel counts (fc6 and fc7: 1,024).
        batch_norm: with batch norm after each 3x3 convolution, as torchvision's `vgg16_bn`.
        dilation: of fc6.
        dropout: rate after fc6 and after fc7.
        freeze_first: number of leading stages (conv1 .. conv5, fc6, fc7) that are not trained.
        normalization: "imagenet" or "tensorflow".

    Shapes: (N,3,H,W) normalised -> (N, 1024 x width, ceil(H/8), ceil(W/8)), non-negative.
    Source: Chen et al. 2015, arXiv:1412.7062, "DeepLab-LargeFOV".

    Example:
        >>> import torch
        >>> VGG16LargeFOV(width=0.125).eval()(torch.zeros(1, 3, 65, 64)).shape
        torch.Size([1, 128, 9, 8])
    """

    stride = 8

    def __init__(self, width: float = 1.0, batch_norm: bool = False, dilation: int = 12, dropout: float = 0.5,
                 freeze_first: int = 0, normalization: str = "imagenet") -> None:  # fmt: skip
        super().__init__(normalization)
        from torchvision.models.vgg import cfgs, make_layers

        plan: list[str | int] = [scaled(item, width) if isinstance(item, int) else item for item in cfgs["D"]]
        self.features = make_layers(plan, batch_norm=batch_norm)
        _make_large_field_of_view(self.features)
        hidden = scaled(1024, width)
        self.pool5a = nn.AvgPool2d(3, stride=1, padding=1)
        self.fc6 = nn.Conv2d(scaled(512, width), hidden, 3, padding=dilation, dilation=dilation)
        self.fc7 = nn.Conv2d(hidden, hidden, 1)
        self.dropout = nn.Dropout(dropout)
        self.width, self.out_channels = width, hidden
        self.freeze_first(freeze_first)

    def stages(self) -> list[list[nn.Module]]:
        blocks: list[list[nn.Module]] = [[]]
        for layer in self.features:
            blocks[-1].append(layer)
            if isinstance(layer, nn.MaxPool2d):
                blocks.append([])
        return [*blocks[:-1], [self.fc6], [self.fc7]]

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool5a(self.features(x))
        x = self.dropout(F.relu(self.fc6(x)))
        return self.dropout(F.relu(self.fc7(x)))  # type: ignore[no-any-return]


def _make_large_field_of_view(features: nn.Sequential) -> None:
    """Overlapping 3x3 pools; pool4 and pool5 without stride; conv5 dilated by 2."""
    pools = 0
    for index, layer in enumerate(features):
        if isinstance(layer, nn.MaxPool2d):
            pools += 1
            features[index] = nn.MaxPool2d(3, stride=2 if pools < 4 else 1, padding=1)
        elif isinstance(layer, nn.Conv2d) and pools == 4:
            layer.dilation = layer.padding = (2, 2)


BACKBONES: dict[str, type[Backbone]] = {
    "resnet38": ResNet38,
    "mobilenet_v2": MobileNetV2,
    "resnet50": DilatedResNet,
}
"""Backbones by the name that configurations use."""


def build_backbone(name: str, **options: Any) -> Backbone:
    """Backbone by name, with the options of its class.

    Args:
        name: "resnet38", "mobilenet_v2" or "resnet50".
        options: keyword arguments of `ResNet38`, `MobileNetV2` or `DilatedResNet`.

    Raises:
        RRMError: unknown name or option.

    Example:
        >>> build_backbone("resnet38", width=0.0625, output_stride=4).out_channels
        256
    """
    check_choice("backbone", name, sorted(BACKBONES))
    known = set(inspect.signature(BACKBONES[name]).parameters)
    unknown = sorted(set(options) - known)
    if unknown:
        raise RRMError(f"backbone {name}: unknown option(s) {unknown}; it takes {sorted(known)}")
    return BACKBONES[name](**options)
