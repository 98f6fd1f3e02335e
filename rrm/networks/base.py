"""What all networks share: normalisation of images, frozen batch norm, parameter groups, initialisation.

A network is a `Backbone` (image -> feature map) with heads on top (`Network`). A batch-norm layer whose
affine parameters do not require gradients is a frozen one: it normalises with its stored statistics whatever
`train()` says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rrm.errors import RRMError
from rrm.networks.weights import load_weights

NORMALIZATIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "tensorflow": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    "caffe": ((122.679, 116.669, 104.008), (1.0, 1.0, 1.0)),
}
"""Mean and standard deviation of R, G, B in 0..255 units."""

PARAMETER_GROUPS = ("backbone.weight", "backbone.bias", "head.weight", "head.bias")
_BATCH_NORM = nn.modules.batchnorm._BatchNorm


def scaled(channels: int, width: float) -> int:
    """Number of channels of a layer in a network made `width` times as wide, at least 4.

    Example:
        >>> scaled(512, 0.125), scaled(64, 1 / 32)
        (64, 4)
    """
    return max(4, round(channels * width))


def batch_norm_layers(module: nn.Module) -> Iterator[nn.Module]:
    """All batch-norm layers inside `module`."""
    return (layer for layer in module.modules() if isinstance(layer, _BATCH_NORM))


def freeze_batch_norm(module: nn.Module) -> None:
    """Freeze every batch-norm layer in `module`: stored statistics, affine parameters without gradients.

    On the networks of this package it survives `net.train()`.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        >>> freeze_batch_norm(net)
        >>> net[1].training, net[1].weight.requires_grad
        (False, False)
    """
    for layer in batch_norm_layers(module):
        layer.eval()
        layer.requires_grad_(False)


def initialise_weights(module: nn.Module) -> None:
    """Start values for training from scratch: Kaiming normal (fan in, ReLU) weights, zero biases, unit batch
    norm.

    Draws from torch's global generator only, so `torch.manual_seed(s)` before building a network fixes its
    weights.

    Example:
        >>> layer = nn.Conv2d(8, 8, 3)
        >>> _ = torch.manual_seed(0); initialise_weights(layer); first = layer.weight.clone()
        >>> _ = torch.manual_seed(0); initialise_weights(layer); bool((layer.weight == first).all())
        True
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, _BATCH_NORM):
            layer.reset_parameters()


def initialise_score_layer(layer: nn.Conv2d) -> None:
    """Small weights and zero bias for a layer that outputs class scores: softmax starts almost uniform."""
    nn.init.normal_(layer.weight, std=0.01)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class Backbone(nn.Module):
    """Image to feature map. Subclasses set the attributes and list their `stages`, first to last.

    Args:
        normalization: "imagenet" (per-channel mean and deviation), "tensorflow" (x / 127.5 - 1) or "caffe"
            (ImageNet's mean alone).

    Attributes:
        out_channels: channels of the feature map.
        stride: input pixels per feature-map cell, in each direction.
        width: factor on the number of channels, 1 = as published.
        frozen_stages: number of leading stages that are not trained.
        side_layers: two convolutions, first to last, whose inputs are maps of less depth than the output.
    """

    out_channels: int
    stride: int
    width: float = 1.0
    frozen_stages: int = 0
    side_layers: tuple[str, ...] = ()
    mean: Tensor
    std: Tensor

    def __init__(self, normalization: str = "imagenet") -> None:
        super().__init__()
        if normalization not in NORMALIZATIONS:
            raise RRMError(f"normalization: expected one of {sorted(NORMALIZATIONS)}, got {normalization!r}")
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in NORMALIZATIONS[normalization])
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def normalize(self, images: Tensor) -> Tensor:
        """(N,3,H,W) RGB in 0..255, float or uint8 -> the same shape, as the backbone expects it."""
        return (images - self.mean) / self.std

    def stages(self) -> list[list[nn.Module]]:
        """The modules that have weights, in the order of the data, grouped by stage."""
        raise NotImplementedError

    def side_convolutions(self) -> list[nn.Conv2d]:
        """The convolutions named in `side_layers`."""
        layers = [self.get_submodule(name) for name in self.side_layers]
        return [layer for layer in layers if isinstance(layer, nn.Conv2d)]

    def freeze_first(self, count: int) -> None:
        """Stop training of the first `count` stages: no gradients, and their batch norm is frozen."""
        stages = self.stages()
        if not 0 <= count <= len(stages):
            raise RRMError(f"freeze_first: expected 0..{len(stages)} for {type(self).__name__}, got {count}")
        for stage in stages[:count]:
            for module in stage:
                module.requires_grad_(False)
        self.frozen_stages = count
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """As `nn.Module.train`; frozen batch-norm layers stay in evaluation mode."""
        super().train(mode)
        for layer in batch_norm_layers(self):
            if layer.weight is not None and not layer.weight.requires_grad:
                layer.eval()
        return self


class Network(nn.Module):
    """A backbone with heads. Every parameter outside `backbone` belongs to the heads.

    Args:
        backbone: gives stride, normalisation and features.
        num_classes: foreground classes C; segmentation outputs have C + 1 channels, 0 = background.
    """

    backbone: Backbone

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise RRMError(f"num_classes: expected at least 1 foreground class, got {num_classes}")
        self.backbone = backbone
        self.num_classes = num_classes

    @property
    def stride(self) -> int:
        """Input pixels per output cell, in each direction."""
        return self.backbone.stride

    def normalize(self, images: Tensor) -> Tensor:
        """(N,3,H,W) RGB in 0..255, float or uint8 -> the same shape, as `forward` expects it."""
        return self.backbone.normalize(images)

    def features(self, x: Tensor) -> Tensor:
        """(N,3,H,W) normalised images -> (N, backbone.out_channels, h, w)."""
        if x.ndim != 4 or x.shape[1] != 3:
            raise RRMError(f"network input: expected shape (N, 3, H, W), got {tuple(x.shape)}")
        return self.backbone(x)  # type: ignore[no-any-return]

    def set_batch_norm(self, mode: str) -> None:
        """Choose what training does to batch norm; frozen stages stay frozen.

        Args:
            mode: "frozen" (stored statistics, fixed affine parameters) or "train".
        """
        if mode not in ("frozen", "train"):
            raise RRMError(f"batch_norm: expected 'frozen' or 'train', got {mode!r}")
        for layer in batch_norm_layers(self):
            layer.requires_grad_(mode == "train")
        self.backbone.freeze_first(self.backbone.frozen_stages)
        self.train(self.training)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters that require gradients, each once, for optimisers with a learning rate per group.

        Returns:
            Lists under exactly the keys "backbone.weight", "backbone.bias", "head.weight", "head.bias". A
            batch-norm layer that is trained has its scale with the weights and its shift with the biases.
        """
        groups: dict[str, list[nn.Parameter]] = {name: [] for name in PARAMETER_GROUPS}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                part = "backbone" if name.startswith("backbone.") else "head"
                leaf = "bias" if name.endswith("bias") else "weight"
                groups[f"{part}.{leaf}"].append(parameter)
        return groups

    def parts_to_compile(self) -> list[nn.Module]:
        """The parts of several layers, which `torch.compile` may take: all methods of the network go through them."""
        return [part for part in self.children() if next(part.children(), None) is not None]

    def adapt_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Hook for `load_weights`: convert layers that this network holds in another form."""
        return state

    def _finish(self, score_layers: Sequence[nn.Conv2d], batch_norm: str, weights: str | Path | None) -> None:
        """Last step of every constructor: initialise, load, freeze."""
        initialise_weights(self)
        for layer in score_layers:
            initialise_score_layer(layer)
        if weights is not None:
            load_weights(self, weights)
        self.set_batch_norm(batch_norm)


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise RRMError unless `value` is one of `choices`.

    Example:
        >>> check_choice("output_stride", 8, (8, 16))
    """
    if value not in choices:
        raise RRMError(f"{name}: expected one of {list(choices)}, got {value!r}")
