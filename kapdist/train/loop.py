"""The training loop. Read me first."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch import Tensor

from kapdist.config import Config, check_limits
from kapdist.config.vain import in_vain
from kapdist.data.load.loader import Batch
from kapdist.engine import StepResult, join
from kapdist.run.files import file_sha256, to_json, write_atomic
from kapdist.run.installed import need
from kapdist.tracking.sender import followed
from kapdist.tracking.trackers import check_trackers
from kapdist.train.adversarial import Adversary, Part
from kapdist.train.alarms import images_in_both
from kapdist.train.alike import check_told
from kapdist.train.attempt import apart_is_failure, attempt
from kapdist.train.batches import training_batches
from kapdist.train.checkpoint import diverged
from kapdist.train.clock import Clock
from kapdist.train.job import Job, exported, poll, prepare, validate, withstood
from kapdist.train.metrics import MetricsLog, peak_memory_bytes
from kapdist.train.mixing import mix
from kapdist.train.profiled import profiled
from kapdist.train.robust import RobustAccuracy
from kapdist.train.state import resume, save
from kapdist.train.stop import Stop
from kapdist.train.watchdog import Watchdog

log = logging.getLogger(__name__)


def train(config: Config) -> None:
    """Train as the config says, on every rank of the job, from the newest checkpoint on if there is one.

    Raises:
        InputError: among others, ranks were told different things.
        StoppedError: a signal asked for it; all ranks have saved.
    """
    check_limits(config)
    need("tensorboard")
    check_trackers(config.train)
    with apart_is_failure(config), join(config.engine) as ranks:
        check_told(config, ranks)
        with attempt(config, ranks) as this:
            # Rank 0 looks: another host may still see a DONE that was moved, or see none yet.
            if ranks.from_first(this.run.done.exists):
                log.info("%s is done, there is nothing to do (another name= is another run)", this.run.root)
                return
            limit_seconds = 60 * config.train.stall_minutes
            with Watchdog(this.folder, ranks, limit_seconds, this.run.failed) as watchdog, Stop(ranks) as stop:
                stop.leave_if_early()
                train_run(prepare(config, ranks, this, stop, watchdog))


def train_run(job: Job) -> None:
    """Resume, take the steps, write the weights and DONE."""
    step = resume(job)
    log.info("plan: %s", job.plan.in_words())
    for line in in_vain(job.config):
        log.warning(line)
    classes, logits = len(job.data.class_names), job.config.model.num_classes
    if classes < logits:
        log.warning("the images have %d classes, the network %d (model.num_classes)", classes, logits)
    clock = Clock(job.config.train, job.plan, step)
    job.speed.begin()
    batches = training_batches(job.train_loader, job.plan, job.config, job.ranks.rank, step)
    with followed(job.run, job.config.train, step, job.ranks.first):
        with MetricsLog(job.run, step, job.plan.total_steps, job.ranks.first) as metrics:
            with graphs_released(job), job.saver.hurried_by_errors():
                take_steps(job, batches, step, clock, metrics)
            job.saver.wait()
            weights = exported(job)
            peak = peak_memory_bytes(job.ranks)
            metrics.write("end", job.plan.total_steps, seconds=clock.elapsed(), peak_memory_bytes=peak)
        if weights is not None:
            log.info("peak memory per rank: %s", ", ".join(f"{size / 2**20:.0f} MiB" for size in peak))
            finish(job, weights)
            job.watchdog.rest()  # trackers have train.tracker_seconds from here on


@contextlib.contextmanager
def graphs_released(job: Job) -> Iterator[None]:
    """Let go of graphs however the block ends: who holds one that sends messages can't leave the other ranks."""
    try:
        yield
    finally:
        if job.graphs:
            job.graphs.release()


def finish(job: Job, weights: bytes) -> None:
    """Write the weights, and DONE with the sha256 of all that the run ends with; rank 0 only.

    Raises:
        LockedError: another attempt has begun since.
    """
    job.run.check_last(job.saver.attempt)
    write_atomic(job.run.weights, weights)
    job.best.finish()
    paths = [path for path in job.run.results if path.exists()]
    ends = {"step": job.plan.total_steps, "sha256": {path.name: file_sha256(path) for path in paths}}
    write_atomic(job.run.done, to_json(ends) + "\n")


def take_steps(job: Job, batches: Iterator[Batch], step: int, clock: Clock, metrics: MetricsLog) -> None:
    """Step, log, evaluate, save, until the plan's last step or until asked to stop."""
    if step and clock.evaluates(step) and job.last.step < step:
        with job.speed.outside():
            evaluate_now(job, step, metrics)  # what a stop cut short
    while step < job.plan.total_steps:
        with tracing(job, step + 1):
            result = train_step(job, batches, step, measure=clock.logs(step + 1))
        step += 1
        if clock.logs(step):
            metrics.write("train", step, **describe(job, result, step), **job.speed.describe(clock.taken(step)))
        if poll(job, step):
            save_and_leave(job, step)
        if clock.evaluates(step):
            with job.speed.outside():
                evaluate_now(job, step, metrics)
        if clock.saves(step, job.ranks):
            save(job, step)


def evaluate_now(job: Job, step: int, metrics: MetricsLog) -> None:
    """Evaluate, keep the best weights; a signal in the middle leaves the evaluation to the next attempt.

    Raises:
        LockedError: another attempt has begun since, whose metrics and best weights there are from then on.
    """
    found = validate(job, step)
    attacks = job.robust is not None and job.robust.plan.is_due(step)
    robust = withstood(job, step) if attacks and found is not None else None
    if found is None or (attacks and robust is None):
        save_and_leave(job, step)
        return
    job.ranks.from_first(lambda: job.run.check_last(job.saver.attempt))
    values = found.describe()
    common = {"epoch": step / job.plan.steps_per_epoch, "weights": "model" if job.ema is None else "ema"}
    metrics.write("evaluate", step, noise="off", **common, **values)
    if not job.last.step and (alarm := images_in_both(job.data, job.validation)):
        metrics.write("alarm", step, epoch=common["epoch"], name=alarm.name, text=alarm.text)
    if robust is not None:
        tell_robust(job, step, robust, common, metrics)
    job.last.step = step
    if job.config.train.best == "clean":
        keep_best(job, float(values["top1"]))
    elif robust is not None:
        keep_best(job, robust.accuracy)


def tell_robust(job: Job, step: int, robust: RobustAccuracy, common: dict[str, Any], metrics: MetricsLog) -> None:
    """Write what robust validation found, and the alarms that it gives."""
    assert job.robust is not None
    alarms = job.robust.watch(common["epoch"], robust)
    loss = job.robust.history[-1].loss
    metrics.write("robust", step, **common, **job.robust.plan.describe(), **robust.describe(), training_loss=loss)
    for alarm in alarms:
        metrics.write("alarm", step, epoch=common["epoch"], name=alarm.name, text=alarm.text)


def keep_best(job: Job, accuracy: float) -> None:
    """Write the weights if they are the best so far."""
    if accuracy <= job.last.best:
        return
    job.last.best = accuracy
    content = exported(job)
    if content is not None:
        job.best.write(content)


def save_and_leave(job: Job, step: int) -> None:
    save(job, step)
    job.saver.wait()
    job.ranks.barrier()  # rank 0's wait has sealed it
    job.stop.leave(step, job.ranks.from_first(lambda: job.saver.sealed_step))


def train_step(job: Job, batches: Iterator[Batch], step: int, measure: bool) -> StepResult:
    """Take this rank's share of one global batch through one update; free adversarial training through several."""
    parts = (take_part(job, next_of(job, batches), step) for _ in range(job.plan.accumulation_steps))
    if job.adversary and job.adversary.settings.mode == "free":
        return replay(job, job.adversary, list(parts), step, measure)
    return update(job, parts, step, measure)


def next_of(job: Job, batches: Iterator[Batch]) -> Batch:
    with job.speed.waiting.running():
        return next(batches)


def take_part(job: Job, batch: Batch, step: int) -> Part:
    """Return a part of the batch with what is random about it on the device."""
    mixed = mix(job.input_noise(batch, job.plan.epoch(step)), job.config.train, job.config.seed, step)
    return Part(mixed.images, batch.labels, mixed.share, batch.indices.tolist())


def replay(job: Job, adversary: Adversary, parts: list[Part], step: int, measure: bool) -> StepResult:
    """Update on the same images several times, each time one step of the attack further."""
    parts = [adversary.start(part, step) for part in parts]
    for _ in range(adversary.settings.replays - 1):
        parts = [part.with_gradient() for part in parts]
        update(job, parts, step, measure=False)
        parts = [adversary.reuse(part, step) for part in parts]
    return update(job, parts, step, measure)


def update(job: Job, parts: Iterable[Part], step: int, measure: bool) -> StepResult:
    """Take the parts of a batch through forward, backward and one update of the weights, recorded or not."""
    take = partial(compute, job, step=step, measure=measure)
    if job.graphs and not (job.adversary and job.adversary.grows(step)):
        kind, graphs = kind_of(job, step, measure), job.graphs
        started = [job.adversary.start(part, step) if job.adversary else part for part in parts]
        result = job.engine.stepped(job.plan.lr(step), measure, lambda: graphs.take(kind, started, take))
    else:
        result = job.engine.stepped(job.plan.lr(step), measure, lambda: take(parts))
    for meter in job.meters:
        meter.count_step()
    if job.ema:
        job.ema.n_averaged += 1
    return result


def kind_of(job: Job, step: int, measure: bool) -> tuple[bool, int, bool]:
    """Return what a step depends on beside the shapes of its parts and what is copied to the device."""
    perturbed = job.adversary is not None and job.adversary.settings.perturbs_weights(step)
    return measure, len(job.plan.batch(step)), perturbed


def compute(job: Job, parts: Iterable[Part], step: int, measure: bool) -> Tensor | None:
    """Work out a step on the device, which nothing here waits for; return the norm of the gradient if asked to."""
    # DDP averages over ranks whose shares may differ by an image: weigh by images, not by ranks.
    share = job.ranks.world_size / len(job.plan.batch(step))
    with attacked(job, parts, step, measure) as parts:
        for index, part in enumerate(parts):
            with job.engine.accumulating(more=index + 1 < job.plan.accumulation_steps):
                with job.speed.forward.running():
                    loss = share * training_loss(job, part)
                job.engine.backward(loss)
            for meter in job.meters:
                meter.add(loss)
    grad_norm = job.engine.descend(measure)
    if job.ema:
        job.ema.average(job.engine.module)
    return grad_norm


@contextlib.contextmanager
def attacked(job: Job, parts: Iterable[Part], step: int, measure: bool) -> Iterator[Iterable[Part]]:
    """Give the parts as adversarial training takes them; in the block the weights are where it takes them."""
    adversary = job.adversary
    if adversary is None:
        yield parts
        return
    adversary.prepare(measure)
    with adversary.worst_weights((adversary.attack(part, step, measure) for part in parts), step) as parts:
        yield parts


def training_loss(job: Job, part: Part) -> Tensor:
    """Return the summed loss of a part, of its images or as adversarial training has it."""
    if job.adversary:
        return job.adversary.loss(part, job.engine.forward_each)
    return part.loss(job.engine.forward(part.images), job.config.optim.label_smoothing)


def describe(job: Job, result: StepResult, step: int) -> dict[str, float]:
    """Return the numbers of a logged step; the loss is the mean since the last one.

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    loss = job.meter.mean()
    if not math.isfinite(loss):
        raise diverged(job.run, f"the loss is {loss} at step {step}, learning rate {job.plan.lr(step - 1):g}")
    values = {"epoch": step / job.plan.steps_per_epoch, "loss": loss, "lr": job.plan.lr(step - 1)}
    if result.grad_norm is not None:
        values["grad_norm"] = float(result.grad_norm)
    if job.adversary:
        values |= job.adversary.describe(step)
    if result.skipped is not None and job.config.engine.precision == "fp16":
        values["loss_scale"] = job.engine.loss_scale
    return values


def tracing(job: Job, step: int) -> AbstractContextManager[None]:
    """Profile a step that the config names."""
    wanted = step in job.config.train.profile_steps
    return profiled(job.run, job.ranks, step) if wanted else contextlib.nullcontext()
