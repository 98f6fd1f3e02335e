"""RRM's network: a backbone, a classification branch that gives class activation maps, a segmentation branch.

Classification scores are the mean over the map of the class activation map (global average pooling followed
by a 1x1 convolution is the same as the 1x1 convolution followed by the average).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from rrm.networks.backbones import build_backbone
from rrm.networks.base import Network
from rrm.networks.heads import build_head


class RRMOutput(NamedTuple):
    """Output of `RRMNet.forward`, all of them logits or raw scores.

    Attributes:
        class_logits: (N,C), one score per foreground class.
        cam: (N,C,h,w) class activation maps before ReLU and before any scaling.
        segmentation: (N,C+1,h,w), channel 0 = background.
    """

    class_logits: Tensor
    cam: Tensor
    segmentation: Tensor


class ClassificationOutput(NamedTuple):
    """Output of `RRMNet.forward_classification`: as `RRMOutput` without the segmentation."""

    class_logits: Tensor
    cam: Tensor


class RRMNet(Network):
    """One-step network of the paper: image-level classifier and segmentation on a shared backbone.

    Args:
        num_classes: foreground classes C.
        backbone: "resnet38", "mobilenet_v2" or "resnet50".
        head: segmentation branch, "reference", "light" or "aspp" (see `build_head`).
        head_channels, head_dilation, head_rates: override the head's defaults.
        classifier_dropout: rate of whole-channel dropout before the classifier's pooling.
        classifier_bias: give the classifier a bias; it is not part of the CAM.
        batch_norm: "frozen" (the paper's code; needs trained weights) or "train" (from scratch).
        weights: file for `load_weights`; None = random start from torch's global generator.
        backbone_options: keyword arguments of the backbone, such as `width`, `output_stride`, `freeze_first`.

    Shapes: `forward` takes (N,3,H,W) images made by `normalize`; h = ceil(H/stride), w = ceil(W/stride).

    Example:
        >>> import torch
        >>> net = RRMNet(5, "resnet38", width=1 / 16, units=(1, 1, 1, 1), batch_norm="train")
        >>> out = net(net.normalize(torch.zeros(2, 3, 32, 48)))
        >>> tuple(out.class_logits.shape), tuple(out.cam.shape), tuple(out.segmentation.shape)
        ((2, 5), (2, 5, 4, 6), (2, 6, 4, 6))
    """

    def __init__(self, num_classes: int = 20, backbone: str = "resnet38", *, head: str = "reference",
                 head_channels: int | None = None, head_dilation: int | None = None,
                 head_rates: Sequence[int] | None = None, classifier_dropout: float = 0.5,
                 classifier_bias: bool = False, batch_norm: str = "frozen", weights: str | Path | None = None,
                 **backbone_options: Any) -> None:  # fmt: skip
        super().__init__(build_backbone(backbone, **backbone_options), num_classes)
        features = self.backbone.out_channels
        self.dropout = nn.Dropout2d(classifier_dropout)
        self.fc8 = nn.Conv2d(features, num_classes, 1, bias=classifier_bias)
        self.head = build_head(head, features, num_classes + 1, self.backbone.width, head_channels,
                               head_dilation, head_rates)  # fmt: skip
        self._finish([self.fc8, *self.head.score_layers], batch_norm, weights)

    def forward(self, x: Tensor) -> RRMOutput:
        """(N,3,H,W) normalised images -> class logits, CAM and segmentation logits."""
        features = self.features(x)
        return RRMOutput(self._classify(features), self._cam(features), self.head(features))

    def forward_classification(self, x: Tensor) -> ClassificationOutput:
        """As `forward`, without computing the segmentation branch."""
        features = self.features(x)
        return ClassificationOutput(self._classify(features), self._cam(features))

    def forward_cam(self, x: Tensor) -> Tensor:
        """(N,3,H,W) normalised images -> (N,C,h,w) raw class activation maps."""
        return self._cam(self.features(x))

    def forward_segmentation(self, x: Tensor) -> Tensor:
        """(N,3,H,W) normalised images -> (N,C+1,h,w) segmentation logits."""
        return self.head(self.features(x))  # type: ignore[no-any-return]

    def _classify(self, features: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(self.dropout(features), 1)
        return self.fc8(pooled).flatten(1)  # type: ignore[no-any-return]

    def _cam(self, features: Tensor) -> Tensor:
        return F.conv2d(features, self.fc8.weight)
