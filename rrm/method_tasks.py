"""What the other weakly supervised methods minimise, on the network, the loop and the parts that RRM uses.

All of them work at the size of the network's map, as published. EM-Adapt, SEC and DSRG train the segmentation branch
alone, from the classifier that one-step RRM starts from; AffinityNet is a network of its own, for pseudo masks.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from rrm.affinity import BACKGROUND, FOREGROUND, NEGATIVE, affinity_losses, pair_affinities, pair_kinds
from rrm.cam import multi_scale_cam, normalize_cam
from rrm.crf import DenseCRF
from rrm.em_adapt import estimate_labels
from rrm.losses import cross_entropy_term
from rrm.regions import RegionRule
from rrm.sec import boundary_loss, expansion_loss
from rrm.seeds import cam_seeds, grow_seeds
from rrm.tasks import mined_labels
from rrm.terms import Term, mean_term
from rrm.training import Batch, Task

_PAIRS = {"background": BACKGROUND, "foreground": FOREGROUND, "negative": NEGATIVE}


def valid_at(valid: Tensor, size: tuple[int, int]) -> Tensor:
    """Which pixels of a smaller map are no padding: nearest neighbour of (N,H,W) bool, in the same form.

    Example:
        >>> valid_at(torch.tensor([[[True, True, False, False]]]), (1, 2)).tolist()
        [[[True, False]]]
    """
    return F.interpolate(valid[:, None].float(), size=size)[:, 0] > 0.5


class EMAdaptTask(Task):
    """EM-Adapt: labels estimated from the network's own scores at each step, and cross-entropy on them.

    Args:
        network: with `normalize` and `forward_segmentation`.
        shares: `background`, `foreground` and `passes` of `rrm.em_adapt.estimate_labels`.
    """

    def __init__(self, network: Any, shares: Mapping[str, Any]) -> None:
        super().__init__(network)
        self.shares = dict(shares)

    def losses(self, batch: Batch, progress: float) -> Mapping[str, Term]:
        """Mean cross-entropy of a batch with `images` (N,3,H,W) 0..255, `present` (N,C) and `valid` (N,H,W)."""
        logits = self.network.forward_segmentation(self.network.normalize(batch["images"])).float()
        with record_function("rrm.mining"), torch.no_grad():
            valid = valid_at(batch["valid"], (logits.shape[2], logits.shape[3]))
            labels = estimate_labels(logits, batch["present"], valid, **self.shares)
        with record_function("rrm.cross_entropy"):
            return {"cross_entropy": cross_entropy_term(logits, labels, "mean")}


class _SeededTask(Task):
    """What SEC and DSRG share: seeds of the network as it was before training, in evaluation mode, and the boundary.

    Args:
        network: an `RRMNet` whose classification branch is trained.
        seeds: `scales`, `foreground` and `background` of the seeds.
        crf: of the boundary loss.
        options: what the method has beside these.
    """

    def __init__(self, network: Any, seeds: Mapping[str, Any], crf: DenseCRF, options: Mapping[str, Any]) -> None:
        super().__init__(network)
        self.crf, self.options = crf, dict(options)
        self.thresholds = {name: seeds[name] for name in ("foreground", "background")}
        self.scales = seeds["scales"]
        self.classifier = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def seeds(self, batch: Batch, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Seeds (N,h,w) int64 of a batch, 255 elsewhere; `images` are normalised."""
        forward = self.classifier.to(images.device).forward_cam
        cams = multi_scale_cam(forward, images, scales=self.scales, size=size, average="image")
        scores = normalize_cam(cams.float(), batch["present"])
        return cam_seeds(scores, batch["present"], valid_at(batch["valid"], size), **self.thresholds)

    def losses(self, batch: Batch, progress: float) -> Mapping[str, Term]:
        """Loss terms of a batch with `images` (N,3,H,W) 0..255, `present` (N,C) and `valid` (N,H,W)."""
        images = self.network.normalize(batch["images"])
        logits = self.network.forward_segmentation(images).float()
        size = (int(logits.shape[2]), int(logits.shape[3]))
        with record_function("rrm.mining"):
            seeds = self.seeds(batch, images, size)
        valid = valid_at(batch["valid"], size)
        with record_function("rrm.boundary"):
            boundary = mean_term(boundary_loss(logits, batch["images"], self.crf, valid), valid.sum())
        return {**self.seed_terms(logits, seeds, batch["present"], valid), "boundary": boundary}

    def seed_terms(self, logits: Tensor, seeds: Tensor, present: Tensor, valid: Tensor) -> dict[str, Term]:
        """The method's own terms."""
        raise NotImplementedError


class SECTask(_SeededTask):
    """SEC: cross-entropy on seeds, expansion and boundary loss; `options` are the decays of `expansion_loss`."""

    def seed_terms(self, logits: Tensor, seeds: Tensor, present: Tensor, valid: Tensor) -> dict[str, Term]:
        expansion = expansion_loss(logits.softmax(1), present, valid, **self.options)
        images = valid.flatten(1).any(dim=1).sum()
        return {"seed": cross_entropy_term(logits, seeds, "mean"), "expansion": mean_term(expansion, images)}


class DSRGTask(_SeededTask):
    """DSRG: balanced cross-entropy on seeds that the network's own probabilities let grow, and boundary loss.

    `options` are `foreground_threshold` and `background_threshold` of `rrm.seeds.grow_seeds`.
    """

    def seed_terms(self, logits: Tensor, seeds: Tensor, present: Tensor, valid: Tensor) -> dict[str, Term]:
        thresholds = (self.options["foreground_threshold"], self.options["background_threshold"])
        grown = grow_seeds(seeds, logits.detach().softmax(1), present, valid, *thresholds)
        return {"seed": cross_entropy_term(logits, grown, "balanced")}


class AffinityTask(Task):
    """AffinityNet: cross-entropy of the affinities of pairs whose cells have reliable labels.

    The labels are mined from the activation maps of a trained network, held fixed, and reduced to the map by the
    nearest pixel.

    Args:
        network: an `AffinityNet`.
        labeller: an `RRMNet` whose classification branch is trained; stays in evaluation mode.
        rule: chooses the reliable regions.
        scales: of the activation maps, Eq. 2.
        radius: of the pairs, in cells.
    """

    def __init__(self, network: Any, labeller: Any, rule: RegionRule, scales: Sequence[float], radius: int) -> None:
        super().__init__(network)
        self.rule, self.radius = rule, radius
        self.labeller = labeller.eval().requires_grad_(False)
        self.cam = {"scales": list(scales), "average": "image", "dropout": False}

    def prepare(self, batch: Batch) -> Batch:
        """The batch, which has `present` (N,C) and `valid` (N,H,W), with its mined labels, (N,H,W) int64 `mined`."""
        images = self.network.normalize(batch["images"])
        labels = mined_labels(self.labeller.to(images.device), self.rule, self.cam, batch, images)
        return {**batch, "mined": labels}

    def losses(self, batch: Batch, progress: float) -> Mapping[str, Term]:
        """Loss terms of a batch with `images` (N,3,H,W) 0..255, prepared or not."""
        mined = batch["mined"] if "mined" in batch else self.prepare(batch)["mined"]
        with record_function("rrm.forward"):
            features = self.network(self.network.normalize(batch["images"])).float()
        with record_function("rrm.affinity"):
            size = (int(features.shape[2]), int(features.shape[3]))
            on_map = F.interpolate(mined[:, None].float(), size=size)[:, 0].long()
            kinds = pair_kinds(on_map, self.radius)
            means = affinity_losses(pair_affinities(features, self.radius), kinds)
            return {name: mean_term(mean, (kinds == _PAIRS[name]).sum()) for name, mean in means.items()}
