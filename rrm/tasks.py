"""What each training stage minimises: classification, one-step RRM (Algorithm 1) or segmentation on given masks.

The parts of a one-step training step are named for profilers (`rrm.cam`, `rrm.mining` and so on).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from rrm.cam import multi_scale_cam, normalize_cam, resize
from rrm.losses import DenseEnergyLoss, classification_loss, cross_entropy_counts, cross_entropy_term
from rrm.regions import RegionRule
from rrm.terms import Term, images_in, mean_term
from rrm.training import Batch, Counts, Task


@contextmanager
def evaluation_mode(network: nn.Module, keep_dropout: bool = False) -> Iterator[None]:
    """Put a network into evaluation mode for a while, dropout left as it is if asked for.

    Example:
        >>> net = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(1))
        >>> with evaluation_mode(net, keep_dropout=True):
        ...     [module.training for module in net]
        [True, False]
        >>> [module.training for module in net]
        [True, True]
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    if keep_dropout:
        for module, training in modes:
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.training = training
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class ClassificationTask(Task):
    """Trains the classification branch on image-level labels.

    Args:
        network: an `RRMNet`.
        loss: kind of the classification loss.
    """

    def __init__(self, network: Any, loss: str) -> None:
        super().__init__(network)
        self.loss = loss

    def counts(self, batch: Batch) -> Counts:
        return {"classification": images_in(batch["images"])}

    def losses(self, batch: Batch, progress: float) -> Mapping[str, Term]:
        """The classification loss of a batch with `images` (N,3,H,W) 0..255 and `present` (N,C)."""
        logits = self.network.forward_classification(self.network.normalize(batch["images"])).class_logits
        loss = classification_loss(logits.float(), batch["present"], self.loss)
        return {"classification": mean_term(loss, len(logits))}


class _RampedEnergy:
    """Energy loss whose weight grows linearly from 0 over the first `ramp` of the steps."""

    def __init__(self, options: Mapping[str, Any] | None) -> None:
        values = dict(options or {"weight": 0})
        self.ramp = values.pop("ramp", 0)
        self.loss = DenseEnergyLoss(**values) if values["weight"] > 0 else None

    def __call__(self, batch: Batch, logits: Tensor, labels: Tensor, progress: float) -> dict[str, Term]:
        if self.loss is None:
            return {}
        probabilities = (logits if self.loss.grid is None else resize(logits, self.loss.grid)).softmax(1)
        factor = min(1.0, progress / self.ramp) if self.ramp > 0 else 1.0
        energy = self.loss(batch["images"], probabilities, batch["valid"], labels)
        return {"energy": mean_term(factor * energy, len(logits))}


def gives_cam(network: Any, dropout: bool) -> bool:
    """Whether the map of a training pass is the one that labels are mined from: then scale 1 needs no pass of its own.

    It is where no batch norm learns, and dropout before the map is off, or wanted in the map too.

    Args:
        network: an `RRMNet`, in its training mode.
        dropout: option `dropout` of the activation maps.

    Example:
        >>> from rrm.networks import RRMNet
        >>> small = {"width": 1 / 16, "units": (1, 1, 1, 1)}
        >>> [gives_cam(RRMNet(5, **small), dropout) for dropout in (True, False)]
        [True, False]
        >>> gives_cam(RRMNet(5, batch_norm="train", **small), True)
        False
    """
    layers = [layer for layer in network.backbone.modules() if layer.training]
    learning = any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in layers)
    dropping = any(isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0 for layer in layers)
    return not learning and (dropout or not dropping)


def mined_labels(
    network: Any,
    rule: RegionRule,
    cam: Mapping[str, Any],
    batch: Batch,
    images: Tensor,
    base_cam: Tensor | None = None,
) -> Tensor:
    """Reliable labels of a batch from a network's activation maps (Eq. 2-7), without gradients.

    Args:
        network: an `RRMNet`; its mode is left as it is.
        rule: chooses the reliable regions.
        cam: `scales`, `average` and `dropout` of the maps, Eq. 2.
        batch: with `images` (N,3,H,W) 0..255, `present` (N,C) and `valid` (N,H,W).
        images: (N,3,H,W), the batch's images as the network takes them.
        base_cam: raw map (N,C,h,w) of scale 1 where a pass has made it already (`gives_cam`).

    Returns:
        (N,H,W) int64, 255 where not reliable.
    """
    how = {"scales": cam["scales"], "average": cam["average"], "base_cam": base_cam}
    with record_function("rrm.cam"):
        with torch.no_grad(), evaluation_mode(network, keep_dropout=cam["dropout"]):
            cams = multi_scale_cam(network.forward_cam, images, **how)
        scores = normalize_cam(cams.float(), batch["present"])
    with record_function("rrm.mining"):
        photos = batch["images"].round().clamp(0, 255).byte().permute(0, 2, 3, 1)
        return rule.mine(photos, scores, batch["present"], batch["valid"]).long()


class OneStepTask(Task):
    """One-step RRM: both branches, labels mined from the current CAMs at each step (Algorithm 1).

    Args:
        network: an `RRMNet`.
        rule: chooses the reliable regions, Eq. 5-7.
        cam: `scales`, `average` and `dropout` of the CAMs, Eq. 2.
        losses: kinds `classification` and `cross_entropy`.
        energy: options of `DenseEnergyLoss` and `ramp`.
    """

    def __init__(
        self,
        network: Any,
        rule: RegionRule,
        cam: Mapping[str, Any],
        losses: Mapping[str, str],
        energy: Mapping[str, Any],
    ) -> None:
        super().__init__(network)
        self.rule, self.cam, self.kinds = rule, cam, losses
        self.energy = _RampedEnergy(energy)

    def prepare(self, batch: Batch) -> Batch:
        """The batch with its mined labels, (N,H,W) int64 `mined`."""
        images = self.network.normalize(batch["images"])
        return {**batch, "mined": mined_labels(self.network, self.rule, self.cam, batch, images)}

    def counts(self, batch: Batch) -> Counts:
        images = images_in(batch["images"])
        pixels = cross_entropy_counts(batch["mined"], self.kinds["cross_entropy"])
        return {"classification": images, "cross_entropy": pixels, "energy": images}

    def losses(self, batch: Batch, progress: float) -> Mapping[str, Term]:
        """Classification loss, cross-entropy on the mined labels and energy of a batch, prepared or not."""
        images = self.network.normalize(batch["images"])
        with record_function("rrm.forward"):
            output = self.network(images)
        labels = batch.get("mined")
        if labels is None:
            own = output.cam.detach() if gives_cam(self.network, self.cam["dropout"]) else None
            labels = mined_labels(self.network, self.rule, self.cam, batch, images, own)
        with record_function("rrm.cross_entropy"):
            logits = resize(output.segmentation.float(), (labels.shape[1], labels.shape[2]))
            cross_entropy = cross_entropy_term(logits, labels, self.kinds["cross_entropy"])
        with record_function("rrm.classification"):
            scores = output.class_logits.float()
            loss = classification_loss(scores, batch["present"], self.kinds["classification"])
        with record_function("rrm.energy"):
            energy = self.energy(batch, logits, labels, progress)
        return {"classification": mean_term(loss, len(labels)), "cross_entropy": cross_entropy, **energy}


def multi_scale_logits(forward: Callable[[Tensor], Tensor], images: Tensor, scales: Sequence[float]) -> list[Tensor]:
    """Logits (N,K,H,W) of each scale at the images' size; for several, their maximum at the end (DeepLab-v2)."""
    size = (int(images.shape[2]), int(images.shape[3]))
    scaled = (
        images if s == 1 else F.interpolate(images, scale_factor=s, mode="bilinear", align_corners=False)
        for s in scales
    )
    logits = [resize(forward(each).float(), size) for each in scaled]
    return [*logits, torch.stack(logits).amax(0)] if len(logits) > 1 else logits


class SegmentationTask(Task):
    """Trains a segmentation network on given masks, pseudo or true.

    Args:
        network: a network with logits (N,C+1,h,w).
        cross_entropy: kind of the cross-entropy.
        scales: DeepLab-v2's loss on several scales and their maximum.
        energy: options of `DenseEnergyLoss` and `ramp`, or None.
    """

    def __init__(
        self,
        network: Any,
        cross_entropy: str,
        scales: Sequence[float] = (1.0,),
        energy: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(network)
        self.kind, self.scales = cross_entropy, list(scales)
        self.energy = _RampedEnergy(energy)

    def counts(self, batch: Batch) -> Counts:
        pixels = cross_entropy_counts(batch["labels"], self.kind)
        return {"cross_entropy": pixels, "energy": images_in(batch["images"])}

    def losses(self, batch: Batch, progress: float) -> Mapping[str, Term]:
        """Cross-entropy summed over scales, and energy, of a batch with `images`, `labels` and `valid`."""
        labels = batch["labels"]
        logits = multi_scale_logits(
            self.network.forward_segmentation, self.network.normalize(batch["images"]), self.scales
        )
        terms = [cross_entropy_term(each, labels, self.kind) for each in logits]
        cross_entropy = Term(torch.stack([term.means for term in terms]), terms[0].counts)
        return {"cross_entropy": cross_entropy, **self.energy(batch, logits[-1], labels, progress)}
