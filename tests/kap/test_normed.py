"""Norm, average and noise at once: against the layer that goes step by step, and where it must not be taken."""

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import SyncBatchNorm

import kapdist.kap.normed as normed
from kapdist.kap import KAPConv2d, noise, noise_state, seed_noise


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """Has CPUs go the way of GPUs, by torch's operations; what was averaged at once."""
    found: list[Tensor] = []
    stock = normed._average

    def average(z: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        found.append(z)
        return stock(z, *arguments)

    monkeypatch.setattr(normed, "_worthwhile", lambda _: True)
    monkeypatch.setattr(normed, "_average", average)
    return found


def layer(layout: str = "sheet", norm: nn.Module | None = None, **options: Any) -> KAPConv2d:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(12) if norm is None else norm
    for value in norm.parameters():
        value.data.uniform_(-1.5, 1.5)
    options = {"padding": 1, "bias": False, "noise_std": 0.3} | options
    made = KAPConv2d(4, 12, 3, layout=layout, inner_norm=norm, **options)
    return made.to(memory_format=torch.channels_last)


def images(batch: int = 5) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, 4, 7, 6).to(memory_format=torch.channels_last)


def step_by_step(conv: KAPConv2d) -> KAPConv2d:
    twin = copy.deepcopy(conv)
    twin.inner_norm.register_forward_hook(lambda *_: None)
    return twin


def trained(conv: KAPConv2d, x: Tensor) -> list[Tensor]:
    """What it gives, the gradients of all there is, and what it has learnt and drawn."""
    x = x.clone().requires_grad_()
    out = conv(x)
    gradients = torch.autograd.grad(out.float().square().mean(), [x, *conv.parameters()])
    return [out, *gradients, *conv.inner_norm.buffers(), *noise_state(conv).values()]


@pytest.mark.parametrize("mode", ["fresh", "fixed", "off"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("layout", ["sheet", "line"])
def test_it_is_the_layer_step_by_step(
    taken: list[Tensor], layout: str, affine: bool, bias: bool, mode: str
) -> None:
    at_once = layer(layout, nn.BatchNorm2d(12, affine=affine, momentum=0.3), bias=bias)
    apart = step_by_step(at_once)
    seed_noise(at_once, 7)
    seed_noise(apart, 7)
    for _ in range(2):  # the second time from statistics and draws that the first has left
        with noise(at_once, mode), noise(apart, mode):
            torch.testing.assert_close(trained(at_once, images()), trained(apart, images()), rtol=2e-5, atol=2e-6)
    assert len(taken) == 2


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_in_lower_precision_it_is_as_near_as_that(taken: list[Tensor], precision: torch.dtype) -> None:
    at_once = layer(noise_std=0)
    apart = step_by_step(at_once)
    with torch.autocast("cpu", dtype=precision):
        ours, theirs = trained(at_once, images()), trained(apart, images())
    assert ours[0].dtype == precision
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=4 * torch.finfo(precision).eps)
    assert len(taken) == 1


def test_its_gradient_has_a_gradient(taken: list[Tensor]) -> None:
    at_once = layer()
    apart = step_by_step(at_once)
    found = []
    for conv in (at_once, apart):
        x = images().requires_grad_()
        (slope,) = torch.autograd.grad(conv(x).pow(3).mean(), x, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), [x, *conv.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)
    assert len(taken) == 1


def test_what_learns_nothing_learns_nothing(taken: list[Tensor]) -> None:
    conv = layer(noise_std=0)
    conv.inner_norm.weight.requires_grad_(False)
    conv.weight.requires_grad_(False)
    conv(images()).sum().backward()
    assert conv.inner_norm.weight.grad is None
    assert conv.weight.grad is None
    assert conv.inner_norm.bias.grad is not None
    assert len(taken) == 1
    with torch.inference_mode():
        conv(images())
    assert int(conv.inner_norm.num_batches_tracked) == 2


def test_statistics_that_are_frozen_go_into_the_weights(taken: list[Tensor]) -> None:
    conv = layer().eval()
    conv(images())
    assert not taken


HAVE_MORE = {
    "momentum": lambda: nn.BatchNorm2d(12, momentum=None),
    "statistics": lambda: nn.BatchNorm2d(12, track_running_stats=False),
    "ranks": lambda: SyncBatchNorm(12),
    "precision": lambda: nn.BatchNorm2d(12, dtype=torch.double),
    "subclass": lambda: type("Mine", (nn.BatchNorm2d,), {})(12),
}


@pytest.mark.parametrize("what", HAVE_MORE)
def test_a_norm_that_does_more_is_called(what: str) -> None:
    norm = HAVE_MORE[what]()
    z = torch.randn(2, 12, 5, 5).to(memory_format=torch.channels_last)
    assert not normed.pays(norm, z, 3, 1)


@pytest.mark.parametrize("hooks", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_who_looks_at_the_norm_sees_it(taken: list[Tensor], hooks: str) -> None:
    conv = layer()
    seen = []
    getattr(conv.inner_norm, f"register_{hooks}_hook")(lambda *_: seen.append(1))
    conv(images()).sum().backward()
    assert seen
    assert not taken


@pytest.mark.parametrize(
    "other",
    [
        {"pool_size": 3, "pool_stride": 2},
        {"layout": "line", "pool_size": 5},
        {"dtype": torch.double},
    ],
)
def test_what_the_kernel_is_not_for_goes_step_by_step(taken: list[Tensor], other: dict[str, Any]) -> None:
    conv = layer(**{"norm": nn.BatchNorm2d(12, dtype=other.get("dtype")), **other})
    conv(images().to(other.get("dtype", torch.float32)))
    assert not taken


def test_other_memory_and_other_precision_go_step_by_step(taken: list[Tensor]) -> None:
    norm, z = nn.BatchNorm2d(12), torch.randn(2, 12, 5, 5).to(memory_format=torch.channels_last)
    assert normed.pays(norm, z, 3, 1)
    assert not normed.pays(norm, z.contiguous(), 3, 1)
    assert not normed.pays(norm, z.double(), 3, 1)
    assert not normed.pays(norm, nn.Parameter(z), 3, 1)


def test_where_torch_follows_a_pass_it_goes_step_by_step(taken: list[Tensor]) -> None:
    conv, x = layer(noise_std=0), images()
    expected = conv(x)
    taken.clear()
    with forward_ad.dual_level():
        assert forward_ad.unpack_dual(conv(forward_ad.make_dual(x, torch.ones_like(x)))).tangent is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(conv, x, check_trace=False)
    seen = []
    torch.func.vmap(lambda z: seen.append(normed.pays(conv.inner_norm, z[None], 3, 1)) or z)(expected.detach())
    assert seen == [False]
    compiled = torch.compile(conv, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-5)
    assert not taken


def test_one_number_a_channel_is_torch_s_own_error(taken: list[Tensor]) -> None:
    conv = layer(padding=0)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        conv(images(1)[:, :, :3, :3])
    assert not taken


def test_noise_within_a_backward_pass_is_refused_as_elsewhere(taken: list[Tensor]) -> None:
    conv = layer()
    x = images().requires_grad_()
    out = torch.utils.checkpoint.checkpoint(conv, x, use_reentrant=False)
    with pytest.raises(RuntimeError, match="cannot be drawn within a backward pass"):
        out.sum().backward()
