"""ResNet-38 and RRM's branches against outputs recorded from the authors' code, in float32 and in float64."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rrm.networks import RRMNet

TOLERANCE = 2e-5
SCALES = (1, 0.5, 1.5, 2)


def recipe(key: str, shape: tuple[int, ...]) -> Tensor:
    """The weights that the recorded run used, made from their name."""
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return torch.zeros((), dtype=torch.int64)
    z = np.random.RandomState(zlib.crc32(key.encode("ascii"))).standard_normal(shape)
    if leaf == "running_var":
        values = 1.0 + 0.1 * np.abs(z)
    elif leaf in ("running_mean", "bias"):
        values = 0.1 * z
    elif len(shape) == 1:
        values = 1.0 + 0.1 * z
    else:
        values = z * 0.9 * np.sqrt(2.0 / np.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


@pytest.fixture(scope="module")
def keys(goldens: Path) -> Mapping[str, Any]:
    return json.loads((goldens / "resnet38_keys.json").read_text())


@pytest.fixture(scope="module")
def recorded(goldens: Path) -> Mapping[str, np.ndarray]:
    return dict(np.load(goldens / "resnet38_64x64.npz"))


@pytest.fixture(scope="module")
def net(keys: Mapping[str, Any]) -> RRMNet:
    """Full-size network with the recorded run's weights, under our names."""
    net = RRMNet()
    net.load_state_dict({own_name(key): recipe(key, tuple(shape)) for key, shape in keys["shapes"].items()})
    return net.eval()


def own_name(name: str) -> str:
    """Name of a recorded tensor in our network: parts of it are inside `backbone` and `head`."""
    parts = {"fc8": "", "fc8_seg_conv1": "head.", "fc8_seg_conv2": "head."}
    return parts.get(name.split(".", maxsplit=1)[0], "backbone.") + name


def own_names(names: list[str]) -> set[str]:
    return {own_name(name) for name in names}


def error(got: Tensor, want: np.ndarray) -> float:
    assert tuple(got.shape) == want.shape
    return float((got.double() - torch.from_numpy(want).double()).abs().max() / np.abs(want).max())


def test_names_and_shapes(net: RRMNet, keys: Mapping[str, Any]) -> None:
    state = net.state_dict()
    assert set(state) == own_names(keys["order_in_state_dict"])
    for name, shape in keys["shapes"].items():
        assert list(state[own_name(name)].shape) == shape
    assert set(net.backbone.state_dict()) <= set(keys["shapes"])


def test_loaded_values(net: RRMNet, keys: Mapping[str, Any]) -> None:
    for name in (
        "conv1a.weight",
        "b4_5.bn_branch2b1.running_var",
        "bn7.bias",
        "fc8.weight",
        "fc8_seg_conv2.weight",
    ):
        tensor = net.state_dict()[own_name(name)]
        assert float(tensor.double().sum()) == pytest.approx(keys["recipe_float64_sum"][name], rel=1e-5, abs=1e-3)


def test_parameter_groups(net: RRMNet, keys: Mapping[str, Any]) -> None:
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    groups = net.parameter_groups()
    assert list(groups) == ["backbone.weight", "backbone.bias", "head.weight", "head.bias"]
    assert [len(group) for group in groups.values()] == [43, 0, 3, 2]
    for group, want in zip(groups.values(), keys["parameter_groups_before_train"], strict=True):
        assert {names[id(parameter)] for parameter in group} == own_names(want)


def test_fixed_parameters_after_train(net: RRMNet, keys: Mapping[str, Any]) -> None:
    net.train()
    fixed = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    net.eval()
    assert fixed == own_names(keys["requires_grad_false_after_train"])


@pytest.mark.parametrize(("dtype", "suffix"), [(torch.float32, ""), (torch.float64, "_f64")])
def test_outputs(net: RRMNet, recorded: Mapping[str, np.ndarray], dtype: torch.dtype, suffix: str) -> None:
    net.to(dtype)
    x = torch.from_numpy(recorded["x"]).to(dtype)
    tolerance = TOLERANCE if dtype == torch.float32 else 1e-12
    total = torch.zeros(1, dtype=dtype)
    with torch.no_grad():
        out = net(x)
        for scale in SCALES:
            resized = x if scale == 1 else F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
            cam = net.forward_cam(resized).relu()
            assert error(cam, recorded[f"cam_scale_{scale}"]) < TOLERANCE
            total = total + F.interpolate(cam, size=out.cam.shape[-2:], mode="bilinear", align_corners=False)
    assert error(out.class_logits, recorded["xf" + suffix]) < tolerance
    assert error(out.segmentation, recorded["seg" + suffix]) < tolerance
    assert error(total / len(SCALES), recorded["cam" + suffix]) < tolerance
    assert error(out.cam.relu(), recorded["cam_scale_1"]) < TOLERANCE


def test_inner_features(net: RRMNet, recorded: Mapping[str, np.ndarray]) -> None:
    taken: dict[str, Tensor] = {}
    features = {"conv4": "b5.bn_branch2a", "conv5": "b6.bn_branch2a", "conv6": "bn7"}
    handles = [
        net.backbone.get_submodule(layer).register_forward_hook(
            lambda _module, _inputs, output, name=name: taken.update({name: output.relu()})
        )
        for name, layer in features.items()
    ]
    with torch.no_grad():
        net.float().forward_cam(torch.from_numpy(recorded["x"]))
    for handle in handles:
        handle.remove()
    for name, feature in taken.items():
        assert error(feature[:, :32], recorded[f"{name}_first32ch"]) < TOLERANCE
