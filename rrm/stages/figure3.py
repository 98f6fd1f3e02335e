"""Stage `figure3`: from the CAM to the reliable labels, step by step (Eq. 5-7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rrm.cam import multi_scale_cam, normalize_cam
from rrm.figures import Labels, Panel, Picture, draw_sheet, label_panel, photo_panel, resize_labels, save_sheet
from rrm.inference import as_batch
from rrm.labels import IGNORE
from rrm.regions import MiningSteps, RegionRule
from rrm.stages.call import Call
from rrm.stages.drawn import SPREAD, Scene, facts, open_one_step, open_scene
from rrm.store import Store

PHOTOS = 4
HEADINGS = ("Photo", "Ground truth", "CAM label", "CRF label", "Reliable CAM label", "Reliable label")
RULES = {
    "paper": "the paper's",
    "reference": "the authors' code, by which a pixel with a high CAM score gets the CRF's label",
    "cam": "Eq. 6 alone, without the CRF",
}
_CAPTION = (
    "Reliable labels, mined from the class activation maps of the trained network with the image-level labels of each "
    "photo: arg max of the CAM scores, of the CRF on them (Eq. 5), the CAM label where its score is high (Eq. 6), and "
    "the labels that are left to train on (Eq. 7). White pixels have no label. The photos are those of val: the ground "
    "truth of training photos is out of reach of a weakly supervised run."
)


def mined(photo: Picture, image_labels: Labels, network: Any, one_step: Mapping[str, Any], device: str) -> MiningSteps:
    """Labels of a whole photo (H,W,3) with labels (C,) as the rule of `one_step.mining` makes them, (1,H,W) each."""
    scores = cam_scores(photo, image_labels, network, one_step["cam"], device)
    return RegionRule.from_options(one_step["mining"]).steps(_batch_of(photo), scores, _batch_of(image_labels))


def mined_labels(photo: Picture, image_labels: Labels, scores: torch.Tensor, mining: Mapping[str, Any]) -> Labels:
    """The reliable labels alone, (H,W) uint8, from the photo's `cam_scores`."""
    final = RegionRule.from_options(mining).mine(_batch_of(photo), scores, _batch_of(image_labels))
    return np.asarray(final[0].cpu().numpy(), np.uint8)


@torch.inference_mode()
def cam_scores(photo: Picture, image_labels: Labels, network: Any, cam: Mapping[str, Any], device: str) -> torch.Tensor:
    """Class activation maps of a whole photo (Eq. 2-3), (1,C,H,W) float32 in 0..1; 0 of a class that is no label."""
    images = network.normalize(as_batch([photo], device))
    cams = multi_scale_cam(network.forward_cam, images, scales=cam["scales"], average=cam["average"])
    return normalize_cam(cams.float(), _batch_of(image_labels).to(device))


def _batch_of(array: npt.NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))[None]


def kept_and_right(labels: Labels, mask: Labels) -> str:
    """How many pixels have a label, if not all, and how many of those that can be checked have the right one.

    Example:
        >>> kept_and_right(np.array([[1, 255, 0, 0]], np.uint8), np.array([[1, 1, 1, 255]], np.uint8))
        '75 % kept, 50 % right'
    """
    kept = labels != IGNORE
    checked = kept & (mask != IGNORE)
    right = f"{100 * (labels == mask)[checked].mean():.0f} % right" if checked.any() else "none to check"
    return right if kept.all() else f"{100 * kept.mean():.0f} % kept, {right}"


def _row(scene: Scene, name: str, steps: MiningSteps) -> list[Panel]:
    photo = scene.photo(name)
    mask = resize_labels(scene.mask(name), photo.shape[:2])
    maps = [np.asarray(each[0].cpu().numpy(), np.uint8) for each in steps]
    panels = [label_panel(each, kept_and_right(each, mask)) for each in maps]
    return [photo_panel(photo, name), label_panel(mask), *panels]


def run(call: Call) -> None:
    """Draw the figure."""
    trained, device = open_one_step(call)
    scene = open_scene(call, Store(call.input("confusion"), "confusion"))
    one_step, names = call.options["one_step"], scene.chosen(PHOTOS)
    steps = [mined(scene.photo(name), scene.present(name), trained.network, one_step, device) for name in names]
    rows = [_row(scene, name, each) for name, each in zip(names, steps, strict=True)]
    rule = f"Rule: {RULES[one_step['mining']['rule']]}; share of pixels {one_step['mining']['ratio']:g}."
    run = f"Data set {call.options['dataset']}, val, seed {call.options['seed']}, one-step network."
    text = facts(call, "Reliable labels step by step", _CAPTION, rule, run, f"Photos: {SPREAD}: {', '.join(names)}.")
    save_sheet(draw_sheet(rows, HEADINGS, scene.classes), call.output, text)
