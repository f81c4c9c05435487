"""What the trainer's loop costs: its steps against a bare loop's on the same model and in-memory batches.

    python tools/bench_loop.py [--rounds 30] [--batch-size 64] [--width 0.25]

Each round times `steps` steps of both, in turn; a ratio is between the two of one round.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_step import machine
from torch import nn
from torch.nn import functional as F

from kapdist.config import Config, DataConfig, EngineConfig, ModelConfig, TrainConfig
from kapdist.data.load.loader import Batch
from kapdist.engine import DDPEngine, Ranks
from kapdist.models.build import build_model
from kapdist.plan.training import Plan, make_plan
from kapdist.run.paths import RunDir
from kapdist.train.batches import InputNoise
from kapdist.train.clock import Clock
from kapdist.train.job import Job, LastEvaluation
from kapdist.train.loop import take_steps
from kapdist.train.metrics import LossMeter, MetricsLog
from kapdist.train.optim import make_optimizer
from kapdist.train.speed import Speed
from kapdist.train.stop import Stop
from kapdist.train.watchdog import Watchdog

STEPS = 20  # of one round: one line of metrics is among them, as in a run


def make_config(batch_size: int, width: float, rounds: int) -> Config:
    return Config(
        name="bench",
        data=DataConfig(train=Path("none"), validation=Path("none")),
        model=ModelConfig(num_classes=10, stem="cifar", width=width),
        train=TrainConfig(
            batch_size=batch_size, epochs=rounds, log_every_steps=STEPS, evaluate_every_epochs=rounds
        ),
        engine=EngineConfig(device="cpu"),
    )


def make_model(config: Config) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(config.model, config.kap).train()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    return model


def in_memory(batch_size: int) -> list[Batch]:
    """Return a few batches of noise; the loops never wait for data."""
    images = torch.rand(4, batch_size, 3, 32, 32)
    labels = torch.randint(0, 10, (4, batch_size))
    return [
        Batch(x.contiguous(memory_format=torch.channels_last), y, np.arange(batch_size))
        for x, y in zip(images, labels, strict=True)
    ]


def bare_loop(config: Config, plan: Plan, batches: list[Batch]) -> Callable[[], None]:
    """Return a function that takes STEPS steps: forward, backward, step, and nothing else."""
    model = make_model(config)
    optimizer = make_optimizer(model, config.optim)
    source = itertools.cycle(batches)

    def steps() -> None:
        for _ in range(STEPS):
            batch = next(source)
            loss = F.cross_entropy(model(batch.images), batch.labels, label_smoothing=config.optim.label_smoothing)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return steps


def trainers_loop(
    config: Config, plan: Plan, batches: list[Batch], run: RunDir, metrics: MetricsLog
) -> Callable[[], None]:
    """Return a function that takes STEPS steps of the trainer's own loop, metrics and all."""
    ranks = Ranks()
    model = make_model(config)
    engine = DDPEngine(model, make_optimizer(model, config.optim), config.engine, ranks)
    nothing: Any = None  # neither data nor evaluation is part of the measure
    noise = InputNoise(0.0, 0)
    meter = LossMeter(ranks)
    source = itertools.cycle(batches)
    last, stop, watchdog = LastEvaluation(), Stop(ranks), Watchdog(run.root, ranks, 600.0, run.failed)

    def steps_from(step: int) -> None:
        until = Plan(**{**vars(plan), "epochs": 1, "steps_per_epoch": step + STEPS})
        data = nothing, nothing, nothing, nothing
        job = Job(
            config,
            ranks,
            run,
            until,
            engine,
            None,
            *data,
            noise,
            None,
            meter,
            Speed(ranks, None, lambda side: None),
            last,
            nothing,
            nothing,
            stop,
            watchdog,
        )
        take_steps(job, source, step, WithoutEvaluation(config.train, until, step), metrics)

    counter = itertools.count(0, STEPS)
    return lambda: steps_from(next(counter))


class WithoutEvaluation(Clock):
    """The loop's clock in a measure of steps alone."""

    def evaluates(self, step: int) -> bool:
        return False


def measure(rounds: int, batch_size: int, width: float) -> list[tuple[float, float]]:
    """Return (bare, trainer) seconds per step of each round; the first round warms up and is dropped."""
    config = make_config(batch_size, width, rounds + 1)
    plan = make_plan(config, STEPS * batch_size, 1)
    batches = in_memory(batch_size)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        run = RunDir(Path(folder))
        metrics = stack.enter_context(MetricsLog(run, 0, plan.total_steps, active=True))
        loops = bare_loop(config, plan, batches), trainers_loop(config, plan, batches, run, metrics)
        pairs = []
        for number in range(rounds + 1):
            # Who goes first alternates: a machine that slows down must not favour one of them.
            order = (0, 1) if number % 2 else (1, 0)
            seconds = {index: timed(loops[index]) for index in order}
            pairs.append((seconds[0], seconds[1]))
    return pairs[1:]


def timed(loop: Callable[[], None]) -> float:
    started = time.perf_counter()
    loop()
    return (time.perf_counter() - started) / STEPS


def report(pairs: list[tuple[float, float]]) -> Iterator[str]:
    """Yield the lines of the result."""
    ratios = sorted(trainer / bare for bare, trainer in pairs)
    yield f"bare loop      {1e3 * statistics.median(bare for bare, _ in pairs):7.1f} ms per step"
    yield f"trainer's loop {1e3 * statistics.median(trainer for _, trainer in pairs):7.1f} ms per step"
    yield (
        f"ratio {statistics.median(ratios):.3f} (median of {len(ratios)} paired rounds of {STEPS} steps, "
        f"{ratios[0]:.3f} to {ratios[-1]:.3f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--width", type=float, default=0.25)
    arguments = parser.parse_args()
    print("The trainer's loop beside a bare one: same model, same in-memory batches; goal: at most 1.03 times")
    print(f"machine:  {machine()}")
    print(f"command:  python {' '.join(sys.argv)}", flush=True)
    for line in report(measure(arguments.rounds, arguments.batch_size, arguments.width)):
        print(line)


if __name__ == "__main__":
    main()
