"""Held-out photos: the same share of each class, alike ones together, every class left to learn from."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from rrm.datasets.splitting import split_photos
from rrm.errors import RRMError


def _labels(seed: int) -> dict[str, list[str]]:
    generator = np.random.default_rng(seed)
    frequent = {"common": 0.7, "usual": 0.3, "rare": 0.05}
    found = {f"{k:03d}": [name for name, share in frequent.items() if generator.random() < share] for k in range(120)}
    return {name: labels or ["common"] for name, labels in found.items()} | {"last": ["single"]}


@pytest.mark.parametrize("seed", range(5))
def test_every_class_is_held_out_at_the_same_share(seed: int) -> None:
    labels = _labels(seed)
    groups = [["000", "001", "002"], ["010", "011"]]
    train, val = split_photos(labels, groups, 0.25, seed)
    assert set(train) | set(val) == set(labels) and not set(train) & set(val)
    for group in groups:
        assert set(group) <= set(val) or not set(group) & set(val)
    every, held = (Counter(label for name in names for label in labels[name]) for names in (labels, val))
    assert held["single"] == 0
    for label in ("common", "usual", "rare"):
        assert abs(held[label] - 0.25 * every[label]) <= 2
    assert split_photos(labels, groups, 0.25, seed) == (train, val)
    assert split_photos(labels, groups, 0.25, seed + 1) != (train, val)


def test_photos_that_all_differ_leave_one_out() -> None:
    train, val = split_photos({name: [name] for name in "abc"}, [], 0.2, 0)
    assert (len(train), len(val)) == (2, 1)


def test_a_seed_is_not_negative() -> None:
    with pytest.raises(RRMError, match="seed: expected at least 0, got -1"):
        split_photos({"a": ["x"], "b": ["x"]}, [], 0.2, -1)


@pytest.mark.parametrize(
    ("labels", "groups", "share"),
    [({"a": ["x"]}, [], 0.2), ({"a": [], "b": []}, [["a", "b"]], 0.2), ({"a": [], "b": []}, [], 1.0)],
)
def test_what_cannot_be_divided_is_refused(labels: dict[str, list[str]], groups: list[list[str]], share: float) -> None:
    with pytest.raises(RRMError):
        split_photos(labels, groups, share, 0)
