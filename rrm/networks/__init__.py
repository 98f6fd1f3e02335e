"""Networks: RRM's two-branch network, DeepLab networks for the second step, AffinityNet, and their weight files."""

from __future__ import annotations

import inspect
from typing import Any

from rrm.errors import RRMError
from rrm.networks.affinity_net import AffinityNet, affinity_options
from rrm.networks.backbones import BACKBONES, DilatedResNet, MobileNetV2, VGG16LargeFOV, build_backbone
from rrm.networks.base import (
    PARAMETER_GROUPS,
    Backbone,
    Network,
    check_choice,
    freeze_batch_norm,
    initialise_weights,
)
from rrm.networks.deeplab import DeepLab, DeepLabLargeFOVVGG16, DeepLabV2ResNet101
from rrm.networks.heads import HEADS, build_head
from rrm.networks.mxnet_params import read_mxnet_params
from rrm.networks.resnet38 import ResNet38
from rrm.networks.rrm_net import ClassificationOutput, RRMNet, RRMOutput
from rrm.networks.weights import LoadReport, load_reference_weights, load_weights, read_weights

__all__ = [
    "BACKBONES", "HEADS", "PARAMETER_GROUPS", "SEGMENTATION_BACKBONES", "AffinityNet", "Backbone",
    "ClassificationOutput", "DeepLab", "DeepLabLargeFOVVGG16", "DeepLabV2ResNet101", "DilatedResNet", "LoadReport",
    "MobileNetV2", "Network", "RRMNet", "RRMOutput", "ResNet38", "VGG16LargeFOV", "affinity_options",
    "build_backbone", "build_head", "build_network", "freeze_batch_norm", "initialise_weights",
    "load_reference_weights", "load_weights", "read_mxnet_params", "read_weights",
]  # fmt: skip

SEGMENTATION_BACKBONES: dict[str, type[Network]] = {
    "resnet101": DeepLabV2ResNet101,
    "vgg16": DeepLabLargeFOVVGG16,
}
"""Backbones that make a segmentation network of their own; all others make a `DeepLab`."""


def build_network(kind: str, *, num_classes: int = 20, backbone: str = "resnet38", **options: Any) -> Network:
    """Network by name, as configurations name it.

    Args:
        kind: "rrm" (`RRMNet`), "segmentation" (no classification branch) or "affinity" (`AffinityNet`).
        num_classes: foreground classes.
        backbone: "resnet38", "mobilenet_v2" or "resnet50"; for "segmentation", where these make a `DeepLab`,
            also "resnet101" (`DeepLabV2ResNet101`) and "vgg16" (`DeepLabLargeFOVVGG16`).
        options: the other keyword arguments of that class.

    Raises:
        RRMError: unknown kind, backbone or option, or a value out of range.

    Example:
        >>> build_network("rrm", num_classes=5, backbone="resnet38", width=1 / 16, head="light").stride
        8
        >>> build_network("segmentation", backbone="resnet101", width=0.125, layers=(1, 1, 1, 1)).num_classes
        20
    """
    kinds: dict[str, type[Network]] = {"rrm": RRMNet, "segmentation": DeepLab, "affinity": AffinityNet}
    check_choice("network kind", kind, list(kinds))
    network = kinds[kind]
    if kind == "segmentation" and backbone in SEGMENTATION_BACKBONES:
        network = SEGMENTATION_BACKBONES[backbone]
        known = sorted(set(inspect.signature(network).parameters) - {"num_classes"})
        if unknown := sorted(set(options) - set(known)):
            raise RRMError(f"network {backbone}: unknown option(s) {unknown}; it takes {known}")
    else:
        options["backbone"] = backbone
    return network(num_classes=num_classes, **options)
