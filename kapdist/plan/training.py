"""Config + number of ranks + number of images -> steps, batches, learning rate. Pure: no torch, no files."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from kapdist.config import Config, DataConfig, OptimConfig, TrainConfig
from kapdist.config.defaults import BATCH_SIZE, RAMP_MULTIPLE
from kapdist.config.networks import stride_of
from kapdist.errors import InputError
from kapdist.plan.adversarial import AdversarialPlan, plan_adversarial


@dataclass(frozen=True)
class Ramp:
    """Side of training images by epoch, pixels: `first` until `start`, `last` from `end`, multiples of 32 between.

    As in ffcv-imagenet (https://github.com/libffcv/ffcv-imagenet, get_resolution).
    """

    first: int
    last: int
    start: float = 0.0
    end: float = 0.0

    def resolution(self, epoch: int) -> int:
        """Side of the training images of an epoch, from 0."""
        if epoch >= self.end:
            return self.last
        if epoch <= self.start:
            return self.first
        part = (epoch - self.start) / (self.end - self.start)
        return round((self.first + part * (self.last - self.first)) / RAMP_MULTIPLE) * RAMP_MULTIPLE


@dataclass(frozen=True)
class Room:
    """What decides how a beton is read: sizes in bytes; and what the run began with, if it did.

    memory_bytes is what the node's ranks may use together; process_cache says whether the backend has one.
    """

    beton_bytes: int
    memory_bytes: int
    ranks_on_node: int = 1
    process_cache: bool = True
    order: str | None = None
    batch_size: int | None = None


@dataclass(frozen=True)
class Storage:
    """The order of an epoch, who keeps the beton's bytes, and why."""

    order: str = "random"
    cache: str = "page"
    reason: str = "as configured"


@dataclass(frozen=True)
class Plan:
    """What follows from a config; `step` counts finished batches and is the only clock.

    A step is one update of the weights (free adversarial training alone makes several of one batch).

    The images of an epoch are cut into `steps_per_epoch` batches that differ by at most one image, so every
    image is seen exactly once per epoch and there is no short last batch. Ranks and accumulation cut a batch
    in the same way.
    """

    num_images: int
    world_size: int
    batch_size: int
    accumulation_steps: int
    epochs: int
    steps_per_epoch: int
    warmup_steps: int
    peak_lr: float
    lr_scale: float
    """What optim.lr was multiplied by for this batch size."""
    schedule: str
    ramp: Ramp
    storage: Storage
    milestones: tuple[int, ...] = ()
    """Finished steps after which a schedule of steps multiplies lr by decay_factor."""
    decay_factor: float = 1.0
    adversarial: AdversarialPlan | None = None

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def epoch(self, step: int) -> int:
        """Epoch, from 0, that the step after `step` finished ones belongs to."""
        return step // self.steps_per_epoch

    def batch(self, step: int) -> range:
        """Positions in the epoch's order that the step takes, over all ranks."""
        return part(range(self.num_images), step % self.steps_per_epoch, self.steps_per_epoch)

    def rank_batch(self, step: int, rank: int) -> range:
        """Positions in the epoch's order that one rank takes of the step's batch."""
        return part(self.batch(step), rank, self.world_size)

    @property
    def largest_part(self) -> int:
        """Most images that a rank takes through the model at a time."""
        largest = self.num_images
        for pieces in (self.steps_per_epoch, self.world_size, self.accumulation_steps):
            largest = -(-largest // pieces)
        return largest

    @property
    def smallest_part(self) -> int:
        """Fewest images that a rank takes through the model at a time."""
        return self.num_images // self.steps_per_epoch // self.world_size // self.accumulation_steps

    def lr(self, step: int) -> float:
        """Learning rate of the step after `step` finished ones: linear to the peak, then by the schedule."""
        if step < self.warmup_steps:
            return self.peak_lr * (step + 1) / self.warmup_steps
        if self.schedule == "steps":
            passed = sum(milestone <= step for milestone in self.milestones)
            return self.peak_lr * self.decay_factor**passed
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        if self.schedule == "cosine":
            return self.peak_lr * 0.5 * (1 + math.cos(math.pi * progress))
        return self.peak_lr * (1 - progress)

    def resolution(self, step: int) -> int:
        """Side of the training images, pixels, of the step after `step` finished ones; the same all epoch long."""
        return self.ramp.resolution(self.epoch(step))

    def forwards_per_image(self, step: int) -> int:
        """What the step after `step` finished ones costs for each of its images, in forward passes."""
        return 3 if self.adversarial is None else self.adversarial.forwards_per_image(step)

    @property
    def num_graphs(self) -> int:
        """What a model that is compiled for one shape each time is compiled for: sides, sizes of parts, passes.

        All parts of steps, on all ranks, differ by at most one image. The passes are the training's and those that
        adversarial training adds.
        """
        sides = {self.ramp.resolution(epoch) for epoch in range(self.epochs)}
        num_parts = self.steps_per_epoch * self.world_size * self.accumulation_steps
        sizes = 1 if self.num_images % num_parts == 0 else 2
        return len(sides) * sizes * (self.adversarial.num_graphs if self.adversarial else 1)

    def peak_lr_in_words(self) -> str:
        """Return e.g. "0.425 = 1.7 for 4,096 images, scaled to 1,024"."""
        if self.lr_scale == 1:
            return f"{self.peak_lr:g}"
        found_for = round(self.batch_size / self.lr_scale)
        lr = self.peak_lr / self.lr_scale
        return f"{self.peak_lr:g} = {lr:g} for {found_for:,} images, scaled to {self.batch_size:,}"

    def in_words(self) -> str:
        """Return the plan as a line for a log."""
        steps = f"epochs {self.epochs:,}, steps per epoch {self.steps_per_epoch:,}"
        batch = f"global batch {self.batch_size:,}, ranks {self.world_size:,}"
        return f"{steps}, {batch}, peak learning rate {self.peak_lr_in_words()}"

    def describe(self) -> dict[str, Any]:
        """Return the plan as JSON values (plan.json)."""
        return asdict(self) | {"total_steps": self.total_steps}


FITS, MAY_FILL = 0.8, 0.5  # of the node's memory: what the page cache may need, and what caches in processes may
LONGEST_LOOK = 20  # steps
OPEN_PAGES = 8  # pages that quasi-random order shuffles together, and so what memory should hold


def part(positions: range, index: int, count: int) -> range:
    """Cut a range into `count` runs that differ by at most one in length; return the one at `index`."""
    size = len(positions)
    return positions[index * size // count : (index + 1) * size // count]


def look_every(train: TrainConfig) -> int:
    """Return after how many steps the clock of checkpoints is looked at, however seldom metrics are logged."""
    return min(train.log_every_steps, LONGEST_LOOK)


def make_plan(config: Config, num_images: int, world_size: int, room: Room | None = None) -> Plan:
    """Derive the plan of a training run; `room` decides data.order and data.cache where they are auto.

    Raises:
        InputError: when the images do not fill one batch, or a rank would get no image in some part of a step.
    """
    train, optim = config.train, config.optim
    batch_size = train.batch_size or default_batch_size(train, num_images, world_size, room)
    if num_images < batch_size:
        raise InputError("train.batch_size", f"at most the {num_images} images of the data", str(batch_size))
    steps_per_epoch = math.ceil(num_images / batch_size)
    smallest = num_images // steps_per_epoch // world_size // train.accumulation_steps
    if smallest < 1:
        refuse_parts(train, batch_size, world_size)
    ramp = make_ramp(config.data, train.epochs)
    normed = smallest * (world_size if config.engine.sync_batch_norm else 1)
    check_norms(config, normed, min(ramp.first, ramp.last), batch_size)
    scale = lr_scale(optim, batch_size)
    return Plan(
        num_images=num_images,
        world_size=world_size,
        batch_size=batch_size,
        accumulation_steps=train.accumulation_steps,
        epochs=train.epochs,
        steps_per_epoch=steps_per_epoch,
        warmup_steps=warmup_steps(optim, train.epochs, steps_per_epoch),
        peak_lr=optim.lr * scale,
        lr_scale=scale,
        schedule=optim.schedule,
        milestones=milestone_steps(optim, train.epochs, steps_per_epoch),
        decay_factor=optim.decay_factor,
        adversarial=plan_adversarial(config.adversarial, train.epochs, steps_per_epoch),
        ramp=ramp,
        storage=choose_storage(config.data, num_images, room),
    )


def default_batch_size(train: TrainConfig, num_images: int, world_size: int, room: Room | None) -> int:
    """Return the global batch size where none is written: the usual one, but for every part two images or more.

    A run that has begun keeps its own: on other numbers of ranks it could be another.
    """
    if room and room.batch_size:
        return room.batch_size
    usual = math.ceil(num_images / BATCH_SIZE)
    steps = max(1, min(usual, num_images // (2 * world_size * train.accumulation_steps)))
    return min(BATCH_SIZE, num_images) if steps == usual else math.ceil(num_images / steps)


def refuse_parts(train: TrainConfig, batch_size: int, world_size: int) -> NoReturn:
    """Say which key leaves some part of a step without an image."""
    parts = world_size * train.accumulation_steps
    if train.batch_size is not None:
        raise InputError("train.batch_size", f"at least {parts} (ranks x accumulation)", str(batch_size))
    expected = f"at least {parts} images, for {world_size} ranks x {train.accumulation_steps} accumulation steps"
    raise InputError("data.train", expected, f"{batch_size} in a batch of all")


def check_norms(config: Config, smallest_part: int, side: int, batch_size: int) -> None:
    """Refuse parts of a step with which a norm would have one value per channel, of which there is no variance.

    Raises:
        InputError: norms see one image in some part of a step, and the last maps are 1 x 1.
    """
    if config.model.factory is not None:
        return  # whoever builds it shows it as many
    images = together(config, smallest_part)
    if images == 1 and side <= stride_of(config.model.name, config.model.stem):
        expected = f"at least 2 images in each part of a step (the last maps of {side} px images are 1 x 1)"
        raise InputError("train.batch_size", expected, f"{batch_size}, which leaves a part with one")


def together(config: Config, images: int) -> int:
    """Return how many go through the norms together where a part has so many images.

    Clean and adversarial ones do, but not while the attack takes their own statistics.
    """
    adversarial = config.adversarial
    both = adversarial.mode != "off" and adversarial.clean_share and adversarial.statistics != "train"
    return images * (2 if both else 1)


def lr_scale(optim: OptimConfig, batch_size: int) -> float:
    """Return the global batch size over the one that the learning rate was found for (Goyal et al. 2017, 2.1)."""
    return batch_size / optim.lr_batch_size if optim.lr_batch_size else 1.0


def warmup_steps(optim: OptimConfig, epochs: int, steps_per_epoch: int) -> int:
    if optim.warmup_epochs > epochs:
        raise InputError("optim.warmup_epochs", f"at most train.epochs = {epochs}", str(optim.warmup_epochs))
    return round(optim.warmup_epochs * steps_per_epoch)


def milestone_steps(optim: OptimConfig, epochs: int, steps_per_epoch: int) -> tuple[int, ...]:
    """Return the first steps at or after the epochs of a schedule of steps; none for another schedule.

    Where no epoch is named they are half and three quarters of the training, as He et al. 2016 have it (arXiv
    1512.03385, section 4.2: 32k and 48k of 64k iterations).

    Raises:
        InputError: a milestone that the training does not reach.
    """
    if optim.schedule != "steps":
        return ()
    named = (epochs / 2, 3 * epochs / 4) if optim.milestones is None else optim.milestones
    if named and named[-1] >= epochs:
        raise InputError("optim.milestones", f"epochs below train.epochs = {epochs}", f"{named[-1]:g}")
    return tuple(math.ceil(round(epoch * steps_per_epoch, 6)) for epoch in named)


def make_ramp(data: DataConfig, epochs: int) -> Ramp:
    """Return the training images' side by epoch.

    Raises:
        InputError: a ramp that ends after the training.
    """
    if data.min_resolution is None or data.max_resolution is None:
        return Ramp(data.resolution, data.resolution)
    if data.end_ramp > epochs:
        raise InputError("data.end_ramp", f"at most train.epochs = {epochs}", f"{data.end_ramp:g}")
    return Ramp(data.min_resolution, data.max_resolution, data.start_ramp, data.end_ramp)


def choose_storage(data: DataConfig, num_images: int, room: Room | None) -> Storage:
    """Decide the order and the cache that are auto; what a run began with stays, since the order decides its bits.

    A process cache holds the open pages, and while it reads ahead as many again.
    """
    order: str | None = None if data.order == "auto" else data.order
    cache: str | None = None if data.cache == "auto" else data.cache
    if room is None or (order and cache):
        return Storage(order or "random", cache or "page")
    sizes = f"beton of {gib(room.beton_bytes)}, {gib(room.memory_bytes)} of memory on the node"
    fits = room.beton_bytes <= FITS * room.memory_bytes
    if order is None:
        order = room.order or ("random" if fits and cache != "process" else "quasi-random")
    opened = min(2 * OPEN_PAGES * data.page_images / num_images, 1) * room.beton_bytes * room.ranks_on_node
    if cache is None:
        roomy = room.process_cache and opened <= MAY_FILL * room.memory_bytes
        cache = "process" if order == "quasi-random" and not fits and roomy else "page"
        sizes += "" if fits else f", {gib(opened)} of open pages in {room.ranks_on_node} rank(s)"
    return Storage(order, cache, f"{sizes}: it {'fits' if fits else 'does not fit'}")


def gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
