"""Networks as files: what a training stage writes and the stages after it read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rrm.networks import build_network
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
        RRMError: foreign or unreadable file.
    """
    content = read_weights(path)
    built = content["build"]
    network = build_network(
        built["kind"], num_classes=built["num_classes"], backbone=built["backbone"], **built["options"]
    )
    network.load_state_dict(content["weights"])
    identity = content["identity"]
    facts = {"stage": identity["stage"], "code": identity["code"], "options": identity["options"]}
    classes = content.get("classes") or [f"class {number}" for number in range(1, built["num_classes"] + 1)]
    network = network.to(device).to(memory_format=torch.channels_last).eval()
    return Trained(network, facts, tuple(classes))
