"""Classifiers whose exact answers are known, of any number of classes, attacked from the plan to the summary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from kapdist.attack.merge import merge
from kapdist.attack.plan import plan_attack
from kapdist.attack.shard import run_shard
from kapdist.records.attack_plan import AttackPlan, read_plan
from kapdist.records.summary import Summary
from kapdist.run.paths import AttackDir

World = Any
DUAL = {"Linf": 1.0, "L2": 2.0, "L1": torch.inf}
ORDER = {"Linf": torch.inf, "L2": 2.0, "L1": 1.0}
EPS = {"Linf": 0.02, "L2": 0.3, "L1": 0.3}


class Linear(nn.Module):
    """A linear model around middle grey: all boundaries are planes through it, so distances scale with contrast."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(num_classes)
        self.weight = nn.Parameter(torch.randn(num_classes, 192, generator=random))

    def forward(self, images: Tensor) -> Tensor:
        return (images.flatten(1) - 0.5) @ self.weight.T


class RandomTemperature(Linear):
    """Noise that changes every logit and never the order of two: the exact answers stay, averaged or not."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * (0.5 + torch.rand(len(images), 1))


def distances(images: Tensor, labels: Tensor, num_classes: int, norm: str) -> Tensor:
    """Return the exact distance of each image, (B,), to the nearest other class; negative where it is wrong."""
    weight = Linear(num_classes).weight.detach().double()
    logits = (images.double().flatten(1) - 0.5) @ weight.T
    margin = logits.gather(1, labels[:, None]) - logits
    slope = torch.linalg.vector_norm(weight[labels][:, None] - weight[None], DUAL[norm], dim=2)
    return (margin / slope).scatter(1, labels[:, None], torch.inf).min(1).values


def images_at(shares: tuple[float, ...], num_classes: int, norm: str) -> tuple[Tensor, Tensor]:
    """Return images of 8 x 8 and their labels, at distances of these shares of eps; a negative one is wrong.

    None comes so near to 0 or 1 that [0, 1] would be in the way of a perturbation.
    """
    labels = torch.arange(len(shares)) % num_classes
    random = torch.Generator().manual_seed(0)
    weight = Linear(num_classes).weight.detach()[labels].view(-1, 3, 8, 8)
    direction = (weight + 0.3 * torch.randn(weight.shape, generator=random)) / 100
    unit = distances(0.5 + direction, labels, num_classes, norm)
    size = torch.tensor(shares, dtype=torch.float64).abs() * EPS[norm] / unit
    wrong = torch.tensor(shares) < 0
    labels[wrong] = (labels[wrong] + 1) % num_classes
    return (0.5 + size.view(-1, 1, 1, 1) * direction).float(), labels


class Short(AutoAttack):
    """The library with a few of its steps, queries and restarts."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__(model, **options)
        for attack in (self.apgd, self.apgd_targeted):
            attack.n_iter = attack.n_iter_orig = 6
            attack.n_iter_2 = 2
        self.apgd.n_restarts = self.fab.n_restarts = 1
        self.apgd.eot_iter = min(2, self.apgd.eot_iter)
        self.fab.n_iter, self.square.n_queries = 2, 8


def check(plan: AttackPlan, images: Tensor, labels: Tensor, broken: Tensor, adversarial: Tensor) -> None:
    """Assert what the exact distances say of any attack, strong or weak, on the images of a plan's norm and eps."""
    norm, eps, num_classes = plan.norm, plan.eps, plan.model.num_classes
    distance = distances(images, labels, num_classes, norm)
    assert not broken[distance > eps].any(), "an image was broken that is further away than eps"
    assert not broken[distance < 0].any(), "an image was broken that was wrong before"
    assert torch.equal(adversarial[~broken], images[~broken])
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    delta = (adversarial.double() - images.double()).flatten(1)
    assert (torch.linalg.vector_norm(delta, ORDER[norm], dim=1) <= eps * (1 + 1e-5)).all()
    # FAB stops on the boundary, where float32 and float64 may differ.
    assert (distances(adversarial, labels, num_classes, norm)[broken] < 1e-4 * eps).all()


@dataclass(frozen=True)
class Attacked:
    """What an attack left: its records by image, and the image that it kept of each."""

    plan: AttackPlan
    summary: Summary
    records: pl.DataFrame
    adversarial: Tensor

    @property
    def broken(self) -> Tensor:
        return torch.from_numpy(self.records["broken_by"].is_not_null().to_numpy())


def attacked(world: World, model: str, images: Tensor, labels: Tensor, **fields: Any) -> Attacked:
    """Plan an attack on a model of this module (an expression), run its shard, merge, in a run directory anew."""
    world.images, world.labels = images, labels
    source = f"from attack.kinds import *\n\n\ndef build():\n    return {model}\n"
    (world.folder / "factory.py").write_text(source)
    options = {"keep_adversarial": True, "random_draws": 20, "hard_label_queries": 40, "rescore": 3}
    config = world.config(**options | fields)
    run = world.folder / f"run{len(list(world.folder.glob('run*')))}"
    plan_attack(run, config)
    attack = AttackDir(run / "attacks" / config.name)
    run_shard(attack.root, 0, 1)
    summary, plan = merge(attack.root), read_plan(attack)
    kept = [np.load(attack.adversarial_images(chunk)) for chunk in range(plan.num_chunks)]
    return Attacked(plan, summary, pl.read_parquet(attack.records), torch.from_numpy(np.concatenate(kept)))


class Cast(Linear):
    """Logits of another precision, computed in it or cast to it at the end."""

    def __init__(self, num_classes: int, dtype: torch.dtype, throughout: bool = False) -> None:
        super().__init__(num_classes)
        self.dtype, self.throughout = dtype, throughout

    def forward(self, images: Tensor) -> Tensor:
        if self.throughout:
            return (images.flatten(1) - 0.5).to(self.dtype) @ self.weight.T.to(self.dtype)
        return super().forward(images).to(self.dtype)


class Returns(Linear):
    """Whatever `change` makes of the logits."""

    def __init__(self, num_classes: int, change: Callable[[Tensor], Any]) -> None:
        super().__init__(num_classes)
        self.change = change

    def forward(self, images: Tensor) -> Any:
        return self.change(super().forward(images))


class Before(Linear):
    """Whatever `change` makes of the images goes to the linear model."""

    def __init__(self, num_classes: int, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(num_classes)
        self.change = change

    def forward(self, images: Tensor) -> Any:
        return super().forward(self.change(images))


class AlwaysTraining(Linear):
    """Dropout that `eval()` does not reach."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.drop = nn.Dropout(0.5)

    def train(self, mode: bool = True) -> AlwaysTraining:
        super().train(mode)
        self.drop.train()
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.drop(super().forward(images))


class Changes(Linear):
    """Does something to itself in every pass: a statement."""

    def __init__(self, num_classes: int, statement: str) -> None:
        super().__init__(num_classes)
        self.statement = statement
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("unsaved", torch.zeros(()), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            exec(self.statement, {"torch": torch, "self": self})
        return super().forward(images)
