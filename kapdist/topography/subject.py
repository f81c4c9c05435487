"""The runs that are looked at: which weights, and what the training left of its way to them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from kapdist.config import Config
from kapdist.engine import Ranks
from kapdist.errors import InputError
from kapdist.models.build import build_model
from kapdist.models.weights import load_weights
from kapdist.records.metrics import read_metrics
from kapdist.run.files import file_sha256
from kapdist.run.paths import RunDir, as_ended, weights_sha256
from kapdist.train.checkpoint import damages, sealed
from kapdist.train.job import initial_model

log = logging.getLogger(__name__)

SHARED = "shared.pt"


@dataclass(frozen=True)
class Subject:
    """One run, and the file with the weights that are measured."""

    run: RunDir
    label: str
    config: Config
    weights: Path

    @property
    def is_final(self) -> bool:
        return self.weights == self.run.weights

    @property
    def averages(self) -> bool:
        return self.config.kap.pool_size > 1

    @property
    def is_moving_average(self) -> bool:
        return self.config.optim.ema_decay > 0

    @property
    def weights_sha256(self) -> str:
        return weights_sha256(self.weights) if self.is_final else file_sha256(self.weights)

    @property
    def said(self) -> str:
        """Which weights these are, in words."""
        name = str(self.weights.relative_to(self.run.root))
        return f"{name}, the moving average" if self.is_moving_average else name

    @property
    def kind(self) -> str:
        kap = self.config.kap
        words = [f"KAP {kap.pool_size}, {kap.layout}"] if self.averages else []
        words += [f"noise {kap.noise_std:g}"] if kap.noise_std else []
        return ", ".join(words) or "plain"

    def model(self, device: torch.device) -> nn.Module:
        """Build the network with the measured weights, frozen."""
        network = build_model(self.config.model, self.config.kap)
        if self.is_final:
            load_weights(network, self.weights)
        else:
            load_checkpoint(network, self.weights, self.is_moving_average)
        return frozen(network, device)


@dataclass(frozen=True)
class Moment:
    """A step of a training whose weights can still be had."""

    step: int | None
    what: str
    model: Callable[[torch.device], nn.Module]


def subject_of(path: Path, label: str) -> Subject:
    """Return a run with the weights that it ended with, else with those of its newest whole checkpoint.

    Raises:
        InputError: no run, one that has left neither, or weights that it did not end with.
    """
    run = RunDir(path)
    config = run.load_config()
    if run.weights.is_file():
        weights_sha256(run.weights)  # other weights than the run's are refused before the work, not after it
        return Subject(run, label, config, run.weights)
    whole = [folder for folder in sealed(run) if is_whole(folder)]
    if not whole:
        expected = f"weights to look at: {run.weights.name} of a finished run, or one whole checkpoint"
        raise InputError(path, expected, "neither (a run that has not begun has no topography)")
    return Subject(run, label, config, whole[0] / SHARED)


def is_whole(folder: Path) -> bool:
    damage = next(damages(folder), None)
    if damage is not None:
        log.warning("passing over checkpoint %s: %s", folder, damage)
    return damage is None


def load_checkpoint(network: nn.Module, path: Path, moving_average: bool) -> None:
    """Take the weights that a run would have exported at a checkpoint: the moving average, where one is kept.

    Raises:
        InputError: they do not fit.
    """
    shared = torch.load(path, map_location="cpu", weights_only=True)
    state = shared["model"]
    if moving_average:
        average = shared["ema"]
        state = {key.removeprefix("module."): value for key, value in average.items() if key != "n_averaged"}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(path, "the weights of this run's model", str(error).splitlines()[-1].strip()) from None


def frozen(network: nn.Module, device: torch.device) -> nn.Module:
    network = network.eval().requires_grad_(False).to(device)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it


def moments_of(subject: Subject) -> Iterator[Moment]:
    """Yield what is left of a training but the measured weights: its first, those of checkpoints, its best."""
    config, run = subject.config, subject.run
    if config.model.weights is None or config.model.weights.exists():
        yield Moment(0, "before the first step", lambda device: frozen(initial(config), device))
    for folder in reversed(sealed(run)):
        path = folder / SHARED
        if path != subject.weights and is_whole(folder):
            yield Moment(step_of(folder), "checkpoint", of_checkpoint(subject, path))
    if run.best_weights.is_file():
        yield Moment(best_step(subject), "best evaluation", of_file(subject, run.best_weights))


def initial(config: Config) -> nn.Module:
    """Return the network that a run began with: its weights follow from the config's seed, or are a file's."""
    with torch.random.fork_rng(devices=[]):
        return initial_model(config, Ranks())


def of_checkpoint(subject: Subject, path: Path) -> Callable[[torch.device], nn.Module]:
    def model(device: torch.device) -> nn.Module:
        network = build_model(subject.config.model, subject.config.kap)
        load_checkpoint(network, path, subject.is_moving_average)
        return frozen(network, device)

    return model


def of_file(subject: Subject, path: Path) -> Callable[[torch.device], nn.Module]:
    def model(device: torch.device) -> nn.Module:
        weights_sha256(path)
        network = build_model(subject.config.model, subject.config.kap)
        load_weights(network, path)
        return frozen(network, device)

    return model


def best_step(subject: Subject) -> int | None:
    """Return the step of the best evaluation that metrics.jsonl has; None where it has none."""
    lines = read_metrics(as_ended(subject.run.metrics)).shown
    return max(lines, key=lambda line: line["top1"])["step"] if lines else None


def last_step(subject: Subject) -> int | None:
    """Return the step of the measured weights; None where nothing says it."""
    if not subject.is_final:
        return step_of(subject.weights.parent)
    try:
        step = json.loads(subject.run.done.read_bytes())["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))
