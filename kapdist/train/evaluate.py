"""Accuracy over exactly the images that exist, on any number of ranks: count, sum, divide once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kapdist import kap
from kapdist.data import Loader
from kapdist.engine import Ranks
from kapdist.plan import part


@dataclass(frozen=True)
class Evaluation:
    """Counts over all images and ranks."""

    num_images: int
    num_top1: int
    num_top5: int
    loss_sum: float

    def describe(self) -> dict[str, int | float]:
        return {
            "top1": self.num_top1 / self.num_images,
            "top5": self.num_top5 / self.num_images,
            "loss": self.loss_sum / self.num_images,
            "num_images": self.num_images,
        }


def evaluate(
    model: nn.Module, loader: Loader, num_images: int, batch_size: int, ranks: Ranks, stopped: Callable[[], bool]
) -> Evaluation | None:
    """Evaluate in fp32 with the activation noise off; every rank takes its share, nothing is padded or dropped.

    `stopped` is asked after every batch that all ranks have; where it says so, there is no evaluation.
    """
    mine = part(range(num_images), ranks.rank, ranks.world_size)
    batches = [np.asarray(mine[start : start + batch_size]) for start in range(0, len(mine), batch_size)]
    num_common = num_images // ranks.world_size // batch_size
    finished = False
    totals = torch.zeros(4, dtype=torch.float64, device=ranks.device)
    was_training = model.training
    model.eval()
    with torch.inference_mode(), kap.noise(model, "off"):
        for number, batch in enumerate(loader.batches(batches)):
            totals += counts(model(batch.images), batch.labels)
            if number < num_common and stopped():
                break
        else:
            finished = True
    model.train(was_training)
    if not finished:
        return None
    num_images, num_top1, num_top5, loss_sum = ranks.sum(totals).tolist()
    return Evaluation(int(num_images), int(num_top1), int(num_top5), loss_sum)


def counts(logits: Tensor, labels: Tensor) -> Tensor:
    """Return (images, top-1 hits, top-5 hits, summed cross-entropy) as a float64 vector, exact up to 2^53."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = best == labels[:, None]
    loss = F.cross_entropy(logits.double(), labels, reduction="sum")
    num_images = torch.tensor(len(labels), device=logits.device)
    return torch.stack([num_images.double(), hits[:, 0].sum().double(), hits.sum().double(), loss])
