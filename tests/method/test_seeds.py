"""Seeds from activation maps and their growth, against a plain breadth-first search."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
import torch

from rrm.errors import RRMError
from rrm.seeds import cam_seeds, grow_seeds


def test_seeds_by_thresholds() -> None:
    cams = torch.tensor([[[[1.0, 0.3, 0.1, 0.0]], [[0.9, 0.9, 0.9, 0.9]]]])
    assert cam_seeds(cams, torch.tensor([[1, 0]])).tolist() == [[[1, 1, 255, 0]]]
    assert cam_seeds(cams, torch.tensor([[1, 0]]), foreground=0.5, background=0.5).tolist() == [[[1, 0, 0, 0]]]
    assert cam_seeds(cams, torch.tensor([[0, 0]])).tolist() == [[[0, 0, 0, 0]]]


def test_the_rarer_class_wins() -> None:
    cams = torch.tensor([[[[0.9, 0.9, 0.9, 0.0]], [[0.0, 0.3, 0.3, 0.1]], [[0.0, 0.0, 0.3, 0.3]]]])
    assert cam_seeds(cams, torch.ones(1, 3)).tolist() == [[[1, 2, 2, 3]]]


def test_padding_has_no_seeds() -> None:
    valid = torch.tensor([[[True, False]]])
    assert cam_seeds(torch.tensor([[[[1.0, 0.0]]]]), torch.ones(1, 1), valid).tolist() == [[[1, 255]]]
    assert cam_seeds(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1), valid).tolist() == [[[0, 255]]]


def _plain_growth(seeds: Any, probabilities: Any, present: Any, valid: Any, thresholds: tuple[float, float]) -> Any:
    """The same for one image, pixel by pixel."""
    height, width = seeds.shape
    grown = seeds.clone()
    allowed = [0] + [k + 1 for k, there in enumerate(present.tolist()) if there]
    waiting = deque((y, x) for y in range(height) for x in range(width) if int(seeds[y, x]) != 255)
    while waiting:
        y, x = waiting.popleft()
        label = int(grown[y, x])
        for v in range(max(0, y - 1), min(height, y + 2)):
            for u in range(max(0, x - 1), min(width, x + 2)):
                best = max(allowed, key=lambda k: float(probabilities[k, v, u]))
                sure = float(probabilities[best, v, u]) >= thresholds[0 if best else 1]
                if int(grown[v, u]) == 255 and valid[v, u] and best == label and sure:
                    grown[v, u] = label
                    waiting.append((v, u))
    return grown


@pytest.mark.parametrize("seed", range(6))
def test_growth_is_that_of_a_plain_search(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    probabilities = (torch.randn(3, 4, 12, 10, generator=generator) * 4).softmax(1)
    seeds = torch.randint(0, 4, (3, 12, 10), generator=generator)
    seeds[torch.rand(3, 12, 10, generator=generator) < 0.9] = 255
    valid = torch.rand(3, 12, 10, generator=generator) < 0.9
    present = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]])
    grown = grow_seeds(seeds, probabilities, present, valid, 0.6, 0.5)
    for k in range(3):
        expected = _plain_growth(seeds[k], probabilities[k], present[k], valid[k], (0.6, 0.5))
        torch.testing.assert_close(grown[k], expected)
    kept = seeds != 255
    assert torch.equal(grown[kept], seeds[kept])
    assert int((grown != 255).sum()) > int(kept.sum())


def test_growth_goes_round_corners_and_over_diagonals_but_not_over_gaps() -> None:
    rows = ["a..aaa", ".a.a.a", "..a..a", "a....a"]
    sure = torch.tensor([[letter == "a" for letter in row] for row in rows])
    probabilities = torch.stack([~sure * 0.9, sure * 0.9])[None]
    seeds = torch.full((1, 4, 6), 255)
    seeds[0, 0, 0] = 1
    grown = grow_seeds(seeds, probabilities.float(), torch.ones(1, 1))[0] == 1
    alone = torch.zeros_like(sure)
    alone[3, 0] = True
    assert torch.equal(grown, sure & ~alone)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_maps_of_one_pixel_and_flat_ones(value: float) -> None:
    assert cam_seeds(torch.full((1, 1, 1, 1), value), torch.ones(1, 1)).tolist() == [[[int(value)]]]
    grown = grow_seeds(torch.full((1, 3, 3), 255), torch.full((1, 2, 3, 3), value), torch.ones(1, 1))
    assert grown.unique().tolist() == [255]


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: cam_seeds(torch.zeros(1, 2, 3), torch.zeros(1, 2)), "seeds cams"),
        (lambda: cam_seeds(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3)), "image-level labels"),
        (lambda: cam_seeds(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2), torch.ones(1, 3, 3)), "valid"),
        (lambda: cam_seeds(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2), None, 0.1, 0.2), "background <= foreground"),
        (lambda: grow_seeds(torch.zeros(1, 3, 3), torch.zeros(1, 2, 3, 3), torch.zeros(1, 1)), "growing seeds"),
        (
            lambda: grow_seeds(torch.zeros(1, 3, 3).long(), torch.zeros(1, 2, 3, 3), torch.zeros(1, 1), None, 2),
            "growing",
        ),
    ],
)
def test_mistakes_are_named(call: Any, named: str) -> None:
    with pytest.raises(RRMError, match=f"{named}.* got "):
        call()
