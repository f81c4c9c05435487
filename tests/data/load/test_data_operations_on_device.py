"""RandAugment of a whole batch by torch: to the last byte what the jitted code makes of each image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kapdist.data.load import augment
from kapdist.data.load.operations import OPERATIONS
from kapdist.data.load.operations_on_device import RandAugment, arrange
from kapdist.data.load.rand_augment import compiled_operate, compiled_rand_augment

CODES = np.arange(2 * len(OPERATIONS))
KEY = augment.epoch_key(5, 4)


def extremes(side: int) -> np.ndarray:
    """Return (7, side, side, 3) uint8: noise, black, white, two values twice, a narrow range, a ramp."""
    random, shape = np.random.default_rng(side), (side, side, 3)
    images = (
        random.integers(0, 256, shape),
        np.zeros(shape),
        np.full(shape, 255),
        random.choice([0, 255], shape),
        random.choice([17, 200], shape, p=[0.9, 0.1]),
        random.integers(90, 130, shape),
        np.linspace(0, 255, 3 * side**2).reshape(shape),
    )
    return np.stack(images).astype(np.uint8)


def by_torch(images: np.ndarray, codes: np.ndarray, magnitude: int) -> np.ndarray:
    """Return images after the operations of codes (batch, turns)."""
    table, bounds = arrange(codes)
    rand_augment = RandAugment(magnitude, images.shape[1], torch.from_numpy)
    return rand_augment(torch.tensor(images), torch.from_numpy(table), bounds).numpy()


@pytest.mark.parametrize("side", [7, 32])
def test_every_operation_gives_the_jitted_code_s_bytes_at_every_magnitude(side: int) -> None:
    images = np.tile(extremes(side), (len(CODES), 1, 1, 1))
    codes = np.repeat(CODES, len(images) // len(CODES))
    shuffled = np.random.default_rng(0).permutation(len(codes))
    images, codes = images[shuffled], codes[shuffled]
    for magnitude in range(31):
        expected = images.copy()
        compiled_operate()(codes, expected, magnitude)
        wrong = (by_torch(images, codes[:, None], magnitude) != expected).any((1, 2, 3))
        assert not wrong.any(), (magnitude, {(OPERATIONS[code // 2], code % 2) for code in codes[wrong]})


@settings(max_examples=30)
@given(st.integers(2, 40), st.integers(1, 16), st.integers(0, 30), st.integers(0, 40), st.integers(0, 2**40))
def test_operations_follow_one_another_as_an_image_s_draws_say(side, turns, magnitude, count, first) -> None:
    """Whatever the side, and with operations that no image of a batch has."""
    ids = first + np.arange(count)
    images = extremes(side)[ids % 7]
    draws = [augment.operation(KEY, image, turn) for image in ids for turn in range(turns)]
    codes = np.array([2 * number + negative for number, negative in draws], np.int64).reshape(count, turns)
    expected = images.copy()
    compiled_rand_augment()(ids, expected, KEY, turns, magnitude)
    assert np.array_equal(by_torch(images, codes, magnitude), expected)
