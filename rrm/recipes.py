"""Recipes: named defaults. `paper` follows the paper's text, `reference` the authors' released code.

Each key can be overridden in the config; what differs from the recipe is listed in the tables' column `departures`.
Sources: RRM (AAAI 2020), section "Implementation Details"; github.com/zbf1991/RRM `train_from_cls_weight.py`;
DeepLab-v2 (arXiv:1606.00915) and DeepLab-LargeFOV (arXiv:1412.7062) for step two; the publications of the other
methods, with RRM's number of steps where they give none; github.com/jiwoon-ahn/psa for the random walk.
"""

from __future__ import annotations

from typing import Any

_CRF_PSA = {
    "gaussian_sigma": 3,
    "gaussian_weight": 3,
    "bilateral_sigma_xy": 80,
    "bilateral_sigma_rgb": 13,
    "bilateral_weight": 10,
    "iterations": 10,
}

_REFERENCE: dict[str, Any] = {
    "network": {"backbone": "resnet38", "options": {"batch_norm": "frozen"}, "weights_format": "reference"},
    "train": {
        "steps": 20_000,
        "batch_size": 4,
        "crop": 321,
        "scale": [0.7, 1.3],
        "scale_per": "batch",
        "flip": True,
        "optimizer": {
            "kind": "sgd",
            "lr": 7.0e-4,
            "momentum": 1.0e-5,
            "weight_decay": 1.0e-5,
            "bias_decay": False,
            "lr_factors": [1, 2, 10, 20],
            "power": 0.9,
        },
    },
    "cam": {"scales": [0.5, 1.0, 1.5, 2.0], "average": "feature", "dropout": True},
    "mining": {
        "rule": "reference",
        "ratio": 0.4,
        "cam_exponent": 32,
        "crf_exponent": 4,
        "score_threshold": 0.1,
        "background_threshold": 0.8,
        "crf_confidence": 0.8,
        "crf_scale": 1.0,
        "padding": "label",
        "crf": _CRF_PSA,
    },
    "losses": {"classification": "multilabel-soft-margin", "cross_entropy": "balanced"},
    "energy": {
        "weight": 1.0e-7,
        "sigma_rgb": 15,
        "sigma_xy": 100,
        "scale": 0.5,
        "form": "reference",
        "gradient": "reference",
        "normalize": "none",
        "include_self": True,
        "backend": "lattice",
    },
}

_PAPER: dict[str, Any] = {
    "network": {"backbone": "resnet38", "options": {"batch_norm": "frozen"}, "weights_format": "reference"},
    "train": {
        "steps": 20_000,
        "batch_size": 4,
        "crop": 321,
        "scale": [0.7, 1.3],
        "scale_per": "image",
        "flip": True,
        "optimizer": {
            "kind": "sgd",
            "lr": 1.0e-3,
            "momentum": 0.9,
            "weight_decay": 5.0e-4,
            "lr_factors": [1, 2, 10, 20],
            "power": 0.9,
        },
    },
    "cam": {"scales": [0.5, 1.0, 1.5, 2.0], "average": "image", "dropout": False},
    "mining": {
        "rule": "paper",
        "ratio": 0.4,
        "cam_exponent": 4,
        "crf_exponent": 4,
        "score_threshold": 0.0,
        "background_threshold": 0.0,
        "crf_confidence": 0.0,
        "crf_scale": 1.0,
        "padding": "ignore",
        "crf": _CRF_PSA,
    },
    "losses": {"classification": "softmax", "cross_entropy": "balanced"},
    "energy": {
        "weight": 1.0e-7,
        "sigma_rgb": 100,
        "sigma_xy": 15,
        "scale": 1.0,
        "form": "paper",
        "gradient": "exact",
        "normalize": "row",
        "include_self": False,
        "backend": "exact",
    },
}

ONE_STEP_RECIPES: dict[str, dict[str, Any]] = {"reference": _REFERENCE, "paper": _PAPER}
"""Defaults of the config section `one_step`, by `one_step.recipe`."""


def _deeplab_training(lr: float) -> dict[str, Any]:
    """What both DeepLabs share: 20,000 iterations of batch 10 at 321 pixels."""
    return {
        "steps": 20_000,
        "batch_size": 10,
        "crop": 321,
        "scale": [0.5, 1.5],
        "scale_per": "image",
        "flip": True,
        "optimizer": {
            "kind": "sgd",
            "lr": lr,
            "momentum": 0.9,
            "weight_decay": 5.0e-4,
            "bias_decay": False,
            "lr_factors": [1, 2, 10, 20],
            "power": 0.9,
        },
    }


_DEEPLAB_V2: dict[str, Any] = {
    "network": {"backbone": "resnet101", "options": {"batch_norm": "frozen"}},
    "cross_entropy": "mean",
    "loss_scales": [0.5, 0.75, 1.0],
    "train": _deeplab_training(lr=2.5e-4),
    "label": "RRM two-step ResNet-101",
}

_DEEPLAB_LARGEFOV: dict[str, Any] = {
    "network": {"backbone": "vgg16", "options": {}},
    "cross_entropy": "mean",
    "loss_scales": [1.0],
    "train": _deeplab_training(lr=1.0e-3),
    "label": "RRM two-step VGG-16",
}

_LIGHT: dict[str, Any] = {
    "network": {"backbone": "mobilenet_v2", "options": {"batch_norm": "frozen"}},
    "cross_entropy": "balanced",
    "loss_scales": [1.0],
    "train": {
        "steps": 400,
        "batch_size": 8,
        "crop": 256,
        "scale": [0.7, 1.3],
        "scale_per": "image",
        "flip": True,
        "optimizer": {
            "kind": "adamw",
            "lr": 1.0e-4,
            "weight_decay": 5.0e-4,
            "lr_factors": [1, 1, 10, 10],
            "power": 0.9,
        },
    },
    "label": "RRM two-step MobileNetV2",
}

NETWORK_RECIPES: dict[str, dict[str, Any]] = {
    "deeplab-v2": _DEEPLAB_V2,
    "deeplab-largefov": _DEEPLAB_LARGEFOV,
    "light": _LIGHT,
}
"""Defaults of one entry of `step_two` or `bounds`, by its `recipe`."""


def _published_training(steps: int, batch_size: int, lr: float) -> dict[str, Any]:
    """SGD as in DeepLab; the publications lower the rate in steps of ten, the loop here by a polynomial."""
    return {
        "steps": steps,
        "batch_size": batch_size,
        "crop": 321,
        "scale_per": "image",
        "optimizer": {
            "kind": "sgd",
            "lr": lr,
            "momentum": 0.9,
            "weight_decay": 5.0e-4,
            "lr_factors": [1, 2, 10, 20],
            "power": 0.9,
        },
    }


METHOD_RECIPES: dict[str, dict[str, Any]] = {
    "em_adapt": {"label": "EM-Adapt", "train": _published_training(steps=20_000, batch_size=20, lr=1.0e-3)},
    "sec": {"label": "SEC", "train": _published_training(steps=8_000, batch_size=15, lr=1.0e-3)},
    "dsrg": {"label": "DSRG", "train": _published_training(steps=8_000, batch_size=20, lr=5.0e-4)},
}
"""Defaults of one entry of `methods`, by its `kind`; those of the method's own keys are in `rrm.config`."""

RANDOM_WALK_RECIPE: dict[str, Any] = {
    "network": "classifier",
    "source": "cam",
    "cam_exponent": 16,
    "random_walk": {
        "mining": {
            "rule": "reference",
            "ratio": 1.0,
            "cam_exponent": 32,
            "crf_exponent": 4,
            "score_threshold": 0.0,
            "background_threshold": 0.0,
            "crf_confidence": 0.0,
            "padding": "ignore",
            "crf": _CRF_PSA,
        },
        "train": {
            "steps": 10_576,
            "batch_size": 8,
            "crop": 256,
            "scale": [1.0, 1.0],
            "optimizer": {
                "kind": "sgd",
                "lr": 0.07,
                "momentum": 5.0e-4,
                "weight_decay": 5.0e-4,
                "bias_decay": False,
                "lr_factors": [1, 2, 10, 20],
                "power": 0.9,
            },
        },
    },
}
"""Defaults of one entry of `pseudo_masks` that has a `random_walk`: AffinityNet's code, 8 epochs of 10,582 photos."""
