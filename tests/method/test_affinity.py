"""AffinityNet's pairs, loss and random walk, against loops over all pairs of cells."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from rrm.affinity import (
    BACKGROUND,
    FOREGROUND,
    NEGATIVE,
    affinity_losses,
    offsets,
    pair_affinities,
    pair_kinds,
    paired,
    random_walk,
    transition_matrix,
)
from rrm.errors import RRMError

SIZES = [(7, 6), (1, 5), (9, 1), (2, 2), (1, 1)]


def _pairs(height: int, width: int, radius: int) -> set[frozenset[tuple[int, int]]]:
    cells = list(itertools.product(range(height), range(width)))
    return {frozenset((a, b)) for a in cells for b in cells if a != b and math.dist(a, b) < radius}


def _listed(size: tuple[int, int], radius: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Cells of each pair, in the module's order."""
    numbers = torch.arange(size[0] * size[1]).view(size)
    flat = [(a, b) for first, second in paired(numbers, radius) for a, b in zip(*_lists(first, second), strict=True)]
    return [(divmod(a, size[1]), divmod(b, size[1])) for a, b in flat]


def _lists(*views: torch.Tensor) -> list[list[int]]:
    return [view.flatten().tolist() for view in views]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("radius", [2, 3, 5])
def test_each_pair_within_the_radius_once(size: tuple[int, int], radius: int) -> None:
    listed = [frozenset(pair) for pair in _listed(size, radius)]
    assert len(listed) == len(set(listed))
    assert set(listed) == _pairs(*size, radius)


def test_the_papers_radius_has_34_directions() -> None:
    assert len(offsets(5)) == 34  # the 68 cells nearer than 5, by halves


@pytest.mark.parametrize("size", SIZES)
def test_affinities_and_kinds_are_those_of_a_loop(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 2, 255])[torch.randint(0, 5, (2, *size), generator=generator)]
    affinities, kinds = pair_affinities(features, 3), pair_kinds(labels, 3)
    assert affinities.shape == kinds.shape == (2, len(_pairs(*size, 3)))
    for item in range(2):
        for number, (a, b) in enumerate(_listed(size, 3)):
            difference = (features[item, :, a[0], a[1]] - features[item, :, b[0], b[1]]).abs().mean()
            assert affinities[item, number].item() == pytest.approx(math.exp(-difference))
            one, two = int(labels[item, a[0], a[1]]), int(labels[item, b[0], b[1]])
            known = NEGATIVE if one != two else (FOREGROUND if one else BACKGROUND)
            assert kinds[item, number] == (255 if 255 in (one, two) else known)


def test_loss_of_labels_by_hand() -> None:
    kinds = torch.tensor([[BACKGROUND, BACKGROUND, FOREGROUND, NEGATIVE, 255]])
    terms = affinity_losses(torch.tensor([[0.5, 1.0, 0.25, 0.75, 0.1]]), kinds)
    assert terms["background"].item() == pytest.approx(math.log(2) / 2 / 4, abs=1e-4)
    assert terms["foreground"].item() == pytest.approx(math.log(4) / 4, abs=1e-4)
    assert terms["negative"].item() == pytest.approx(math.log(4) / 2, abs=1e-4)


@pytest.mark.parametrize("value", [0.0, 50.0])
def test_loss_is_finite_at_the_ends_and_zero_without_pairs(value: float) -> None:
    features = torch.tensor([[[[0.0, value, value]]]], requires_grad=True)
    terms = affinity_losses(pair_affinities(features, 2), torch.tensor([[FOREGROUND, NEGATIVE]]))
    assert terms["background"].item() == 0
    total = torch.stack(list(terms.values())).sum()
    total.backward()
    assert torch.isfinite(total) and torch.isfinite(features.grad).all()  # type: ignore[arg-type]


def test_loss_gradient() -> None:
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(1, 2, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    kinds = pair_kinds(torch.randint(0, 3, (1, 3, 4), generator=generator), 2)

    def total(each: torch.Tensor) -> torch.Tensor:
        return torch.stack(list(affinity_losses(pair_affinities(each, 2), kinds).values())).sum()

    assert torch.autograd.gradcheck(total, (features,))


@pytest.mark.parametrize("size", SIZES)
def test_walk_is_that_of_the_dense_matrix(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(1, 4, *size, generator=generator, dtype=torch.float64)
    scores = torch.rand(3, *size, generator=generator, dtype=torch.float64)
    (affinities,) = pair_affinities(features, 3)
    cells = size[0] * size[1]
    dense = torch.eye(cells, dtype=torch.float64)
    for value, (a, b) in zip(affinities, _listed(size, 3), strict=True):
        i, j = a[0] * size[1] + a[1], b[0] * size[1] + b[1]
        dense[i, j] = dense[j, i] = value**4
    dense /= dense.sum(dim=1, keepdim=True)
    torch.testing.assert_close(transition_matrix(affinities, size, 3, 4).to_dense(), dense)
    for _ in range(3):
        dense = dense @ dense
    expected = (scores.flatten(1) @ dense.T).view_as(scores)
    torch.testing.assert_close(random_walk(affinities, scores, 3, beta=4, steps=8), expected)


def test_rows_sum_to_one_and_constant_scores_stay() -> None:
    affinities = torch.rand(len(_pairs(12, 10, 5)))
    matrix = transition_matrix(affinities, (12, 10))
    torch.testing.assert_close(matrix.to_dense().sum(dim=1), torch.ones(120))
    flat = torch.tensor([0.3, 0.0, 1.0])[:, None, None].expand(3, 12, 10)
    torch.testing.assert_close(random_walk(affinities, flat), flat.contiguous())


def test_a_wall_without_affinity_is_not_crossed() -> None:
    size, radius = (8, 9), 3
    sides = torch.tensor([float(a[1] >= 4) == float(b[1] >= 4) for a, b in _listed(size, radius)])
    scores = torch.zeros(1, *size)
    scores[0, 3, 1] = 1
    walked = random_walk(sides.float(), scores, radius, beta=8, steps=256)[0]
    assert (walked[:, 4:] == 0).all() and (walked[:, :4] > 0).all()
    torch.testing.assert_close(walked[:, :4], torch.full((8, 4), float(walked[:, :4].mean())), rtol=1e-2, atol=0)


def test_no_step_and_a_huge_power_change_nothing() -> None:
    affinities, scores = torch.full((len(_pairs(5, 5, 2)),), 0.5), torch.rand(2, 5, 5)
    torch.testing.assert_close(random_walk(affinities, scores, 2, steps=0), scores)
    torch.testing.assert_close(random_walk(affinities, scores, 2, beta=200, steps=9), scores)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: offsets(1), "affinity radius"),
        (lambda: pair_affinities(torch.zeros(3, 4, 4)), "affinity features"),
        (lambda: pair_kinds(torch.zeros(1, 4, 4)), "affinity labels"),
        (lambda: affinity_losses(torch.zeros(1, 3), torch.zeros(1, 4)), "affinity losses"),
        (lambda: random_walk(torch.zeros(4), torch.zeros(1, 2, 2), beta=0), "random walk: expected scores"),
        (lambda: random_walk(torch.zeros(4), torch.zeros(1, 2, 2)), "random walk: expected 6 affinities for 2x2"),
    ],
)
def test_mistakes_are_named(call: Any, named: str) -> None:
    with pytest.raises(RRMError, match=f"{named}.* got "):
        call()
