"""One rank of test_engine_deepspeed: trains the same model with DDP and with DeepSpeed's stages, and compares."""

from __future__ import annotations

import copy
import functools
import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kapdist.config import EngineConfig, KapConfig, ModelConfig, OptimConfig
from kapdist.engine import ENGINES, Engine, Ranks, StepResult, join
from kapdist.models.build import build_model
from kapdist.plan.training import part
from kapdist.train.optim import make_optimizer

SIZE, PIXELS = 15, 16  # parts of a batch differ by an image; norms have 2 x 2 pixels of each in the last block
ACCUMULATION, STEPS, CLIP = 2, 4, 0.5  # every step is clipped
STAGES = [("deepspeed", 0), ("deepspeed", 1), ("deepspeed", 2)]
VARIANTS = [("ddp", 0), *STAGES]
SWITCHES = [(("ddp", 0), ("deepspeed", 2)), (("deepspeed", 2), ("ddp", 0)), (("deepspeed", 1), ("deepspeed", 0))]
SGD = OptimConfig(lr=0.1, weight_decay=1e-2)
# An eps at which a gradient of nearly zero, which engines round differently, is not made as large as the others.
ADAMW = OptimConfig(name="adamw", eps=1e-2, betas=(0.8, 0.9), weight_decay=1e-2, decay_norms=True)
TOLERANCES = {"fp32": 1e-5, "bf16": 2e-2, "fp16": 5e-3}


@dataclass
class Curve:
    """What a few steps gave: the losses of this rank, the norms, the engine."""

    engine: Engine
    losses: list[float]
    grad_norms: list[float]
    average: AveragedModel


def resnet() -> nn.Module:
    return copy.deepcopy(built())


@functools.cache
def built() -> nn.Module:
    torch.manual_seed(0)
    model = build_model(
        ModelConfig(name="resnet10", num_classes=5, stem="cifar", width=0.125),
        KapConfig(pool_size=3, layout="line", norm_first=True),
    )
    return model.to(memory_format=torch.channels_last)


def without_norms() -> nn.Module:
    """A model whose batches may be cut in any way, with sizes that nothing divides."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Flatten(), nn.Linear(7 * (PIXELS - 2) ** 2, 5))


def make_engine(
    variant: tuple[str, int],
    model: nn.Module,
    ranks: Ranks,
    precision: str = "fp32",
    optim: OptimConfig = SGD,
    sync_batch_norm: bool = False,
) -> Engine:
    name, stage = variant
    config = EngineConfig(
        name=name, zero_stage=stage, precision=precision, device="cpu", sync_batch_norm=sync_batch_norm
    )
    optimizer = make_optimizer(model, optim)
    return ENGINES[name](model, optimizer, config, ranks, CLIP)


def take_step(engine: Engine, step: int, ranks: Ranks, factor: float = 1.0) -> tuple[float, StepResult]:
    """Take one step on this rank's share of the batch of a step, in uneven parts."""
    generator = torch.Generator().manual_seed(step)
    images = torch.rand(SIZE, 3, PIXELS, PIXELS, generator=generator).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 5, (SIZE,), generator=generator)
    mine, total = part(range(SIZE), ranks.rank, ranks.world_size), 0.0
    for index in range(ACCUMULATION):
        share = part(mine, index, ACCUMULATION)
        with engine.accumulating(more=index + 1 < ACCUMULATION):
            logits = engine.forward(images[share.start : share.stop]).float()
            wanted = labels[share.start : share.stop]
            loss = F.cross_entropy(logits, wanted, label_smoothing=0.1, reduction="sum") * ranks.world_size / SIZE
            engine.backward(factor * loss)
        total += float(loss.detach())
    return total, engine.step(lr=0.1 / (step + 1), measure=True)


def train(engine: Engine, ranks: Ranks, steps: range = range(STEPS)) -> Curve:
    average = AveragedModel(engine.module, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    losses, norms = [], []
    for step in steps:
        loss, result = take_step(engine, step, ranks)
        assert result.grad_norm is not None
        assert not result.skipped
        losses.append(loss)
        norms.append(float(result.grad_norm))
        average.update_parameters(engine.module)
    return Curve(engine, losses, norms, average)


def written(state: dict) -> dict:
    """What a file gives back."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def assert_close(ours: nn.Module, theirs: nn.Module, tolerance: float) -> None:
    found = ours.state_dict()
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(
            found[name], tensor, rtol=tolerance, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}"
        )


def the_curve_is_that_of_ddp(ranks: Ranks) -> None:
    for precision, tolerance in TOLERANCES.items():
        steps = range(STEPS if precision == "fp32" else 2)
        expected = train(make_engine(("ddp", 0), resnet(), ranks, precision), ranks, steps)
        for variant in STAGES:
            found = train(make_engine(variant, resnet(), ranks, precision), ranks, steps)
            assert found.losses == pytest.approx(expected.losses, rel=tolerance), (variant, precision)
            assert found.grad_norms == pytest.approx(expected.grad_norms, rel=5 * tolerance), (variant, precision)
            assert min(found.grad_norms) > CLIP
            # At rank 0: the others' statistics are those of their last batch until somebody asks for rank 0's.
            found.engine.sync_buffers()
            expected.engine.sync_buffers()
            assert_close(found.engine.module, expected.engine.module, tolerance)
            if ranks.first:
                assert_close(found.average.module, expected.average.module, tolerance)
            assert all(p.dtype == torch.float32 for p in found.engine.module.parameters())


def states_are_those_of_ddp(ranks: Ranks) -> None:
    """Bitwise exact resume; each engine goes on where another one stopped, and the state does not tell which."""
    halves, whole = {}, {}
    for variant in VARIANTS:
        engine = make_engine(variant, resnet(), ranks)
        train(engine, ranks, range(2))
        halves[variant] = written(engine.state())
        momenta = [
            float(values["momentum_buffer"].sum()) for values in halves[variant]["optimizer"]["state"].values()
        ]
        assert all(others == momenta for others in ranks.gather(momenta)), f"{variant}: the ranks' states differ"
        train(engine, ranks, range(2, STEPS))
        whole[variant] = engine.module
        assert_same_form(halves[variant], halves["ddp", 0])
    for stopped, continued in [*zip(STAGES, STAGES, strict=True), *SWITCHES]:
        engine = make_engine(continued, resnet(), ranks)
        engine.load_state(written(halves[stopped]))
        again = engine.state()["optimizer"]["state"]
        assert_equal(again, halves[stopped]["optimizer"]["state"])
        train(engine, ranks, range(2, STEPS))
        if stopped == continued:
            assert_equal(engine.module.state_dict(), whole[stopped].state_dict())
        elif ranks.first:  # the others have statistics of their own until they ask for rank 0's
            assert_close(engine.module, whole["ddp", 0], TOLERANCES["fp32"])


def adamw_is_that_of_ddp(ranks: Ranks) -> None:
    """Its two averages are divided by ZeRO and continued by every engine, its count of steps too."""
    halves, whole = {}, {}
    for variant in VARIANTS:
        engine = make_engine(variant, resnet(), ranks, optim=ADAMW)
        train(engine, ranks, range(2))
        halves[variant] = written(engine.state())
        train(engine, ranks, range(2, STEPS))
        whole[variant] = engine.module
        assert_close_states(halves[variant], halves["ddp", 0])
    for stopped, continued in [*zip(VARIANTS, VARIANTS, strict=True), *SWITCHES]:
        engine = make_engine(continued, resnet(), ranks, optim=ADAMW)
        engine.load_state(written(halves[stopped]))
        assert_equal(engine.state()["optimizer"]["state"], halves[stopped]["optimizer"]["state"])
        train(engine, ranks, range(2, STEPS))
        if stopped == continued:
            assert_equal(engine.module.state_dict(), whole[stopped].state_dict())
        elif ranks.first:
            assert_close(engine.module, whole["ddp", 0], TOLERANCES["fp32"])


def assert_close_states(ours: dict, theirs: dict) -> None:
    assert ours["optimizer"]["param_groups"] == theirs["optimizer"]["param_groups"]
    states = ours["optimizer"]["state"], theirs["optimizer"]["state"]
    assert states[0].keys() == states[1].keys()
    for name, expected in states[1].items():
        assert expected.keys() == states[0][name].keys() == {"step", "exp_avg", "exp_avg_sq"}
        for key, value in expected.items():
            torch.testing.assert_close(states[0][name][key], value, rtol=1e-4, atol=1e-6)


def synchronised_norms_are_those_of_ddp(ranks: Ranks) -> None:
    """The same statistics on all ranks, without asking for rank 0's, whichever engine."""
    expected = train(make_engine(("ddp", 0), resnet(), ranks, sync_batch_norm=True), ranks)
    plain = train(make_engine(("ddp", 0), resnet(), ranks), ranks)
    assert (plain.losses == expected.losses) == (ranks.world_size == 1)
    for variant in (STAGES[0], STAGES[2]):
        found = train(make_engine(variant, resnet(), ranks, sync_batch_norm=True), ranks)
        assert found.losses == pytest.approx(expected.losses, rel=TOLERANCES["fp32"]), variant
        assert_close(found.engine.module, expected.engine.module, TOLERANCES["fp32"])


def assert_equal(ours: object, theirs: object) -> None:
    """Bitwise."""
    if isinstance(theirs, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert_equal(ours[key], theirs[key])
    else:
        assert ours == theirs


def assert_same_form(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    assert ours["scaler"] == theirs["scaler"]
    assert ours["optimizer"]["param_groups"] == theirs["optimizer"]["param_groups"]
    moments = [{name: v["momentum_buffer"] for name, v in s["optimizer"]["state"].items()} for s in (ours, theirs)]
    assert moments[0].keys() == moments[1].keys()
    for name, expected in moments[1].items():
        torch.testing.assert_close(moments[0][name], expected, rtol=1e-4, atol=1e-6)


def the_number_of_ranks_may_change(ranks: Ranks, folder: Path) -> None:
    """Two ranks write and one continues as they do; the sizes do not divide by two, so ZeRO pads."""
    path = folder / "two-ranks.pt"
    for variant in STAGES:
        if ranks.world_size == 2:
            engine = make_engine(variant, without_norms(), ranks)
            train(engine, ranks, range(2))
            state = engine.state()
            if ranks.first:
                torch.save(state, path.with_stem(f"two-ranks-{variant[1]}"))
            train(engine, ranks, range(2, STEPS))
            if ranks.first:
                torch.save(engine.module.state_dict(), path.with_stem(f"end-{variant[1]}"))
            continue
        engine = make_engine(variant, without_norms(), ranks)
        engine.load_state(torch.load(path.with_stem(f"two-ranks-{variant[1]}"), weights_only=True))
        train(engine, ranks, range(2, STEPS))
        found = engine.module.state_dict()
        for name, tensor in torch.load(path.with_stem(f"end-{variant[1]}"), weights_only=True).items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


def an_overflow_is_skipped_and_lowers_the_scale(ranks: Ranks) -> None:
    for variant in VARIANTS:
        engine = make_engine(variant, without_norms(), ranks, "fp16")
        train(engine, ranks, range(1))
        before = copy.deepcopy(engine.module.state_dict())
        # On the last rank alone: all of them must know.
        _, result = take_step(engine, 1, ranks, float("inf") if ranks.rank == ranks.world_size - 1 else 1.0)
        assert result.skipped, variant
        assert_equal(engine.module.state_dict(), before)
        again = make_engine(variant, without_norms(), ranks, "fp16")
        again.load_state(written(engine.state()))
        train(again, ranks, range(2, 3))
        if variant == ("ddp", 0):
            expected = again
        assert again.state()["scaler"] == expected.state()["scaler"], variant
        assert_close(again.module, expected.module, TOLERANCES["fp16"])


def a_gradient_that_is_not_finite_ends_the_run(ranks: Ranks) -> None:
    for variant in STAGES[1:]:
        engine = make_engine(variant, without_norms(), ranks)
        with pytest.raises(FloatingPointError, match="not finite"):
            take_step(engine, 0, ranks, float("nan"))


def buffers_are_those_of_rank_0(ranks: Ranks) -> None:
    for variant in STAGES:
        engine = make_engine(variant, resnet(), ranks)
        train(engine, ranks, range(1))
        images = torch.rand(2, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(ranks.rank))
        engine.module.eval()
        with engine.accumulating(more=False):
            engine.forward(images)
        engine.sync_buffers()
        sums = ranks.gather([float(buffer.double().sum()) for buffer in engine.module.buffers()])
        assert all(one == sums[0] for one in sums), variant


def main() -> None:
    before = dict(os.environ)
    with join(EngineConfig(name="deepspeed", device="cpu", threads=1, timeout_minutes=1)) as ranks:
        the_number_of_ranks_may_change(ranks, Path(sys.argv[1]))
        the_curve_is_that_of_ddp(ranks)
        states_are_those_of_ddp(ranks)
        adamw_is_that_of_ddp(ranks)
        synchronised_norms_are_those_of_ddp(ranks)
        an_overflow_is_skipped_and_lowers_the_scale(ranks)
        a_gradient_that_is_not_finite_ends_the_run(ranks)
        buffers_are_those_of_rank_0(ranks)
    changed = {name for name, _ in set(os.environ.items()) ^ set(before.items())}
    assert changed <= {"TORCHINDUCTOR_CACHE_DIR"}, changed  # torch's own
    assert not torch.distributed.is_initialized()


main()
