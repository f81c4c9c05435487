"""Mixup and CutMix against what they are by definition."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kapdist.config import TrainConfig
from kapdist.train.mixing import mix, mixed_cross_entropy

IMAGES = torch.rand(6, 3, 16, 20, generator=torch.Generator().manual_seed(0))


def test_neither_changes_nothing() -> None:
    mixed = mix(IMAGES, TrainConfig(), 0, 3)
    assert mixed.share == 1.0
    assert mixed.images is IMAGES


def test_mixup_is_the_weighted_mean_with_the_partner() -> None:
    mixed = mix(IMAGES, TrainConfig(mixup_alpha=1.0), 0, 3)
    assert 0 < mixed.share < 1
    torch.testing.assert_close(mixed.images, mixed.share * IMAGES + (1 - mixed.share) * IMAGES.flip(0))


@pytest.mark.parametrize("step", range(20))
def test_cutmix_pastes_a_box_and_counts_its_area(step: int) -> None:
    mixed = mix(IMAGES, TrainConfig(cutmix_alpha=1.0), 0, step)
    kept = (mixed.images == IMAGES).all(dim=1)
    assert ((mixed.images == IMAGES) | (mixed.images == IMAGES.flip(0))).all()
    assert kept.double().mean().item() == pytest.approx(mixed.share)


def test_a_step_decides_alone() -> None:
    both = TrainConfig(mixup_alpha=0.4, cutmix_alpha=1.0)
    first, again = mix(IMAGES, both, 0, 3), mix(IMAGES, both, 0, 3)
    assert torch.equal(first.images, again.images)
    mixup = TrainConfig(mixup_alpha=0.4)
    shares = {mix(IMAGES, mixup, seed, step).share for seed in range(2) for step in range(10)}
    assert len(shares) == 20


def test_the_loss_is_that_of_the_mixed_labels() -> None:
    logits, labels = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1])
    soft = 0.3 * F.one_hot(labels, 4).double() + 0.7 * F.one_hot(labels.flip(0), 4).double()
    expected = -(soft * logits.log_softmax(1)).sum()
    torch.testing.assert_close(mixed_cross_entropy(logits, labels, 0.3, 0.0), expected)
