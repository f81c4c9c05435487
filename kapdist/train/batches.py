"""The training images of this rank, from any step on, one part of a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kapdist.config import Config
from kapdist.data.load.loader import Batch, Epoch, Loader
from kapdist.data.load.order import training_order
from kapdist.kap.draw import add_draws
from kapdist.plan.training import Plan, part
from kapdist.rng import derive_seed


def training_batches(loader: Loader, plan: Plan, config: Config, rank: int, step: int) -> Iterator[Batch]:
    """Yield this rank's batches after `step` finished steps, `accumulation_steps` of them for each step.

    Nothing is decoded for the steps that are skipped, and nothing waits between two epochs.
    """
    return loader.stream(training_epochs(plan, config, rank, step))


def training_epochs(plan: Plan, config: Config, rank: int, step: int) -> Iterator[Epoch]:
    """Yield what this rank trains on after `step` finished steps, the rest of an epoch first.

    The order of an epoch is one permutation of all images.
    """
    while step < plan.total_steps:
        epoch = plan.epoch(step)
        order = training_order(config.data, plan.num_images, config.seed, epoch, plan.storage.order)
        end = (epoch + 1) * plan.steps_per_epoch
        parts = [
            part(plan.rank_batch(t, rank), index, plan.accumulation_steps)
            for t in range(step, end)
            for index in range(plan.accumulation_steps)
        ]
        yield Epoch([order[p.start : p.stop] for p in parts], epoch, plan.resolution(step))
        step = end


class InputNoise:
    """Gaussian noise on images, a function of (seed, epoch, image) like every augmentation."""

    def __init__(self, std: float, seed: int) -> None:
        self.std = std
        self.seed = seed

    def __call__(self, batch: Batch, epoch: int) -> Tensor:
        """Return the images with noise; they may leave [0, 1], as in Gaussian data augmentation.

        An image's noise is the draw that has its number, of a stream that the epoch has.
        """
        images = batch.images
        if not self.std:
            return images
        # Contiguous whatever the images' layout is: so a pixel's noise does not depend on it.
        noise = torch.zeros(images.shape, dtype=images.dtype, device=images.device)
        key = derive_seed(self.seed, "input noise", epoch)
        add_draws(noise.flatten(1), self.std, key, torch.from_numpy(batch.indices))
        return images + noise
