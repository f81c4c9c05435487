"""Places, similarities and the permutation null, against closed forms and float64 references."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kapdist.kap import kernel_average, kernel_similarity
from kapdist.kap.average import sheet_grid
from kapdist.topography.null import contrasts_of, measure, orders_of, sampled
from kapdist.topography.places import BINS, ROWS, average_of, pairs_of
from kapdist.topography.similarity import (
    averaged,
    averaged_squares,
    effective_number,
    gram_of_kernels,
    similarities,
)


def random_kernels(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def smooth_kernels(channels: int, width: float, seed: int = 0) -> Tensor:
    """Kernels that change slowly over their sheet: noise under a Gaussian of some width, in float64."""
    height, across = sheet_grid(channels)
    places = torch.cartesian_prod(torch.arange(height), torch.arange(across)).double()
    weights = (-torch.cdist(places, places).square() / (2 * width**2)).exp()
    return (weights @ random_kernels(channels, 400, seed=seed).double()).view(channels, 100, 2, 2)


def measured(weight: Tensor, permutations: int = 399, pool_size: int = 1, layout: str = "sheet", seed: int = 0):
    channels = len(weight)
    orders = orders_of(channels, 1, permutations, seed, "layer")
    average = average_of(channels, pool_size, 1, layout)
    gram = gram_of_kernels(weight)
    return measure(gram, pairs_of(channels, 1, layout, 0), orders, average, is_average=pool_size > 1)


# Places.


@pytest.mark.parametrize(("channels", "layout"), [(12, "sheet"), (16, "line"), (30, "sheet"), (7, "sheet")])
def test_every_pair_is_counted_at_its_distance(channels: int, layout: str) -> None:
    pairs = pairs_of(channels, 1, layout, 0)
    height, width = sheet_grid(channels) if layout == "sheet" else (1, channels)
    places = list(itertools.product(range(height), range(width)))
    distances = sorted(math.dist(one, other) for one in places for other in places if one != other)
    assert sum(pairs.counts) == len(distances)
    assert len(pairs.near) == sum(distance == 1 for distance in distances)
    bounds = np.cumsum((0, *pairs.counts))
    for number, distance in enumerate(pairs.distance):
        assert distance == pytest.approx(np.mean(distances[bounds[number] : bounds[number + 1]]))
    assert len(pairs.distance) <= BINS
    assert pairs.distance[0] == 1


def test_the_nearest_keep_bins_of_their_own_on_a_large_sheet() -> None:
    pairs = pairs_of(2048, 1, "sheet", 0)
    assert pairs.distance[:2] == pytest.approx((1, math.sqrt(2)))
    assert len(pairs.distance) == BINS
    assert len(pairs.rows) == ROWS
    assert sum(pairs.counts) == ROWS * 2047


def test_what_has_no_others_is_not_asked() -> None:
    assert pairs_of(2, 1, "sheet", 0) is None
    assert pairs_of(1, 1, "line", 0) is None
    assert pairs_of(3, 1, "line", 0) is not None


def test_distances_behind_a_strided_pool_are_those_of_the_grid_before_it() -> None:
    pairs = pairs_of(36, 2, "sheet", 0)
    assert pairs.grid == (3, 3)
    assert pairs.distance[0] == 2


def test_members_are_the_kernels_that_are_nearer() -> None:
    pairs = pairs_of(9, 1, "sheet", 0)
    assert pairs.members(1) == 1
    assert pairs.members(1.1) == 1 + 24 / 9  # corners have 2 neighbours, edges 3, the middle 4
    assert pairs.members(100) == 9


# Similarities.


@settings(max_examples=30)
@given(
    st.sampled_from([(16, "sheet"), (15, "sheet"), (12, "line"), (36, "sheet")]),
    st.sampled_from([1, 3]),
    st.sampled_from([1, 2]),
)
def test_averaging_kernels_is_averaging_rows_and_columns_of_their_products(
    shape: tuple[int, str], pool_size: int, stride: int
) -> None:
    channels, layout = shape
    weight = random_kernels(channels, 6, 3, 3).double()
    after = kernel_average(weight, pool_size, stride=stride, layout=layout, dim=0).flatten(1)
    average = average_of(channels, pool_size, stride, layout)
    gram = gram_of_kernels(weight)
    torch.testing.assert_close(averaged(gram, average), after @ after.T, rtol=1e-6, atol=1e-6)
    squares = averaged_squares(gram, average.columns, average.weights.double())
    torch.testing.assert_close(squares, after.square().sum(1), rtol=1e-6, atol=1e-6)


def test_kernels_of_other_groups_share_nothing() -> None:
    dense = torch.zeros(6, 4, 1, 1)
    weight = random_kernels(6, 2, 1, 1)
    dense[:3, :2], dense[3:, 2:] = weight[:3], weight[3:]
    torch.testing.assert_close(gram_of_kernels(weight, groups=2), gram_of_kernels(dense))


def test_a_norm_before_the_average_scales_what_is_averaged_and_may_turn_it() -> None:
    weight, scale = random_kernels(6, 4, 1, 1), torch.tensor([1.0, -2, 3, 1, 1, -1])
    scaled = gram_of_kernels(weight * scale[:, None, None, None])
    torch.testing.assert_close(gram_of_kernels(weight, scale=scale), scaled, rtol=1e-5, atol=1e-5)


def test_effective_numbers_of_known_matrices() -> None:
    assert effective_number(torch.eye(7)) == pytest.approx(7)
    assert effective_number(torch.ones(7, 7)) == pytest.approx(1)
    blocks = torch.block_diag(*[torch.ones(3, 3)] * 4)
    assert effective_number(blocks) == pytest.approx(4)
    rho, count = 0.3, 9  # eigenvalues 1 + (n - 1) rho once and 1 - rho n - 1 times
    alike = torch.full((count, count), rho).fill_diagonal_(1)
    eigenvalues = torch.linalg.eigvalsh(alike.double())
    expected = float(eigenvalues.sum() ** 2 / eigenvalues.square().sum())
    assert effective_number(alike) == pytest.approx(expected, rel=1e-5)


def test_a_silent_kernel_is_alike_to_none() -> None:
    weight = random_kernels(9, 5, 1, 1)
    weight[4] = 0
    found = similarities(gram_of_kernels(weight))
    assert found.isfinite().all()
    assert (found[4] == 0).all()
    assert effective_number(found) <= 8


# The null.


def test_neighbours_and_others_are_those_of_kernel_similarity() -> None:
    for layout, channels in (("sheet", 30), ("line", 20)):
        weight = random_kernels(channels, 5, 3, 3)
        found = measured(weight, 199, layout=layout)
        assert (found.neighbours, found.others) == pytest.approx(kernel_similarity(weight, layout=layout), abs=1e-6)


@pytest.mark.parametrize(("pool_size", "layout", "groups"), [(1, "sheet", 1), (3, "sheet", 1), (3, "line", 2)])
def test_an_order_of_the_kernels_is_the_same_kernels_in_other_places(
    pool_size: int, layout: str, groups: int
) -> None:
    """Permute W first and average afterwards, written out, in float64."""
    weight = random_kernels(24, 5, 2, 2).double()
    order = orders_of(24, groups, 7, seed=3, layer="x")[6]
    group = torch.arange(24) // (24 // groups)
    dense = gram_of_kernels(weight, groups)[order][:, order]
    assert torch.equal(dense != 0, group[:, None] == group)  # groups stay together
    pairs, average = pairs_of(24, 1, layout, 0), average_of(24, pool_size, 1, layout)
    found = sampled(gram_of_kernels(weight, groups), order, pairs, average)
    half = kernel_average(dense, pool_size, layout=layout, dim=0)
    cosines = similarities(kernel_average(half, pool_size, layout=layout, dim=1)).numpy()
    for number, mean in enumerate(found.curve):
        assert mean == pytest.approx(cosines[(pairs.bins == number).numpy()].mean(), abs=1e-6)
    near = cosines[pairs.near[:, 0], pairs.near[:, 1]].mean()
    assert found.neighbours == pytest.approx(near, abs=1e-6)
    assert found.effective == pytest.approx(24**2 / (cosines**2).sum(), rel=1e-5)


def test_the_quick_statistic_is_the_whole_one() -> None:
    gram = gram_of_kernels(random_kernels(300, 20, 1, 1))  # more kernels than rows are counted
    orders, pairs = orders_of(300, 1, 5, 0, "x"), pairs_of(300, 1, "sheet", 0)
    whole = [sampled(gram.float(), order, pairs, average_of(300, 1, 1, "sheet")) for order in orders]
    quick = contrasts_of(similarities(gram.float()), orders, pairs)
    assert quick == pytest.approx([one.neighbours - one.others for one in whole], abs=1e-6)


def test_a_planted_sheet_is_found_with_the_size_that_it_has() -> None:
    for width in (1.0, 2.0):
        found = measured(smooth_kernels(256, width), 999)
        assert found.p == 1 / 1000
        assert found.neighbours > 0.7
        # The Gaussian's own autocorrelation, exp(-d^2 / 4 width^2), is a tenth at about 3 widths.
        assert found.size is not None
        assert 2 * width <= found.size <= 6 * width
        expected = [math.exp(-(distance**2) / (4 * width**2)) for distance in found.curve.distance[:3]]
        assert found.curve.similarity[:3] == pytest.approx(expected, abs=0.06)
    assert (
        measured(smooth_kernels(256, 1.0)[torch.randperm(256, generator=torch.Generator().manual_seed(1))]).p > 0.01
    )


def is_uniform(values: list[float], count: int) -> bool:
    """Whether p-values of so many permutations lie in the 95% band of Dvoretzky, Kiefer and Wolfowitz."""
    levels = np.arange(1, count + 2) / (count + 1)
    shares = (np.array(values)[:, None] <= levels + 1e-9).mean(0)
    return bool(np.abs(shares - levels).max() <= math.sqrt(math.log(2 / 0.05) / (2 * len(values))))


def test_p_values_of_unrelated_kernels_are_uniform() -> None:
    """Of layers of random weights: 400 without an average, 80 averaged after they were permuted."""
    pairs, count = pairs_of(16, 1, "sheet", 0), 39
    plain, pooled = [], []
    for seed in range(400):
        similarity = similarities(gram_of_kernels(random_kernels(16, 6, 1, 1, seed=seed)).float())
        orders = torch.cat([torch.arange(16)[None], orders_of(16, 1, count, seed, "x")])
        found, *null = contrasts_of(similarity, orders, pairs)
        plain.append((1 + sum(one >= found for one in null)) / (1 + count))
    for seed in range(80):
        pooled.append(measured(random_kernels(16, 6, 1, 1, seed=seed), count, 3, seed=seed).p)
    assert is_uniform(plain, count)
    assert is_uniform(pooled, count)
    assert not is_uniform([value**2 for value in plain], count)  # the band can be left


def test_an_average_makes_unrelated_kernels_alike_and_that_is_no_finding() -> None:
    found = measured(random_kernels(64, 20, 3, 3), 199, pool_size=3)
    assert found.neighbours > 0.6
    assert found.p > 0.01
    assert found.curve.low[0] <= found.curve.similarity[0] <= found.curve.high[0]
    assert found.effective_null[0] * 0.98 <= found.effective <= found.effective_null[1] * 1.02
    assert found.effective < 20  # of 64


def test_the_first_orders_do_not_depend_on_how_many_there_are() -> None:
    few, many = (orders_of(12, 3, count, 5, "x") for count in (40, 700))
    assert torch.equal(few, many[:40])
    assert all(torch.equal(order.sort().values, torch.arange(12)) for order in many)
    assert len(many.unique(dim=0)) > 690
    assert not torch.equal(few, orders_of(12, 3, 40, 5, "y"))
