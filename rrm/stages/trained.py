"""Networks as files: what a training stage writes and the stages after it read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rrm.errors import RRMError
from rrm.networks import Network, build_network
from rrm.training import read_weights, save_weights


@dataclass(frozen=True)
class Trained:
    """A trained network in evaluation mode, the facts stored with it, and the names of its foreground classes."""

    network: Any
    facts: Mapping[str, Any]
    classes: tuple[str, ...]


def save_trained(
    path: Path, network: Any, kind: str, classes: Sequence[str], options: Mapping[str, Any], identity: Mapping[str, Any]
) -> None:
    """Write final weights with all that is needed to build the network again.

    Args:
        path: the file.
        network: the network.
        kind: `"rrm"` (two branches), `"segmentation"` or `"affinity"`.
        classes: names of the foreground classes, in the order of the network's channels.
        options: config section `network`: backbone and its options.
        identity: options, code and inputs of the stage (`Call.identity`).
    """
    built = {
        "kind": kind,
        "num_classes": len(classes),
        "backbone": options["backbone"],
        "options": dict(options["options"]),
    }
    save_weights(path, network, build=built, classes=list(classes), identity=dict(identity))


def load_trained(path: Path, device: str) -> Trained:
    """Build the network of a file of `save_trained` and load its weights, channels last in memory.

    Files of before names were stored get "class 1", "class 2" and so on.

    Raises:
        RRMError: foreign, unreadable or damaged file.
    """
    content = read_weights(path)
    try:
        network = _built(content["build"], content["weights"])
        identity = content["identity"]
        facts = {"stage": identity["stage"], "code": identity["code"], "options": identity["options"]}
        classes = content.get("classes") or [f"class {number}" for number in range(1, network.num_classes + 1)]
        if len(classes) != network.num_classes or not all(isinstance(name, str) for name in classes):
            raise ValueError(f"names of {len(classes)} classes for {network.num_classes}")
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        got = f"{type(error).__name__} ({' '.join(str(error).split())[:120]})"
        raise RRMError(f"{path}: expected a network and its weights, got {got}: make the file again") from None
    network = network.to(device).to(memory_format=torch.channels_last).eval()
    return Trained(network, facts, tuple(classes))


def _built(build: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Network:
    """The network with its weights. Nothing is allocated before the file is known to hold weights of such a size."""
    options = build["options"]
    lists = [value for value in options.values() if isinstance(value, list | tuple)]
    if any(number > len(weights) for value in lists for number in value):
        raise ValueError(f"options {options} of a network of more than {len(weights)} tensors")
    make = partial(
        build_network, build["kind"], num_classes=build["num_classes"], backbone=build["backbone"], **options
    )
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in make().state_dict().items()}
    wrong = [name for name in {**shapes, **weights} if name not in weights or shapes.get(name) != weights[name].shape]
    if wrong:
        raise ValueError(f"weights of another network: {', '.join(map(str, wrong[:3]))}")
    network = make()
    network.load_state_dict(weights)
    return network
