"""A noisy model, images in memory and the parts of their robust validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from in_memory import CLASSES, SIDE, make_config, pictures
from torch import Tensor, nn

from kapdist.config import Config, KapConfig, RobustConfig
from kapdist.data.load.loader import Batch
from kapdist.engine import Ranks
from kapdist.kap import KAPConv2d
from kapdist.plan.robust import plan_robust
from kapdist.train.robust import RobustAccuracy, RobustValidation

NUM_IMAGES, SEED = 40, 3


class InMemory:
    """A loader of images in memory."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self.asked: list[list[int]] = []

    def batches(self, index_batches: Sequence[np.ndarray]) -> Iterator[Batch]:
        for ids in index_batches:
            self.asked.append(ids.tolist())
            yield Batch(self.images[ids], self.labels[ids], ids)


def network() -> nn.Module:
    """A model in training mode with all that an evaluation has to switch off."""
    torch.manual_seed(0)
    conv = KAPConv2d(3, 9, 3, pool_size=3, noise_std=0.3)
    head = nn.Linear(9 * (SIDE - 2) ** 2, CLASSES)
    return nn.Sequential(conv, nn.BatchNorm2d(9), nn.Softplus(), nn.Flatten(), nn.Dropout(0.5), head).train()


def learnt(model: nn.Module) -> tuple[InMemory, Tensor]:
    """Return images whose labels are mostly the model's own, so that there is something to lose."""
    images, labels = pictures(NUM_IMAGES)
    model.eval()
    from kapdist import kap

    with torch.no_grad(), kap.noise(model, "off"):
        labels = torch.where(torch.arange(NUM_IMAGES) % 5 > 0, model(images).argmax(1), labels)
    model.train()
    return InMemory(images, labels), labels


def config_of(noise: str = "off", **robust: Any) -> Config:
    draws = {"noise": "fresh", "draws": 2} if noise == "fresh" else {}
    told = {"every_epochs": 1, "num_images": 30, "batch_size": 4, "steps": 3, "eps": 0.02} | draws | robust
    plain = make_config({"mode": "off"})
    return plain.model_copy(update={"robust": RobustConfig(**told), "kap": KapConfig(noise_std=0.3)})


def validation_of(config: Config, loader: Any = None, ranks: Ranks | None = None) -> RobustValidation:
    plan = plan_robust(config, NUM_IMAGES, 4)
    assert plan is not None
    return RobustValidation(plan, loader, SEED, ranks or Ranks())


def found_by(ranks: Ranks, noise: str, stopped: Callable[[], bool] = lambda: False) -> RobustAccuracy:
    model = network()
    loader, _ = learnt(model)
    found = validation_of(config_of(noise), loader, ranks).withstood(model, stopped)
    assert found is not None
    return found
