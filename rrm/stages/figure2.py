"""Stage `figure2`: the CAM of each scale of a photo, and their average (Eq. 2)."""

from __future__ import annotations

from typing import Any

import torch

from rrm.cam import multi_scale_cam, normalize_cam
from rrm.figures import Labels, Panel, Picture, draw_sheet, heat_panel, photo_panel, resize_labels, save_sheet
from rrm.inference import Scores, as_batch
from rrm.stages.call import Call
from rrm.stages.drawn import SPREAD, Scene, classes_in, facts, open_one_step, open_scene
from rrm.store import Store

PHOTOS = 4
_CAPTION = (
    "Class activation maps of the largest class of a photo: of each scale, and averaged over the scales (Eq. 2), each "
    "divided by its maximum (Eq. 3). The white line is the outline of the class in the ground truth."
)


@torch.inference_mode()
def class_maps(network: Any, image: Picture, place: int, cam: dict[str, Any], device: str) -> list[Scores]:
    """CAM of one class for each scale alone and for all together, (H,W) float32 in 0..1.

    Args:
        network: an `RRMNet` in evaluation mode.
        image: (H,W,3) uint8 RGB.
        place: of the class among the foreground classes.
        cam: `scales` and `average`.
        device: of the network.
    """
    images = network.normalize(as_batch([image], device))
    ways = [([scale], "image") for scale in cam["scales"]] + [(cam["scales"], cam["average"])]
    maps = [multi_scale_cam(network.forward_cam, images, scales=scales, average=how) for scales, how in ways]
    return [normalize_cam(each[0, place : place + 1].float().cpu().numpy())[0] for each in maps]


def largest_class(mask: Labels) -> int:
    """The foreground label with the most pixels.

    Example:
        >>> import numpy as np
        >>> largest_class(np.array([[0, 0, 0, 1, 2, 2, 255, 255, 255]]))
        2
    """
    return max(classes_in(mask), key=lambda label: int((mask == label).sum()))


def _row(scene: Scene, name: str, network: Any, cam: dict[str, Any], device: str) -> list[Panel]:
    photo = scene.photo(name)
    mask = resize_labels(scene.mask(name), photo.shape[:2])
    label = largest_class(mask)
    maps = class_maps(network, photo, label - 1, cam, device)
    outline = mask == label
    return [
        photo_panel(photo, f"{name}: {scene.classes[label - 1]}"),
        *(heat_panel(each, photo, outline) for each in maps),
    ]


def run(call: Call) -> None:
    """Draw the figure."""
    trained, device = open_one_step(call)
    scene = open_scene(call, Store(call.input("confusion"), "confusion"))
    cam, names = call.options["one_step"]["cam"], scene.chosen(PHOTOS)
    rows = [_row(scene, name, trained.network, cam, device) for name in names]
    headings = ["Photo", *(f"Scale {scale:g}" for scale in cam["scales"]), "Average"]
    run = f"Data set {call.options['dataset']}, val, seed {call.options['seed']}, one-step network."
    shown = f"Photos: {SPREAD}: {', '.join(names)}."
    save_sheet(
        draw_sheet(rows, headings, bar="CAM score"), call.output, facts(call, "Multi-scale CAM", _CAPTION, run, shown)
    )
