"""Logistic regression on pooled features: the minimum is one, the features are those of the network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rrm.logistic import logistic_regression, pooled_features, set_classifier
from rrm.losses import classification_loss
from rrm.networks import RRMNet

LOSSES = ("multilabel-soft-margin", "softmax")


def _data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(60, 7, generator=generator, dtype=torch.float64)
    labels = (features[:, :3] + 0.3 * torch.rand(60, 3, generator=generator) > 0.6).double()
    return features, labels


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bias", [True, False])
def test_the_gradient_vanishes_at_the_solution(loss: str, bias: bool) -> None:
    features, labels = _data()
    weight, offset = logistic_regression(features, labels, bias, 0.01, 500, loss)
    weight.requires_grad_()
    offset.requires_grad_()
    value = classification_loss(features @ weight.T + offset, labels, loss) + 0.01 * weight.square().sum()
    slopes = torch.autograd.grad(value, [weight, offset])
    assert slopes[0].abs().max() < 1e-5
    assert slopes[1].abs().max() < 1e-5 if bias else not offset.any()


def test_weight_decay_shrinks_weights_not_biases() -> None:
    features, labels = _data()
    weight, offset = logistic_regression(features, labels, True, 1e4, 500, LOSSES[0])
    assert weight.abs().max() < 1e-4
    assert torch.allclose(offset.sigmoid(), labels.mean(0), atol=1e-3)


def test_features_are_the_networks_and_the_branch_scores_them() -> None:
    torch.manual_seed(0)
    network = RRMNet(3, width=1 / 16, units=(1, 1, 1, 1), classifier_bias=True, batch_norm="train").eval()
    photos = np.random.default_rng(0).integers(0, 256, (2, 24, 32, 3), dtype=np.uint8)
    pooled = list(pooled_features(network, photos, scales=[1.0, 0.5], flip=True))
    assert [tuple(each.shape) for each in pooled] == [(4, network.backbone.out_channels)] * 2
    weight, bias = torch.rand(3, pooled[0].shape[1]), torch.rand(3)
    set_classifier(network.fc8, weight, bias)
    images = torch.from_numpy(photos).permute(0, 3, 1, 2).float()
    for flipped in (0, 1):
        seen = network.normalize(images.flip(3) if flipped else images)
        expected = torch.stack([each[flipped] for each in pooled]).float() @ weight.T + bias
        assert torch.allclose(network.forward_classification(seen).class_logits, expected, atol=1e-4)
