"""The ball against what defines it: the nearest point, the steepest step, uniform chance, in every norm."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kapdist.attack.ball import Ball, black_to_white
from kapdist.records.attack_plan import Norm

SIZES: dict[Norm, float] = {"Linf": 0.05, "L2": 0.1, "L1": 0.2}
GREY = torch.full((64, 3, 4, 4), 0.5)


def inner(one: Tensor, other: Tensor) -> Tensor:
    return (one.double() * other.double()).flatten(1).sum(1)


def normal(seed: int) -> Tensor:
    return torch.randn(GREY.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("norm", "eps"), SIZES.items())
def test_a_projection_is_the_nearest_point_and_leaves_what_is_inside(norm: Norm, eps: float) -> None:
    """Seen from the nearest point of a convex set, none of the set lies on the side of what was projected."""
    ball, random = Ball(norm, eps), torch.Generator().manual_seed(0)
    points = GREY + eps * (0.5 if norm == "L1" else 1.5) * normal(1).clamp(-3, 3)  # far from black and white
    nearest = ball.project(points, GREY)
    assert not ball.inside(points, GREY).any()
    assert ball.inside(nearest, GREY).all()
    for _ in range(20):
        other = GREY + eps * ball.random_point(GREY.shape, random)
        assert ball.inside(other, GREY).all()
        assert (inner(points - nearest, other - nearest) < 1e-4 * eps**2).all()
        torch.testing.assert_close(ball.project(other, GREY), other, rtol=0, atol=2**-22)


@pytest.mark.parametrize(("norm", "eps"), SIZES.items())
def test_the_steepest_step_rises_as_far_as_any_can(norm: Norm, eps: float) -> None:
    ball, gradient = Ball(norm, eps), normal(2)
    step = ball.steepest(gradient)
    assert torch.allclose(ball.distance(step, torch.zeros_like(step)), torch.ones(64, dtype=torch.float64))
    torch.testing.assert_close((eps * inner(step, gradient)).float(), ball.reach(gradient))


@pytest.mark.parametrize(("norm", "eps"), SIZES.items())
def test_random_points_fill_the_ball_evenly(norm: Norm, eps: float) -> None:
    random = torch.Generator().manual_seed(3)
    points = Ball(norm, eps).random_point(torch.Size((2000, 3, 2, 2)), random)
    share = Ball(norm, eps).distance(points, torch.zeros_like(points)) ** 12  # of the volume: uniform on [0, 1]
    assert abs(share.mean() - 1 / 2) < 0.03
    assert abs((share**2).mean() - 1 / 3) < 0.03


def test_black_is_as_far_from_white_as_can_be() -> None:
    black = torch.zeros(1, 3, 4, 4)
    for norm in SIZES:
        assert Ball(norm, 1).distance(black + 1, black).item() == pytest.approx(black_to_white(norm, 48))
