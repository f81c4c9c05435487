"""The alarms of robust validation on planted sequences: they ring when they should, once, and not for noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from kapdist.data.beton.layout import BetonInfo
from kapdist.train.alarms import WINDOW, Watched, images_in_both, new_alarms

NUM_IMAGES = 512


def beton(*checksums: int) -> BetonInfo:
    numbers = np.array(checksums, np.uint64)
    return cast(BetonInfo, SimpleNamespace(checksums=numbers, num_images=len(numbers)))


def test_images_in_both_are_counted_beyond_the_few_that_data_sets_have() -> None:
    large = 2**64 - 1
    assert images_in_both(beton(1, 2, large), beton(3, 4)) is None
    found = images_in_both(beton(1, 2, large), beton(large, 2, 7, 8, 2))
    assert found is not None
    assert found.text.startswith("images in both: 3 of 5 validation images")
    assert images_in_both(beton(*range(100)), beton(*range(99, 199))) is None, "1% of them"
    assert images_in_both(beton(*range(100)), beton(*range(98, 198))) is not None


def alarms(
    accuracies: Sequence[float], losses: Sequence[float | None] | None = None, num_images: int = NUM_IMAGES
) -> list[tuple[int, str]]:
    """Every alarm of a sequence with the number of its validation, as a training would give them."""
    losses = falling(len(accuracies)) if losses is None else losses
    rounded = [round(accuracy * num_images) / num_images for accuracy in accuracies]
    history = [Watched(float(n + 1), *pair) for n, pair in enumerate(zip(rounded, losses, strict=True))]
    return [
        (end - 1, alarm.name)
        for end in range(1, len(history) + 1)
        for alarm in new_alarms(history[:end], num_images)
    ]


def falling(length: int) -> list[float]:
    return [2.3 - 0.01 * n for n in range(length)]


def plateau(seed: int, length: int, level: float, spread: float) -> list[float]:
    """A training that rises to a level and stays there but for noise."""
    noise = np.random.default_rng(seed).normal(0, spread, length)
    rise = [level * (1 - math.exp(-(n + 1) / 4)) for n in range(length)]
    return [float(min(1, max(0, value + extra))) for value, extra in zip(rise, noise, strict=True)]


def test_a_collapse_while_the_loss_falls_is_catastrophic_overfitting() -> None:
    accuracies = [0.2, 0.3, 0.36, 0.4, 0.42, 0.05, 0.0, 0.0, 0.01, *[0.0] * 12]
    assert alarms(accuracies) == [(5, "catastrophic overfitting")], "once"
    assert alarms(accuracies, [2.3] * len(accuracies)) == [], "the loss does not fall"
    assert alarms(accuracies, [2 + 0.1 * n for n in range(len(accuracies))]) == [], "a training that diverges"
    assert alarms(accuracies, [None] * len(accuracies)) == [], "of a loss that is not known nothing is said"
    assert alarms([0.2, 0.3, 0.36, 0.4, 0.42, 0.22, 0.25]) == [], "half of it is left"


def test_a_collapse_that_chance_explains_is_none() -> None:
    accuracies = [0.25, 0.3, 0.1]
    assert alarms(accuracies, num_images=40) == []
    assert alarms([0.0] * 30) == [], "there is nothing to lose"
    assert alarms(accuracies, num_images=NUM_IMAGES) == [(2, "catastrophic overfitting")]


def test_a_second_collapse_after_a_recovery_is_said_again() -> None:
    accuracies = [0.4, 0.4, *[0.0] * 3, *[0.4] * (WINDOW + 1), 0.0]
    assert [found for found in alarms(accuracies) if "catastrophic" in found[1]] == [
        (2, "catastrophic overfitting"),
        (len(accuracies) - 1, "catastrophic overfitting"),
    ]


@pytest.mark.parametrize("seed", range(5))
def test_a_long_fall_is_robust_overfitting(seed: int) -> None:
    """As in figure 1 of Rice 2020: up, a step when lr decays, then down for the rest of the training."""
    rises, falls = np.linspace(0.3, 0.47, 40), np.linspace(0.52, 0.44, 40)
    noise = np.random.default_rng(seed).normal(0, 0.007, 80)
    found = alarms((np.concatenate([rises, falls]) + noise).tolist())
    assert [name for _, name in found] == ["robust overfitting"]
    assert 50 < found[0][0] < 75


def test_a_fall_of_the_training_itself_is_not_overfitting() -> None:
    accuracies = np.linspace(0.5, 0.3, 30).tolist()
    assert alarms(accuracies) != []
    assert alarms(accuracies, [2 + 0.1 * n for n in range(30)]) == []


@pytest.mark.parametrize(("level", "spread"), [(0.5, 0.01), (0.45, 0.02), (0.3, 0.03), (0.1, 0.01), (0.02, 0.005)])
def test_noise_rings_nothing(level: float, spread: float) -> None:
    """40 trainings of 60 validations each, at five levels: no alarm in any."""
    assert [seed for seed in range(40) if alarms(plateau(seed, 60, level, spread))] == []


def test_the_words_say_what_happened() -> None:
    history = [Watched(1.0, 0.4, 2.0), Watched(2.0, 0.41, 1.8), Watched(3.0, 0.0, 1.5)]
    (alarm,) = new_alarms(history, NUM_IMAGES)
    assert alarm.text.startswith(
        "catastrophic overfitting: robust accuracy fell from 40.0% (epoch 1) to 0.0% (epoch 3) while the training "
        "loss went down from 2 to 1.5"
    )
    assert "\n" not in alarm.text
