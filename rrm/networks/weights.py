"""Weight files: our own checkpoints, torchvision's, the field's ResNet-38 `.pth`, and MXNet's `.params`.

Nothing is unpickled and nothing is skipped in silence: each tensor of the file and of the network is
accounted for in the `LoadReport`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rrm.errors import RRMError
from rrm.networks.mxnet_params import MAGIC, read_mxnet_params, resnet38_name
from rrm.torch_files import load_torch

log = logging.getLogger(__name__)

_PREFIXES = ("", "backbone.", "head.")
_CONTAINERS = ("state_dict", "model", "network", "weights")


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did.

    Attributes:
        path: the file.
        matched: names in the network that got their values from the file.
        missing: names in the network that the file does not have (batch counters aside); they keep their
            values.
        unexpected: names in the file that the network does not have.
        shape_mismatch: names in the network whose shape differs in the file, with both shapes; they keep
            their values.
    """

    path: Path
    matched: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    shape_mismatch: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """True if file and network agree in every name and shape."""
        return not (self.missing or self.unexpected or self.shape_mismatch)

    def __str__(self) -> str:
        lines = [f"{self.path}: {len(self.matched)} tensors loaded"]
        for title in ("missing", "unexpected", "shape_mismatch"):
            names = getattr(self, title)
            if names:
                more = f", ... {len(names) - 6} more" if len(names) > 6 else ""
                lines.append(f"  {title} {len(names)}: {', '.join(names[:6])}{more}")
        return "\n".join(lines)


def load_weights(net: nn.Module, path: str | Path, *, strict: bool = False) -> LoadReport:
    """Copy the weights in a file into a network, by name.

    A name in the file is looked up as it is, and with `backbone.` or `head.` in front; a leading `module.`
    (left by data-parallel wrappers) is dropped. So one function serves our checkpoints, torchvision's state
    dicts, the warm start of one network from another, and ResNet-38 files, in PyTorch's or MXNet's format.

    Args:
        net: the network; changed in place, dtype and device stay.
        path: a `.pth` state dict (also inside a dict under "state_dict", "model", "network" or "weights"), or
            a `.params` list.
        strict: refuse a file that does not fit in every name and shape; the network is then unchanged.

    Returns:
        The report, which is also logged: as a warning if something did not fit.

    Raises:
        RRMError: unreadable file, nothing that fits, two tensors for one place, or `strict` and not complete.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "layer.pth"
        >>> torch.save({"weight": torch.ones(1, 2), "extra": torch.ones(1)}, path)
        >>> report = load_weights(nn.Linear(2, 1), path)
        >>> report.matched, report.missing, report.unexpected
        (('weight',), ('bias',), ('extra',))
    """
    path = Path(path)
    state = read_weights(path)
    adapt = getattr(net, "adapt_weights", None)
    plan, report = _plan(net, adapt(state) if adapt else state, path)
    if not plan:
        what = f"expected a file for {type(net).__name__}, no tensor in it fits"
        raise RRMError(f"weights: {what}: choose another file\n{report}")
    if strict and not report.complete:
        raise RRMError(f"weights: expected a file that fits {type(net).__name__} completely, got\n{report}")
    return _copy(net, plan, report)


def load_reference_weights(net: nn.Module, path: str | Path) -> LoadReport:
    """Load published ResNet-38 weights into a network with a ResNet-38 backbone.

    Accepts the ImageNet `.params` file of MXNet (without its 1,000-way classifier), PSA's `.pth` files and
    the `.pth` files that the authors of the paper trained. Batch counters, which old files lack, are not
    needed.

    Args:
        net: `RRMNet` or `DeepLab` with backbone "resnet38" at width 1, or the `ResNet38` itself.
        path: the file.

    Returns:
        The report, which is also logged.

    Raises:
        RRMError: unreadable file, or the backbone's weights are not all in it.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "foreign.pth"
        >>> torch.save({"layer1.weight": torch.ones(1)}, path)
        >>> load_reference_weights(nn.Linear(2, 1), path)
        Traceback (most recent call last):
        ...
        rrm.errors.RRMError: load_reference_weights: expected a network with a ResNet-38 backbone, got Linear
    """
    backbone = getattr(net, "backbone", net)
    if type(backbone).__name__ != "ResNet38":
        raise RRMError(
            f"load_reference_weights: expected a network with a ResNet-38 backbone, got {type(net).__name__}"
        )
    path = Path(path)
    plan, report = _plan(net, read_weights(path), path)
    prefix = "" if backbone is net else "backbone."
    wrong = [name for name in (*report.missing, *report.shape_mismatch) if name.startswith(prefix)]
    if wrong:
        what = f"expected all of ResNet-38, {len(wrong)} tensors lack or differ in shape: {wrong[:6]}"
        raise RRMError(f"load_reference_weights: {what}\n{report}")
    return _copy(net, plan, report)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name from a PyTorch or MXNet weight file, MXNet's names translated to ResNet-38's.

    Raises:
        RRMError: missing, truncated or foreign file.
    """
    path = Path(path)
    if not path.is_file():
        raise RRMError(f"weights: no such file: {path}")
    with path.open("rb") as stream:
        start = stream.read(8)
    if start == MAGIC:
        return _read_mxnet(path)
    return _read_torch(path)


def _read_mxnet(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, array in read_mxnet_params(path).items():
        own_name = resnet38_name(name)
        if own_name in state:
            raise RRMError(f"weights: {path} has two arrays for {own_name}, the second is {name}")
        state[own_name] = torch.from_numpy(array)
    return state


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        content = load_torch(path)
    except RRMError as error:
        raise RRMError(f"weights: expected a PyTorch state dict or an MXNet .params file: {error}") from None
    state = _state_dict_in(content)
    if not state:
        kind = type(content).__name__
        raise RRMError(f"weights: expected tensors by name in {path}, got a {kind} without any")
    return state


def _state_dict_in(content: Any) -> dict[str, Tensor]:
    """Tensors by name in what a file held: flat, or one level down under a usual name."""
    if not isinstance(content, Mapping):
        return {}
    for key in _CONTAINERS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _own_name(name: str, own: Mapping[str, Tensor]) -> str | None:
    name = name.removeprefix("module.")
    return next((prefix + name for prefix in _PREFIXES if prefix + name in own), None)


def _copy(net: nn.Module, plan: Mapping[str, Tensor], report: LoadReport) -> LoadReport:
    own = net.state_dict()
    with torch.no_grad():
        for name, tensor in plan.items():
            own[name].copy_(tensor)
    log.log(logging.INFO if report.complete else logging.WARNING, "%s", report)
    return report


def _plan(net: nn.Module, state: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], LoadReport]:
    """Which tensor goes where; nothing is changed yet."""
    own = net.state_dict()
    plan: dict[str, Tensor] = {}
    unexpected: list[str] = []
    mismatch: dict[str, str] = {}
    for name, tensor in state.items():
        target = _own_name(name, own)
        if target is None:
            unexpected.append(name)
        elif target in plan or target in mismatch:
            raise RRMError(f"weights: {path} has two tensors for {target}, the second is {name}")
        elif own[target].shape != tensor.shape:
            mismatch[target] = f"{target} (network {tuple(own[target].shape)}, file {tuple(tensor.shape)})"
        else:
            plan[target] = tensor
    missing = [name for name in own if name not in plan and name not in mismatch]
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    return plan, LoadReport(path, tuple(plan), tuple(missing), tuple(unexpected), tuple(mismatch.values()))
