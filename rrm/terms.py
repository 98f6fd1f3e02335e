"""Terms of a loss that is computed part by part: the parts of a split batch, or those of several processes.

A mean over what a batch has of something (its images, its background pixels) is no mean of its parts' means: they have
it in different numbers. So a term says both, and its part of the whole batch's mean is

    mean * count / count in the whole batch

whose sum over the parts is that mean, and the sum of whose gradients is the gradient of that mean.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Term(NamedTuple):
    """One term of a loss, a sum of means.

    Attributes:
        means: (...,K) float, differentiable; each of the last axis is a mean over something of its own.
        counts: (K,) float64, over how many each mean goes, 0 where it goes over none (its mean is 0 then); None: they
            are sums, which simply add up.

    Example:
        >>> halves = mean_term(torch.tensor(6.0), 1), mean_term(torch.tensor(3.0), 2)
        >>> [half.part(torch.tensor([3.0])).item() for half in halves]
        [2.0, 2.0]
    """

    means: Tensor
    counts: Tensor | None

    @property
    def total(self) -> Tensor:
        """Scalar: the term of a batch that is not split."""
        return self.means.sum(-1).sum()

    def part(self, whole: Tensor | None) -> Tensor:
        """Scalar: what this part adds to the term of the whole batch.

        Args:
            whole: (K,) counts of the whole batch; None for sums.
        """
        if self.counts is None or whole is None:
            return self.total
        share = (self.counts / whole.clamp(min=1)).to(self.means.dtype)
        return (self.means * share).sum(-1).sum()


def mean_term(mean: Tensor, count: Tensor | int) -> Term:
    """A term of a single mean.

    Args:
        mean: scalar.
        count: over how many it goes, >= 0.
    """
    number = count if isinstance(count, Tensor) else torch.full((), count, device=mean.device)
    return Term(mean.reshape(1), number.reshape(1).double())


def images_in(images: Tensor) -> Tensor:
    """Counts, (1,) float64, of a mean over the images of a batch (N,...); made on their device.

    Example:
        >>> images_in(torch.zeros(4, 3, 8, 8))
        tensor([4.], dtype=torch.float64)
    """
    return torch.full((1,), len(images), dtype=torch.float64, device=images.device)
