"""Segmentation networks for the second step: DeepLab-v2, DeepLab-LargeFOV, DeepLab on RRM's backbones.

Each maps normalised images (N,3,H,W) to logits (N,C+1,h,w) at its stride. ImageNet weights come from a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rrm.networks.backbones import DilatedResNet, VGG16LargeFOV, build_backbone
from rrm.networks.base import Network, check_choice
from rrm.networks.heads import build_head


class _SegmentationNetwork(Network):
    """A backbone and one segmentation head."""

    head: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """(N,3,H,W) normalised images -> (N,C+1,h,w) logits, channel 0 = background."""
        return self.head(self.features(x))  # type: ignore[no-any-return]

    def forward_segmentation(self, x: Tensor) -> Tensor:
        """The same as `forward`; the name that all networks share."""
        return self.forward(x)


class DeepLab(_SegmentationNetwork):
    """Segmentation network on one of RRM's backbones; its parameter names are those of `RRMNet`.

    So `load_weights(DeepLab(...), checkpoint of an RRMNet)` starts from the trained backbone and, where the
    head is the same, from the trained head.

    Args:
        num_classes: foreground classes C.
        backbone: "resnet38", "mobilenet_v2" or "resnet50".
        head: "light", "reference" or "aspp" (see `build_head`).
        head_channels, head_dilation, head_rates: override the head's defaults.
        batch_norm: "frozen" or "train".
        weights: file for `load_weights`; None = random start.
        backbone_options: keyword arguments of the backbone.

    Example:
        >>> import torch
        >>> net = DeepLab(5, "resnet38", width=1 / 16, units=(1, 1, 1, 1), output_stride=4)
        >>> net(torch.zeros(1, 3, 33, 32)).shape
        torch.Size([1, 6, 9, 8])
    """

    def __init__(self, num_classes: int = 20, backbone: str = "mobilenet_v2", *, head: str = "light",
                 head_channels: int | None = None, head_dilation: int | None = None,
                 head_rates: Sequence[int] | None = None, batch_norm: str = "frozen",
                 weights: str | Path | None = None, **backbone_options: Any) -> None:  # fmt: skip
        super().__init__(build_backbone(backbone, **backbone_options), num_classes)
        scores = build_head(head, self.backbone.out_channels, num_classes + 1, self.backbone.width,
                            head_channels, head_dilation, head_rates)  # fmt: skip
        self.head = scores
        self._finish(scores.score_layers, batch_norm, weights)


class DeepLabV2ResNet101(_SegmentationNetwork):
    """DeepLab-v2: dilated ResNet-101 and the sum of four dilated 3x3 classifiers.

    Args:
        num_classes: foreground classes C.
        width: factor on all channels of the backbone; `layers`: units per stage. Others than the defaults
            make a narrower or shallower network of the same kind, for tests and small experiments.
        output_stride: 8 (as published), 16 or 32.
        rates: dilations of the four classifiers.
        batch_norm: "frozen" or "train".
        weights: file for `load_weights`, such as torchvision's `resnet101` state dict, or a DeepLab-v2 converted from
            Caffe, which wants `variant` and `normalization` "caffe".
        freeze_first, normalization, variant: see `DilatedResNet`.

    Source: Chen et al. 2016, arXiv:1606.00915.

    Example:
        >>> import torch
        >>> net = DeepLabV2ResNet101(20, width=0.125, layers=(1, 1, 1, 1))
        >>> net(torch.zeros(1, 3, 65, 65)).shape
        torch.Size([1, 21, 9, 9])
    """

    def __init__(self, num_classes: int = 20, *, width: float = 1.0, layers: Sequence[int] = (3, 4, 23, 3),
                 output_stride: int = 8, rates: Sequence[int] = (6, 12, 18, 24), batch_norm: str = "frozen",
                 weights: str | Path | None = None, freeze_first: int = 0, normalization: str = "imagenet",
                 variant: str = "torchvision") -> None:  # fmt: skip
        backbone = DilatedResNet(layers, width, output_stride, freeze_first, normalization, variant)
        super().__init__(backbone, num_classes)
        scores = build_head("aspp", backbone.out_channels, num_classes + 1, rates=rates)
        self.head = scores
        self._finish(scores.score_layers, batch_norm, weights)

    def adapt_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of a DeepLab-v2 converted from Caffe as ours are, and its first convolution for RGB in place of BGR."""
        state = {name.removeprefix("module.").removeprefix("Scale."): tensor for name, tensor in state.items()}
        if "layer5.conv2d_list.0.weight" not in state:
            return state
        if "conv1.weight" in state:
            state["conv1.weight"] = state["conv1.weight"].flip(1)
        return {name.replace("layer5.conv2d_list.", "head.branches."): tensor for name, tensor in state.items()}


class DeepLabLargeFOVVGG16(_SegmentationNetwork):
    """DeepLab-LargeFOV: VGG-16 with stride 8, fc6 dilated by 12 with 1,024 channels, one 1x1 classifier.

    Only the classifier counts as head (its learning rate is the larger one in the published recipe).

    Args:
        num_classes: foreground classes C.
        width: factor on all channels.
        batch_norm: "none" (as published), or "frozen" / "train" for the variant with batch norm, which a
            narrow network needs to learn from scratch.
        dilation: of fc6.
        dropout: rate after fc6 and fc7.
        weights: file for `load_weights`, such as torchvision's `vgg16` state dict; at full width its first
            two fully connected layers are thinned out into fc6 and fc7.
        freeze_first, normalization: see `VGG16LargeFOV`.

    Source: Chen et al. 2015, arXiv:1412.7062.

    Example:
        >>> import torch
        >>> DeepLabLargeFOVVGG16(20, width=0.125)(torch.zeros(1, 3, 65, 65)).shape
        torch.Size([1, 21, 9, 9])
    """

    def __init__(self, num_classes: int = 20, *, width: float = 1.0, batch_norm: str = "none",
                 dilation: int = 12, dropout: float = 0.5, weights: str | Path | None = None,
                 freeze_first: int = 0, normalization: str = "imagenet") -> None:  # fmt: skip
        check_choice("batch_norm", batch_norm, ("none", "frozen", "train"))
        with_norm = batch_norm != "none"
        backbone = VGG16LargeFOV(width, with_norm, dilation, dropout, freeze_first, normalization)
        super().__init__(backbone, num_classes)
        classifier = nn.Conv2d(backbone.out_channels, num_classes + 1, 1)
        self.head = classifier
        self._finish([classifier], "frozen" if batch_norm == "none" else batch_norm, weights)

    def adapt_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Thin out VGG-16's fully connected layers: every fourth neuron, every third row and column."""
        state = dict(state)
        fc6, fc7 = state.get("classifier.0.weight"), state.get("classifier.3.weight")
        if self.backbone.width != 1 or fc6 is None or fc7 is None:
            return state
        if fc6.shape != (4096, 512 * 49) or fc7.shape != (4096, 4096):
            return state
        state["fc6.weight"] = fc6.view(4096, 512, 7, 7)[::4, :, ::3, ::3]
        state["fc7.weight"] = fc7[::4, ::4, None, None]
        for old, new in (("classifier.0", "fc6"), ("classifier.3", "fc7")):
            del state[f"{old}.weight"]
            if f"{old}.bias" in state:
                state[f"{new}.bias"] = state.pop(f"{old}.bias")[::4]
        return state
