"""What a step of the training launches and waits for; recorded as a CUDA graph it is the same to the last bit."""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from in_memory import CLASSES, SIDE, batches, make_config, make_job, pictures
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from kapdist.config import EngineConfig, OptimConfig
from kapdist.engine import ENGINES, DDPEngine, Ranks
from kapdist.engine.ddp import wrap
from kapdist.engine.numerics import computing
from kapdist.kap import kapify
from kapdist.train.job import Job
from kapdist.train.loop import train_step
from kapdist.train.optim import make_optimizer

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
NUM_IMAGES = 24
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "item", "equal"}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"accumulation_steps": 2},
    "mixup": {"mixup_alpha": 0.2},
    "fast": {"mode": "fast"},
    "trades": {"mode": "trades", "steps": 2, "awp_gamma": 0.01},
    "pgd": {"mode": "pgd", "steps": 2, "norm": "L2"},
}


class Ops(TorchDispatchMode):
    """Counts the operators that are called, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "profiler":
            self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2)
    model = nn.Sequential(*layers, nn.Linear(6 * (SIDE - 2) ** 2, CLASSES))
    return kapify(model, pool_size=3, layout="line", noise_std=0.1)


def job_of(kind: str, ranks: Ranks, optim: dict[str, Any] | None = None, **engine: Any) -> Job:
    """A job with a moving average, momentum and a kind of training."""
    told = dict(KINDS[kind])
    train = {key: told.pop(key) for key in ("accumulation_steps", "mixup_alpha") if key in told}
    kept = {"momentum": 0.9, "ema_decay": 0.9, "weight_decay": 1e-3} | (optim or {})
    return make_job(make_config(told, kept, epochs=40, **train), network(), NUM_IMAGES, ranks, **engine)


def take(job: Job, steps: int, first: int = 0, measured: int = 0) -> Iterator[int]:
    """Take steps of a job; every so many of them is measured."""
    images, labels = (tensor.to(job.ranks.device) for tensor in pictures(NUM_IMAGES))
    source = iter(list(batches(job, images, labels, first + steps)))  # picked out of the pictures, which waits
    for step in range(first + steps):
        if step >= first:
            train_step(job, source, step, measure=bool(measured) and (step + 1) % measured == 0)
            yield step


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Optimizers as for GPUs."""
    monkeypatch.setattr(Ranks, "on_gpu", True)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_is_not_measured_asks_the_device_nothing(kind: str, precision: str, fused: None) -> None:
    asked = {}
    for measured in (0, 1):
        job = job_of(kind, Ranks(), {"clip_grad_norm": 1.0}, precision=precision)
        with Ops() as ops:
            list(take(job, 2, measured=measured))
        asked[measured] = {name: count for name, count in ops.counts.items() if name in WAITS}
    assert not asked[0]
    assert bool(asked[1]) == (precision == "fp16"), "the scale is read where it is measured, and nothing else is"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_update_is_few_launches(precision: str, fused: None) -> None:
    """One for the weights that decay, one for the others, one for the moving average; fp16 looks for overflows."""
    job = job_of("plain", Ranks(), precision=precision)
    list(take(job, 1))
    images, labels = pictures(12)
    job.engine.backward(F.cross_entropy(job.engine.forward(images).float(), labels))
    with Ops() as ops:
        job.engine.descend(measure=False)
        job.ema.average(job.engine.module)
    updates = {"_fused_sgd_": 2, "_foreach_lerp_": 1}
    assert {name: count for name, count in ops.counts.items() if name in updates} == updates
    rest = ops.counts - Counter(updates)
    if precision == "fp32":
        assert not rest
    else:
        assert rest["_amp_foreach_non_finite_check_and_unscale_"] == rest["_amp_update_scale_"] == 1
        assert rest.total() < 10


@pytest.mark.parametrize("told", [{}, {"name": "adamw", "lr": 0.01}], ids=["sgd", "adamw"])
def test_the_fused_update_is_the_other_one_and_continues_its_state(told: dict[str, Any]) -> None:
    """Of fp16 with an overflow in its first step, which leaves no momentum; files of either go on in the other."""

    def make(fused: bool) -> DDPEngine:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 7), nn.Linear(7, 3))
        optimizer = make_optimizer(model, OptimConfig(**told), fused=fused)
        return DDPEngine(model, optimizer, EngineConfig(precision="fp16"), Ranks())

    def step(engine: DDPEngine, number: int) -> bool | None:
        images = torch.rand(8, 4, generator=torch.Generator().manual_seed(number))
        loss = engine.forward(images).float().square().mean() / 8 * (float("inf") if number == 0 else 1)
        engine.backward(loss)
        return engine.step(0.01 * (number + 1), measure=True).skipped

    engines = [make(True), make(False)]
    for number in range(6):
        assert {step(engine, number) for engine in engines} == {number == 0}
        weights = [torch.cat([p.detach().flatten() for p in engine.module.parameters()]) for engine in engines]
        torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-7)
        if number == 3:
            swapped = [make(True), make(False)]
            for engine, other in zip(swapped, reversed(engines), strict=True):
                engine.load_state(other.state())
            engines = swapped
    rates = [{type(group["lr"]) for group in engine.optimizer.param_groups} for engine in engines]
    assert rates == [{torch.Tensor}, {float}]


@contextlib.contextmanager
def gpu(**engine: Any) -> Iterator[Ranks]:
    """A GPU that computes as a config says, on a stream that can be recorded."""
    device = torch.device("cuda", 0)
    with computing(EngineConfig(device="cuda", **engine)), torch.cuda.stream(torch.cuda.Stream(device)):
        yield Ranks(device=device)


@NEEDS_GPU
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_is_waited_for_in_no_step_that_is_not_measured(kind: str, precision: str) -> None:
    with gpu() as ranks:
        job = job_of(kind, ranks, {"clip_grad_norm": 1.0}, precision=precision)
        list(take(job, 1))
        steps = take(job, 5, first=1)
        next(steps)  # which sends the pictures, once
        torch.cuda.set_sync_debug_mode("error")
        try:
            list(steps)
            with pytest.raises(RuntimeError, match="synchroniz"):
                job.meter.sum.item()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def end_of(kind: str, precision: str, graphs: bool, optim: dict[str, Any] | None = None) -> dict[str, torch.Tensor]:
    """Return what a GPU ends with after forty steps, every fourth of them measured."""
    with gpu(deterministic=True) as ranks:
        job = job_of(kind, ranks, optim, precision=precision, graphs=graphs)
        list(take(job, 40, measured=4))
        if job.graphs:
            assert len(job.graphs.recorded) == 2, "measured and not"
            job.graphs.release()
        state = job.engine.state()["model"] | job.ema.module.state_dict(prefix="ema.")
        return {name: tensor.clone() for name, tensor in state.items()} | {"loss": job.meter.sum.clone()}


@NEEDS_GPU
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kind", KINDS)
def test_recorded_steps_are_the_others_to_the_last_bit(kind: str, precision: str) -> None:
    launched, recorded = (end_of(kind, precision, graphs) for graphs in (False, True))
    assert all(torch.equal(launched[name], recorded[name]) for name in launched)


class Wrapped(DDPEngine):
    """DDP, its messages and all, around the model of a rank that is alone."""

    def start(self, config: EngineConfig) -> None:
        super().start(config)
        self.network = wrap(self.network)

    def forward_each(self, *batches: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with self.autocast():
            return self.network(*batches)

    @contextlib.contextmanager
    def accumulating(self, more: bool) -> Iterator[None]:
        with self.network.no_sync() if more else contextlib.nullcontext():
            yield


@NEEDS_GPU
def test_recorded_steps_of_adamw_are_the_others_to_the_last_bit() -> None:
    told = {"name": "adamw", "lr": 0.01}
    launched, recorded = (end_of("mixup", "fp16", graphs, told) for graphs in (False, True))
    assert all(torch.equal(launched[name], recorded[name]) for name in launched)


@NEEDS_GPU
@pytest.mark.parametrize("kind", ["plain", "accumulated", "trades"])
def test_recorded_messages_are_the_others_to_the_last_bit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of NCCL; the group can be left once graphs are let go of."""
    alone = end_of(kind, "bf16", False)
    monkeypatch.setitem(ENGINES, "ddp", Wrapped)
    device = torch.device("cuda", 0)
    torch.distributed.init_process_group(
        "nccl", store=torch.distributed.HashStore(), rank=0, world_size=1, device_id=device
    )
    try:
        ends = [end_of(kind, "bf16", graphs) for graphs in (False, True)]
    finally:
        gc.collect()
        torch.distributed.destroy_process_group()
    for end in ends:
        assert all(torch.equal(alone[name], end[name]) for name in alone)
