"""A classification branch on a frozen backbone, solved exactly: logistic regression on pooled features of whole photos.

With the backbone frozen, the branch (global average pooling and a 1x1 convolution) is a linear model and its loss is
convex. L-BFGS finds its minimum in seconds, from whole photos: no crop that may have lost an object whose label it
keeps, and no padding among the pooled cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rrm.cam import rescale
from rrm.inference import Photo, as_batch
from rrm.losses import classification_loss


@torch.no_grad()
def pooled_features(
    network: Any, photos: Iterable[Photo], scales: Sequence[float], flip: bool, device: str = "cpu"
) -> Iterator[Tensor]:
    """Average of the feature map over each photo, for every scale and, with `flip`, its mirror image.

    Args:
        network: with `normalize` and `features`, in evaluation mode.
        photos: (H,W,3) uint8 RGB each.
        scales: factors of the photo's size.
        flip: the mirrored photo too.
        device: of the network.

    Yields:
        (views, D) float64 on the CPU for each photo.
    """
    for photo in photos:
        images = network.normalize(as_batch([photo], device))
        scaled = [rescale(images, scale) for scale in scales]
        views = [view for each in scaled for view in ([each, each.flip(3)] if flip else [each])]
        yield torch.stack([network.features(view).mean((2, 3))[0] for view in views]).cpu().double()


def logistic_regression(
    features: Tensor, labels: Tensor, bias: bool, weight_decay: float, iterations: int, loss: str
) -> tuple[Tensor, Tensor]:
    """Weights and biases that minimise the classification loss plus `weight_decay` times the sum of squared weights.

    Args:
        features: (N,D) float64.
        labels: (N,C), 0 or 1.
        bias: whether a bias is fitted; biases do not decay.
        weight_decay: >= 0.
        iterations: of L-BFGS, at most.
        loss: kind of `classification_loss`.

    Returns:
        (C,D) and (C,) float64; zero biases without `bias`.

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0]], dtype=torch.float64), torch.tensor([[0.0], [1.0]])
        >>> weight, offset = logistic_regression(x, y, True, 0.01, 50, "multilabel-soft-margin")
        >>> bool(weight > 0), bool(offset < 0)
        (True, True)
    """
    weight = torch.zeros(labels.shape[1], features.shape[1], dtype=torch.float64, requires_grad=True)
    offset = torch.zeros(labels.shape[1], dtype=torch.float64, requires_grad=bias)
    fitted = [weight, offset] if bias else [weight]
    optimizer = torch.optim.LBFGS(fitted, max_iter=iterations, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        value = classification_loss(features @ weight.T + offset, labels, loss) + weight_decay * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(objective)  # type: ignore[no-untyped-call]
    return weight.detach(), offset.detach()


@torch.no_grad()
def set_classifier(layer: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    """Put a linear model into the 1x1 convolution of a classification branch.

    Example:
        >>> layer = nn.Conv2d(2, 1, 1)
        >>> set_classifier(layer, torch.tensor([[1.0, 2.0]]), torch.tensor([3.0]))
        >>> layer(torch.ones(1, 2, 1, 1)).item()
        6.0
    """
    layer.weight.copy_(weight[:, :, None, None])
    if layer.bias is not None:
        layer.bias.copy_(bias)
