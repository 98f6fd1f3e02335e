"""Entry points of `torch.hub`: `torch.hub.load(<a clone>, "rrm_segmenter", <weights.pth>, source="local")`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch.hub lists every public name that can be called
    import os
    from typing import Any

    from rrm.segmenter import Segmenter

dependencies = ["h5py", "numba", "numpy", "PIL", "pydantic", "torch", "tqdm"]


def rrm_segmenter(path: str | os.PathLike[str], device: str = "auto", **options: Any) -> Segmenter:
    """Trained weights as a `Segmenter`: `rrm_segmenter(path).predict(photo).labels`.

    Args:
        path: `weights.pth` of a stage that trains a segmentation network.
        device: "auto", "cpu" or "cuda".
        options: `classes` and `network` of `rrm.load`, for files of others.

    Raises:
        RRMError: missing, damaged or foreign file, or a network without a trained segmentation branch.
    """
    from rrm.segmenter import load

    return load(path, device, **options)
