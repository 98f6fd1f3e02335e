"""Exported networks: the files give what the network gives, at any size, and say what a user has to know."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import nn

import rrm.export
from rrm.cam import resize
from rrm.cli import main
from rrm.errors import RRMError
from rrm.export import Agreement, export_network
from rrm.inference import predicted_labels, segmentation_probabilities
from rrm.networks import AffinityNet, DeepLab, DeepLabLargeFOVVGG16, DeepLabV2ResNet101, Network, RRMNet, build_network
from rrm.provenance import file_digest
from rrm.stages.trained import load_trained, save_trained

needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("onnx", "onnxruntime", "onnxscript")),
    reason='onnx, onnxruntime or onnxscript is not installed: pip install "rrm[export]"',
)

DOCS = Path(__file__).resolve().parents[2] / "docs"
CLASSES = ["cat", "dog"]
TINY = {"width": 1 / 16, "units": [1, 1, 1, 1]}
ONE_VIEW = {"scales": [1.0], "flip": False, "merge": "mean", "precision": "float32"}
Photo = npt.NDArray[np.uint8]
Run = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


def shallow(network: Network) -> Network:
    """A MobileNetV2 with one block a stage: tracing takes its time by the block."""
    blocks = network.backbone.features
    network.backbone.features = nn.Sequential(*(each for each in blocks if not getattr(each, "use_res_connect", False)))
    return network


NETWORKS: dict[str, Callable[[], Network]] = {
    "rrm-resnet38": lambda: RRMNet(2, "resnet38", **TINY),
    "rrm-mobilenet": lambda: shallow(RRMNet(2, "mobilenet_v2", head="light", width=0.25)),
    "deeplab-mobilenet-same": lambda: shallow(DeepLab(2, "mobilenet_v2", head="aspp", padding="same", width=0.25)),
    "deeplab-resnet50": lambda: DeepLab(2, "resnet50", width=0.125, layers=(1, 1, 1, 1)),
    "deeplab-v2": lambda: DeepLabV2ResNet101(2, width=0.125, layers=(1, 1, 1, 1)),
    "largefov": lambda: DeepLabLargeFOVVGG16(2, width=0.125),
}


def network_of(name: str) -> Network:
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


def photo(height: int, width: int, seed: int = 0) -> Photo:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def as_input(*photos: Photo) -> npt.NDArray[np.float32]:
    return np.stack(photos).transpose(0, 3, 1, 2).astype(np.float32)


def opened(path: Path) -> Run:
    """The file in its own runtime, without this package."""
    if path.suffix == ".pt2":
        program = torch.export.load(path).module()
        return lambda photos: program(torch.from_numpy(photos)).numpy()
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda photos: session.run(None, {"photos": photos})[0]


def metadata_of(path: Path) -> Mapping[str, str]:
    if path.suffix == ".pt2":
        extra = {"metadata.json": ""}
        torch.export.load(path, extra_files=extra)
        return json.loads(extra["metadata.json"])
    import onnx

    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as a stage that trains writes it."""
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.manual_seed(0)
    network = build_network("rrm", num_classes=2, backbone="resnet38", **TINY)
    identity = {"stage": "one_step", "code": "abc", "options": {"seed": 7}, "inputs": {}}
    save_trained(path, network, "rrm", CLASSES, {"backbone": "resnet38", "options": TINY}, identity)
    return path


@pytest.fixture(scope="module")
def onnx_file(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command line makes of it."""
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    assert main(["export", str(weights), "--out", str(path)]) == 0
    assert [each.name for each in path.parent.iterdir()] == ["model.onnx"]
    return path


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        pytest.param("deeplab-mobilenet-same", "onnx", marks=needs_onnx),
        pytest.param("deeplab-resnet50", "onnx", marks=needs_onnx),
        pytest.param("largefov", "onnx", marks=needs_onnx),
        ("rrm-resnet38", "pt2"),
        ("rrm-mobilenet", "pt2"),
        ("deeplab-v2", "pt2"),
        ("largefov", "pt2"),
    ],
)
def test_any_batch_height_and_width(name: str, suffix: str, tmp_path: Path) -> None:
    network, path = network_of(name), tmp_path / f"model.{suffix}"
    assert all(each.good for each in export_network(network, path, classes=CLASSES))
    check_against(network, opened(path), least=network.stride + 1)


def check_against(network: Network, run: Run, least: int) -> None:
    for size in ((least, 64), (40, least), (71, 90)):
        (expected,) = segmentation_probabilities(network, [photo(*size)], ONE_VIEW).numpy()
        np.testing.assert_allclose(run(as_input(photo(*size)))[0], expected, atol=1e-4)
    three = [photo(33, 47, seed) for seed in range(3)]
    got = run(as_input(*three))
    for index, each in enumerate(three):
        (expected,) = segmentation_probabilities(network, [each], ONE_VIEW).numpy()
        np.testing.assert_allclose(got[index], expected, atol=1e-4)


@needs_onnx
def test_the_command_line_exports_what_a_stage_wrote(weights: Path, onnx_file: Path) -> None:
    network = load_trained(weights, "cpu").network
    check_against(network, opened(onnx_file), least=9)


@needs_onnx
def test_the_graph_names_its_input_output_and_axes(onnx_file: Path) -> None:
    import onnx

    model = onnx.load(onnx_file)
    onnx.checker.check_model(model, full_check=True)
    for values, name, channels in ((model.graph.input, "photos", 3), (model.graph.output, "probabilities", 3)):
        assert [value.name for value in values] == [name]
        dims = values[0].type.tensor_type.shape.dim
        assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", channels, "height", "width"]


@needs_onnx
def test_metadata_of_an_onnx_file(weights: Path, onnx_file: Path) -> None:
    check_metadata(metadata_of(onnx_file), weights, size=None)


def test_a_pt2_file_of_one_size(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.pt2"
    assert main(["export", str(weights), "--out", str(path), "--size", "33", "40"]) == 0
    assert capsys.readouterr().out.startswith(f"{path}: photos 1x3x33x40: largest difference ")
    check_metadata(metadata_of(path), weights, size=[33, 40])
    (expected,) = segmentation_probabilities(load_trained(weights, "cpu").network, [photo(33, 40)], ONE_VIEW).numpy()
    run = opened(path)
    np.testing.assert_allclose(run(as_input(photo(33, 40)))[0], expected, atol=1e-4)
    with pytest.raises(AssertionError, match="33"):
        run(as_input(photo(40, 40)))


def check_metadata(metadata: Mapping[str, str], weights: Path, size: list[int] | None) -> None:
    assert metadata["branch"] == "segmentation"
    assert metadata["output"] == "probabilities"
    assert "RGB, 0..255" in metadata["input"]
    assert json.loads(metadata["classes"]) == ["background", *CLASSES]
    assert json.loads(metadata["size"]) == size
    assert json.loads(metadata["normalization"])["mean"] == pytest.approx([123.675, 116.28, 103.53])
    facts = {"stage": "one_step", "code": "abc", "options": {"seed": 7}}
    source = {"file": "weights.pth", "sha256": file_digest(weights)}
    assert json.loads(metadata["provenance"]) == {**facts, **source}


@pytest.mark.parametrize("suffix", [pytest.param("onnx", marks=needs_onnx), "pt2"])
def test_the_same_network_gives_the_same_bytes_without_paths(suffix: str, tmp_path: Path) -> None:
    network = network_of("largefov")
    files = [tmp_path / folder / f"model.{suffix}" for folder in ("a", "b")]
    for path in files:
        export_network(network, path, classes=CLASSES, size=(16, 17))
    first, second = (path.read_bytes() for path in files)
    assert first == second
    for root in (Path(rrm.export.__file__).parent, Path(torch.__file__).parents[1], tmp_path):
        assert str(root).encode() not in first


@needs_onnx
def test_cam(tmp_path: Path) -> None:
    network, path = network_of("rrm-resnet38"), tmp_path / "cam.onnx"
    export_network(network, path, classes=CLASSES, branch="cam", size=(24, 33))
    images = torch.from_numpy(as_input(photo(24, 33)))
    with torch.inference_mode():
        expected = resize(network.forward_cam(network.normalize(images)), (24, 33)).numpy()
    np.testing.assert_allclose(opened(path)(images.numpy()), expected, atol=1e-4 * np.abs(expected).max())
    assert json.loads(metadata_of(path)["classes"]) == CLASSES


@needs_onnx
def test_classification(tmp_path: Path) -> None:
    network, path = network_of("rrm-resnet38"), tmp_path / "classes.onnx"
    export_network(network, path, classes=CLASSES, branch="classification", size=(24, 33), opset=18)
    got = opened(path)(as_input(photo(24, 33)))
    assert got.shape == (1, 2)
    present = (got[0] > 0.5) | (got[0] == got[0].max())
    np.testing.assert_array_equal(present, predicted_labels(network, [photo(24, 33)])[0])


def test_the_network_stays_as_it_is(tmp_path: Path) -> None:
    network = network_of("largefov").train()
    export_network(network, tmp_path / "model.pt2", classes=CLASSES, size=(16, 16))
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(layer.inplace for layer in network.modules() if isinstance(layer, nn.ReLU))


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        (lambda good: good + 0.01, "largest difference"),
        (lambda good: good.flip(1), "labels"),
        (lambda good: good * float("nan"), "difference nan"),
        (lambda good: good[:, :, 1:], "difference inf"),
    ],
)
def test_a_file_that_disagrees_is_not_kept(
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wrong: Any,
    fault: str,
) -> None:
    path = tmp_path / "model.pt2"
    path.write_text("an older export")
    network = load_trained(weights, "cpu").network
    module = rrm.export._Exported(network, rrm.export.BRANCHES["segmentation"])
    monkeypatch.setattr(rrm.export, "_write_pt2", lambda program, temporary, metadata: temporary.write_text("new"))
    monkeypatch.setattr(rrm.export, "_program", lambda module, size: None)
    monkeypatch.setattr(rrm.export, "_open_pt2", lambda temporary: lambda photos: wrong(module(photos)))
    assert main(["export", str(weights), "--out", str(path)]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"rrm export: {path}: expected the network's output") and fault in message
    assert message.count("\n") == 1
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {"model.pt2": "an older export"}


def test_tolerances() -> None:
    assert Agreement((1, 3, 8, 8), 1e-3, 1.0).good
    assert not Agreement((1, 3, 8, 8), 2e-3, 1.0).good
    assert not Agreement((1, 3, 8, 8), 0.0, 0.99).good


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.tflite"], "expected a name that ends in .onnx or .pt2, got '.tflite'"),
        (["model"], "expected a name that ends in .onnx or .pt2, got ''"),
        (["model.pt2", "--opset", "18"], "opset: it belongs to .onnx files"),
        (["model.pt2", "--branch", "boxes"], "expected one of ['segmentation', 'cam', 'classification']"),
        (["model.pt2", "--size", "0", "32"], "size: expected height and width of at least 1 pixel, got 0 32"),
        pytest.param(["model.onnx", "--opset", "17"], "opset: expected 18..", marks=needs_onnx),
        pytest.param(["model.onnx", "--opset", "999"], "got 999", marks=needs_onnx),
    ],
)
def test_bad_arguments(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    out, *others = arguments
    assert main(["export", str(weights), "--out", str(tmp_path / out), *others]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime", "onnxscript"])
def test_missing_packages_are_named_with_their_remedy(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None if name == missing else torch)
    assert main(["export", str(weights), "--out", str(tmp_path / "model.onnx")]) == 1
    message = capsys.readouterr().err
    assert missing in message and message.endswith('pip install "rrm[export]"\n')


def test_weights_that_rrm_did_not_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"layer": torch.zeros(1)}, tmp_path / "foreign.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for name in ("foreign.pth", "text.pth", "absent.pth"):
        assert main(["export", str(tmp_path / name), "--out", str(tmp_path / "model.pt2")]) == 1
        assert f"rrm export: {tmp_path / name}: expected " in capsys.readouterr().err


def test_networks_without_the_branch() -> None:
    with pytest.raises(RRMError, match=r"expected one of \['segmentation'\] for this DeepLabLargeFOVVGG16, got 'cam'"):
        export_network(network_of("largefov"), "model.pt2", classes=CLASSES, branch="cam")
    with pytest.raises(RRMError, match="a segmentation or classification branch, got AffinityNet"):
        export_network(AffinityNet(2, "resnet38", **TINY), "model.pt2", classes=CLASSES)


@needs_onnx
def test_weights_beyond_one_onnx_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rrm.export, "LARGEST_ONNX", 1000)
    with pytest.raises(RRMError, match=r"expected weights that fit one ONNX file .* write a \.pt2 file"):
        export_network(network_of("largefov"), tmp_path / "model.onnx", classes=CLASSES)


@needs_onnx
def test_the_example_of_the_documentation(
    onnx_file: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "export.md").read_text(), re.DOTALL)
    (tmp_path / "model.onnx").symlink_to(onnx_file)
    Image.fromarray(photo(45, 60)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    image = np.array(Image.open("photo.jpg"))
    network = load_trained(weights, "cpu").network
    expected = segmentation_probabilities(network, [image], ONE_VIEW)[0].argmax(0).numpy()
    assert (names["labels"] == expected).mean() > 0.999
    assert names["names"] == ["background", *CLASSES]


def test_files_without_class_names_get_numbers(weights: Path, tmp_path: Path) -> None:
    content = torch.load(weights, weights_only=True)
    del content["classes"]
    torch.save(content, tmp_path / "old.pth")
    assert load_trained(weights, "cpu").classes == tuple(CLASSES)
    assert load_trained(tmp_path / "old.pth", "cpu").classes == ("class 1", "class 2")
