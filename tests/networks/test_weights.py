"""Weight files: our own, torchvision's, published ResNet-38 files in both formats; damaged, foreign ones."""

from __future__ import annotations

import logging
import random
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from rrm.errors import RRMError
from rrm.networks import (
    DeepLab,
    DeepLabLargeFOVVGG16,
    DeepLabV2ResNet101,
    ResNet38,
    RRMNet,
    load_reference_weights,
    load_weights,
    read_mxnet_params,
    read_weights,
)

TINY = {"width": 1 / 16, "units": (3, 3, 6, 3)}
FLAGS = {"float32": 0, "float64": 1, "float16": 2}
MAGICS = {"v1": 0xF993FAC8, "v2": 0xF993FAC9, "v3": 0xF993FACA}


def mxnet_array(array: np.ndarray, version: str = "v2") -> bytes:
    """One array as MXNet saves it; version "v0" is the layout before magic numbers."""
    if version == "v0":
        head = struct.pack(f"<I{array.ndim}I", array.ndim, *array.shape)
    else:
        head = struct.pack("<I", MAGICS[version]) + (b"" if version == "v1" else struct.pack("<i", 0))
        head += struct.pack(f"<I{array.ndim}q", array.ndim, *array.shape)
    return head + struct.pack("<iii", 1, 0, FLAGS[array.dtype.name]) + array.tobytes()


def mxnet_file(path: Path, arrays: Mapping[str, np.ndarray], version: str = "v2") -> Path:
    names = [name.encode() for name in arrays]
    content = struct.pack("<QQQ", 0x112, 0, len(arrays))
    content += b"".join(mxnet_array(array, version) for array in arrays.values())
    content += struct.pack("<Q", len(names)) + b"".join(struct.pack("<Q", len(name)) + name for name in names)
    path.write_bytes(content)
    return path


def mxnet_name(name: str) -> str:
    """Published name of a tensor of our ResNet-38, written down independently of the loader."""
    unit, rest = name.split(".", 1)
    leaf = {"running_mean": "moving_mean", "running_var": "moving_var"}.get(rest.split(".")[-1])
    if unit == "conv1a":
        return "arg:conv1a_weight"
    layer = unit if unit == "bn7" else rest.split(".")[0]
    is_norm = layer.startswith("bn")
    leaf = leaf or ({"weight": "gamma", "bias": "beta"}[rest.split(".")[-1]] if is_norm else "weight")
    kind = "aux" if leaf.startswith("moving") else "arg"
    if unit == "bn7":
        return f"{kind}:bn7_{leaf}"
    block, _, index = unit[1:].partition("_")
    place = block + (f"b{index}" if index else "a")
    return f"{kind}:{'bn' if is_norm else 'res'}{place}_{layer.split('_')[1]}_{leaf}"


def randomised(net: torch.nn.Module, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {n: torch.rand_like(v) if v.is_floating_point() else v.clone() for n, v in net.state_dict().items()}


def assert_holds(net: torch.nn.Module, state: Mapping[str, Tensor], prefix: str = "") -> None:
    own = net.state_dict()
    for name, value in state.items():
        assert torch.equal(own[prefix + name], value.to(own[prefix + name].dtype)), name


@pytest.mark.parametrize("version", ["v0", "v1", "v2", "v3"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_params_arrays_come_back(tmp_path: Path, version: str, dtype: str) -> None:
    generator = np.random.default_rng(0)
    arrays = {
        f"arg:{shape}": generator.normal(size=shape).astype(dtype) for shape in [(3,), (2, 3), (4, 3, 1, 2), (0, 2)]
    }
    got = read_mxnet_params(mxnet_file(tmp_path / "a.params", arrays, version))
    assert list(got) == list(arrays)
    for name, array in arrays.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array)


def test_every_truncation_of_params_is_refused(tmp_path: Path) -> None:
    path = mxnet_file(tmp_path / "a.params", {"arg:x": np.ones((2, 2), np.float32), "aux:y": np.ones(3, np.float64)})
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(RRMError):
            read_mxnet_params(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(RRMError, match="left over"):
        read_mxnet_params(path)


@pytest.mark.parametrize("version", ["v0", "v1", "v2", "v3"])
def test_damaged_params_raise_nothing_but_our_error(tmp_path: Path, version: str) -> None:
    path = mxnet_file(tmp_path / "a.params", {"arg:x": np.ones((2, 2), np.float32), "aux:y": np.ones(3)}, version)
    content = path.read_bytes()
    generator = random.Random(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(content)
        for _ in range(generator.randint(1, 3)):
            damaged[generator.randrange(len(damaged))] = generator.choice(
                [0, 1, 127, 128, 255, generator.randrange(256)]
            )
        path.write_bytes(damaged)
        try:
            read_mxnet_params(path)
        except RRMError:
            refused += 1
    assert refused > 100


def one_array(layout: str, *fields: int) -> bytes:
    """A file that claims one array, whose first bytes are `fields`."""
    return struct.pack("<QQQ", 0x112, 0, 1) + struct.pack("<" + layout, *fields) + bytes(64)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (struct.pack("<QQQ", 0x112, 7, 0) + bytes(8), "reserved"),
        (struct.pack("<QQQ", 0x112, 0, 2**60), "do not fit"),
        (one_array("Iii", MAGICS["v2"], 1, 1), "dense"),
        (one_array("Iiiqiii", MAGICS["v2"], 0, 1, 2, 1, 0, 4), "element type"),
        (one_array("Iiiqiii", MAGICS["v2"], 0, 1, 2**62, 1, 0, 0), "truncated"),
        (one_array("Iiiqiii", MAGICS["v2"], 0, 1, -1, 1, 0, 0), "dimensions"),
        (one_array("Iii", MAGICS["v2"], 0, 0), "dimensions"),
        (one_array("I", 2**31), "dimensions"),
        (struct.pack("<QQQ", 0x112, 0, 1) + mxnet_array(np.ones(2, np.float32)) + bytes(8), "distinct name"),
    ],
)
def test_impossible_params_say_what_is_wrong(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.params"
    path.write_bytes(content)
    with pytest.raises(RRMError, match=words):
        read_weights(path)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_imagenet_params_fill_the_backbone(tmp_path: Path, dtype: type) -> None:
    source = ResNet38(**TINY)
    state = {name: value for name, value in randomised(source).items() if "num_batches" not in name}
    arrays = {mxnet_name(name): value.numpy().astype(dtype) for name, value in state.items()}
    assert {
        "arg:res2a_branch1_weight",
        "arg:res4b5_branch2b1_weight",
        "aux:bn6a_branch2b2_moving_var",
    } <= set(arrays)
    arrays |= {"arg:linear1000_weight": np.ones((10, 4), dtype), "arg:linear1000_bias": np.ones(10, dtype)}
    net = RRMNet(5, **TINY)
    classifier = net.fc8.weight.clone()
    report = load_reference_weights(net, mxnet_file(tmp_path / "imagenet.params", arrays))
    assert_holds(net, {name: torch.from_numpy(arrays[mxnet_name(name)]) for name in state}, "backbone.")
    assert set(report.matched) == {"backbone." + name for name in state}
    assert report.unexpected == ("arg:linear1000_weight", "arg:linear1000_bias")
    assert set(report.missing) == {"fc8.weight"} | {f"head.{name}" for name in net.head.state_dict()}
    assert torch.equal(net.fc8.weight, classifier)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("legacy", [False, True])
def test_reference_pth(tmp_path: Path, prefix: str, legacy: bool) -> None:
    """The authors' names, perhaps with a data-parallel wrapper's in front, perhaps without counters."""
    source = RRMNet(5, **TINY)
    state = {name: value for name, value in randomised(source).items() if not (legacy and "num_batches" in name)}
    theirs = {prefix + name.removeprefix("backbone.").removeprefix("head."): value for name, value in state.items()}
    assert prefix + "b4_5.conv_branch2b1.weight" in theirs and prefix + "fc8_seg_conv1.bias" in theirs
    torch.save(theirs, tmp_path / "rrm.pth", _use_new_zipfile_serialization=not legacy)
    net = RRMNet(5, **TINY)
    assert load_reference_weights(net, tmp_path / "rrm.pth").complete
    assert_holds(net, state)


def test_a_classifier_file_leaves_the_segmentation_branch(tmp_path: Path) -> None:
    state = {
        n.removeprefix("backbone."): v for n, v in randomised(RRMNet(20, **TINY)).items() if not n.startswith("head.")
    }
    torch.save(state, tmp_path / "cls.pth")
    assert {
        name.split(".")[0] for name in load_reference_weights(RRMNet(20, **TINY), tmp_path / "cls.pth").missing
    } == {"head"}
    report = load_reference_weights(RRMNet(5, **TINY), tmp_path / "cls.pth")
    assert report.shape_mismatch == ("fc8.weight (network (5, 256, 1, 1), file (20, 256, 1, 1))",)
    assert "fc8.weight" not in report.matched + report.missing


def test_an_incomplete_reference_file_is_refused_untouched(tmp_path: Path) -> None:
    state = randomised(ResNet38(**TINY))
    del state["b5_1.conv_branch2a.weight"]
    torch.save(state, tmp_path / "part.pth")
    net = RRMNet(5, **TINY)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(RRMError, match="b5_1.conv_branch2a.weight"):
        load_reference_weights(net, tmp_path / "part.pth")
    assert_holds(net, before)
    with pytest.raises(RRMError, match="ResNet-38"):
        load_reference_weights(DeepLab(5, "mobilenet_v2", width=0.25), tmp_path / "part.pth")


@pytest.mark.parametrize("container", [None, "state_dict", "model", "network", "weights"])
def test_own_checkpoint(tmp_path: Path, container: str | None) -> None:
    state = randomised(RRMNet(5, **TINY))
    torch.save({container: state, "step": 3} if container else state, tmp_path / "own.pth")
    net = RRMNet(5, **TINY)
    assert load_weights(net, tmp_path / "own.pth", strict=True).complete
    assert_holds(net, state)


@pytest.mark.parametrize("backbone", ["resnet38", "mobilenet_v2"])
def test_warm_start_of_step_two(tmp_path: Path, backbone: str, caplog: pytest.LogCaptureFixture) -> None:
    options = dict(TINY) if backbone == "resnet38" else {"width": 0.25}
    state = randomised(RRMNet(5, backbone, head="light", **options))
    torch.save(state, tmp_path / "one_step.pth")
    net = DeepLab(5, backbone, head="light", **options)
    with caplog.at_level(logging.WARNING, "rrm.networks"):
        report = load_weights(net, tmp_path / "one_step.pth")
    assert report.unexpected == ("fc8.weight",) and not report.missing and not report.shape_mismatch
    assert "fc8.weight" in caplog.text
    del state["fc8.weight"]
    assert_holds(net, state)
    aspp = load_weights(DeepLab(5, backbone, head="aspp", **options), tmp_path / "one_step.pth")
    assert {name.split(".")[0] for name in aspp.missing} == {"head"}
    with pytest.raises(RRMError, match="fc8.weight"):
        load_weights(net, tmp_path / "one_step.pth", strict=True)


@pytest.mark.parametrize("classes", [1000, 1001])
def test_torchvision_mobilenet(tmp_path: Path, classes: int) -> None:
    state = randomised(torchvision.models.mobilenet_v2(num_classes=classes, width_mult=0.25))
    torch.save(state, tmp_path / "imagenet.pth")
    net = RRMNet(5, "mobilenet_v2", head="light", width=0.25, weights=tmp_path / "imagenet.pth")
    assert_holds(net, {name: value for name, value in state.items() if name.startswith("features.")}, "backbone.")
    assert load_weights(net, tmp_path / "imagenet.pth").unexpected == (
        "classifier.1.weight",
        "classifier.1.bias",
    )


def test_torchvision_resnet_names(tmp_path: Path) -> None:
    theirs = torchvision.models.resnet101().state_dict()
    ours = DeepLabV2ResNet101(width=0.125)
    backbone = {name for name in theirs if not name.startswith("fc.")}
    assert {name.removeprefix("backbone.") for name in ours.state_dict() if name.startswith("backbone.")} == backbone
    torch.save({name: ours.state_dict()["backbone." + name] for name in backbone}, tmp_path / "resnet101.pth")
    net = DeepLabV2ResNet101(width=0.125, weights=tmp_path / "resnet101.pth")
    assert_holds(net, {name: ours.state_dict()["backbone." + name] for name in backbone}, "backbone.")


def test_deeplab_converted_from_caffe(tmp_path: Path) -> None:
    """Its names, its stride in the 1x1 convolution, its BGR photos less the mean: the same scores of the same photo."""
    torch.manual_seed(0)
    theirs = torchvision.models.resnet101()
    for stage in (theirs.layer2, theirs.layer3, theirs.layer4):
        unit = stage[0]
        unit.conv1.stride, unit.conv2.stride = unit.conv2.stride, unit.conv1.stride
    head = {f"Scale.layer5.conv2d_list.{i}.{kind}": torch.randn(shape) * 0.01
            for i in range(4) for kind, shape in (("weight", (21, 2048, 3, 3)), ("bias", (21,)))}  # fmt: skip
    torch.save({f"Scale.{k}": v for k, v in theirs.state_dict().items()} | head, tmp_path / "caffe.pth")
    ours = DeepLabV2ResNet101(
        output_stride=32, variant="caffe", normalization="caffe", weights=tmp_path / "caffe.pth"
    ).eval()
    photo = torch.randint(0, 256, (1, 3, 65, 65)).float()
    bgr = photo.flip(1) - torch.tensor([104.008, 116.669, 122.679]).view(1, 3, 1, 1)
    with torch.no_grad():
        features = torch.nn.Sequential(*list(theirs.eval().children())[:-2])(bgr)
        scale = features.abs().max()
        torch.testing.assert_close(ours.features(ours.normalize(photo)) / scale, features / scale, rtol=0, atol=1e-4)
    assert torch.equal(ours.state_dict()["head.branches.2.weight"], head["Scale.layer5.conv2d_list.2.weight"])


def test_vgg_fully_connected_layers_are_thinned_out() -> None:
    rows, taps = torch.arange(4096.0), torch.arange(512.0 * 49)
    state = {
        "classifier.0.weight": taps[None].expand(4096, -1),
        "classifier.0.bias": rows,
        "classifier.3.weight": rows[:, None] + rows[None] / 8192,
        "classifier.3.bias": rows,
        "classifier.6.bias": torch.zeros(1000),
    }
    got = DeepLabLargeFOVVGG16().adapt_weights(state)
    assert set(got) == {"fc6.weight", "fc6.bias", "fc7.weight", "fc7.bias", "classifier.6.bias"}
    assert got["fc6.weight"].shape == (1024, 512, 3, 3) and got["fc7.weight"].shape == (1024, 1024, 1, 1)
    corners = [0.0, 3.0, 6.0, 21.0, 24.0, 27.0, 42.0, 45.0, 48.0]
    assert got["fc6.weight"][5, 2].flatten().tolist() == [2 * 49 + corner for corner in corners]
    assert torch.equal(got["fc6.bias"], rows[::4])
    assert float(got["fc7.weight"][3, 7, 0, 0]) == 12 + 28 / 8192
    narrow = DeepLabLargeFOVVGG16(width=0.125)
    assert set(narrow.adapt_weights(state)) == set(state)


@pytest.mark.parametrize(
    "content", [b"", b"\x12", b"hello, this is text\n" * 5, b"\x89PNG\r\n\x1a\n" + bytes(200), bytes(500)]
)
def test_foreign_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "foreign.pth").write_bytes(content)
    with pytest.raises(RRMError, match=r"foreign\.pth"):
        load_weights(ResNet38(width=1 / 16, units=(1, 1, 1, 1)), tmp_path / "foreign.pth")


def test_truncated_and_other_torch_files_are_refused(tmp_path: Path) -> None:
    net = torch.nn.Linear(4, 4)
    path = tmp_path / "net.pth"
    torch.save(net.state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(RRMError):
        load_weights(net, path)
    torch.save(net, path)
    with pytest.raises(RRMError, match="state dict"):
        load_weights(net, path)
    torch.save([1, 2], path)
    with pytest.raises(RRMError, match="tensors by name"):
        load_weights(net, path)
    torch.save({"other": torch.ones(1)}, path)
    with pytest.raises(RRMError, match="no tensor"):
        load_weights(net, path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no weights")
    with pytest.raises(RRMError):
        load_weights(net, path)
    with pytest.raises(RRMError, match="no such file"):
        load_weights(net, tmp_path / "absent.pth")


def test_two_tensors_for_one_place_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1, 1), "module.weight": torch.ones(1, 1)}, tmp_path / "twice.pth")
    with pytest.raises(RRMError, match="two tensors"):
        load_weights(torch.nn.Linear(1, 1), tmp_path / "twice.pth")
