"""RRM: image-level labels in, segmentation out.

The public names below are loaded on first use, so that the command line starts fast:

* `load`: trained weights as a `Segmenter`, whose `predict` segments photos and gives a `Prediction`;
* `DenseCRF`, `DenseEnergyLoss`, `mine_regions`, `SegmentationMetrics`: parts for other methods;
* `networks`: `networks.RRMNet`, `networks.load_reference_weights` and the DeepLabs.

Source: Zhang et al., "Reliability Does Matter: An End-to-End Weakly Supervised Semantic Segmentation Approach",
AAAI 2020.

Example:
    >>> import numpy as np, rrm
    >>> metrics = rrm.SegmentationMetrics(num_classes=1)
    >>> metrics.update(np.array([[0, 1]]), np.array([[0, 1]]))
    >>> metrics.compute().mean_iou
    1.0
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rrm import networks
    from rrm.crf import DenseCRF
    from rrm.losses import DenseEnergyLoss
    from rrm.metrics import SegmentationMetrics
    from rrm.regions import mine_regions
    from rrm.segmenter import Prediction, Segmenter, load

__version__ = "0.1.0"
__all__ = [
    "DenseCRF", "DenseEnergyLoss", "Prediction", "SegmentationMetrics", "Segmenter", "load", "mine_regions", "networks",
]  # fmt: skip

_HOMES = {
    "DenseCRF": "rrm.crf",
    "DenseEnergyLoss": "rrm.losses",
    "Prediction": "rrm.segmenter",
    "SegmentationMetrics": "rrm.metrics",
    "Segmenter": "rrm.segmenter",
    "load": "rrm.segmenter",
    "mine_regions": "rrm.regions",
}


def __getattr__(name: str) -> Any:
    if name == "networks":
        return importlib.import_module("rrm.networks")  # noqa: TID251 (fixed)
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)  # noqa: TID251 (of the table above)
    raise AttributeError(f"module 'rrm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
