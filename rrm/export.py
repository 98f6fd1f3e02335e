"""Trained networks as files for other programs: ONNX, and PyTorch's exported programs.

The graph in the file takes photos as they are (RGB, 0..255) and gives its result at their size. Before the file gets
its name, its own runtime and the network are given the same photos: a file that disagrees is not kept.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rrm.cam import resize
from rrm.errors import RRMError
from rrm.store import atomic_path

INPUT = "photos"
TOLERANCE = 1e-3
"""Largest difference from the network that is accepted, as a share of the largest value."""
LEAST_EQUAL_LABELS = 0.999
"""Share of pixels whose strongest class has to be the network's."""
LARGEST_ONNX = 2**31 - 2**24  # bytes of weights: protobuf ends at 2 GiB, the graph needs some of it
OLDEST_OPSET = 18
"""What PyTorch's exporter writes without converting."""
METADATA_FILE = "metadata.json"
_AXES = {0: "batch", 2: "height", 3: "width"}

Run = Callable[[Tensor], Tensor]


def _segmentation(network: Any, photos: Tensor) -> Tensor:
    return _at_size_of(photos, network.forward_segmentation(network.normalize(photos))).softmax(1)


def _cam(network: Any, photos: Tensor) -> Tensor:
    return _at_size_of(photos, network.forward_cam(network.normalize(photos)))


def _classification(network: Any, photos: Tensor) -> Tensor:
    scores: Tensor = network.forward_classification(network.normalize(photos)).class_logits
    return scores.sigmoid()


def _at_size_of(photos: Tensor, maps: Tensor) -> Tensor:
    return resize(maps, (photos.shape[2], photos.shape[3]))


@dataclass(frozen=True)
class Branch:
    """What is taken from a network: the output's name, and how it is computed from photos."""

    output: str
    needs: str
    compute: Callable[[Any, Tensor], Tensor]


BRANCHES = {
    "segmentation": Branch("probabilities", "forward_segmentation", _segmentation),
    "cam": Branch("cam", "forward_cam", _cam),
    "classification": Branch("class_probabilities", "forward_classification", _classification),
}
"""Branches by name."""


@dataclass(frozen=True)
class Agreement:
    """How a file's output compares with the network's on one batch of photos.

    Attributes:
        shape: of the photos, (N,3,H,W).
        difference: largest absolute difference, as a share of the network's largest absolute value.
        labels: share of places (pixels; photos for class probabilities) with the same strongest channel, 0..1.
    """

    shape: tuple[int, ...]
    difference: float
    labels: float

    @property
    def good(self) -> bool:
        """True within the tolerances of this module."""
        return self.difference <= TOLERANCE and self.labels >= LEAST_EQUAL_LABELS

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        difference = f"largest difference {self.difference:.1e} of the largest value"
        return f"photos {size}: {difference}, labels {self.labels:.2%} equal"


class _Exported(nn.Module):
    """Photos to the output of a branch, on a copy of the network that is made for tracing."""

    network: Any

    def __init__(self, network: nn.Module, branch: Branch) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).cpu().float().eval().requires_grad_(False)
        self.branch = branch
        for module in self.modules():
            if isinstance(
                module, nn.ReLU | nn.Hardtanh
            ):  # in place, the exporter decomposes activations, which takes minutes
                module.inplace = False

    def forward(self, photos: Tensor) -> Tensor:
        return self.branch.compute(self.network, photos)


def export_network(
    network: Any,
    path: str | Path,
    *,
    classes: Sequence[str],
    branch: str = "segmentation",
    size: tuple[int, int] | None = None,
    opset: int | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> list[Agreement]:
    """Write one branch of a network to a file, once it agrees with the network.

    The input `photos` is (N,3,H,W) float32 RGB in 0..255; the network's normalisation is part of the graph. Outputs,
    float32, with C foreground classes:

    * "segmentation": `probabilities` (N,C+1,H,W), 0 = background, summing to one;
    * "cam": `cam` (N,C,H,W), activation maps before ReLU and before any scaling;
    * "classification": `class_probabilities` (N,C) in 0..1, each class for itself.

    Args:
        network: an `RRMNet` or a segmentation network; it stays as it is.
        path: `.onnx` (needs the packages of the extra `export`) or `.pt2`; replaced atomically.
        classes: names of the foreground classes, stored in the file.
        branch: key of `BRANCHES`.
        size: (H,W) in pixels: one photo of this size only. None: N, H and W are free, H and W from stride + 1 on.
        opset: version of ONNX's operators; None: the exporter's choice.
        provenance: facts on where the weights come from, JSON-serialisable, stored in the file.

    Returns:
        What was compared, one entry a batch of photos.

    Raises:
        RRMError: unknown suffix or branch, missing packages, or the file does not agree with the network; then nothing
            is written and a file of before stays.

    Example:
        >>> import tempfile
        >>> from rrm.networks import DeepLabLargeFOVVGG16
        >>> path = Path(tempfile.mkdtemp()) / "model.pt2"
        >>> network = DeepLabLargeFOVVGG16(2, width=1 / 64)
        >>> [each.good for each in export_network(network, path, classes=["cat", "dog"], size=(16, 24))]
        [True]
        >>> program = torch.export.load(path).module()
        >>> tuple(program(torch.zeros(1, 3, 16, 24)).shape)
        (1, 3, 16, 24)
    """
    path = Path(path)
    chosen = _branch(network, branch)
    write, open_file = _format(path, network, opset)
    _check_size(size)
    module = _Exported(network, chosen)
    facts = _metadata(module, classes, branch, size, provenance or {})
    with atomic_path(path) as temporary:
        write(_program(module, size), temporary, facts)
        compared = [_compare(module, open_file(temporary), shape) for shape in _shapes(size, network.stride)]
        if bad := [str(each) for each in compared if not each.good]:
            allowed = f"differences up to {TOLERANCE:.0e} and {LEAST_EQUAL_LABELS:.1%} of labels equal"
            raise RRMError(
                f"{path}: expected the network's output ({allowed}), got {'; '.join(bad)}: nothing is written"
            )
    return compared


def _branch(network: Any, name: str) -> Branch:
    known = [key for key, each in BRANCHES.items() if hasattr(network, each.needs)]
    if not known:
        expected = "expected a network with a segmentation or classification branch"
        raise RRMError(f"export: {expected}, got {type(network).__name__}: give weights of another stage")
    if name not in known:
        raise RRMError(f"branch: expected one of {known} for this {type(network).__name__}, got {name!r}")
    return BRANCHES[name]


def _check_size(size: tuple[int, int] | None) -> None:
    if size is not None and min(size) < 1:
        raise RRMError(f"size: expected height and width of at least 1 pixel, got {size[0]} {size[1]}")


def _format(path: Path, network: nn.Module, opset: int | None) -> tuple[Callable[..., None], Callable[[Path], Run]]:
    """How to write a file of this name and how to run it."""
    if path.suffix == ".onnx":
        _check_onnx(path, network, opset)
        return partial(_write_onnx, opset=opset), _open_onnx
    if path.suffix != ".pt2":
        raise RRMError(f"{path}: expected a name that ends in .onnx or .pt2, got {path.suffix!r}")
    if opset is not None:
        raise RRMError(f"opset: it belongs to .onnx files, got it for {path}: leave it out")
    return _write_pt2, _open_pt2


def _check_onnx(path: Path, network: nn.Module, opset: int | None) -> None:
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise RRMError(f'{path}: expected the packages for ONNX, got "{error}": pip install "rrm[export]"') from None
    newest: int = onnx.defs.onnx_opset_version()
    if opset is not None and not OLDEST_OPSET <= opset <= newest:
        raise RRMError(f"opset: expected {OLDEST_OPSET}..{newest}, got {opset}: leave it out for the exporter's choice")
    weights = sum(4 * tensor.numel() for tensor in network.state_dict().values())
    if weights > LARGEST_ONNX:
        raise RRMError(
            f"{path}: expected weights that fit one ONNX file (2 GiB), got {weights} bytes: write a .pt2 file"
        )


def _program(module: _Exported, size: tuple[int, int] | None) -> torch.export.ExportedProgram:
    """Trace a module; without a size, for any batch, height and width."""
    if size is not None:
        example, shapes = torch.zeros(1, 3, *size), None
    else:
        stride = module.network.stride
        example = torch.zeros(2, 3, 4 * stride + 3, 3 * stride + 2)
        least = (1, stride + 1, stride + 1)  # a map of one cell would be a case of its own
        batch, height, width = (
            torch.export.Dim(name, min=low) for name, low in zip(_AXES.values(), least, strict=True)
        )
        shapes = {INPUT: {0: batch, 2: height, 3: width}}
    # ceil(H / 2) is written differently by a slice and by a convolution: equal, but not for a prover of equations. So
    # what cannot be proved is checked when the program runs.
    program = torch.export.export(
        module, (example,), dynamic_shapes=shapes, prefer_deferred_runtime_asserts_over_guards=True
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def _metadata(
    module: _Exported,
    classes: Sequence[str],
    branch: str,
    size: tuple[int, int] | None,
    provenance: Mapping[str, Any],
) -> dict[str, str]:
    """What a user of the file has to know, as texts by name."""
    backbone = module.network.backbone
    channels = ["background", *classes] if branch == "segmentation" else list(classes)
    values = {
        "classes": channels,
        "normalization": {"mean": backbone.mean.flatten().tolist(), "std": backbone.std.flatten().tolist()},
        "size": None if size is None else list(size),
        "provenance": dict(provenance),
    }
    described = {
        "branch": branch,
        "input": f"{INPUT}: (batch, 3, height, width) float32, RGB, 0..255; the graph normalises",
        "output": module.branch.output,
    }
    return described | {name: json.dumps(value, sort_keys=True) for name, value in values.items()}


def _write_pt2(program: torch.export.ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    text = json.dumps(metadata, indent=2, sort_keys=True)
    with path.open("wb") as file:  # given a path, it would store the temporary name
        torch.export.save(program, file, extra_files={METADATA_FILE: text})


def _open_pt2(path: Path) -> Run:
    program: Run = torch.export.load(path).module()
    return program


def _write_onnx(
    program: torch.export.ExportedProgram, path: Path, metadata: Mapping[str, str], opset: int | None
) -> None:
    from onnxscript.ir.passes.common import ClearMetadataAndDocStringPass

    shapes = {INPUT: _AXES} if program.range_constraints else None
    exported = torch.onnx.export(
        program,
        input_names=[INPUT],
        output_names=[metadata["output"]],
        dynamic_shapes=shapes,
        opset_version=opset,
        dynamo=True,
        verbose=False,
    )
    assert exported is not None
    made = exported.model.opset_imports[""]
    if opset not in (None, made):
        raise RRMError(f"opset: expected a version that the exporter can write, got {opset}: choose {made}")
    ClearMetadataAndDocStringPass()(exported.model)  # of each node: names and paths of this machine
    exported.model.metadata_props.update(metadata)
    exported.save(path, external_data=False)


def _open_onnx(path: Path) -> Run:
    from onnxruntime import InferenceSession

    try:
        session = InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base
        raise RRMError(f"onnxruntime: expected a graph that it can run, got: {error}: choose another opset") from None
    return lambda photos: torch.from_numpy(session.run(None, {INPUT: photos.numpy()})[0])


def _shapes(size: tuple[int, int] | None, stride: int) -> list[tuple[int, int, int]]:
    """Batch, height and width of the photos that are compared."""
    if size is not None:
        return [(1, *size)]
    return [(1, 8 * stride, 6 * stride), (1, 5 * stride + 3, 8 * stride + 1), (2, stride + 1, 4 * stride + 2)]


@torch.inference_mode()
def _compare(module: nn.Module, run: Run, shape: tuple[int, int, int]) -> Agreement:
    """Both on the same seeded photos: noise, as it reaches each weight."""
    batch, height, width = shape
    photos = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0)) * 255
    expected, got = module(photos), run(photos)
    if got.shape != expected.shape:
        return Agreement(tuple(photos.shape), math.inf, 0.0)
    largest = expected.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
    equal = expected.argmax(1) == got.argmax(1)
    return Agreement(tuple(photos.shape), float((got - expected).abs().amax() / largest), float(equal.float().mean()))
