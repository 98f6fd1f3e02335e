"""Divide photos into those that are trained on and those that are held out, with regard to their classes.

After Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-Label Data" (ECML PKDD 2011): the rarest class
is dealt with first, for it is what a random choice goes wrong on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from rrm.errors import RRMError


def split_photos(
    labels: Mapping[str, Sequence[str]], groups: Sequence[Sequence[str]], share: float, seed: int
) -> tuple[list[str], list[str]]:
    """Hold photos out, about the same share of each class.

    Every class keeps photos to train on where that is possible at all. The result depends on the arguments only.

    Args:
        labels: classes of each photo.
        groups: photos that stay together because they look alike; photos in none are alone.
        share: of the photos that are held out, 0 < share < 1. At least one is, and one is not.
        seed: >= 0, for the order in which photos are looked at.

    Returns:
        Photos to train on and photos held out, each in the order of `labels`.

    Raises:
        RRMError: share or seed out of range; all photos are in one group, or there are less than two.

    Example:
        >>> labels = {f"{k:02d}": ["cat"] if k < 8 else ["dog"] for k in range(12)}
        >>> train, held_out = split_photos(labels, [["00", "01"]], 0.25, seed=0)
        >>> sorted(labels[name][0] for name in held_out)
        ['cat', 'cat', 'dog']
    """
    check_division(share, seed)
    grouped = {name for group in groups for name in group}
    units = [list(group) for group in groups] + [[name] for name in labels if name not in grouped]
    if len(units) < 2:
        raise RRMError(
            f"photos: expected at least 2 that are labelled and do not look alike, got {len(units)}: add photos and "
            "labels"
        )
    order = [units[k] for k in np.random.default_rng(seed).permutation(len(units))]
    counts = [Counter(label for name in unit for label in (labels[name] or ("",))) for unit in order]
    taken = set(_chosen(counts, share))
    held_out = {name for k in taken for name in order[k]}
    return [name for name in labels if name not in held_out], [name for name in labels if name in held_out]


def check_division(share: float, seed: int) -> None:
    """Refuse a share or a seed that `split_photos` does not take.

    Raises:
        RRMError: one of them is out of range.
    """
    if not 0 < share < 1:
        raise RRMError(f"share: expected a share of photos to hold out above 0 and below 1, got {share}: use 0.2")
    if seed < 0:
        raise RRMError(f"seed: expected at least 0, got {seed}: use 0")


def _chosen(counts: Sequence[Counter[str]], share: float) -> list[int]:
    """Places of the units that are held out."""
    total: Counter[str] = sum(counts, Counter())
    wanted = {label: min(round(share * number), number - 1) for label, number in total.items()}
    held: Counter[str] = Counter()
    taken: list[int] = []
    for label in sorted(total, key=lambda each: (total[each], each)):
        for place, unit in enumerate(counts):
            left = {each: (held[each] + number, total[each]) for each, number in unit.items()}
            fits = all(now <= wanted[each] + 1 and now < whole for each, (now, whole) in left.items())
            if held[label] < wanted[label] and label in unit and fits and place not in taken:
                taken.append(place)
                held += unit
    return taken or [_least_missed(counts, total)]


def _least_missed(counts: Sequence[Counter[str]], total: Counter[str]) -> int:
    """The unit whose classes have most photos left without it."""
    return max(
        range(len(counts)), key=lambda place: min(total[each] - number for each, number in counts[place].items())
    )
