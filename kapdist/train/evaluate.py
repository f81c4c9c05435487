"""Accuracy over exactly the images that exist, on any number of ranks: count, sum, divide once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kapdist import kap
from kapdist.data.load.loader import Batch
from kapdist.engine import Ranks
from kapdist.engine.numerics import tensor_float_32, trying_algorithms
from kapdist.plan.training import part
from kapdist.records.evaluation import Bin

NUM_BINS = 15  # Guo et al. 2017, section 5
TOP = 5

Predict = Callable[[Tensor, int], Tensor]
"""From images and the number of their batch to logits (batch, classes)."""


class Reader(Protocol):
    """A Loader, or what else gives batches of the images that it is asked for."""

    def batches(self, index_batches: Sequence[np.ndarray], /) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Evaluation:
    """Counts over all images and ranks."""

    num_images: int
    num_top1: int
    num_top5: int
    """Images whose class is among the five best, or among all where there are fewer."""
    loss_sum: float
    class_images: tuple[int, ...]
    """Images of each class."""
    class_top1: tuple[int, ...]
    """Of these, the ones that were recognised."""
    bins: tuple[Bin, ...]

    @property
    def calibration_error(self) -> float:
        """Expected calibration error (Guo et al. 2017, https://arxiv.org/abs/1706.04599, equation 3)."""
        return sum(abs(one.num_right - one.confidence_sum) for one in self.bins) / self.num_images

    def describe(self) -> dict[str, int | float]:
        return {
            "top1": self.num_top1 / self.num_images,
            "top5": self.num_top5 / self.num_images,
            "loss": self.loss_sum / self.num_images,
            "ece": self.calibration_error,
            "num_images": self.num_images,
        }


def evaluate(
    model: nn.Module,
    loader: Reader,
    num_images: int,
    num_classes: int,
    batch_size: int,
    ranks: Ranks,
    stopped: Callable[[], bool],
    predict: Predict | None = None,
) -> Evaluation | None:
    """Evaluate in fp32; every rank takes its share of the batches, nothing is padded or dropped.

    Batches are cut before they are dealt, and sums are taken in their order: the result is the same to the last bit
    on any number of ranks, of one kind of device and as many threads.

    Args:
        stopped: asked after every batch that all ranks have; where it says so, there is no evaluation.
        predict: how logits come about; else they are the model's with its noise off.
    """
    dealt = deal(range(num_images), batch_size, ranks)
    finished = False
    tally = Tally(num_classes, ranks.device)
    was_training = model.training
    model.eval()
    # Not in inference mode: what a network by others keeps of its first call must go through gradients afterwards.
    with torch.no_grad(), tensor_float_32(False), trying_algorithms(False), kap.noise(model, "off"):
        for done, (number, batch) in enumerate(zip(dealt.numbers, loader.batches(dealt.batches), strict=True)):
            tally.add(predict(batch.images, number) if predict else model(batch.images), batch.labels)
            if done < dealt.num_common and stopped():
                break
        else:
            finished = True
    model.train(was_training)
    return tally.over(ranks) if finished else None


class Dealt(NamedTuple):
    """A rank's share of batches that were cut before they were dealt, so that nothing depends on the ranks."""

    numbers: range
    batches: list[np.ndarray]
    """Image ids of each."""
    num_common: int
    """Batches that every rank has."""


def deal(images: Sequence[int], batch_size: int, ranks: Ranks) -> Dealt:
    """Cut images into batches of this size, the last one smaller, and return this rank's."""
    num_batches = -(-len(images) // batch_size)
    numbers = part(range(num_batches), ranks.rank, ranks.world_size)
    batches = [np.asarray(images[n * batch_size : (n + 1) * batch_size]) for n in numbers]
    return Dealt(numbers, batches, num_batches // ranks.world_size)


class Tally:
    """What one rank has counted and summed so far."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.num_classes = num_classes
        self.counts = torch.zeros(3 + 2 * num_classes + 2 * NUM_BINS, dtype=torch.int64, device=device)
        self.sums: list[Tensor] = []  # of each batch: the loss, and the confidence in each bin; float64

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits (batch, classes), labels (batch,)."""
        place = places(logits, labels)
        right = place < 1
        confidence = logits.double().softmax(1).amax(1)
        bins = bin_of(confidence)
        top = torch.stack([right.new_full((), len(labels), dtype=torch.int64), right.sum(), (place < TOP).sum()])
        of_class, of_bin = members(labels, self.num_classes), members(bins, NUM_BINS)
        counts = [mask.sum(1) for mask in (of_class, of_class & right, of_bin, of_bin & right)]
        self.counts += torch.cat([top, *counts])
        loss = F.cross_entropy(logits.double(), labels, reduction="sum")
        self.sums.append(torch.cat([loss[None], confidence.where(of_bin, 0).sum(1)]))

    def over(self, ranks: Ranks) -> Evaluation:
        """Return the evaluation over all ranks, which call this together."""
        top, images, top1, bin_images, bin_right = self.split(ranks.sum(self.counts.clone()).tolist())
        rows = [row for own in ranks.gather([row.tolist() for row in self.sums]) for row in own]
        loss_sum, *confidence_sums = np.sum(np.array(rows), axis=0).tolist()
        bins = tuple(
            Bin(num_images=num, num_right=right, confidence_sum=confidence)
            for num, right, confidence in zip(bin_images, bin_right, confidence_sums, strict=True)
        )
        num_images, num_top1, num_top5 = top
        return Evaluation(num_images, num_top1, num_top5, loss_sum, tuple(images), tuple(top1), bins)

    def split(self, counts: list[int]) -> list[list[int]]:
        sizes = (3, self.num_classes, self.num_classes, NUM_BINS, NUM_BINS)
        ends = np.cumsum(sizes).tolist()
        return [counts[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def places(logits: Tensor, labels: Tensor) -> Tensor:
    """Return how many classes come before each image's own, (batch,); of equal logits the lower class comes first.

    An image with logits that are not finite is not among the best, however few classes there are.
    """
    num_classes = logits.shape[1]
    own = logits.gather(1, labels[:, None])
    lower = torch.arange(num_classes, device=logits.device) < labels[:, None]
    before = ((logits > own) | ((logits == own) & lower)).sum(1)
    return before.where(logits.isfinite().all(1), max(TOP, num_classes))


def bin_of(confidence: Tensor) -> Tensor:
    """Return the bin of each confidence: m of (m / 15, (m + 1) / 15]."""
    inner = torch.arange(1, NUM_BINS, dtype=torch.float64, device=confidence.device) / NUM_BINS
    return torch.bucketize(confidence, inner)


def members(keys: Tensor, length: int) -> Tensor:
    """Return which entries have each key, (length, entries): sums over a mask are taken in one order everywhere.

    index_add_ adds by atomics on GPUs.
    """
    return keys == torch.arange(length, device=keys.device)[:, None]
