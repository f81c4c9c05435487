"""The trainer's images/s on one device: beside a bare loop, and beside timm's own parts where timm is installed.

    python tools/bench_trainer.py [--device cuda] [--rounds 4] [--steps 15] [--batch-size 256] [--pixels 160]

From memory: the trainer's loop, engine and all, beside a loop of forward, backward and update, on random images
that lie on the device. From files: its loop and loader on a beton of JPEGs beside timm's on a folder of the same
JPEGs. timm's wheel has no train.py: its side is that script's loop, written from timm's create_model,
create_optimizer_v2, create_dataset and create_loader, with the same autocast. Each round takes `steps` steps of
everybody in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_step import machine
from torch import Tensor, nn
from torch.nn import functional as F

from kapdist.config import Config, DataConfig, EngineConfig, ModelConfig, TrainConfig
from kapdist.data.load.loader import Batch, Loader
from kapdist.engine import DDPEngine, Ranks
from kapdist.models.build import build_model
from kapdist.plan.training import Plan, make_plan
from kapdist.run.paths import RunDir
from kapdist.train.batches import InputNoise, training_batches
from kapdist.train.clock import Clock
from kapdist.train.graphs import Graphs
from kapdist.train.job import Job, LastEvaluation
from kapdist.train.loop import take_steps
from kapdist.train.metrics import LossMeter, MetricsLog
from kapdist.train.optim import make_optimizer
from kapdist.train.speed import Speed
from kapdist.train.stop import Stop
from kapdist.train.watchdog import Watchdog

CLASSES = 1000
COPIES = 20  # of each file in an epoch: a round should hold no end of one

Steps = Callable[[], None]
"""Takes the steps of one round."""


@dataclass(frozen=True)
class Setting:
    """What everybody is given."""

    device: torch.device
    precision: str
    batch_size: int
    pixels: int
    width: float
    steps: int
    workers: int

    @property
    def dtype(self) -> torch.dtype:
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[self.precision]

    def autocast(self) -> Any:
        return torch.autocast(self.device.type, self.dtype, enabled=self.precision != "fp32")

    def config(self, graphs: bool, beton: Path = Path("none")) -> Config:
        data = {"train": beton, "validation": beton, "resolution": self.pixels, "workers": self.workers}
        return Config(
            name="bench",
            data=DataConfig.model_validate(data | {"crop": "random-resized", "flip": True}),
            model=ModelConfig(name="resnet50", num_classes=CLASSES, width=self.width),
            train=TrainConfig(batch_size=self.batch_size, epochs=10_000, log_every_steps=self.steps),
            engine=EngineConfig.model_validate(
                {"device": self.device.type, "precision": self.precision, "graphs": graphs}
            ),
        )


def on_device(setting: Setting) -> list[Batch]:
    """Return a few batches of noise that lie on the device; nobody waits for data."""
    shape = setting.batch_size, 3, setting.pixels, setting.pixels
    ids = np.arange(setting.batch_size)
    return [
        Batch(
            torch.rand(shape, device=setting.device).contiguous(memory_format=torch.channels_last),
            torch.randint(0, CLASSES, (setting.batch_size,), device=setting.device),
            ids,
        )
        for _ in range(2)
    ]


def placed(model: nn.Module, setting: Setting) -> nn.Module:
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    return model.to(setting.device).train()


def bare(setting: Setting, batches: list[Batch]) -> Steps:
    """Forward, backward, update, and nothing else."""
    config = setting.config(graphs=False)
    model = placed(build_model(config.model, config.kap), setting)
    optimizer = make_optimizer(model, config.optim, fused=setting.device.type == "cuda")
    source = itertools.cycle(batches)

    def steps() -> None:
        for _ in range(setting.steps):
            batch = next(source)
            with setting.autocast():
                logits = model(batch.images)
            F.cross_entropy(logits.float(), batch.labels, label_smoothing=0.1).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return steps


class WithoutEvaluation(Clock):
    """The loop's clock in a measure of steps alone."""

    def evaluates(self, step: int) -> bool:
        return False

    def saves(self, step: int, ranks: Ranks) -> bool:
        return False


def trainer(setting: Setting, source: Any, num_images: int, graphs: bool, stack: contextlib.ExitStack) -> Steps:
    """The trainer's own loop, metrics and all; `source` makes its batches from (config, plan)."""
    config = setting.config(graphs)
    ranks = Ranks(device=setting.device)
    plan = make_plan(config, num_images, 1)
    model = placed(build_model(config.model, config.kap), setting)
    optimizer = make_optimizer(model, config.optim, fused=ranks.on_gpu)
    engine = DDPEngine(model, optimizer, config.engine, ranks)
    run = RunDir(Path(stack.enter_context(tempfile.TemporaryDirectory())))
    metrics = stack.enter_context(MetricsLog(run, 0, plan.total_steps, active=True))
    nothing: Any = None  # neither evaluation nor checkpoints are part of the measure
    noise, speed = InputNoise(0.0, 0), Speed(ranks, None, lambda side: None)
    watchdog = Watchdog(run.root, ranks, 600.0, run.failed)
    recorded = Graphs(mixes=False) if graphs else None
    batches, counter = source(config, plan), itertools.count(0, setting.steps)
    data = nothing, nothing, nothing, nothing
    parts: Any = noise, None, LossMeter(ranks), speed, LastEvaluation(), nothing, nothing, Stop(ranks), watchdog

    job = Job(config, ranks, run, plan, engine, None, *data, *parts)

    def steps() -> None:
        step = next(counter)
        until = Until(**{**vars(plan), "last": step + setting.steps})
        clock = WithoutEvaluation(config.train, until, step)
        take_steps(replace(job, plan=until, graphs=recorded), batches, step, clock, metrics)

    return steps


@dataclass(frozen=True)
class Until(Plan):
    """A plan of which a round takes the steps up to `last`."""

    last: int = 0

    @property
    def total_steps(self) -> int:
        return self.last


def timms(setting: Setting, batches: Iterator[tuple[Tensor, Tensor]]) -> Steps:
    """The loop of timm's train.py, on timm's model and optimizer."""
    import timm
    from timm.optim import create_optimizer_v2

    model = placed(timm.create_model("resnet50", num_classes=CLASSES), setting)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1, weight_decay=1e-4, momentum=0.9)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)

    def steps() -> None:
        for _ in range(setting.steps):
            images, labels = next(batches)
            images = images.contiguous(memory_format=torch.channels_last)
            with setting.autocast():
                loss = loss_of(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return steps


def timms_files(setting: Setting, folder: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of timm's loader as its train.py makes it, epoch after epoch."""
    from timm.data import create_dataset, create_loader

    dataset = create_dataset("", root=str(folder), split="train", is_training=True, batch_size=setting.batch_size)
    loader = create_loader(
        dataset,
        input_size=(3, setting.pixels, setting.pixels),
        batch_size=setting.batch_size,
        is_training=True,
        num_workers=setting.workers,
        device=setting.device,
        use_prefetcher=setting.device.type == "cuda",
        pin_memory=False,
        color_jitter=None,
        persistent_workers=True,
    )
    while True:
        yield from ((images.to(setting.device), labels.to(setting.device)) for images, labels in loader)


def from_beton(setting: Setting, beton: Path) -> Callable[[Config, Plan], Iterator[Batch]]:
    """Return what makes the trainer's batches of a beton, by its own loader and order."""
    from kapdist.data.beton.layout import open_beton

    def batches(config: Config, plan: Plan) -> Iterator[Batch]:
        info = open_beton(beton)
        data = config.data.model_copy(update={"train": beton})
        loader = Loader(
            info,
            data,
            training=True,
            seed=0,
            max_batch_size=plan.largest_part,
            device=setting.device,
            num_workers=setting.workers,
        )
        return training_batches(loader, plan, config, 0, 0)

    return batches


def contestants(setting: Setting, num_images: int, folder: Path, stack: contextlib.ExitStack) -> dict[str, Steps]:
    """Return everybody by name; who needs what is not there is left out with a word."""
    batches = on_device(setting)
    in_memory = lambda config, plan: itertools.cycle(batches)  # noqa: E731
    have_timm = importlib.util.find_spec("timm") is not None
    found = {
        "bare": bare(setting, batches),
        "trainer": trainer(setting, in_memory, 2 * setting.batch_size, False, stack),
    }
    if setting.device.type == "cuda":
        found["trainer, graphs"] = trainer(setting, in_memory, 2 * setting.batch_size, True, stack)
    if have_timm:
        found["timm"] = timms(setting, itertools.cycle([(batch.images, batch.labels) for batch in batches]))
    else:
        print("timm: not installed, left out")
    if not num_images:
        return found
    from photographs import as_beton, link_copies, photographs  # what they are made with may be absent

    started = time.perf_counter()
    photographs(folder / "jpeg", num_images, setting.workers)
    as_beton(folder / "jpeg", folder / "train.beton", COPIES)
    link_copies(folder / "jpeg", COPIES)
    size = statistics.mean(path.stat().st_size for path in folder.glob("jpeg/*/*")) / 1000
    print(f"{num_images} JPEGs of {size:.0f} kB on average, written in {time.perf_counter() - started:.1f} s")
    graphs = setting.device.type == "cuda"
    found["trainer, files"] = trainer(
        setting, from_beton(setting, folder / "train.beton"), num_images * COPIES, graphs, stack
    )
    if have_timm:
        found["timm, files"] = timms(setting, timms_files(setting, folder / "jpeg"))
    return found


def seconds_of(steps: Steps, device: torch.device) -> float:
    """Return how long a round takes, the device's queue drained before and after."""
    drain(device)
    started = time.perf_counter()
    steps()
    drain(device)
    return time.perf_counter() - started


def drain(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(found: dict[str, Steps], setting: Setting, rounds: int, warm_up: int) -> dict[str, list[float]]:
    """Return images/s of each round; who goes first alternates, so that a device that slows down favours nobody."""
    rates: dict[str, list[float]] = {name: [] for name in found}
    for number in range(warm_up + rounds):
        names = list(found) if number % 2 else list(reversed(found))
        for name in names:
            seconds = seconds_of(found[name], setting.device)
            if number >= warm_up:
                rates[name].append(setting.steps * setting.batch_size / seconds)
    return rates


PAIRS = (
    ("trainer", "bare"),
    ("trainer, graphs", "bare"),
    ("trainer", "timm"),
    ("trainer, graphs", "timm"),
    ("trainer, files", "timm, files"),
    ("trainer, files", "trainer, graphs"),
)


def report(rates: dict[str, list[float]]) -> Iterator[str]:
    """Yield the lines of the result; a ratio is between the two of one round."""
    for name, found in rates.items():
        yield f"{name:<16} {statistics.median(found):9.1f} images/s   {min(found):.1f} to {max(found):.1f}"
    for ours, theirs in PAIRS:
        if ours in rates and theirs in rates:
            ratios = [one / other for one, other in zip(rates[ours], rates[theirs], strict=True)]
            spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
            yield f"ratio {statistics.median(ratios):.3f} ({spread}; {len(ratios)} rounds)   {ours} / {theirs}"


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if cuda else "cpu")
    parser.add_argument("--precision", choices=("bf16", "fp16", "fp32"), default="bf16" if cuda else "fp32")
    parser.add_argument("--rounds", type=int, default=4 if cuda else 2)
    parser.add_argument("--steps", type=int, default=15 if cuda else 2, help="of each round")
    parser.add_argument("--batch-size", type=int, default=256 if cuda else 4)
    parser.add_argument("--pixels", type=int, default=160 if cuda else 32)
    parser.add_argument("--width", type=float, default=1.0 if cuda else 0.125)
    parser.add_argument("--images", type=int, help="JPEGs to train from; 0 leaves files out")
    parser.add_argument("--workers", type=int, default=max(1, len(os.sched_getaffinity(0)) - 1))
    options = parser.parse_args()
    device = torch.device(options.device, 0) if options.device == "cuda" else torch.device("cpu")
    sizes = options.batch_size, options.pixels, options.width, options.steps, options.workers
    setting = Setting(device, options.precision, *sizes)
    num_images = 8 * setting.batch_size if options.images is None else options.images
    torch.backends.cudnn.benchmark = True
    print("The trainer beside a bare loop (goal: 0.98) and timm's parts (goal: 1.15), images/s")
    print(f"machine:  {machine(options.device)}")
    print(f"command:  python {' '.join(sys.argv)}")
    size = f"batch {options.batch_size}, {options.pixels} px, {options.precision}"
    model = f"ResNet-50 of width {options.width:g}, {size}"
    print(
        f"runs:     {options.rounds} paired rounds of {options.steps} steps; {model}, {options.workers} workers",
        flush=True,
    )
    stream = (
        torch.cuda.stream(torch.cuda.Stream(device)) if cuda and device.type == "cuda" else contextlib.nullcontext()
    )
    with contextlib.ExitStack() as stack, stream:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found = contestants(setting, num_images, folder, stack)
        # Graphs are recorded after eleven steps, and one of logged ones.
        warm_up = math.ceil(30 / setting.steps) if cuda else 1
        for line in report(measure(found, setting, options.rounds, warm_up)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
