"""RRMNet and the DeepLab networks: outputs, branches, groups, frozen batch norm, seeds, precision."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rrm.errors import RRMError
from rrm.networks import (
    AffinityNet,
    DeepLab,
    DeepLabLargeFOVVGG16,
    DeepLabV2ResNet101,
    Network,
    RRMNet,
    affinity_options,
    build_network,
    freeze_batch_norm,
    load_weights,
)

TINY = {"width": 1 / 16, "units": (1, 1, 1, 1)}

NETWORKS: dict[str, Callable[..., Network]] = {
    "rrm-resnet38": lambda **options: RRMNet(5, "resnet38", **TINY, **options),
    "rrm-mobilenet": lambda **options: RRMNet(5, "mobilenet_v2", head="light", width=0.25, **options),
    "deeplab-resnet38": lambda **options: DeepLab(5, "resnet38", **TINY, **options),
    "deeplab-mobilenet-aspp": lambda **options: DeepLab(5, "mobilenet_v2", head="aspp", width=0.25, **options),
    "deeplab-v2": lambda **options: DeepLabV2ResNet101(5, width=0.125, layers=(1, 1, 2, 1), **options),
    "largefov": lambda **options: DeepLabLargeFOVVGG16(5, width=0.125, **{"batch_norm": "frozen", **options}),
}


@pytest.fixture(params=sorted(NETWORKS))
def build(request: pytest.FixtureRequest) -> Callable[..., Network]:
    torch.manual_seed(0)
    return NETWORKS[request.param]


def norms(net: nn.Module) -> list[nn.BatchNorm2d]:
    return [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]


def scores(net: Network, x: Tensor) -> Tensor:
    return net.forward_segmentation(x)  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize("size", [(96, 96), (65, 65), (40, 33)])
def test_segmentation_shape(build: Callable[..., Network], size: tuple[int, int]) -> None:
    net = build().eval()
    with torch.no_grad():
        shape = tuple(scores(net, net.normalize(torch.zeros(2, 3, *size))).shape)
    assert shape == (2, 6, -(-size[0] // net.stride), -(-size[1] // net.stride))


@pytest.mark.parametrize(
    "net", [DeepLabV2ResNet101(width=0.0625, layers=(1, 1, 1, 1)), DeepLabLargeFOVVGG16(width=0.0625)]
)
def test_a_crop_of_321_gives_a_map_of_41(net: Network) -> None:
    with torch.no_grad():
        assert tuple(net.eval()(torch.zeros(1, 3, 321, 321)).shape) == (1, 21, 41, 41)


@pytest.mark.parametrize("batch_norm", ["frozen", "train"])
def test_each_trainable_parameter_is_in_one_group(build: Callable[..., Network], batch_norm: str) -> None:
    net = build(batch_norm=batch_norm)
    groups = net.parameter_groups()
    assert list(groups) == ["backbone.weight", "backbone.bias", "head.weight", "head.bias"]
    listed = [id(parameter) for group in groups.values() for parameter in group]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(parameter) for parameter in net.parameters() if parameter.requires_grad}
    affine = {id(parameter) for layer in norms(net) for parameter in layer.parameters()}
    assert affine.isdisjoint(listed) if batch_norm == "frozen" else affine <= set(listed)
    shifts = {id(layer.bias) for layer in norms(net)}
    in_bias_group = {id(parameter) for parameter in groups["backbone.bias"]}
    assert not shifts & in_bias_group if batch_norm == "frozen" else shifts <= in_bias_group
    assert all(parameter.ndim == 1 for name in ("backbone.bias", "head.bias") for parameter in groups[name])
    heads = {id(parameter) for name, parameter in net.named_parameters() if not name.startswith("backbone.")}
    assert {id(parameter) for name in ("head.weight", "head.bias") for parameter in groups[name]} == heads


def test_frozen_batch_norm_survives_train(build: Callable[..., Network]) -> None:
    net = build(batch_norm="frozen")
    before = copy.deepcopy(net.state_dict())
    for _ in range(2):
        net.train()
        assert not any(layer.training for layer in norms(net))
        scores(net, torch.randn(2, 3, 33, 33)).mean().backward()
        net.eval()
    assert norms(net) and all(layer.weight.grad is None for layer in norms(net))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_trained_batch_norm_moves_and_can_be_frozen_later(build: Callable[..., Network]) -> None:
    net = build(batch_norm="train").train()
    first = norms(net)[0]
    before = first.running_mean.clone()
    scores(net, torch.randn(2, 3, 33, 33))
    assert not torch.equal(first.running_mean, before)
    freeze_batch_norm(net)
    moved = first.running_mean.clone()
    scores(net.train(), torch.randn(2, 3, 33, 33))
    assert torch.equal(first.running_mean, moved) and not first.weight.requires_grad
    net.set_batch_norm("train")
    assert first.training and first.weight.requires_grad


def test_first_stages_stay_frozen_whatever_batch_norm_does() -> None:
    net = RRMNet(5, "mobilenet_v2", head="light", width=0.25, freeze_first=7, batch_norm="train").train()
    frozen, free = net.backbone.features[:7], net.backbone.features[7:]
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert all(parameter.requires_grad for parameter in free.parameters())
    assert not any(layer.training for layer in norms(frozen)) and all(layer.training for layer in norms(free))
    net.set_batch_norm("frozen")
    net.set_batch_norm("train")
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert not net.backbone.features[6](torch.randn(1, 3, 32, 32).new_zeros(1, 8, 8, 8)).requires_grad


def test_a_frozen_backbone_leaves_the_heads(build: Callable[..., Network]) -> None:
    net = build(batch_norm="train")
    net.backbone.freeze_first(len(net.backbone.stages()))
    net.train()
    groups = net.parameter_groups()
    assert not groups["backbone.weight"] and not groups["backbone.bias"] and groups["head.weight"]
    assert not any(layer.training for layer in norms(net.backbone))


@pytest.mark.parametrize("name", ["rrm-resnet38", "rrm-mobilenet"])
@pytest.mark.parametrize("classifier_bias", [False, True])
def test_branches_agree(name: str, classifier_bias: bool) -> None:
    torch.manual_seed(0)
    net = NETWORKS[name](classifier_bias=classifier_bias).eval()
    if classifier_bias:
        nn.init.normal_(net.fc8.bias)
    x = torch.randn(2, 3, 65, 48)
    with torch.no_grad():
        out, classified = net(x), net.forward_classification(x)
        assert torch.equal(out.cam, net.forward_cam(x)) and torch.equal(out.cam, classified.cam)
        assert torch.equal(out.segmentation, net.forward_segmentation(x))
        assert torch.equal(out.class_logits, classified.class_logits)
        bias = net.fc8.bias if classifier_bias else 0.0
        torch.testing.assert_close(out.class_logits, out.cam.mean((2, 3)) + bias)
    assert out.class_logits.shape == (2, 5) and out.cam.shape[1] == 5
    assert float(out.cam.min()) < 0


@pytest.mark.parametrize(
    ("method", "part"),
    [("forward_cam", "head"), ("forward_classification", "head"), ("forward_segmentation", "fc8")],
)
def test_a_branch_does_not_run_the_other(method: str, part: str) -> None:
    net = RRMNet(5, **TINY)
    getattr(net, part).register_forward_hook(lambda *_: pytest.fail(f"{method} ran {part}"))
    getattr(net, method)(torch.zeros(1, 3, 32, 32))


def test_classifier_dropout_does_not_touch_the_cam() -> None:
    torch.manual_seed(0)
    net = RRMNet(5, **TINY, dropout=(0, 0)).train()
    x = torch.randn(2, 3, 32, 32)
    one, two = net(x), net(x)
    assert torch.equal(one.cam, two.cam) and torch.equal(one.segmentation, two.segmentation)
    assert not torch.equal(one.class_logits, two.class_logits)


def test_the_seed_fixes_the_start(build: Callable[..., Network]) -> None:
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(build().state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert any(not torch.equal(value, states[2][name]) for name, value in states[0].items())


def test_first_scores_are_moderate(build: Callable[..., Network]) -> None:
    """From scratch, activations neither vanish nor explode."""
    net = build(batch_norm="train").train()
    with torch.no_grad():
        first = scores(net, net.normalize(torch.rand(4, 3, 64, 64) * 255))
    assert 1e-3 < float(first.std()) < 3


@pytest.mark.parametrize("name", ["rrm-resnet38", "rrm-mobilenet", "largefov"])
def test_a_few_steps_fit_a_batch(name: str) -> None:
    torch.manual_seed(0)
    net = NETWORKS[name](batch_norm="train").train()
    x = torch.randn(4, 3, 32, 32)
    target = torch.arange(4)
    optimizer = torch.optim.Adam([p for group in net.parameter_groups().values() for p in group], 3e-3)
    losses = []
    for _ in range(25):
        loss = nn.functional.cross_entropy(scores(net, x).mean((2, 3)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses[-5:]) < 0.5 * losses[0]


def test_channels_last_and_autocast(build: Callable[..., Network]) -> None:
    net = build().eval()
    x = torch.randn(2, 3, 48, 33)
    with torch.no_grad():
        plain = scores(net, x)
        net.to(memory_format=torch.channels_last)
        last = scores(net, x.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-5 * float(plain.abs().max() + 1))
        with torch.autocast("cpu", torch.bfloat16):
            low = scores(net, x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), plain, rtol=0.1, atol=0.1 * float(plain.abs().max()))


def test_normalize_follows_the_backbone() -> None:
    net = DeepLab(5, "mobilenet_v2", width=0.25, normalization="tensorflow")
    assert torch.equal(
        net.normalize(torch.tensor([0, 255]).view(1, 1, 1, 2).expand(1, 3, 1, 2)).unique(),
        torch.tensor([-1.0, 1.0]),
    )


@pytest.mark.parametrize(
    ("kind", "backbone", "options", "expected"),
    [
        ("rrm", "resnet38", {"width": 1 / 16}, RRMNet),
        ("rrm", "mobilenet_v2", {"head": "light"}, RRMNet),
        ("segmentation", "mobilenet_v2", {"width": 0.25}, DeepLab),
        ("segmentation", "resnet38", {"width": 1 / 16}, DeepLab),
        ("segmentation", "resnet101", {"width": 0.125, "layers": [1, 1, 1, 1]}, DeepLabV2ResNet101),
        ("segmentation", "vgg16", {"width": 0.125}, DeepLabLargeFOVVGG16),
        ("affinity", "resnet38", {"width": 1 / 16}, AffinityNet),
    ],
)
def test_build_network(kind: str, backbone: str, options: dict[str, object], expected: type[Network]) -> None:
    net = build_network(kind, num_classes=3, backbone=backbone, **options)
    assert type(net) is expected and net.num_classes == 3


@pytest.mark.parametrize(
    ("kind", "backbone", "options", "words"),
    [
        ("crf", "resnet38", {}, "network kind"),
        ("rrm", "vgg16", {}, "backbone"),
        ("affinity", "vgg16", {}, "backbone"),
        ("affinity", "resnet38", {"head": "light"}, "head"),
        ("rrm", "resnet38", {"depth": 3}, "depth"),
        ("segmentation", "vgg16", {"depth": 3}, "depth"),
        ("rrm", "resnet38", {"head": "u-net", "width": 1 / 16}, "head"),
        ("rrm", "resnet38", {"head_rates": (6, 12), "width": 1 / 16}, "head_rates"),
        ("segmentation", "resnet38", {"head": "aspp", "head_channels": 64, "width": 1 / 16}, "head_channels"),
        ("rrm", "resnet38", {"batch_norm": "none", "width": 1 / 16}, "batch_norm"),
        ("segmentation", "vgg16", {"batch_norm": True}, "batch_norm"),
        ("rrm", "resnet38", {"num_classes": 0, "width": 1 / 16}, "num_classes"),
    ],
)
def test_bad_options_are_refused_by_name(kind: str, backbone: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(RRMError, match=words):
        build_network(kind, backbone=backbone, **options)


@pytest.mark.parametrize(
    ("backbone", "options", "inputs"),
    [
        ("resnet38", {**TINY, "output_stride": 4}, [32, 64, 256]),
        ("resnet38", TINY, [32, 64, 256]),
        ("mobilenet_v2", {"width": 0.25, "output_stride": 8}, [24, 80, 1280]),
        ("mobilenet_v2", {"width": 0.25, "output_stride": 32}, [24, 80, 1280]),
        ("resnet50", {"width": 0.125, "layers": (1, 1, 1, 1), "output_stride": 16}, [64, 128, 256]),
    ],
)
def test_affinity_features_join_three_depths(backbone: str, options: dict[str, object], inputs: list[int]) -> None:
    torch.manual_seed(0)
    net = build_network("affinity", num_classes=3, backbone=backbone, batch_norm="train", **options)
    layers = (net.f8_3, net.f8_4, net.f8_5)
    assert [layer.in_channels for layer in layers] == inputs  # type: ignore[union-attr]
    x = torch.randn(2, 3, 40, 33)
    features = net(x)
    assert features.shape == (2, net.f9.out_channels, -(-40 // net.stride), -(-33 // net.stride))  # type: ignore[union-attr]
    features.mean().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert not any(layer._forward_pre_hooks for layer in net.modules())
    groups = net.parameter_groups()
    assert len(groups["head.weight"]) == 4 and not groups["head.bias"]


def test_affinity_channels_at_full_width() -> None:
    net = AffinityNet(units=(1, 1, 1, 1))
    shapes = [tuple(layer.weight.shape[:2]) for layer in (net.f8_3, net.f8_4, net.f8_5, net.f9)]
    assert shapes == [(64, 512), (128, 1024), (256, 4096), (448, 448)]


def test_affinity_maps_are_what_the_next_units_take() -> None:
    net = AffinityNet(5, **TINY, batch_norm="train").eval()
    seen = []
    for name in ("b5", "b6"):
        unit = net.backbone.get_submodule(name)
        unit.bn_branch2a.register_forward_hook(lambda _, __, output: seen.append(output.relu()))
    with torch.no_grad():
        maps = net._maps(torch.randn(1, 3, 32, 32))
    assert all(torch.equal(one, two) for one, two in zip(maps[:2], seen, strict=True))


def test_affinity_net_starts_from_a_classifier(tmp_path: Path) -> None:
    options = {**TINY, "head": "light", "classifier_bias": True, "batch_norm": "train"}
    classifier = RRMNet(5, "resnet38", **options)
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    net = build_network("affinity", backbone="resnet38", **affinity_options("resnet38", options))
    report = load_weights(net, tmp_path / "classifier.pth")
    assert set(report.missing) == {f"{name}.weight" for name in ("f8_3", "f8_4", "f8_5", "f9")}
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in classifier.state_dict().items()
               if name.startswith("backbone."))  # fmt: skip


def test_a_wrong_input_is_refused() -> None:
    with pytest.raises(RRMError, match="network input"):
        RRMNet(5, **TINY)(torch.zeros(3, 32, 32))
