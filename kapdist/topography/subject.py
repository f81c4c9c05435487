"""The runs that are looked at: which weights, and what the training left of its way to them."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from kapdist.config import Config
from kapdist.engine import Ranks
from kapdist.errors import InputError
from kapdist.models.build import build_model
from kapdist.models.weights import load_weights
from kapdist.records.metrics import read_metrics
from kapdist.run.paths import RunDir, as_ended, weights_sha256
from kapdist.train.checkpoint import LOOKS, damages, sealed
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
    weights_sha256: str
    """Of that file."""
    state: dict[str, Tensor] | None = field(default=None, repr=False, compare=False)
    """The weights of a checkpoint, which a training at work may prune while they are measured."""

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
        if self.state is None:
            load_weights(network, self.weights)
        else:
            load_state(network, self.state, self.weights)
        return frozen(network, device)


@dataclass(frozen=True)
class Moment:
    """A step of a training whose weights can still be had."""

    step: int | None
    what: str
    model: Callable[[torch.device], nn.Module | None]
    """None: the training has pruned it meanwhile."""


def subject_of(path: Path, label: str) -> Subject:
    """Return a run with the weights that it ended with, else with those of its newest whole checkpoint.

    A training that is at work may prune the one that is looked at; then there is a newer one.

    Raises:
        InputError: no run, one that has left neither, or weights that it did not end with.
    """
    run = RunDir(path)
    config = run.load_config()
    for _ in range(LOOKS):
        if run.weights.is_file():  # other weights than the run's are refused before the work, not after it
            return Subject(run, label, config, run.weights, weights_sha256(run.weights))
        folders = sealed(run)
        for place in (folder / SHARED for folder in folders if is_whole(folder)):
            if found := read_checkpoint(place, config.optim.ema_decay > 0):
                return Subject(run, label, config, place, *found)
        if all(folder.exists() for folder in folders):
            break
    expected = f"weights to look at: {run.weights.name} of a finished run, or one whole checkpoint"
    raise InputError(path, expected, "neither (a run that has not begun has no topography)")


def is_whole(folder: Path) -> bool:
    damage = next(damages(folder), None)
    if damage is not None and folder.exists():
        log.warning("passing over checkpoint %s: %s", folder, damage)
    return damage is None


def read_checkpoint(path: Path, moving_average: bool) -> tuple[str, dict[str, Tensor]] | None:
    """Return the sha256 of a checkpoint's file, and the weights that a run would have exported there.

    These are the moving average, where one is kept. None: the training has pruned it meanwhile.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    shared = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    state = shared["model"]
    if moving_average:
        average = shared["ema"]
        state = {key.removeprefix("module."): value for key, value in average.items() if key != "n_averaged"}
    return hashlib.sha256(content).hexdigest(), state


def load_state(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Take the weights of a checkpoint.

    Raises:
        InputError: they do not fit.
    """
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
    yield Moment(0, "before the first step", lambda device: initial(config, device))
    for folder in reversed(sealed(run)):
        path = folder / SHARED
        if path != subject.weights and is_whole(folder):
            yield Moment(step_of(folder), "checkpoint", of_checkpoint(subject, path))
    if run.best_weights.is_file():
        yield Moment(best_step(subject), "best evaluation", of_file(subject, run.best_weights))


def initial(config: Config, device: torch.device) -> nn.Module | None:
    """Return the network that a run began with: its weights follow from the config's seed, or are those of files.

    None: these files are gone, or others that do not fit by now.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            return frozen(initial_model(config, Ranks()), device)
    except InputError as error:
        log.warning("the network before the first step is passed over: %s", error)
        return None


def of_checkpoint(subject: Subject, path: Path) -> Callable[[torch.device], nn.Module | None]:
    def model(device: torch.device) -> nn.Module | None:
        found = read_checkpoint(path, subject.is_moving_average)
        if found is None:
            return None
        network = build_model(subject.config.model, subject.config.kap)
        load_state(network, found[1], path)
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
    """Return the step of the best weights by metrics.jsonl, as `train.best` counts; None where it has none."""
    metrics = read_metrics(as_ended(subject.run.metrics))
    robust = subject.config.train.best == "robust"
    lines, key = (metrics.withstood, "accuracy") if robust else (metrics.shown, "top1")
    return max(lines, key=lambda line: line[key])["step"] if lines else None


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
