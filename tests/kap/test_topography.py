import math

import pytest
import torch

from kapdist.kap import kernel_similarity


def test_kernels_that_turn_along_the_line() -> None:
    angles = torch.arange(5) * math.pi / 8
    weight = torch.stack([angles.cos(), angles.sin()], dim=1)
    near, far = kernel_similarity(weight, layout="line")
    assert near == pytest.approx(math.cos(math.pi / 8))
    assert far == pytest.approx((3 * math.cos(math.pi / 4) + 2 * math.cos(3 * math.pi / 8)) / 6)


def test_on_a_sheet_kernels_of_neighbouring_rows_are_near() -> None:
    columns = torch.eye(3).repeat(3, 1)  # 3 x 3 sheet: equal down a column, orthogonal along a row
    near, far = kernel_similarity(columns.view(9, 3, 1, 1))
    assert near == pytest.approx(6 / 12)
    assert far == pytest.approx(3 / 24)


def test_unrelated_kernels_are_equally_unlike() -> None:
    near, far = kernel_similarity(torch.randn(64, 4000, generator=torch.Generator().manual_seed(0)))
    assert abs(near) < 0.01
    assert abs(far) < 0.01


def test_two_kernels_have_no_others() -> None:
    with pytest.raises(ValueError, match="at least 3 kernels"):
        kernel_similarity(torch.randn(2, 5))
