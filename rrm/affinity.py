"""AffinityNet: which neighbouring cells of a map belong together, and class scores that walk along them.

    W_ij = exp(-|f_i - f_j|_1)                        f the network's features, d(i, j) < radius      Eq. 3
    L    = L_bg+ / 4 + L_fg+ / 4 + L- / 2             mean cross-entropies of each kind of pair       section 3.2
    T    = D^-1 W^beta,  D_ii = sum_j (W_ij)^beta     Hadamard power, W_ii = 1                        section 3.3
    M*   = T^t M                                      M the class scores, background included         section 3.3

The authors' code takes the mean over channels where Eq. 3 has their sum, and so does this module: the scale of the
features is then the same for networks of any width. Pairs are taken once each, in the order of `paired`.

Source: Ahn and Kwak, "Learning pixel-level semantic affinity with image-level supervision for weakly supervised
semantic segmentation", CVPR 2018, arXiv:1803.10464; github.com/jiwoon-ahn/psa.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from rrm.errors import RRMError
from rrm.labels import IGNORE

NEGATIVE, BACKGROUND, FOREGROUND = 0, 1, 2
"""Kinds of pairs; `rrm.labels.IGNORE` is a pair of which one label is unknown."""
_LEAST = 1e-5  # added inside logarithms, as in the authors' code


def offsets(radius: int) -> list[tuple[int, int]]:
    """Steps (down, right) from a cell to those nearer than `radius`, one of each opposite two.

    Raises:
        RRMError: the radius leaves no pair.

    Example:
        >>> offsets(2)
        [(0, 1), (1, -1), (1, 0), (1, 1)]
    """
    if radius < 2:
        raise RRMError(f"affinity radius: expected at least 2 cells, got {radius!r}: the paper's is 5")
    span = range(-radius + 1, radius)
    steps = [(down, right) for down in range(radius) for right in span if down > 0 or right > 0]
    return [(down, right) for down, right in steps if down * down + right * right < radius * radius]


def paired(maps: Tensor, radius: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of (..., h, w) that lay the first cells of pairs beside the second ones, one pair of views an offset.

    Example:
        >>> [(first.tolist(), second.tolist()) for first, second in paired(torch.tensor([[1, 2, 3]]), 2)]
        [([[1, 2]], [[2, 3]])]
    """
    height, width = maps.shape[-2:]
    for down, right in offsets(radius):
        if down < height and abs(right) < width:
            left, over = max(0, -right), max(0, right)
            first = maps[..., : height - down, left : width - over]
            yield first, maps[..., down:, over : width - left]


def pair_affinities(features: Tensor, radius: int = 5) -> Tensor:
    """Affinity of each pair of cells nearer than `radius` (Eq. 3).

    Args:
        features: (N,C,h,w) float.
        radius: in cells, at least 2.

    Returns:
        (N,P) in 0..1, the dtype of `features`; differentiable. P is 0 for a map of one cell.

    Raises:
        RRMError: a shape is wrong, or the radius leaves no pair.

    Example:
        >>> pair_affinities(torch.tensor([[[[0.0, 0.0, 9.0]]]]), radius=2).round(decimals=3).tolist()
        [[1.0, 0.0]]
    """
    if features.ndim != 4 or not features.is_floating_point():
        raise RRMError(
            f"affinity features: expected float (N,C,h,w), got {features.dtype} {tuple(features.shape)}: give a map"
        )
    near = [(first - second).abs().mean(dim=1).flatten(1) for first, second in paired(features, radius)]
    return torch.cat([features.new_zeros(len(features), 0), *near], dim=1).neg().exp()


def pair_kinds(labels: Tensor, radius: int = 5) -> Tensor:
    """What is known of each pair: one class, background both, two classes, or nothing.

    Args:
        labels: (N,h,w) integer: 0 background, 1..C classes, 255 unknown.
        radius: in cells, at least 2.

    Returns:
        (N,P) int64: `BACKGROUND`, `FOREGROUND` (of one class), `NEGATIVE`, or 255 where a label is unknown.

    Raises:
        RRMError: a shape is wrong, or the radius leaves no pair.

    Example:
        >>> pair_kinds(torch.tensor([[[0, 0, 2, 2, 255]]]), radius=2).tolist()
        [[1, 0, 2, 255]]
    """
    if labels.ndim != 3 or labels.is_floating_point():
        raise RRMError(f"affinity labels: expected integer (N,h,w), got {labels.dtype} {tuple(labels.shape)}")
    kinds = []
    for first, second in paired(labels, radius):
        equal = torch.where(first == 0, BACKGROUND, FOREGROUND)
        kind = torch.where(first == second, equal, NEGATIVE)
        kinds.append(kind.masked_fill((first == IGNORE) | (second == IGNORE), IGNORE).flatten(1))
    return torch.cat([labels.new_zeros(len(labels), 0, dtype=torch.int64), *kinds], dim=1)


def affinity_losses(affinities: Tensor, kinds: Tensor) -> dict[str, Tensor]:
    """The terms of AffinityNet's loss: cross-entropy of the pairs of each kind, by its share of the sum.

    Args:
        affinities: (N,P) float in 0..1, from `pair_affinities`.
        kinds: (N,P) integer, from `pair_kinds`.

    Returns:
        Scalars >= 0 `background` (1/4), `foreground` (1/4) and `negative` (1/2), each the mean over its pairs of the
        batch, 0 where there are none; differentiable.

    Raises:
        RRMError: shapes do not fit.

    Example:
        >>> terms = affinity_losses(torch.tensor([[0.5, 0.5, 0.9]]), torch.tensor([[BACKGROUND, NEGATIVE, IGNORE]]))
        >>> {name: round(term.item(), 3) for name, term in terms.items()}
        {'background': 0.173, 'foreground': 0.0, 'negative': 0.347}
    """
    if affinities.shape != kinds.shape:
        raise RRMError(
            f"affinity losses: expected one kind a pair, got affinities {tuple(affinities.shape)} and kinds "
            f"{tuple(kinds.shape)}: use one radius and maps of one size"
        )
    alike, apart = -(affinities + _LEAST).log(), -(1 + _LEAST - affinities).log()
    return {
        "background": _mean_where(alike, kinds == BACKGROUND) / 4,
        "foreground": _mean_where(alike, kinds == FOREGROUND) / 4,
        "negative": _mean_where(apart, kinds == NEGATIVE) / 2,
    }


def random_walk(affinities: Tensor, scores: Tensor, radius: int = 5, beta: float = 8, steps: int = 256) -> Tensor:
    """Class scores after a random walk between cells that belong together.

    The matrix T is sparse, so it is applied `steps` times and never squared: a map of 64x47 cells takes 1 MB and under
    0.1 s on one core, where the dense T^256 takes 36 MB and 5 s.

    Args:
        affinities: (P,) float in 0..1, those of one image from `pair_affinities`.
        scores: (K,h,w) float, background included; they need not sum to one.
        radius: that of the affinities.
        beta: Hadamard power, > 0; a larger one leaves fewer ways out of a region. 8 in paper and code.
        steps: of the walk, >= 0; 256 in paper and code.

    Returns:
        (K,h,w), the dtype of `scores`; each value is a mean of the scores of its class, weighted by the walk.

    Raises:
        RRMError: shapes do not fit or a number is out of range.

    Example:
        >>> scores = torch.tensor([[[0.0, 1.0, 1.0]]])
        >>> random_walk(torch.tensor([1.0, 0.0]), scores, radius=2).tolist()
        [[[0.5, 0.5, 1.0]]]
    """
    if scores.ndim != 3 or not beta > 0 or steps < 0:
        raise RRMError(
            f"random walk: expected scores (K,h,w), beta > 0 and steps >= 0, got {tuple(scores.shape)}, {beta!r} and "
            f"{steps!r}: the paper's are 8 and 256"
        )
    transitions = transition_matrix(affinities, (int(scores.shape[1]), int(scores.shape[2])), radius, beta)
    state = scores.flatten(1).T.contiguous()
    for _ in range(steps):
        state = transitions @ state
    return state.T.reshape(scores.shape)


def transition_matrix(affinities: Tensor, size: tuple[int, int], radius: int = 5, beta: float = 8) -> Tensor:
    """Probabilities of the steps of the walk, T of section 3.3, as a sparse matrix in CSR layout.

    Args:
        affinities: (P,) float in 0..1.
        size: (h, w) of the map.
        radius: that of the affinities.
        beta: Hadamard power.

    Returns:
        (h w, h w) of non-negative rows that sum to one, the dtype and device of `affinities`.

    Raises:
        RRMError: the number of affinities does not fit size and radius.

    Example:
        >>> transition_matrix(torch.tensor([0.0, 1.0]), (1, 3), radius=2).to_dense().tolist()
        [[1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.0, 0.5, 0.5]]
    """
    cells = torch.arange(size[0] * size[1], device=affinities.device)
    views = [(first.flatten(), second.flatten()) for first, second in paired(cells.view(size), radius)]
    first, second = (torch.cat([cells[:0], *each]) for each in zip(*views, strict=True)) if views else (cells[:0],) * 2
    if affinities.shape != first.shape:
        raise RRMError(
            f"random walk: expected {len(first)} affinities for {size[0]}x{size[1]} cells and radius {radius}, got "
            f"{tuple(affinities.shape)}: use one radius and maps of one size"
        )
    weights = affinities**beta
    values = torch.cat([weights, weights, torch.ones_like(cells, dtype=weights.dtype)])
    rows, columns = torch.cat([first, second, cells]), torch.cat([second, first, cells])
    sums = torch.zeros_like(cells, dtype=weights.dtype).index_add(0, rows, values)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse", category=UserWarning)  # "is in beta state"
        matrix = torch.sparse_coo_tensor(torch.stack([rows, columns]), values / sums[rows], (len(cells), len(cells)))
        return matrix.to_sparse_csr()


def _mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen values, 0 where none is."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)
