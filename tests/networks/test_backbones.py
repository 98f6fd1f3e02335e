"""Backbones: shapes at odd sizes, strides turned into dilation, padding, agreement with torchvision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn

from rrm.errors import RRMError
from rrm.networks import (
    Backbone,
    DilatedResNet,
    MobileNetV2,
    ResNet38,
    VGG16LargeFOV,
    build_backbone,
    read_weights,
)

TINY = {"width": 1 / 16, "units": (1, 1, 1, 1)}


def random_statistics(net: nn.Module) -> nn.Module:
    """Random weights and batch-norm values, so that every layer matters in evaluation mode."""
    torch.manual_seed(1)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.1)
            nn.init.normal_(layer.bias, 0.0, 0.1)
            nn.init.normal_(layer.running_mean, 0.0, 0.1)
            nn.init.uniform_(layer.running_var, 0.8, 1.2)
    return net.eval()


def make(name: str, output_stride: int) -> Backbone:
    if name == "resnet38":
        return ResNet38(**TINY, output_stride=output_stride)
    if name == "mobilenet_v2":
        return MobileNetV2(output_stride=output_stride, width=0.25)
    return DilatedResNet((1, 2, 2, 2), width=0.125, output_stride=output_stride)


@pytest.mark.parametrize(
    ("name", "strides"), [("resnet38", (4, 8)), ("mobilenet_v2", (8, 16, 32)), ("resnet50", (8, 16, 32))]
)
@pytest.mark.parametrize("size", [(65, 96), (97, 40)])
def test_shape_is_the_size_over_the_stride_rounded_up(
    name: str, strides: tuple[int, ...], size: tuple[int, int]
) -> None:
    for stride in strides:
        backbone = make(name, stride).eval()
        with torch.no_grad():
            shape = backbone(torch.randn(2, 3, *size)).shape
        assert backbone.stride == stride
        assert tuple(shape) == (2, backbone.out_channels, -(-size[0] // stride), -(-size[1] // stride))


@pytest.mark.parametrize(
    ("name", "fine", "coarse"),
    [
        ("resnet38", 4, 8),
        ("mobilenet_v2", 8, 16),
        ("mobilenet_v2", 16, 32),
        ("resnet50", 8, 16),
        ("resnet50", 16, 32),
    ],
)
def test_dilation_keeps_the_meaning_of_the_weights(name: str, fine: int, coarse: int) -> None:
    """The finer map holds the coarser one at every second cell."""
    nets = [random_statistics(make(name, stride)).double() for stride in (fine, coarse)]
    nets[0].load_state_dict(nets[1].state_dict())
    x = torch.randn(1, 3, 97, 128, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(nets[0](x)[:, :, ::2, ::2], nets[1](x))


def test_dilation_with_same_padding() -> None:
    """TensorFlow's padding centres a stride-2 convolution on odd cells of an even map."""
    nets = [random_statistics(MobileNetV2(stride, "same", width=0.25)).double() for stride in (16, 32)]
    x = torch.randn(1, 3, 128, 192, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(nets[0](x)[:, :, 1::2, 1::2], nets[1](x))


@pytest.mark.parametrize("size", [(32, 32), (33, 32), (35, 37)])
def test_same_padding_pads_an_even_side_at_its_end_only(size: tuple[int, int]) -> None:
    conv = MobileNetV2(padding="same", width=0.25).features[0][0]
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        got = conv(x)
        top, left = size[0] % 2, size[1] % 2
        want = F.conv2d(F.pad(x, (left, 1, top, 1)), conv.weight, stride=2)
    assert torch.equal(got, want)
    assert tuple(got.shape[-2:]) == (-(-size[0] // 2), -(-size[1] // 2))


def test_mobilenet_at_stride_32_is_torchvisions() -> None:
    ours = random_statistics(MobileNetV2(output_stride=32, width=0.5))
    theirs = torchvision.models.mobilenet_v2(width_mult=0.5).features.eval()
    theirs.load_state_dict({name.removeprefix("features."): value for name, value in ours.state_dict().items()})
    x = torch.randn(1, 3, 65, 64)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("stride", "dilate"), [(8, (False, True, True)), (16, (False, False, True)), (32, (False,) * 3)]
)
def test_resnet50_is_torchvisions(stride: int, dilate: tuple[bool, ...]) -> None:
    ours = random_statistics(build_backbone("resnet50", output_stride=stride))
    theirs = torchvision.models.resnet50(replace_stride_with_dilation=list(dilate)).eval()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    trunk = nn.Sequential(*list(theirs.children())[:-2])
    x = torch.randn(1, 3, 65, 48)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), trunk(x))


def test_vgg_layout() -> None:
    net = VGG16LargeFOV()
    convs = [layer for layer in net.features if isinstance(layer, nn.Conv2d)]
    pools = [layer for layer in net.features if isinstance(layer, nn.MaxPool2d)]
    assert [conv.dilation[0] for conv in convs] == [1] * 10 + [2] * 3
    assert [(pool.kernel_size, pool.stride, pool.padding) for pool in pools] == [(3, 2, 1)] * 3 + [(3, 1, 1)] * 2
    assert (net.fc6.in_channels, net.fc6.out_channels, net.fc6.dilation) == (512, 1024, (12, 12))
    assert set(torchvision.models.vgg16().features.state_dict()) == {
        name.removeprefix("features.") for name in net.state_dict() if name.startswith("features.")
    }


def test_width_scales_the_channels() -> None:
    assert ResNet38(width=1 / 8, units=(1, 1, 1, 1)).out_channels == 512
    assert ResNet38(**TINY).out_channels == 256
    assert len(ResNet38(width=1 / 16, units=(2, 1, 3, 1)).stages()[3]) == 3
    assert DilatedResNet((1, 1, 1, 1), width=0.25).out_channels == 512
    assert VGG16LargeFOV(width=0.25).out_channels == 256


@pytest.mark.parametrize(
    ("kind", "mean", "std"),
    [
        ("imagenet", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        ("tensorflow", (127.5,) * 3, (127.5,) * 3),
    ],
)
def test_normalize(kind: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    backbone = ResNet38(**TINY, normalization=kind)
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    want = (images.numpy() - np.reshape(mean, (1, 3, 1, 1))) / np.reshape(std, (1, 3, 1, 1))
    for given in (images, images.float()):
        np.testing.assert_allclose(backbone.normalize(given).numpy(), want, rtol=1e-5, atol=1e-6)
    assert not {"mean", "std"} & set(backbone.state_dict())


def test_channel_dropout_of_resnet38_is_on_in_training_only() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 32, 32)
    for rates, differs in (((0.3, 0.5), True), ((0.0, 0.0), False)):
        net = ResNet38(**TINY, dropout=rates)
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.requires_grad_(False)
        with torch.no_grad():
            assert torch.equal(net.train()(x), net(x)) is not differs
            assert torch.equal(net.eval()(x), net(x))


@pytest.mark.parametrize("width", [1 / 8, 1 / 16])
def test_gradients_are_the_same_in_channels_last(width: float) -> None:
    """Narrow strided layers at an even size, where a native kernel once wrote out of bounds."""
    torch.manual_seed(0)
    net = ResNet38(width, (1, 1, 1, 1), dropout=(0, 0)).eval()
    x = torch.randn(2, 3, 96, 96)
    gradients: list[list[Tensor]] = []
    for layout in (torch.contiguous_format, torch.channels_last):
        net.to(memory_format=layout)
        net.zero_grad()
        net(x.contiguous(memory_format=layout)).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max()))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet18", {}, "backbone"),
        ("resnet38", {"output_stride": 16}, "output_stride"),
        ("resnet38", {"padding": "same"}, "padding"),
        ("resnet38", {"units": (1, 1, 1)}, "units"),
        ("resnet38", {"width": 0}, "width"),
        ("resnet38", {"dropout": 0.5}, "dropout"),
        ("resnet38", {"freeze_first": 8}, "freeze_first"),
        ("mobilenet_v2", {"padding": "valid"}, "padding"),
        ("mobilenet_v2", {"normalization": "vgg"}, "normalization"),
        ("resnet50", {"layers": (3, 4)}, "layers"),
    ],
)
def test_bad_options_are_refused_by_name(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(RRMError, match=words):
        build_backbone(name, **options)


def test_trained_mobilenet_prefers_the_padding_it_was_trained_with(mobilenet_weights: Path, voc_mini: Path) -> None:
    """Loaded into our backbone, the file classifies photos; with torch's padding less surely."""
    state = read_weights(mobilenet_weights)
    paths = sorted((voc_mini / "JPEGImages").glob("*.jpg"))[:24]
    photos = np.stack([np.asarray(Image.open(path).convert("RGB").resize((224, 224))) for path in paths])
    images = torch.from_numpy(photos).permute(0, 3, 1, 2)
    confidence = {}
    for padding in ("same", "torch"):
        net = MobileNetV2(32, padding, "tensorflow").eval()
        net.load_state_dict({name: value for name, value in state.items() if name.startswith("features.")})
        with torch.no_grad():
            pooled = net(net.normalize(images)).mean((2, 3))
            scores = F.linear(pooled, state["classifier.1.weight"], state["classifier.1.bias"])
        confidence[padding] = float(scores.softmax(1).amax(1).mean())
    assert confidence["same"] > 0.4
    assert confidence["same"] > confidence["torch"]
