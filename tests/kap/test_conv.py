import copy
import re
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kapdist.kap import KAPConv2d, KernelAveragePool, kapify, noise

Dense = Callable[[int, int, int, str], Tensor]
CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "1x1": {"kernel_size": 1, "bias": False},
    "3x3": {"kernel_size": 3, "padding": 1, "bias": False},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False},
    "dilated": {"kernel_size": 3, "dilation": 2, "bias": False},
    "biased": {"kernel_size": (3, 1), "padding": "same", "bias": True},
    "reflecting": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "grouped": {"kernel_size": 3, "groups": 4},
}
WINDOWS = [(12, k, s, "line") for k, s in product((1, 3, 5, 7), (1, 2))]
WINDOWS += [(56, k, s, "sheet") for k, s in product((1, 3, 5, 7), (1, 2))]


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize(("channels", "pool_size", "pool_stride", "layout"), WINDOWS)
def test_both_forms_equal_the_dense_average_of_the_convolution(
    dense_average: Dense, name: str, channels: int, pool_size: int, pool_stride: int, layout: str
) -> None:
    arguments = CONVOLUTIONS[name] | {"in_channels": 4, "out_channels": channels, "dtype": torch.double}
    conv = nn.Conv2d(**arguments)
    kap = KAPConv2d(**arguments, pool_size=pool_size, pool_stride=pool_stride, layout=layout)
    kap.load_state_dict(conv.state_dict())
    pool = KernelAveragePool(pool_size, stride=pool_stride, layout=layout)
    x = torch.randn(2, 4, 8, 8, dtype=torch.double)

    z = conv(x)
    expected = torch.einsum("kc,bchw->bkhw", dense_average(channels, pool_size, pool_stride, layout), z)
    torch.testing.assert_close(kap(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(pool(z), expected, rtol=0, atol=1e-12)
    assert kap(x).shape[1] == kap.pooled_channels

    expected.square().sum().backward()
    kap(x).square().sum().backward()
    torch.testing.assert_close(kap.weight.grad, conv.weight.grad, rtol=1e-12, atol=1e-12)


def test_state_is_that_of_the_convolution() -> None:
    kap, conv = KAPConv2d(4, 12, 3, noise_std=0.5), nn.Conv2d(4, 12, 3)
    shapes = {key: value.shape for key, value in kap.state_dict().items()}
    assert shapes == {key: value.shape for key, value in conv.state_dict().items()}


@pytest.mark.parametrize("groups", [1, 4])
def test_without_pool_and_noise_it_is_bitwise_the_convolution(groups: int) -> None:
    conv = nn.Conv2d(4, 12, 3, groups=groups)
    kap = KAPConv2d(4, 12, 3, groups=groups, pool_size=1)
    kap.load_state_dict(conv.state_dict())
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(kap(x), conv(x))


@pytest.mark.parametrize("noise_std", [0.0, 0.5])
@pytest.mark.parametrize("groups", [1, 4])
def test_one_image_is_a_batch_of_one(groups: int, noise_std: float) -> None:
    kap = KAPConv2d(4, 12, 3, groups=groups, noise_std=noise_std)
    image = torch.randn(4, 9, 8)
    for mode in ("fixed", "fresh"):
        with noise(kap, mode, seed=3):
            alone = kap(image)
        with noise(kap, mode, seed=3):
            assert torch.equal(alone, kap(image[None])[0])


class FusedBlock(nn.Module):
    """As in efficientvit: grouped 1 x 1 convolutions behind a depthwise one, and sums and activations in place."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.norm = nn.Conv2d(9, 12, 1), nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 5, padding=2, groups=12, bias=False)
        self.grouped = nn.Conv2d(12, 12, 1, groups=3, bias=False)
        self.act = nn.Hardswish(inplace=True)
        self.project = nn.Conv2d(12, 9, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(self.expand(x)))
        z = self.grouped(self.act(self.depthwise(y)))
        z += y
        z = self.project(self.act(z))
        z += x
        return nn.functional.relu(z, inplace=True).mean((2, 3))


def out_of_place(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return model


@pytest.mark.parametrize("noise_std", [0.0, 0.3])
@pytest.mark.parametrize("frozen", [False, True])
def test_in_place_operations_may_follow(noise_std: float, frozen: bool) -> None:
    """Trained, and (frozen) attacked: the images' gradient alone."""
    layers = [nn.Conv2d(9, 9, 3, padding=1, groups=3), nn.ReLU(inplace=True), FusedBlock()]
    model = kapify(nn.Sequential(*layers).double(), noise_std=noise_std, where=lambda *_: True)
    model.requires_grad_(not frozen)
    results = []
    for network in (model, out_of_place(copy.deepcopy(model))):
        x = torch.rand(2, 9, 6, 6, dtype=torch.double, generator=torch.Generator().manual_seed(1)).requires_grad_()
        loss = network(x).square().sum()
        results.append([loss, *torch.autograd.grad(loss, [x, *(p for p in network.parameters() if not frozen)])])
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-12)


def test_weights_form_keeps_channels_last() -> None:
    kap = KAPConv2d(4, 12, 3, noise_std=0.1).to(memory_format=torch.channels_last)
    assert kap.averaged_parameters()[0].is_contiguous(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 8, 8).to(memory_format=torch.channels_last)
    assert kap(x).is_contiguous(memory_format=torch.channels_last)


def test_autocast_computes_in_bfloat16() -> None:
    kap = KAPConv2d(4, 12, 3, noise_std=0.1)
    x = torch.randn(2, 4, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16), noise(kap, "fixed"):
        low = kap(x)
    with noise(kap, "fixed"):
        high = kap(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), high, rtol=0.03, atol=0.03)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pool_size": 4}, "odd number of kernels"),
        ({"pool_size": 13, "layout": "line"}, "13 does not fit 12 channels"),
        ({"pool_size": 5}, "5 does not fit 12 channels on a 3 x 4 sheet"),
        ({"pool_stride": 4}, "stride 4 leaves no channel"),
        ({"layout": "torus"}, "layout must be one of sheet, line"),
        ({"noise_std": -0.1}, "noise_std must be a standard deviation of at least 0, found -0.1"),
        ({"noise_std": float("nan")}, "found nan"),
        ({"noise_std": float("inf")}, "found inf"),
        ({"noise_std": "0.3"}, "found '0.3'"),
        ({"noise_std": True}, "found True"),
        ({"noise_std": None}, "found None"),
        ({"pool_size": 3.0}, "pool_size must be an odd number of kernels (1, 3, 5, ...), found 3.0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        KAPConv2d(4, 12, 3, **arguments)


@pytest.mark.parametrize("noise_std", [1, Fraction(1, 2), np.float32(0.5)])
def test_any_real_number_is_a_std(noise_std: float) -> None:
    kap = KAPConv2d(4, 12, 3, noise_std=noise_std)
    assert type(kap.noise_std) is float
    with noise(kap, "off"):
        plain = kap(x := torch.rand(8, 4, 16, 16))
    torch.testing.assert_close((kap(x) - plain).std().item(), float(noise_std), rtol=0.05, atol=0)
