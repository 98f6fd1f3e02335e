"""A training step seldom waits for the GPU: each time it does, the GPU stands still until there is work again."""

from __future__ import annotations

import warnings

import pytest
import torch

from rrm.crf import DenseCRF
from rrm.networks import build_network
from rrm.recipes import ONE_STEP_RECIPES
from rrm.regions import RegionRule
from rrm.tasks import OneStepTask
from rrm.training import LoopOptions, _Stepper

SIDE, CLASSES = 65, 3
WAITS = 7  # counts of classes, scores, probabilities; bounds and vertices of the lattices of CRF and energy


def _batch(device: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, SIDE, SIDE), generator=generator).float()
    batch = {"images": images, "present": torch.eye(CLASSES)[:2], "valid": torch.ones(2, SIDE, SIDE, dtype=torch.bool)}
    return {name: each.to(device) for name, each in batch.items()}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_one_step_seldom_waits_for_the_gpu() -> None:
    recipe = ONE_STEP_RECIPES["reference"]
    torch.manual_seed(0)
    options = {"width": 1 / 16, "units": (1, 1, 1, 1), "head_dilation": 2}
    network = build_network("rrm", num_classes=CLASSES, backbone="resnet38", **options).cuda().train()
    rule = RegionRule(**{**recipe["mining"], "crf": DenseCRF(**recipe["mining"]["crf"])})
    task = OneStepTask(network, rule, recipe["cam"], recipe["losses"], recipe["energy"])
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-9)
    stepper = _Stepper(task, optimizer, LoopOptions(9, 2, 0, precision="bfloat16", device="cuda"))
    batch = _batch("cuda")
    for step in range(2):
        stepper(batch, step)
        stepper.apply()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            stepper(batch, 2)
            stepper.apply()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [f"{each.filename}:{each.lineno}" for each in seen if "synchroniz" in str(each.message)]
    assert len(waits) <= WAITS, waits
