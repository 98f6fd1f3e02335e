"""What the other weakly supervised methods minimise, on the network, the loop and the parts that RRM uses.

All of them work at the size of the network's segmentation map, as published, and on the segmentation branch alone; its
start is the classifier that one-step RRM starts from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from rrm.em_adapt import estimate_labels
from rrm.losses import balanced_cross_entropy
from rrm.training import Batch


def valid_at(valid: Tensor, size: tuple[int, int]) -> Tensor:
    """Which pixels of a smaller map are no padding: nearest neighbour of (N,H,W) bool, in the same form.

    Example:
        >>> valid_at(torch.tensor([[[True, True, False, False]]]), (1, 2)).tolist()
        [[[True, False]]]
    """
    return F.interpolate(valid[:, None].float(), size=size)[:, 0] > 0.5


class EMAdaptTask:
    """EM-Adapt: labels estimated from the network's own scores at each step, and cross-entropy on them.

    Args:
        network: with `normalize` and `forward_segmentation`.
        shares: `background`, `foreground` and `passes` of `rrm.em_adapt.estimate_labels`.
    """

    def __init__(self, network: Any, shares: Mapping[str, Any]) -> None:
        self.network, self.shares = network, dict(shares)

    def losses(self, batch: Batch, progress: float) -> Mapping[str, Tensor]:
        """Mean cross-entropy of a batch with `images` (N,3,H,W) 0..255, `present` (N,C) and `valid` (N,H,W)."""
        logits = self.network.forward_segmentation(self.network.normalize(batch["images"])).float()
        with record_function("rrm.mining"), torch.no_grad():
            valid = valid_at(batch["valid"], (logits.shape[2], logits.shape[3]))
            labels = estimate_labels(logits, batch["present"], valid, **self.shares)
        with record_function("rrm.cross_entropy"):
            return {"cross_entropy": balanced_cross_entropy(logits, labels, "mean")}
