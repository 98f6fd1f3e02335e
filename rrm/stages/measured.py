"""What the tables read: confusion matrices of models, seeds and splits, checked against the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rrm.config import Config
from rrm.errors import RRMError
from rrm.metrics import SegmentationScores
from rrm.pipeline import stage_options
from rrm.significance import Matrices
from rrm.stages.call import Call
from rrm.store import Store
from rrm.tables import check_sources, scores_of_store

STAGE_OF = {"methods": "method", "step_two": "step-two", "bounds": "bound"}


@dataclass(frozen=True)
class Measured:
    """Stores of kind "confusion" by (seed, model, split), made with `config`."""

    config: Config
    stores: Mapping[tuple[int, str, str], Store]

    def by_split(self, model: str) -> dict[tuple[int, str], Store]:
        """A model's stores by (seed, split).

        Raises:
            RRMError: there are none.
        """
        mine = {(seed, split): store for (seed, name, split), store in self.stores.items() if name == model}
        if not mine:
            raise RRMError(
                f"tables: expected confusion matrices of {model!r}, got none: add --in SEED:{model}:val=PATH"
            )
        return mine

    def of_seeds(self, model: str, split: str) -> list[Store]:
        """A model's stores of a split, in the order of the seeds."""
        return [store for (_, found), store in sorted(self.by_split(model).items(), key=lambda each: each[0])
                if found == split]  # fmt: skip

    def scores(self, model: str, split: str, kind: str) -> list[SegmentationScores]:
        """Scores of each seed; `kind` is `"plain"` or `"crf"`."""
        return [scores_of_store(store, kind) for store in self.of_seeds(model, split)]

    def matrices(self, model: str, split: str, kind: str) -> list[Matrices]:
        """Matrices (N,C+1,C+1) of the photos, for each seed."""
        return [np.stack([store.read(name, kind) for name in store.ids]) for store in self.of_seeds(model, split)]


def read_measured(call: Call) -> Measured:
    """Open the stores of a table's call, whose inputs are named `SEED:MODEL:SPLIT`.

    Raises:
        RRMError: an input has another name.
        RRMErrors: a store was made with another configuration.
    """
    config = Config.model_validate(call.options["config"])
    stores = {_parse(name): Store(call.input(name), "confusion") for name in call.inputs}
    expected = {key: {"split": key[2], "trained_options": _expected(config, key[0], key[1])} for key in stores}
    check_sources(stores, expected)
    return Measured(config, stores)


def _parse(name: str) -> tuple[int, str, str]:
    seed, _, rest = name.partition(":")
    model, _, split = rest.rpartition(":")
    if not (seed.isdigit() and model and split):
        raise RRMError(
            f"tables: expected inputs named SEED:MODEL:SPLIT such as 0:one_step:val, got {name!r}: correct --in"
        )
    return int(seed), model, split


def _expected(config: Config, seed: int, model: str) -> dict[str, Any]:
    """Options of the training stage that made a model."""
    stage = STAGE_OF.get(model.partition("/")[0], "one-step")
    return stage_options(config, stage, seed=seed, model="one_step" if model.startswith("cam/") else model)
