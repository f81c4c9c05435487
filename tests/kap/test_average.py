import re
from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from kapdist.kap import KernelAveragePool, kernel_average
from kapdist.kap.average import pooled_channels, sheet_grid

Dense = Callable[[int, int, int, str], Tensor]
WINDOWS = [
    (channels, pool_size, stride, layout)
    for layout, channels in (("line", 12), ("sheet", 56))
    for pool_size, stride in product((1, 3, 5, 7), (1, 2))
]


def apply_dense(matrix: Tensor, z: Tensor, dim: int) -> Tensor:
    return torch.tensordot(matrix, z, dims=([1], [dim])).movedim(0, dim)


@pytest.mark.parametrize(("channels", "pool_size", "stride", "layout"), WINDOWS)
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_average_equals_the_dense_matrix(
    dense_average: Dense, channels: int, pool_size: int, stride: int, layout: str, dim: int
) -> None:
    matrix = dense_average(channels, pool_size, stride, layout)
    shape = [2, 3, 5]
    shape[dim] = channels
    z = torch.randn(shape, dtype=torch.double, requires_grad=True)
    average = kernel_average(z, pool_size, stride=stride, layout=layout, dim=dim)
    expected = apply_dense(matrix, z, dim)
    torch.testing.assert_close(average, expected, rtol=0, atol=1e-14)
    assert average.shape[dim] == pooled_channels(channels, stride, layout)

    upstream = torch.randn_like(expected)
    (grad,) = torch.autograd.grad(average, z, upstream)
    (expected_grad,) = torch.autograd.grad(expected, z, upstream)
    torch.testing.assert_close(grad, expected_grad, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("pool_size", "stride", "layout"), [(3, 1, "line"), (5, 2, "line"), (3, 2, "sheet")])
def test_first_and_second_derivatives(pool_size: int, stride: int, layout: str) -> None:
    z = torch.randn(2, 12, 2, dtype=torch.double, requires_grad=True)

    def cubed(z: Tensor) -> Tensor:
        return kernel_average(z**3, pool_size, stride=stride, layout=layout)

    assert torch.autograd.gradcheck(cubed, (z,))
    assert torch.autograd.gradgradcheck(cubed, (z,))


@pytest.mark.parametrize(("pool_size", "stride", "layout"), [(3, 1, "line"), (5, 2, "line"), (3, 2, "sheet")])
def test_forward_mode_is_the_average_of_the_tangent(
    dense_average: Dense, pool_size: int, stride: int, layout: str
) -> None:
    matrix = dense_average(12, pool_size, stride, layout)
    z, tangent = torch.randn(2, 2, 12, dtype=torch.double)

    def average(z: Tensor) -> Tensor:
        return kernel_average(z, pool_size, stride=stride, layout=layout)

    value, slope = torch.func.jvp(average, (z,), (tangent,))
    torch.testing.assert_close(value, apply_dense(matrix, z, 1), rtol=0, atol=1e-14)
    torch.testing.assert_close(slope, apply_dense(matrix, tangent, 1), rtol=0, atol=1e-14)
    # Forward over reverse over a sum of cubes: 6 A^T diag(A z) A.
    hessian = torch.func.hessian(lambda z: average(z[None]).pow(3).sum())(z[0])
    torch.testing.assert_close(hessian, 6 * matrix.T @ ((matrix @ z[0])[:, None] * matrix), rtol=0, atol=1e-13)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("stride", "layout"), [(1, "line"), (2, "line"), (1, "sheet"), (2, "sheet")])
@pytest.mark.parametrize("change", [torch.relu_, lambda y: y.add_(1).square(), lambda y: y.clamp_(max=0.1)])
def test_what_comes_out_may_be_changed_in_place(
    dense_average: Dense,
    change: Callable[[Tensor], Tensor],
    stride: int,
    layout: str,
    memory_format: torch.memory_format,
) -> None:
    z = torch.randn(2, 12, 3, 4, dtype=torch.double).to(memory_format=memory_format).requires_grad_()
    average = kernel_average(z, 3, stride=stride, layout=layout)
    assert not average._is_view()
    upstream = torch.randn_like(average)
    expected = change(apply_dense(dense_average(12, 3, stride, layout), z, 1))
    changed = change(average)
    torch.testing.assert_close(changed, expected, rtol=0, atol=1e-14)
    grads = [torch.autograd.grad(out, z, upstream)[0] for out in (changed, expected)]
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-14)


def test_tensors_that_stand_for_others_leave_nothing_behind() -> None:
    def gradient() -> Tensor:
        z = torch.ones(1, 15, dtype=torch.double, requires_grad=True)
        kernel_average(z, 3, layout="line").sum().backward()
        assert z.grad is not None
        return z.grad

    with FakeTensorMode():
        assert isinstance(gradient(), FakeTensor)
    real = gradient()
    assert real.tolist() == [pytest.approx([5 / 6, 7 / 6, *[1] * 11, 7 / 6, 5 / 6])]
    with FakeTensorMode():
        assert isinstance(gradient(), FakeTensor)


def test_vmap_is_the_loop() -> None:
    z = torch.randn(4, 12, 3, dtype=torch.double)
    together = torch.func.vmap(lambda one: kernel_average(one, 3, layout="sheet", dim=0))(z)
    assert torch.equal(together, torch.stack([kernel_average(one, 3, layout="sheet", dim=0) for one in z]))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("layout", ["line", "sheet"])
@pytest.mark.parametrize("dim", [0, 1])
def test_memory_format_is_kept(dim: int, layout: str, stride: int) -> None:
    z = torch.randn(12, 12, 3, 3).to(memory_format=torch.channels_last).requires_grad_()
    average = kernel_average(z, 3, stride=stride, layout=layout, dim=dim)
    assert average.is_contiguous(memory_format=torch.channels_last)
    if stride == 1:  # the gradient of a strided average is spread over fresh zeros
        (grad,) = torch.autograd.grad(average, z, torch.randn_like(average))
        assert grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_pointwise_weights_keep_their_strides(memory_format: torch.memory_format) -> None:
    z = torch.empty(12, 8, 1, 1, memory_format=memory_format).normal_().requires_grad_()
    average = kernel_average(z, 3, dim=0)
    assert average.stride() == z.stride()
    (grad,) = torch.autograd.grad(average, z, torch.randn_like(average))
    assert grad.stride() == z.stride()


@pytest.mark.parametrize(("channels", "pool_size", "stride", "layout"), WINDOWS)
def test_compiled_average_equals_the_dense_matrix(
    dense_average: Dense, channels: int, pool_size: int, stride: int, layout: str
) -> None:
    torch.compiler.reset()
    matrix = dense_average(channels, pool_size, stride, layout)
    z = torch.randn(channels, 3, dtype=torch.double, requires_grad=True)
    compiled = torch.compile(kernel_average, fullgraph=True, backend="aot_eager")
    average = compiled(z, pool_size, stride=stride, layout=layout, dim=0)
    torch.testing.assert_close(average, matrix @ z, rtol=0, atol=1e-14)
    upstream = torch.randn_like(average)
    (grad,) = torch.autograd.grad(average, z, upstream)
    torch.testing.assert_close(grad, matrix.T @ upstream, rtol=0, atol=1e-14)


def test_input_is_left_alone() -> None:
    z = torch.randn(2, 12, 3)
    before = z.clone()
    kernel_average(z, 3, stride=2)
    assert torch.equal(z, before)


windows = st.sampled_from([("line", 12), ("sheet", 12), ("line", 24), ("sheet", 24), ("sheet", 49)])
values = st.floats(-1e3, 1e3)
seeds = st.integers(0, 2**31)


@given(windows, st.sampled_from([1, 3]), st.integers(1, 3), values)
def test_constant_stays_constant(window: tuple[str, int], pool_size: int, stride: int, value: float) -> None:
    layout, channels = window
    z = torch.full((2, channels), value, dtype=torch.double)
    average = kernel_average(z, pool_size, stride=stride, layout=layout)
    torch.testing.assert_close(average, torch.full_like(average, value), rtol=1e-14, atol=1e-300)


@given(windows, values, values, seeds)
def test_average_is_linear(window: tuple[str, int], a: float, b: float, seed: int) -> None:
    layout, channels = window
    x, y = torch.randn(2, 3, channels, dtype=torch.double, generator=torch.Generator().manual_seed(seed))
    together = kernel_average(a * x + b * y, 3, layout=layout)
    apart = a * kernel_average(x, 3, layout=layout) + b * kernel_average(y, 3, layout=layout)
    torch.testing.assert_close(together, apart, rtol=1e-10, atol=1e-10)


@given(windows, st.integers(1, 3), seeds)
def test_average_lies_between_the_extremes(window: tuple[str, int], stride: int, seed: int) -> None:
    layout, channels = window
    z = torch.randn(3, channels, dtype=torch.double, generator=torch.Generator().manual_seed(seed))
    average = kernel_average(z, 3, stride=stride, layout=layout)
    assert (average <= z.amax(1, keepdim=True) + 1e-14).all()
    assert (average >= z.amin(1, keepdim=True) - 1e-14).all()


@given(st.integers(1, 5000))
def test_sheet_is_the_most_nearly_square_grid(channels: int) -> None:
    height, width = sheet_grid(channels)
    assert height * width == channels
    assert height <= width
    assert not any(channels % h == 0 for h in range(height + 1, int(channels**0.5) + 1))


def test_known_numbers() -> None:
    z = torch.tensor([[1.0, 2.0, 6.0, 10.0]])
    assert kernel_average(z, 3, layout="line")[0].tolist() == pytest.approx([1.5, 3.0, 6.0, 8.0])
    assert kernel_average(z, 3, stride=2, layout="line")[0].tolist() == pytest.approx([1.5, 6.0])
    sheet = torch.arange(9.0)[None]
    assert kernel_average(sheet, 3)[0].tolist() == pytest.approx([2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6])


@pytest.mark.parametrize(
    ("pool_size", "stride", "layout", "message"),
    [
        (2, 1, "line", "odd number of kernels (1, 3, 5, ...), found 2"),
        (0, 1, "line", "odd number of kernels (1, 3, 5, ...), found 0"),
        (-3, 1, "line", "odd number of kernels (1, 3, 5, ...), found -3"),
        (13, 1, "line", "13 does not fit 12 channels: expected at most 12"),
        (5, 1, "sheet", "5 does not fit 12 channels on a 3 x 4 sheet: expected at most 3"),
        (3, 0, "line", "stride 0 leaves no channel of 12 channels: expected 1 to 12"),
        (3, 13, "line", "stride 13 leaves no channel of 12 channels: expected 1 to 12"),
        (3.0, 1, "line", "pool_size must be an odd number of kernels (1, 3, 5, ...), found 3.0"),
        ("3", 1, "line", "odd number of kernels (1, 3, 5, ...), found '3'"),
        (True, 1, "line", "odd number of kernels (1, 3, 5, ...), found True"),
        (float("nan"), 1, "sheet", "odd number of kernels (1, 3, 5, ...), found nan"),
        (3, 2.0, "line", "the pool's stride must be an integer, found 2.0"),
        (3, True, "line", "the pool's stride must be an integer, found True"),
        (3, 4, "sheet", "stride 4 leaves no channel of 12 channels on a 3 x 4 sheet: expected 1 to 3"),
        (3, 1, "ring", "layout must be one of sheet, line, found 'ring'"),
    ],
)
def test_a_window_that_does_not_fit_is_refused(pool_size: int, stride: int, layout: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        kernel_average(torch.randn(2, 12), pool_size, stride=stride, layout=layout)


def test_pool_layer_is_the_function() -> None:
    z = torch.randn(2, 12, 4, 4)
    pool = KernelAveragePool(3, stride=2, layout="sheet")
    assert torch.equal(pool(z), kernel_average(z, 3, stride=2, layout="sheet"))
    assert repr(pool) == "KernelAveragePool(pool_size=3, stride=2, layout=sheet)"


@pytest.mark.parametrize(
    ("z", "dim", "message"),
    [
        (torch.rand(9, 9, 9, 9), 4, "dim must be one of the 4 dimensions of z, found 4"),
        (torch.rand(9, 9, 9, 9), -5, "found -5"),
        (torch.tensor(1.0), 0, "one of the 0 dimensions"),
        (torch.arange(9).view(1, 9), 1, "real numbers, found torch.int64"),
    ],
)
def test_what_has_no_mean_along_a_dimension_is_refused(z: Tensor, dim: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernel_average(z, 3, dim=dim)
