"""Networks as files: what a training stage writes and the stages after it read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rrm.networks import build_network
from rrm.training import read_weights, save_weights


@dataclass(frozen=True)
class Trained:
    """A trained network in evaluation mode and the facts stored with it."""

    network: Any
    facts: Mapping[str, Any]


def save_trained(
    path: Path, network: Any, kind: str, num_classes: int, options: Mapping[str, Any], identity: Mapping[str, Any]
) -> None:
    """Write final weights with all that is needed to build the network again.

    Args:
        path: the file.
        network: the network.
        kind: `"rrm"` (two branches), `"segmentation"` or `"affinity"`.
        num_classes: foreground classes.
        options: config section `network`: backbone and its options.
        identity: options, code and inputs of the stage (`Call.identity`).
    """
    built = {
        "kind": kind,
        "num_classes": num_classes,
        "backbone": options["backbone"],
        "options": dict(options["options"]),
    }
    save_weights(path, network, build=built, identity=dict(identity))


def load_trained(path: Path, device: str) -> Trained:
    """Build the network of a file of `save_trained` and load its weights.

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
    return Trained(network.to(device).eval(), facts)
