"""The parts of a training run on images in memory: the real loop without data, checkpoints and processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from kapdist.config import AdversarialConfig, Config, DataConfig, EngineConfig, OptimConfig, TrainConfig
from kapdist.data.beton.layout import open_beton
from kapdist.data.load.loader import Batch
from kapdist.engine import ENGINES, Ranks
from kapdist.models.strided import guard_strided
from kapdist.plan.training import make_plan, part
from kapdist.run.paths import RunDir
from kapdist.train.adversarial import Adversary
from kapdist.train.batches import InputNoise
from kapdist.train.graphs import Graphs
from kapdist.train.job import Job, LastEvaluation
from kapdist.train.metrics import LossMeter
from kapdist.train.optim import make_ema, make_optimizer
from kapdist.train.speed import Speed

SIDE, CLASSES = 8, 5
NOTHING: Any = SimpleNamespace()


def make_config(adversarial: dict[str, Any], optim: dict[str, Any] | None = None, **train: Any) -> Config:
    """A run of one batch per epoch and plain gradient descent, unless told otherwise."""
    plain = {"lr": 0.5, "momentum": 0.0, "weight_decay": 0.0, "warmup_epochs": 0.0, "label_smoothing": 0.0}
    return Config(
        name="test",
        seed=3,
        data=DataConfig(train=Path("none"), validation=Path("none")),
        train=TrainConfig(**{"epochs": 4, "batch_size": 12} | train),
        optim=OptimConfig(**plain | (optim or {})),
        adversarial=AdversarialConfig(**adversarial),
    )


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, CLASSES))


def make_job(config: Config, model: nn.Module, num_images: int, ranks: Ranks | None = None, **engine: Any) -> Job:
    """Put a job together around a model, with an engine's keys, on the ranks' device."""
    ranks = ranks or Ranks()
    settings = EngineConfig(**{"device": ranks.device.type, "channels_last": False} | engine)
    plan = make_plan(config, num_images, ranks.world_size)
    model = guard_strided(model).to(ranks.device)
    ema = make_ema(model, config.optim)
    optimizer = make_optimizer(model, config.optim, fused=ranks.on_gpu)
    running = ENGINES[settings.name](model, optimizer, settings, ranks, config.optim.clip_grad_norm)
    adversary = Adversary(config, plan, plan.adversarial, running, ranks) if plan.adversarial else None
    noise, speed = InputNoise(0.0, config.seed), Speed(ranks, None, lambda side: None)
    parts = *[NOTHING] * 4, noise, adversary, LossMeter(ranks), speed, LastEvaluation(), *[NOTHING] * 4
    graphs = Graphs(config.train.mixup_alpha > 0) if settings.graphs else None
    return Job(config, ranks, RunDir(Path("none")), plan, running, ema, *parts, graphs=graphs)


def pictures(num_images: int, side: int = SIDE) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images, some of their values at the ends of [0, 1], and labels."""
    generator = torch.Generator().manual_seed(1)
    images = (1.5 * torch.rand(num_images, 3, side, side, generator=generator) - 0.25).clamp(0, 1)
    return images, torch.randint(0, CLASSES, (num_images,), generator=generator)


def pixels(beton: Path) -> torch.Tensor:
    """Return the images of a beton of raw pixels, read without the loader: (n, 3, 32, 32) in [0, 1]."""
    info = open_beton(beton)
    stored = np.fromfile(beton, np.uint8)
    images = [stored[start : start + 3 * 32 * 32].reshape(32, 32, 3) for start in info.layout.offsets]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def batches(job: Job, images: torch.Tensor, labels: torch.Tensor, steps: int) -> Iterator[Batch]:
    """This rank's parts of each step's batch, the images in their own order."""
    for step in range(steps):
        mine = job.plan.rank_batch(step, job.ranks.rank)
        for index in range(job.plan.accumulation_steps):
            ids = np.asarray(part(mine, index, job.plan.accumulation_steps))
            yield Batch(images[ids], labels[ids], ids)
