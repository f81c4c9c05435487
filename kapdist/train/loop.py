"""The training loop. Read me first."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator

from torch.nn import functional as F

from kapdist.config import Config
from kapdist.data import Batch
from kapdist.engine import Ranks, StepResult, join
from kapdist.rundir import RunDir, write_atomic
from kapdist.train.attempt import attempt
from kapdist.train.batches import training_batches
from kapdist.train.clock import Clock
from kapdist.train.job import Job, export_weights, prepare, resume, save, validate
from kapdist.train.memory import peak_memory_bytes
from kapdist.train.metrics import MetricsLog

log = logging.getLogger(__name__)


def train(config: Config) -> None:
    """Train as the config says, on every rank of the job, from the newest checkpoint on if there is one."""
    with join(config.engine) as ranks, attempt(config, ranks) as run:
        if run.done.exists():
            log.info("%s is done: %s", run.root, run.done.read_text().strip())
        else:
            train_run(config, ranks, run)


def train_run(config: Config, ranks: Ranks, run: RunDir) -> None:
    """Prepare, resume, take the steps, write the weights and DONE."""
    job = prepare(config, ranks, run)
    step = resume(job)
    clock = Clock(config.train, job.plan, step)
    batches = training_batches(job.train_loader, job.plan, config.seed, ranks.rank, step)
    with MetricsLog(run, step, job.plan.total_steps, config.train.wandb_project, ranks.first) as metrics:
        take_steps(job, batches, step, clock, metrics)
        export_weights(job)
        peak = peak_memory_bytes(ranks)
        metrics.write("end", job.plan.total_steps, seconds=clock.elapsed(), peak_memory_bytes=peak)
    if ranks.first:
        log.info("peak memory per rank: %s", ", ".join(f"{size / 2**20:.0f} MiB" for size in peak))
        write_atomic(run.done, json.dumps({"step": job.plan.total_steps}) + "\n")


def take_steps(job: Job, batches: Iterator[Batch], step: int, clock: Clock, metrics: MetricsLog) -> None:
    """Step, log, evaluate, save, until the plan's last step."""
    while step < job.plan.total_steps:
        result = train_step(job, batches, step, measure=clock.logs(step + 1))
        step += 1
        if clock.logs(step):
            metrics.write("train", step, **describe(job, result, step), images_per_second=clock.rate(step))
        if clock.evaluates(step):
            metrics.write("evaluate", step, **evaluation(job, step))
        if clock.saves(step, job.ranks):
            save(job, step)


def train_step(job: Job, batches: Iterator[Batch], step: int, measure: bool) -> StepResult:
    """Take this rank's share of one global batch through forward, backward and update."""
    # DDP averages over ranks whose shares may differ by an image: weigh by images, not by ranks.
    share = job.ranks.world_size / len(job.plan.batch(step))
    for index in range(job.plan.accumulation_steps):
        batch = next(batches)
        images = job.input_noise(batch, job.plan.epoch(step))
        with job.engine.accumulating(more=index + 1 < job.plan.accumulation_steps):
            logits = job.engine.forward(images)
            smoothing = job.config.optim.label_smoothing
            loss = share * F.cross_entropy(logits.float(), batch.labels, reduction="sum", label_smoothing=smoothing)
            job.engine.backward(loss)
        job.meter.add(loss)
    job.meter.count_step()
    result = job.engine.step(job.plan.lr(step), measure)
    if job.ema:
        job.ema.update_parameters(job.engine.module)
    return result


def describe(job: Job, result: StepResult, step: int) -> dict[str, float]:
    """Return the numbers of a logged step; the loss is the mean since the last one.

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    loss = job.meter.mean()
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss} at step {step}, learning rate {job.plan.lr(step - 1):g}")
    values = {"epoch": step / job.plan.steps_per_epoch, "loss": loss, "lr": job.plan.lr(step - 1)}
    if result.grad_norm is not None:
        values["grad_norm"] = float(result.grad_norm)
    return values


def evaluation(job: Job, step: int) -> dict[str, float | int | str]:
    """Return the numbers of an evaluation."""
    return {
        "epoch": step / job.plan.steps_per_epoch,
        "noise": "off",
        "weights": "model" if job.ema is None else "ema",
        **validate(job).describe(),
    }
