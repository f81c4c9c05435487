"""The order of an epoch and the draws of the augmentation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kapdist.config import Config, DataConfig
from kapdist.data.load import augment
from kapdist.data.load.order import OPEN_PAGES, epoch_order, quasi_random_order, training_order
from kapdist.plan.training import make_plan

MASK = 2**64 - 1


def mix(value: int) -> int:
    """SplitMix64's finaliser in Python's own integers."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def draw(key: int, image: int, counter: int) -> float:
    golden = 0x9E3779B97F4A7C15
    value = mix((key + golden) & MASK)
    value = mix(((value ^ image) + golden) & MASK)
    value = mix(((value ^ counter) + golden) & MASK)
    return (value >> 11) / 2**53


def test_the_mix_is_splitmix64() -> None:
    # The first outputs of SplitMix64 from state 1234567 (as Rosetta Code prints them).
    golden, state, found = 0x9E3779B97F4A7C15, 1234567, []
    for _ in range(3):
        state = (state + golden) & MASK
        found.append(int(augment.mix(np.uint64(state))))
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40), st.integers(0, 60))
def test_jitted_draws_equal_whole_number_arithmetic(key: int, image: int, counter: int) -> None:
    assert augment.uniform(key, image, counter) == draw(key, image, counter)


@given(st.integers(1, 500), st.integers(0, 2**63), st.integers(0, 1000))
def test_every_epoch_is_a_permutation(num_images: int, seed: int, epoch: int) -> None:
    order = epoch_order(num_images, seed, epoch)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(num_images))


def test_seed_and_epoch_do_not_collide_when_their_sum_is_the_same() -> None:
    assert not np.array_equal(epoch_order(1000, 1, 2), epoch_order(1000, 2, 1))
    assert augment.epoch_key(1, 2) != augment.epoch_key(2, 1)


SIZES = st.integers(1, 1000), st.integers(0, 2**63), st.integers(0, 1000), st.integers(1, 1200)


@given(*SIZES)
def test_every_quasi_random_epoch_is_a_permutation(num_images, seed, epoch, page_images) -> None:
    order = quasi_random_order(num_images, seed, epoch, page_images)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(num_images))
    assert np.array_equal(order, quasi_random_order(num_images, seed, epoch, page_images))


@given(*SIZES)
def test_few_pages_are_open_at_any_time(num_images, seed, epoch, page_images) -> None:
    pages = quasi_random_order(num_images, seed, epoch, page_images) // page_images
    num_pages = pages.max() + 1
    first = [int(np.argmax(pages == page)) for page in range(num_pages)]
    last = [num_images - 1 - int(np.argmax(pages[::-1] == page)) for page in range(num_pages)]
    opened = np.cumsum(np.bincount(first, minlength=num_images))
    closed = np.cumsum(np.bincount(last, minlength=num_images))
    assert (opened - np.concatenate([[0], closed[:-1]])).max() <= OPEN_PAGES == 8


def test_quasi_random_epochs_and_seeds_differ() -> None:
    orders = [quasi_random_order(1000, seed, epoch, 20) for seed, epoch in [(1, 2), (2, 1), (1, 3), (0, 0)]]
    for index, order in enumerate(orders):
        for other in orders[:index]:
            assert not np.array_equal(order, other)
            assert set((order[:160] // 20).tolist()) != set((other[:160] // 20).tolist())


def test_a_window_of_pages_is_shuffled_whole() -> None:
    # All of eight pages: every place takes every image equally often (a fixed seed, so the same on every run).
    orders = np.array([quasi_random_order(16, 3, epoch, 2) for epoch in range(16_000)])
    counts = np.array([np.bincount(column, minlength=16) for column in orders.T])
    assert ((counts - 1000) ** 2 / 1000).sum() < 340  # 225 degrees of freedom: five standard deviations


def test_the_config_names_the_order() -> None:
    paths = {"train": "a", "validation": "b"}
    random, quasi = (DataConfig(**paths, order=order, page_images=7) for order in ("random", "quasi-random"))
    assert np.array_equal(training_order(random, 500, 4, 2), epoch_order(500, 4, 2))
    assert np.array_equal(training_order(quasi, 500, 4, 2), quasi_random_order(500, 4, 2, 7))


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_share_an_epoch_without_padding(world_size: int) -> None:
    config = Config.model_validate(
        {
            "name": "x",
            "data": {"train": "a", "validation": "b"},
            "train": {"batch_size": 30},
            "optim": {"warmup_epochs": 0},
        }
    )
    plan, order = make_plan(config, 1003, world_size), epoch_order(1003, 0, 0)
    seen = [
        order[part.start : part.stop]
        for step in range(plan.steps_per_epoch)
        for part in (plan.rank_batch(step, rank) for rank in range(world_size))
    ]
    assert np.array_equal(np.sort(np.concatenate(seen)), np.arange(1003))


@pytest.mark.parametrize("counter", [augment.FLIP, augment.SHIFT, augment.CROP])
@pytest.mark.parametrize("along", ["images", "keys"])
def test_draws_are_uniform(counter: int, along: str) -> None:
    count, cells = 64_000, 64
    identities = ((7, n) if along == "images" else (augment.epoch_key(0, n), 7) for n in range(count))
    values = np.array([augment.uniform(key, image, counter) for key, image in identities])
    observed = np.bincount((values * cells).astype(int), minlength=cells)
    chi_square = ((observed - count / cells) ** 2 / (count / cells)).sum()
    # 63 degrees of freedom: outside of this band once in a million; fixed identities, so the same on every run.
    assert 20 < chi_square < 133
    neighbours = np.corrcoef(values[:-1], values[1:])[0, 1]
    assert abs(neighbours) < 5 / np.sqrt(count)


def test_draws_of_one_image_are_independent() -> None:
    draws = np.array([[draw(3, image, counter) for counter in range(1, 20)] for image in range(4000)])
    correlation = np.corrcoef(draws.T) - np.eye(19)
    assert abs(correlation).max() < 5 / np.sqrt(4000)


def test_shifts_take_every_value_equally_often() -> None:
    shifts = np.array([augment.shift(11, image, 2) for image in range(20_000)])
    counts = np.histogram2d(shifts[:, 0], shifts[:, 1], bins=[np.arange(-2.5, 3)] * 2)[0]
    assert ((counts - 800) ** 2 / 800).sum() < 67  # 24 degrees of freedom, once in 200,000


def test_holes_are_centred_on_every_pixel_equally_often() -> None:
    holes = np.array([augment.hole(11, image, 5, 1) for image in range(20_000)])
    assert (holes[:, [1, 3]] - holes[:, [0, 2]] == 1).all()
    counts = np.histogram2d(holes[:, 0], holes[:, 2], bins=[np.arange(6) - 0.5] * 2)[0]
    assert ((counts - 800) ** 2 / 800).sum() < 67  # 24 degrees of freedom, once in 200,000


@given(st.integers(8, 2048), st.integers(1, 2048), st.integers(0, 10_000))
def test_holes_lie_inside_and_are_never_empty(side: int, cutout: int, image: int) -> None:
    top, bottom, left, right = augment.hole(5, image, side, cutout)
    for start, end in ((top, bottom), (left, right)):
        assert 0 <= start < end <= side
        assert end - start <= cutout
        assert end - start == cutout or start == 0 or end == side


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 10_000))
def test_random_windows_lie_inside(height: int, width: int, image: int) -> None:
    top, left, h, w = augment.random_window(5, image, height, width)
    assert 0 <= top <= top + h <= height
    assert 0 <= left <= left + w <= width
    assert h >= 1 <= w


def torchvision_areas(random: np.random.Generator, count: int, tries: int = 10) -> np.ndarray:
    """Areas of RandomResizedCrop.get_params on a square image, as shares of it."""
    area = random.uniform(0.08, 1, (count, tries))
    ratio = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3), (count, tries)))
    fits = (area * ratio <= 1) & (area / ratio <= 1)
    return np.where(fits.any(1), area[np.arange(count), fits.argmax(1)], 1.0)


def test_random_windows_have_the_area_and_ratio_that_torchvision_draws() -> None:
    windows = np.array([augment.random_window(5, image, 500, 500)[2:] for image in range(20_000)], float)
    area, ratio = windows.prod(1) / 500**2, windows[:, 1] / windows[:, 0]
    assert 0.078 < area.min() < 0.09
    assert 0.74 < ratio.min() < ratio.max() < 1.345
    assert abs(np.log(ratio).mean()) < 0.01
    expected = torchvision_areas(np.random.default_rng(0), 20_000)
    quantiles = np.linspace(0.05, 0.95, 19)
    assert abs(np.quantile(area, quantiles) - np.quantile(expected, quantiles)).max() < 0.015


@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(0.01, 1))
def test_centre_windows_are_centred_squares(height: int, width: int, ratio: float) -> None:
    top, left, h, w = augment.centre_window(height, width, ratio)
    assert h == w == max(1, int(ratio * min(height, width)))
    assert abs(top - (height - top - h)) <= 1
    assert abs(left - (width - left - w)) <= 1
