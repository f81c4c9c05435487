"""What the engines cost, and whether they agree: DDP and DeepSpeed's stages on the same steps, paired in one run.

    torchrun --nproc-per-node 2 tools/bench_engines.py [--rounds 10] [--batch-size 16] [--pixels 64] [--width 0.25]
    python tools/bench_engines.py --precision bf16       one process, on a GPU if there is one

Each round times one step of every engine, in turn; a ratio is to DDP's step of the same round.
Needs torch, deepspeed and what deepspeed needs. The batch size is each rank's.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a bare box has no kapdist installed

from bench_step import machine

from kapdist.config import EngineConfig
from kapdist.engine import ENGINES, Engine, Ranks, join
from kapdist.kap import kapify
from kapdist.models import resnet18, resnet50

VARIANTS = {
    "ddp": EngineConfig(),
    "deepspeed, stage 0": EngineConfig(name="deepspeed"),
    "deepspeed, stage 1": EngineConfig(name="deepspeed", zero_stage=1),
    "deepspeed, stage 2": EngineConfig(name="deepspeed", zero_stage=2),
}
TOLERANCES = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 5e-3}
STEPS, CLIP = 3, 1.0


class Agreement(NamedTuple):
    """How far an engine is off: the largest relative error of a few losses, and how far that may be."""

    name: str
    error: float
    limit: float


def make_engine(variant: str, model: nn.Module, precision: str, ranks: Ranks) -> Engine:
    config = VARIANTS[variant].model_copy(update={"precision": precision})
    model = copy.deepcopy(model).to(ranks.device)
    model = model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    return ENGINES[config.name](model, optimizer, config, ranks, CLIP)


def take_step(engine: Engine, images: Tensor, labels: Tensor) -> Tensor:
    with engine.accumulating(more=False):
        loss = F.cross_entropy(engine.forward(images).float(), labels)
        engine.backward(loss)
    engine.step(lr=0.05, measure=False)
    return loss.detach()


def batch(size: int, pixels: int, ranks: Ranks) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(ranks.rank)
    images = torch.rand(size, 3, pixels, pixels, generator=generator)
    labels = torch.randint(0, 10, (size,), generator=generator)
    return images.to(ranks.device, memory_format=torch.channels_last), labels.to(ranks.device)


def check_engines(ranks: Ranks) -> Iterator[Agreement]:
    """Losses of each stage against DDP's in every precision, and a resume from each state, which is exact."""
    torch.manual_seed(0)
    model = kapify(resnet18(num_classes=10, stem="cifar", width=0.25))
    images, labels = batch(64, 32, ranks)
    before, torch.backends.cudnn.deterministic = torch.backends.cudnn.deterministic, True
    for precision, limit in TOLERANCES.items():
        expected = None
        for variant in VARIANTS:
            engine = make_engine(variant, model, precision, ranks)
            losses = torch.stack([take_step(engine, images, labels) for _ in range(STEPS)])
            again = make_engine(variant, model, precision, ranks)
            again.load_state(copy.deepcopy(engine.state()))
            ends = [take_step(one, images, labels) for one in (engine, again)]
            if expected is None:
                expected = losses
                continue
            error = float(((losses - expected).abs() / expected).max())
            yield Agreement(f"{variant}, {precision}: losses, as DDP's", error, limit)
            differing = sum(
                float((a != b).sum())
                for a, b in zip(engine.module.parameters(), again.module.parameters(), strict=True)
            )
            yield Agreement(f"{variant}, {precision}: resumed, weights that differ", differing, 0)
            assert len(ends) == 2
    torch.backends.cudnn.deterministic = before


def seconds(engine: Engine, images: Tensor, labels: Tensor, ranks: Ranks) -> float:
    """Of one step, all ranks together, the device's queue drained before and after."""
    ranks.barrier()
    drain(ranks)
    start = time.perf_counter()
    take_step(engine, images, labels)
    drain(ranks)
    return time.perf_counter() - start


def drain(ranks: Ranks) -> None:
    if ranks.device.type == "cuda":
        torch.cuda.synchronize(ranks.device)


def table(rounds: list[dict[str, float]]) -> str:
    lines = [f"{'engine':<22}{'step ms':>10}{'ratio':>8}   min - max"]
    for name in VARIANTS:
        ratios = [one[name] / one["ddp"] for one in rounds]
        step = statistics.median(one[name] for one in rounds)
        spread = f"{min(ratios):.3f} - {max(ratios):.3f}"
        lines.append(f"{name:<22}{1e3 * step:>10.1f}{statistics.median(ratios):>8.3f}   {spread}")
    return "\n".join(lines)


def bench(options: Any, ranks: Ranks) -> str:
    torch.manual_seed(0)
    network = resnet50 if options.width == 1 else resnet18
    model = kapify(network(num_classes=10, width=options.width))
    images, labels = batch(options.batch_size, options.pixels, ranks)
    engines = {name: make_engine(name, model, options.precision, ranks) for name in VARIANTS}
    for engine in engines.values():
        for _ in range(2):
            take_step(engine, images, labels)
    return table(
        [
            {name: seconds(engine, images, labels, ranks) for name, engine in engines.items()}
            for _ in range(options.rounds)
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="paired rounds")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--pixels", type=int, default=64)
    parser.add_argument("--width", type=float, default=0.25, help="of a ResNet-18; 1 is ResNet-50")
    parser.add_argument("--precision", choices=TOLERANCES, default="fp32")
    options = parser.parse_args()
    with join(EngineConfig(name="deepspeed")) as ranks:
        printed = bench(options, ranks)
        if ranks.first:
            print(f"machine:  {machine(ranks.device.type)}\ncommand:  python {' '.join(sys.argv)}")
            network = "ResNet-50" if options.width == 1 else f"ResNet-18 of width {options.width:g}"
            print(
                f"{ranks.world_size} ranks; {network}, K = 3, {options.precision}, {options.rounds} paired rounds"
            )
            print(printed)


if __name__ == "__main__":
    main()
