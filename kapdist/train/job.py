"""Everything that the loop works on: made once, evaluated, exported."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from safetensors.torch import save as safetensors
from torch import nn

from kapdist import kap
from kapdist.attack.model import check_network
from kapdist.config import MAY_MOVE, Config
from kapdist.data.beton.classes import ClassList, with_classes
from kapdist.data.beton.layout import BetonInfo, check_labels, open_beton
from kapdist.data.load.backend import chosen_backend
from kapdist.data.load.loader import Loader
from kapdist.engine import ENGINES, Engine, Ranks
from kapdist.engine.base import broadcast
from kapdist.engine.compiling import check_compiler, make_room
from kapdist.environment import memory_bytes
from kapdist.errors import InputError
from kapdist.models.build import build_model
from kapdist.models.description import describe_weights
from kapdist.models.factory import check_factory, factory_sha256
from kapdist.models.strided import guard_strided
from kapdist.models.weights import first_not_finite, load_weights, tensors_of
from kapdist.plan.robust import plan_robust
from kapdist.plan.training import Plan, Room, make_plan
from kapdist.rng import derive_seed
from kapdist.run.paths import FACTORY, RunDir, weights_sha256
from kapdist.train import checkpoint
from kapdist.train.adversarial import Adversary
from kapdist.train.alike import check_alike
from kapdist.train.attempt import Attempt
from kapdist.train.batches import InputNoise
from kapdist.train.best import BestWeights
from kapdist.train.evaluate import Evaluation, evaluate
from kapdist.train.flops import flops_of_steps, peak_flops
from kapdist.train.graphs import Graphs
from kapdist.train.metrics import LossMeter
from kapdist.train.optim import MovingAverage, make_ema, make_optimizer
from kapdist.train.robust import RobustAccuracy, RobustValidation
from kapdist.train.speed import Speed
from kapdist.train.staging import stage
from kapdist.train.stop import Stop
from kapdist.train.trainable import check_trainable
from kapdist.train.watchdog import Watchdog

log = logging.getLogger(__name__)


@dataclass
class LastEvaluation:
    """The step of the last evaluation and the best accuracy so far, clean or robust; part of the state."""

    step: int = 0
    best: float = -1.0


@dataclass(frozen=True)
class Job:
    """The parts of a training run on one rank."""

    config: Config
    ranks: Ranks
    run: RunDir
    plan: Plan
    engine: Engine
    ema: MovingAverage | None
    data: BetonInfo
    validation: BetonInfo
    train_loader: Loader
    eval_loader: Loader
    input_noise: InputNoise
    adversary: Adversary | None
    meter: LossMeter
    speed: Speed
    last: LastEvaluation
    best: BestWeights
    saver: checkpoint.Saver
    stop: Stop
    watchdog: Watchdog
    network: dict[str, str | None] = field(default_factory=dict)
    """What tells the code of a network by other people from another."""
    robust: RobustValidation | None = None
    graphs: Graphs | None = None

    @property
    def meters(self) -> tuple[LossMeter, ...]:
        """What the training loss goes to."""
        return (self.meter, self.robust.meter) if self.robust else (self.meter,)

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated and exported: the average of weights where one is kept."""
        return self.engine.module if self.ema is None else self.ema.module


def prepare(config: Config, ranks: Ranks, this: Attempt, stop: Stop, watchdog: Watchdog) -> Job:
    """Open the data, make the plan, build model and engine; what is wrong with the input is found here."""
    data, validation = ranks.together(lambda: open_data(config))
    ranks.from_first(lambda: check_images(this.run, data, validation))
    check_alike(lambda: images_by_key(data, validation), ranks)
    data, validation = stage(config.data.stage, (data, validation), ranks, stop, watchdog)
    network = known_network(config.model.factory, ranks, this.run)
    room = ranks.from_first(lambda: room_for(config, data, ranks, this.run))
    plan = ranks.together(lambda: make_plan(config, data.num_images, ranks.world_size, room))
    model = ranks.together(lambda: initial_model(config, ranks))
    if config.model.factory:
        ranks.together(lambda: check_trainable(model, config, plan))
        broadcast([*model.parameters(), *model.buffers()], ranks)  # it may draw from any generator
    ema = make_ema(model, config.optim)  # a copy of the model before an engine has its hooks in it
    optimizer = make_optimizer(model, config.optim, fused=ranks.on_gpu and config.engine.name == "ddp")
    graphs = config.engine.graphs
    if config.engine.compile:
        ranks.together(lambda: check_compiler(ranks.device))
        make_room(plan.num_graphs)
    engine = ENGINES[config.engine.name](model, optimizer, config.engine, ranks, config.optim.clip_grad_norm)
    job = Job(
        config=config,
        ranks=ranks,
        run=this.run,
        plan=plan,
        network=network,
        engine=engine,
        ema=ema,
        data=data,
        validation=validation,
        train_loader=ranks.together(lambda: make_loader(config, data, ranks, plan)),
        eval_loader=ranks.together(lambda: make_loader(config, validation, ranks)),
        input_noise=InputNoise(config.train.input_noise_std, config.seed),
        adversary=Adversary(config, plan, plan.adversarial, engine, ranks) if plan.adversarial else None,
        meter=LossMeter(ranks),
        speed=make_speed(config, ranks, plan, model),
        last=LastEvaluation(),
        best=BestWeights(this.run),
        saver=make_saver(config, ranks, this, plan),
        stop=stop,
        watchdog=watchdog,
        robust=ranks.together(lambda: make_robust(config, validation, plan, ranks)),
        graphs=Graphs(bool(config.train.mixup_alpha or config.train.cutmix_alpha)) if graphs else None,
    )
    ranks.from_first(lambda: settle(job, this))
    return job


def settle(job: Job, this: Attempt) -> None:
    """Claim the run directory: not before nothing can be wrong any more. Rank 0 only."""
    this.claim(job.config, job.ranks)
    this.note(job.run.plan, job.plan.describe() | described_images(job.data, job.validation) | job.network)
    storage = job.plan.storage
    log.info("order %s, cache %s: %s", storage.order, storage.cache, storage.reason)


def make_speed(config: Config, ranks: Ranks, plan: Plan, model: nn.Module) -> Speed:
    return Speed(ranks, peak_flops(ranks.device, config.engine), flops_of_steps(model, plan))


def make_robust(config: Config, validation: BetonInfo, plan: Plan, ranks: Ranks) -> RobustValidation | None:
    """Return what attacks the model between steps, if the config wants it."""
    planned = plan_robust(config, validation.num_images, plan.steps_per_epoch)
    if planned is None:
        return None
    # A loader of its own: that of evaluation has memory that belongs to inference mode.
    loader = make_loader(config, validation, ranks, batch_size=planned.batch_size)
    return RobustValidation(planned, loader, config.seed, ranks)


def make_saver(config: Config, ranks: Ranks, this: Attempt, plan: Plan) -> checkpoint.Saver:
    seconds, keep = 60 * config.engine.timeout_minutes, config.train.keep_checkpoints
    return checkpoint.Saver(this.run, ranks, this.number, keep, seconds, plan.storage.order)


def open_data(config: Config) -> tuple[BetonInfo, BetonInfo]:
    """Open both betons, the labels of the second as the classes of the first."""
    train = open_beton(config.data.train)
    known = ClassList(train.class_names, str(train.path))
    validation = with_classes(open_beton(config.data.validation), known, config.data.classes)
    for info in (train, validation):
        check_labels(info, config.model.num_classes)
    return train, validation


def described_images(data: BetonInfo, validation: BetonInfo) -> dict[str, Any]:
    """Return what plan.json says of the images: what tells them from others, and what their labels mean."""
    fingerprints = {"data": data.fingerprint, "validation": validation.fingerprint}
    return fingerprints | {"classes": list(data.class_names)}


def images_by_key(data: BetonInfo, validation: BetonInfo) -> dict[str, str]:
    """Return the fingerprints of a rank's betons, by the keys that name them: its host may have others there."""
    return dict(
        zip((f"images of {key}" for key in MAY_MOVE), (data.fingerprint, validation.fingerprint), strict=True)
    )


def check_images(run: RunDir, data: BetonInfo, validation: BetonInfo) -> None:
    """Refuse other images than a run began with, wherever they lie: a beton may be moved or copied.

    Raises:
        InputError: names the beton and both fingerprints.
    """
    recorded = run.recorded() if run.begun else {}
    for (key, name), info in zip(MAY_MOVE.items(), (data, validation), strict=True):
        known = recorded.get(name, info.fingerprint)
        if known != info.fingerprint:
            expected = f"the images that this run began with ({str(known)[:12]}; or another name=)"
            raise InputError(f"{key} = {info.path}", expected, f"others ({info.fingerprint[:12]})")


def known_network(factory: str | None, ranks: Ranks, run: RunDir) -> dict[str, str | None]:
    """Return what tells the code of a network by other people from another; nothing of our own.

    Raises:
        InputError: the factory's file is another one than this run began with, or than rank 0 has.
    """
    if factory is None:
        return {}
    ranks.from_first(lambda: check_network(run, factory))
    of_the_first = ranks.from_first(lambda: factory_sha256(factory))
    ranks.together(lambda: check_factory(factory, of_the_first))
    return {FACTORY: of_the_first}


def initial_model(config: Config, ranks: Ranks) -> nn.Module:
    """Return the model before its first step: the same weights on every rank, noise of each rank's own."""
    torch.manual_seed(derive_seed(config.seed, "weights"))
    model = build_model(config.model, config.kap)
    if config.model.weights:
        if config.model.weights.is_file():
            weights_sha256(config.model.weights)
        load_weights(model, config.model.weights, start=True, new_head=config.model.new_head)
    guard_strided(model)
    kap.seed_noise(model, derive_seed(config.seed, "activation noise", ranks.rank))
    torch.manual_seed(derive_seed(config.seed, "dropout", ranks.rank))
    if config.engine.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    return model.to(ranks.device).train()


def room_for(config: Config, data: BetonInfo, ranks: Ranks, run: RunDir) -> Room:
    """Return what decides the order and the cache; a run that has begun keeps its order and its batches."""
    order = checkpoint.order_begun(run) or planned_order(run)
    process_cache = chosen_backend(config.data) == "ffcv"
    size = data.path.stat().st_size
    return Room(size, memory_bytes(), ranks.local_world_size, process_cache, order, batch_size_begun(run))


def batch_size_begun(run: RunDir) -> int | None:
    """Return the global batch size of a run that has begun; None before, or where plan.json does not say it."""
    found = run.recorded().get("batch_size") if run.begun else None
    return found if isinstance(found, int) else None


def planned_order(run: RunDir) -> str | None:
    """Return the order that plan.json has for a run whose checkpoints do not say it, or has none yet."""
    if not run.plan.exists() or not run.begun:
        return None
    try:
        return str(json.loads(run.plan.read_bytes())["storage"]["order"])
    except (ValueError, KeyError, TypeError):
        log.warning("%s is damaged: the plan is made anew, and the order with it", run.plan)
        return None


def make_loader(
    config: Config, info: BetonInfo, ranks: Ranks, plan: Plan | None = None, batch_size: int = 0
) -> Loader:
    """Return the loader of training, if there is a plan of it, or of evaluation in batches of another size."""
    train, training = config.train, plan is not None
    return Loader(
        info,
        config.data,
        training=training,
        seed=config.seed,
        max_batch_size=plan.largest_part if plan else batch_size or train.eval_batch_size,
        device=ranks.device,
        num_workers=config.data.workers or ranks.decoders,
        channels_last=config.engine.channels_last,
        cache=plan.storage.cache if plan else "page",  # evaluation reads the file from its beginning to its end
        local_ranks=ranks.local_world_size,
    )


def validate(job: Job, step: int) -> Evaluation | None:
    """Evaluate the exported model over all ranks; None where a signal cut it short.

    Raises:
        FloatingPointError: its loss is not finite.
    """
    broadcast(job.evaluated.buffers(), job.ranks)
    found = evaluate(
        job.evaluated,
        job.eval_loader,
        job.validation.num_images,
        job.config.model.num_classes,
        job.config.train.eval_batch_size,
        job.ranks,
        partial(poll, job, step),
    )
    if found is not None and not math.isfinite(found.loss_sum):
        raise checkpoint.diverged(job.run, f"the evaluation of step {step} has a loss of {found.loss_sum}")
    return found


def withstood(job: Job, step: int) -> RobustAccuracy | None:
    """Attack the model that `validate` has just evaluated, over all ranks; None where a signal cut it short.

    Raises:
        FloatingPointError: its loss is not finite.
    """
    assert job.robust is not None
    found = job.robust.withstood(job.evaluated, partial(poll, job, step))
    if found is not None and not math.isfinite(found.loss_sum):
        raise checkpoint.diverged(job.run, f"robust validation after step {step} has a loss of {found.loss_sum}")
    return found


def poll(job: Job, step: int) -> bool:
    """Say that this rank makes progress; return whether the ranks are to stop."""
    job.watchdog.beat(step)
    return job.stop.agreed()


def exported(job: Job) -> bytes | None:
    """Return the weights as safetensors, unaveraged, under torchvision's names; None but on rank 0.

    Raises:
        FloatingPointError: on all ranks, where a value is not finite.
    """
    broadcast(job.evaluated.buffers(), job.ranks)
    weights = tensors_of(job.evaluated)
    found = first_not_finite(weights)
    if job.ranks.any(found is not None):
        raise checkpoint.diverged(
            job.run, f"{found or 'a weight of another rank'} is not finite: it is not exported"
        )
    return safetensors(weights, metadata=describe_weights(job.evaluated)) if job.ranks.first else None
