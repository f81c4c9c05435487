"""Strided 1 x 1 convolutions that take their pixels first compute what torch's do, and no others are left."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from kapdist.kap import KAPConv2d, kapify
from kapdist.models import MODELS, RESNETS
from kapdist.models.strided import guard_strided

CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(8, 16, 1, 2, bias=False),
    "uneven": lambda: nn.Conv2d(8, 16, 1, (2, 3)),
    "padded": lambda: nn.Conv2d(8, 16, 1, 2, padding=1),
    "reflected": lambda: nn.Conv2d(8, 16, 1, 3, padding=2, padding_mode="reflect"),
    "valid": lambda: nn.Conv2d(8, 16, 1, 2, padding="valid"),
    "grouped": lambda: nn.Conv2d(8, 16, 1, 2, groups=4),
    "averaged": lambda: KAPConv2d(8, 16, 1, 2, pool_size=3),
    "averaged in groups": lambda: KAPConv2d(8, 16, 1, 2, groups=2, pool_size=3),
}


class StridedPixels(TorchDispatchMode):
    """Notes every strided 1 x 1 convolution whose weight gradient is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[int, ...]] = []
        self.backwards = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            self.backwards += 1
            weight, stride, wanted = args[2], args[4], args[10]
            if set(weight.shape[2:]) == {1} and max(stride) > 1 and wanted[1]:
                self.asked.append(tuple(weight.shape))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_same_function_with_the_same_gradients(name: str) -> None:
    torch.manual_seed(0)
    theirs = CONVOLUTIONS[name]().double()
    ours = guard_strided(copy.deepcopy(theirs))
    assert type(ours) is not type(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    images = torch.randn(5, 8, 9, 11, dtype=torch.double).contiguous(memory_format=torch.channels_last)
    results = []
    for conv in (theirs, copy.deepcopy(ours)):
        x = images.clone().requires_grad_()
        output = conv(x)
        output.backward(torch.linspace(-1, 1, output.numel(), dtype=torch.double).view_as(output))
        results.append([output, x.grad, *(p.grad for p in conv.parameters())])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_other_convolutions_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, (1, 3), 2))
    assert [type(module) for module in guard_strided(model)] == [nn.Conv2d] * 3


OURS = [(name, {"stem": stem}) for name, stem in itertools.product(RESNETS, ("cifar", "imagenet"))]
OURS += [(name, {}) for name in ("preact_resnet18", "wide_resnet28_10")]  # cnn has no strides


@pytest.mark.parametrize("pool_size", [1, 3])
@pytest.mark.parametrize(("name", "options"), OURS)
def test_no_strided_weight_gradient_is_asked_of_our_models(
    name: str, options: dict[str, str], pool_size: int
) -> None:
    model = kapify(MODELS[name](10, width=0.125, **options), pool_size=pool_size, layout="line", noise_std=0.1)
    unguarded, guarded = copy.deepcopy(model), guard_strided(model)
    images = torch.rand(2, 3, 32, 32)
    counts = []
    for network in (unguarded, guarded):
        with StridedPixels() as watch:
            network(images).sum().backward()
        counts.append(len(watch.asked))
        assert watch.backwards
    assert counts[0] > 0
    assert counts[1] == 0


def test_none_is_asked_of_an_attacked_model() -> None:
    """Whoever wrote it: its weights are frozen, so they have no gradients, in autograd.grad and in backward."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1, 2), nn.Flatten(), nn.Linear(8 * 16 * 16, 4)).requires_grad_(False)
    images = torch.rand(3, 3, 32, 32, requires_grad=True)
    with StridedPixels() as watch:
        torch.autograd.grad(model(images).sum(), images)
        model(images).sum().backward()
    assert watch.backwards == 2
    assert not watch.asked
