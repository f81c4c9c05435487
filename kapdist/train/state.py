"""What decides the future of a training: into a checkpoint, and out of the newest one."""

from __future__ import annotations

import logging

import torch

from kapdist import kap
from kapdist.errors import InputError
from kapdist.rng import derive_seed
from kapdist.train import checkpoint
from kapdist.train.job import Job

log = logging.getLogger(__name__)


def save(job: Job, step: int) -> None:
    """Begin to write the checkpoint of a step: everything that decides the future."""
    best = job.best.state()  # tried again first
    shared = job.engine.state() | {
        "ema": job.ema.state_dict() if job.ema else None,
        "data": job.data.fingerprint,
        "network": job.network,
        "last_evaluation": vars(job.last) | {},
        "best_weights": best,
        "robust": job.robust.state() if job.robust else None,
    }
    own = {
        "activation_noise": kap.noise_state(job.engine.module),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(job.ranks.device) if job.ranks.device.type == "cuda" else None,
        "meter": job.meter.state(),
        "robust_meter": job.robust.meter.state() if job.robust else None,
    }
    job.saver.save(step, shared, own)


def resume(job: Job) -> int:
    """Take over the newest whole checkpoint and return its step; begin anew and return 0 when there is none.

    Raises:
        InputError: every checkpoint is damaged, or the newest one was trained on other images.
    """
    path = job.ranks.from_first(lambda: checkpoint.newest(job.run))
    if path is None:
        # What an attempt that left no checkpoint wrote: this one may be of another config.
        job.ranks.from_first(lambda: job.run.set_aside(job.run.best_weights, job.run.last_attempt() - 1))
        return 0
    shared, own = checkpoint.load(path, job.ranks)
    if shared["data"] != job.data.fingerprint:
        found = f"a checkpoint of other images ({shared['data'][:12]})"
        raise InputError(path, f"a checkpoint of {job.data.path} ({job.data.fingerprint[:12]})", found)
    if shared.get("network", job.network) != job.network:  # plan.json, which says so first, may be gone
        raise InputError(path, f"a checkpoint of {job.config.model.factory} as its file is", "one of another file")
    job.engine.load_state(shared)
    if job.ema:
        job.ema.load_state_dict(shared["ema"])
    step = int(shared["step"])
    job.last.step, job.last.best = shared["last_evaluation"]["step"], shared["last_evaluation"]["best"]
    if job.robust:
        job.robust.load_state(shared.get("robust"))
    if job.ranks.first:
        job.best.load_state(shared.get("best_weights"))
        job.saver.passed_over = checkpoint.newer_than(job.run, path)
    if own is None:
        seed_anew(job, step)
    else:
        restore_own(job, own)
    log.info("continuing from %s", path)
    return step


def restore_own(job: Job, own: checkpoint.State) -> None:
    """Continue this rank's generators where they stood."""
    kap.load_noise_state(job.engine.module, own["activation_noise"])
    torch.set_rng_state(own["torch"])
    if own["cuda"] is not None and job.ranks.device.type == "cuda":
        torch.cuda.set_rng_state(own["cuda"], job.ranks.device)
    job.meter.load_state(own["meter"])
    if job.robust and own.get("robust_meter"):
        job.robust.meter.load_state(own["robust_meter"])


def seed_anew(job: Job, step: int) -> None:
    """The number of ranks changed: no rank has a generator to continue, so all start new ones at this step."""
    log.info("the checkpoint is of another number of ranks: noise and dropout start new streams")
    seed, rank = job.config.seed, job.ranks.rank
    kap.seed_noise(job.engine.module, derive_seed(seed, "activation noise", rank, step))
    torch.manual_seed(derive_seed(seed, "dropout", rank, step))
