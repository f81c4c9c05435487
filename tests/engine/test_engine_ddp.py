"""The engine against a float64 reference, and what it promises about gradients, precision and compilation."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from compiler import needs_compiler
from torch import nn
from torch.nn import functional as F

from kapdist.config import EngineConfig
from kapdist.engine import DDPEngine, Ranks
from kapdist.engine.norms import synchronise
from kapdist.errors import InputError

PROGRAM = Path(__file__).parent / "ddp_program.py"


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))


def engine(clip: float = 0.0, **config: object) -> DDPEngine:
    model = classifier()
    return DDPEngine(model, torch.optim.SGD(model.parameters(), lr=1.0), EngineConfig(**config), Ranks(), clip)


def batch(size: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(size, 3, 8, 8, generator=generator), torch.randint(0, 5, (size,), generator=generator)


def backward(one: DDPEngine) -> torch.Tensor:
    images, labels = batch()
    loss = F.cross_entropy(one.forward(images).float(), labels)
    one.backward(loss)
    return loss.detach()


def norm_of_gradient(model: nn.Module) -> float:
    return float(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double().norm())


def test_a_step_is_plain_sgd() -> None:
    one, reference = engine(), classifier()
    backward(one)
    images, labels = batch()
    F.cross_entropy(reference(images), labels).backward()
    result = one.step(lr=0.25, measure=True)
    assert result.grad_norm is not None
    assert float(result.grad_norm) == pytest.approx(norm_of_gradient(reference), rel=1e-6)
    for ours, theirs in zip(one.module.parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours, theirs - 0.25 * theirs.grad)
        assert ours.grad is None


def test_clipping_scales_the_gradient_to_its_bound() -> None:
    one, reference = engine(clip=0.01), classifier()
    images, labels = batch()
    F.cross_entropy(reference(images), labels).backward()
    scale = 0.01 / norm_of_gradient(reference)
    backward(one)
    one.step(lr=1.0, measure=False)
    for ours, theirs in zip(one.module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs - scale * theirs.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_keeps_weights_in_fp32(precision: str) -> None:
    one = engine(precision=precision)
    loss = backward(one)
    assert all(p.dtype == torch.float32 and p.grad.dtype == torch.float32 for p in one.module.parameters())
    assert float(loss) == pytest.approx(float(backward(engine())), rel=2e-2)
    before = [p.detach().clone() for p in one.module.parameters()]
    assert not one.step(lr=0.1, measure=True).skipped
    assert all(not torch.equal(p, q) for p, q in zip(one.module.parameters(), before, strict=True) if p.dim() > 1)


def test_fp16_skips_a_step_that_overflowed() -> None:
    one = engine(precision="fp16")
    before = [p.detach().clone() for p in one.module.parameters()]
    images, labels = batch()
    one.backward(F.cross_entropy(one.forward(images).float(), labels) * float("inf"))
    assert one.step(lr=1.0, measure=True).skipped
    assert all(torch.equal(p, q) for p, q in zip(one.module.parameters(), before, strict=True))


def test_channels_last_changes_the_layout_alone() -> None:
    images, _ = batch()
    model = classifier().eval()
    expected = model(images)
    model.to(memory_format=torch.channels_last)
    one = DDPEngine(model, torch.optim.SGD(model.parameters(), lr=1.0), EngineConfig(), Ranks())
    logits = one.forward(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@needs_compiler
def test_compiling_changes_rounding_alone() -> None:
    losses: dict[bool, list[float]] = {}
    for compiled in (False, True):
        one = engine(compile=compiled)
        losses[compiled] = []
        for _ in range(3):
            losses[compiled].append(float(backward(one)))
            one.step(lr=0.1, measure=False)
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)


def test_the_state_continues_the_momentum() -> None:
    def momentum_engine() -> DDPEngine:
        model = classifier()
        return DDPEngine(model, torch.optim.SGD(model.parameters(), 1.0, momentum=0.9), EngineConfig(), Ranks())

    one, other = momentum_engine(), momentum_engine()
    for _ in range(2):
        backward(one)
        one.step(lr=0.1, measure=False)
    other.load_state(copy.deepcopy(one.state()))  # as a file would hold it
    for both in (one, other):
        backward(both)
        both.step(lr=0.1, measure=False)
    for ours, theirs in zip(one.module.parameters(), other.module.parameters(), strict=True):
        assert torch.equal(ours, theirs)


class NormAndActivation(nn.BatchNorm2d):
    """Like timm's: what is behind the norm would be lost."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).relu()


def test_norms_that_do_more_are_not_synchronised() -> None:
    model = nn.Sequential(nn.BatchNorm2d(6), NormAndActivation(6), NormAndActivation(6))
    with pytest.raises(InputError, match=r"torch's own, found 1 \(NormAndActivation\) and 1 more"):
        synchronise(model, Ranks(world_size=2))
    with pytest.raises(InputError, match="one that is a norm itself"):
        synchronise(nn.BatchNorm2d(6), Ranks(world_size=2))
    assert type(model[0]) is nn.BatchNorm2d
    synchronise(model, Ranks())  # one rank has the whole batch


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_agree_with_one_process(run_ranks, world_size: int) -> None:
    """Uneven shares and accumulation give the gradient of the whole batch; parts are exchanged once per step."""
    ends = run_ranks([str(PROGRAM)], world_size, timeout=120)
    assert [end.code for end in ends] == [0] * world_size, "\n".join(end.output for end in ends)
