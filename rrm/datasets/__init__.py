"""Data sets: VOC layout reader, packing into stores, augmentation, training batches, demo generator."""

from __future__ import annotations

from rrm.datasets.augmentation import TrainTransform
from rrm.datasets.loading import EvalItem, StepBatches, eval_items, split_ids, train_loader
from rrm.datasets.packing import open_masks, pack_masks, pack_photos
from rrm.datasets.voc import VOC_CLASSES, VocLayout, voc_palette

__all__ = [
    "VOC_CLASSES",
    "EvalItem",
    "StepBatches",
    "TrainTransform",
    "VocLayout",
    "eval_items",
    "open_masks",
    "pack_masks",
    "pack_photos",
    "split_ids",
    "train_loader",
    "voc_palette",
]
