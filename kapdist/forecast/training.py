"""What a training run will ask of a machine that is not at hand. Pure arithmetic: no torch, no files."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from kapdist.config import Config, OptimConfig, TrainConfig
from kapdist.errors import InputError
from kapdist.plan.adversarial import AdversarialPlan
from kapdist.plan.robust import RobustPlan, plan_robust
from kapdist.plan.training import Plan, look_every, make_plan

LR_STEPS = 5  # learning rates shown, besides the peak


@dataclass(frozen=True)
class Machine:
    """The ranks of a job: one per GPU."""

    nodes: int
    gpus_per_node: int

    def __post_init__(self) -> None:
        at_least("--nodes", 1, self.nodes)
        at_least("--gpus-per-node", 1, self.gpus_per_node)

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class Footprint:
    """What a model weighs. Parameters and gradients are fp32 under every `engine.precision`: that is autocast's."""

    num_parameters: int
    num_buffers: int
    """Values in buffers, those that a checkpoint leaves out included."""
    parameter_bytes: int
    buffer_bytes: int
    saved_buffer_bytes: int
    """Of the buffers that belong to the state."""
    generator_bytes: int
    """State of one rank's random generators."""

    @property
    def gradient_bytes(self) -> int:
        return self.parameter_bytes

    @property
    def state_bytes(self) -> int:
        return self.parameter_bytes + self.saved_buffer_bytes


@dataclass(frozen=True)
class Traffic:
    """Bytes that one rank receives in one step; all but the first rank receive as much."""

    gradients: int
    parameters: int
    buffers: int

    @property
    def total(self) -> int:
        return self.gradients + self.parameters + self.buffers


@dataclass(frozen=True)
class Memory:
    """Bytes that one rank holds besides activations."""

    parameters: int
    gradients: int
    optimizer: int
    ema: int
    perturbed: int = 0
    """Weights as they are without their perturbation, and its direction, while an update's gradient is taken."""


@dataclass(frozen=True)
class Checkpoints:
    """Bytes of tensors in a checkpoint (names and headers add under a kilobyte per tensor), and how many."""

    shared_bytes: int
    bytes_per_rank: int
    total_bytes: int
    kept: int
    kept_bytes: int
    writes: int | None
    """None: they go by the clock, and nobody knows how fast the run is."""


@dataclass(frozen=True)
class Rate:
    """Images per second and rank, and who says so."""

    images_per_second: float
    source: str


@dataclass(frozen=True)
class Forecast:
    """What a run will ask for."""

    machine: Machine
    plan: Plan
    robust: RobustPlan | None
    engine: str
    zero_stage: int
    images_per_rank: tuple[int, int]
    """Fewest and most images of a rank in a step."""
    images_per_micro_batch: tuple[int, int]
    lr: tuple[tuple[int, float], ...]
    """(finished steps, learning rate of the next one)."""
    footprint: Footprint
    traffic: Traffic
    memory: Memory
    checkpoints: Checkpoints
    rate: Rate | None
    hours: float | None
    """Of the steps alone, where every rank keeps the rate."""

    def describe(self) -> dict[str, Any]:
        """Return the forecast as JSON values."""
        derived = {"ranks": self.machine.ranks, "gradient_bytes": self.footprint.gradient_bytes}
        values = asdict(self) | {"plan": self.plan.describe()} | derived
        values["traffic"]["total"] = self.traffic.total
        if values["robust"]:
            values["robust"]["images"] = len(values["robust"]["images"])
        return values


def forecast(
    config: Config, num_images: int, machine: Machine, footprint: Footprint, rate: Rate | None
) -> Forecast:
    """Say what a training run will ask of a machine.

    Raises:
        InputError: the plan is impossible (fewer images in a batch than ranks, ...).
    """
    plan = make_plan(config, num_images, machine.ranks)
    engine, stage = config.engine.name, config.engine.zero_stage
    images = plan.epochs * num_images
    seconds = None if rate is None else images / (rate.images_per_second * machine.ranks)
    states, ema = optimizer_states(config.optim), config.optim.ema_decay > 0
    return Forecast(
        machine=machine,
        plan=plan,
        robust=plan_robust(config, config.robust.num_images, plan.steps_per_epoch),
        engine=engine,
        zero_stage=stage,
        images_per_rank=share(plan, machine.ranks),
        images_per_micro_batch=share(plan, machine.ranks, plan.accumulation_steps),
        lr=tuple((step, plan.lr(step)) for step in shown_steps(plan)),
        footprint=footprint,
        traffic=in_a_step(
            traffic(stage, machine.ranks, footprint, plan.accumulation_steps),
            plan.adversarial,
            footprint.buffer_bytes if machine.ranks > 1 else 0,
            all_reduced(footprint.gradient_bytes, machine.ranks),
        ),
        memory=memory(stage, machine.ranks, footprint, states, ema, config.adversarial.awp_gamma > 0),
        checkpoints=checkpoints(config.train, plan, footprint, states, ema, seconds),
        rate=rate,
        hours=None if seconds is None else seconds / 3600,
    )


def share(plan: Plan, *cuts: int) -> tuple[int, int]:
    """Return the fewest and the most images that are left of an epoch's batches after these cuts."""
    fewest = most = plan.num_images
    for count in (plan.steps_per_epoch, *cuts):
        fewest, most = fewest // count, -(-most // count)
    return fewest, most


def shown_steps(plan: Plan) -> list[int]:
    """Return the first and the last step, the end of the warm-up, milestones, and steps spread over the decay."""
    last = plan.total_steps - 1
    decay = (plan.warmup_steps + (last - plan.warmup_steps) * i // (LR_STEPS - 2) for i in range(LR_STEPS - 1))
    return sorted({0, *(min(step, last) for step in (*plan.milestones, *decay))})


def traffic(zero_stage: int, ranks: int, footprint: Footprint, accumulation_steps: int) -> Traffic:
    """Return what a rank receives in a step, for rings of all ranks.

    A ring all-reduce of G bytes hands each rank 2 (n-1)/n G, an all-gather (n-1)/n G (Thakur et al. 2005), a
    broadcast G. Gradients are exchanged once a step, and statistics of norms in none: they are handed out where
    they are read. DeepSpeed's ZeRO 1 and 2 all-reduce the gradients too, and keep a part each
    (stage_1_and_2.py, use_multi_rank_bucket_allreduce, its default), then gather the parameters; stage 2 does so
    after every part of an accumulated batch.
    """
    if ranks == 1:
        return Traffic(0, 0, 0)
    reductions = accumulation_steps if zero_stage == 2 else 1
    gathered = (ranks - 1) * footprint.parameter_bytes // ranks if zero_stage else 0
    return Traffic(
        gradients=reductions * all_reduced(footprint.gradient_bytes, ranks),
        parameters=gathered,
        buffers=0,
    )


def all_reduced(num_bytes: int, ranks: int) -> int:
    """Return what each of a ring's ranks receives of a sum over all (Thakur et al. 2005)."""
    return 2 * (ranks - 1) * num_bytes // ranks


def in_a_step(update: Traffic, adversarial: AdversarialPlan | None, buffers: int, once: int) -> Traffic:
    """Return the traffic of a step, given an update's: free makes several, and an attack may need the statistics.

    Attacks on images exchange nothing else. One on the weights sums their gradients `once` more.
    """
    if adversarial is None:
        return update
    count = adversarial.replays
    return replace(
        update,
        gradients=count * update.gradients + (once if adversarial.awp_gamma else 0),
        parameters=count * update.parameters,
        buffers=buffers if adversarial.reads_statistics else 0,
    )


def optimizer_states(optim: OptimConfig) -> int:
    """Return how many numbers an optimizer keeps for each parameter: AdamW's two averages, SGD's momentum."""
    return 2 if optim.name == "adamw" else int(optim.momentum > 0)


def memory(zero_stage: int, ranks: int, footprint: Footprint, states: int, ema: bool, awp: bool = False) -> Memory:
    """Return what a rank holds. ZeRO divides the optimizer's state, and keeps a copy of its part of the weights."""
    optimizer = states * footprint.parameter_bytes
    gradients = footprint.gradient_bytes
    if zero_stage:
        optimizer = -(-(optimizer + footprint.parameter_bytes) // ranks)
    if zero_stage == 2:
        gradients = -(-gradients // ranks)
    averaged = footprint.parameter_bytes + footprint.buffer_bytes if ema else 0
    perturbed = 2 * footprint.parameter_bytes if awp else 0
    return Memory(footprint.parameter_bytes, gradients, optimizer, averaged, perturbed)


def checkpoints(
    train: TrainConfig, plan: Plan, footprint: Footprint, states: int, ema: bool, seconds: float | None
) -> Checkpoints:
    """Return size and number: weights, buffers, optimizer and the moving average once, generators per rank."""
    copies = footprint.state_bytes * (2 if ema else 1)
    shared = copies + states * footprint.parameter_bytes
    total = shared + plan.world_size * footprint.generator_bytes
    return Checkpoints(
        shared_bytes=shared,
        bytes_per_rank=footprint.generator_bytes,
        total_bytes=total,
        kept=train.keep_checkpoints,
        kept_bytes=train.keep_checkpoints * total,
        writes=writes(train, plan.total_steps, seconds),
    )


def writes(train: TrainConfig, total_steps: int, seconds: float | None) -> int | None:
    """Return how many checkpoints a run of these seconds writes; the last step ends with the weights instead.

    By the step and, between two such, by the minute, which counts from the last one; the clock is looked at
    every few steps.
    """
    every = train.checkpoint_every_steps or total_steps
    by_step = (total_steps - 1) // every
    if not train.checkpoint_every_minutes:
        return by_step
    if seconds is None:
        return None
    looked = look_every(train)
    late = math.floor(60 * train.checkpoint_every_minutes * total_steps / seconds / looked) * looked + looked
    whole, rest = divmod(total_steps - 1, every)
    return by_step + whole * ((every - 1) // late) + rest // late


def at_least(place: str, bound: int, found: int | None) -> None:
    """Refuse a number below its bound; None is no number.

    Raises:
        InputError: names the option.
    """
    if found is not None and found < bound:
        raise InputError(place, f"{bound} or more", str(found))


def above_zero(place: str, found: float | None) -> None:
    """Refuse a rate that is none.

    Raises:
        InputError: names the option.
    """
    if found is not None and not (0 < found < math.inf):
        raise InputError(place, "a finite number above 0", f"{found:g}")
