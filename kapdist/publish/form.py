"""The network of a run as it is published: averages folded into plain convolutions, where that is exact."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from kapdist.attack.model import FOLDED_ROUNDING, check_network, file_sha256_of
from kapdist.config import Config, KapConfig
from kapdist.data.beton.classes import classes_of
from kapdist.errors import first_line
from kapdist.kap import fold, noise
from kapdist.kap.fold import with_the_keys_of
from kapdist.models.build import build_model
from kapdist.models.shown import shown_images
from kapdist.models.weights import load_weights
from kapdist.run.paths import RunDir

Which = Literal["final", "best"]


@dataclass(frozen=True)
class Form:
    """What is published of a run."""

    run: RunDir
    config: Config
    weights: Path
    """The run's file."""
    weights_sha256: str
    original: nn.Module
    """The run's own network, in evaluation mode."""
    model: nn.Module
    """The same function with its noise off, under the keys of the network before kapify."""
    kap: KapConfig
    """What `build_model` makes of the published weights: K = 1 where averages are folded, the run's noise."""
    why_unfolded: str | None
    """None: folded, or there was no average to fold."""

    @property
    def is_plain(self) -> bool:
        """Whether the convolutions are plain with the noise off."""
        return self.kap.pool_size == 1

    @property
    def class_names(self) -> tuple[str, ...]:
        known = classes_of(self.run, self.config)
        return known.names if known else ()


def form_of(path: Path, which: Which = "final", unfolded: bool = False) -> Form:
    """Return the network of a run as it is published.

    Args:
        unfolded: leave the averages as they are, to train on.

    Raises:
        InputError: no run, one without these weights or with others than it ended with, or other code of a network
            by other people than it began with.
    """
    run = RunDir(path)
    config = run.load_config()
    weights = run.weights if which == "final" else run.best_weights
    sha256 = file_sha256_of(weights)
    check_network(run, config.model.factory)
    with torch.random.fork_rng(devices=[]):
        original = build_model(config.model, config.kap)
        load_weights(original, weights)
        original.eval().requires_grad_(False)
        kap = config.kap.model_copy(update={"pool_size": 1, "norm_first": False})
        model, why = (original, "it was asked for so") if unfolded else folded(original, config, kap)
    if model is original:
        kap = config.kap
    return Form(run, config, weights, sha256, original, model, kap, why)


def folded(original: nn.Module, config: Config, kap: KapConfig) -> tuple[nn.Module, str | None]:
    """Return the network with its averages folded; itself, and why, where that would be another function."""
    if config.kap.pool_size == 1:
        return original, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # whatever stays unfolded is found below
            plain = fold(original)
        model = build_model(config.model, kap).eval().requires_grad_(False)
        if config.kap.norm_first:
            with_the_keys_of(model, plain)
        model.load_state_dict(plain.state_dict())
    except (ValueError, RuntimeError) as error:
        return original, first_line(error)
    images = shown_images(original, config.data.resolution)
    with torch.no_grad(), noise(original, "off"), noise(model, "off"):
        one, other = original(images), model(images)
    if (one - other).abs().max() > FOLDED_ROUNDING * one.abs().max():
        return original, "folded it would have other logits"
    return model, None
