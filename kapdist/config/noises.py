"""What is noisy about a model, by its config: the one place that says whether there is anything to draw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kapdist.config.training import KapConfig, ModelConfig

NOISE_KEYS = "kap.noise_std above 0, model.dropout_draws always or model.random_member"


def noises(model: ModelConfig, kap: KapConfig) -> dict[str, str]:
    """Return what a model draws in every pass, evaluation too, unless its noise is off, and how strongly.

    A model without any is deterministic in every mode.
    """
    found = {
        "activation noise": f"σ = {kap.noise_std:g}" if kap.noise_std else "",
        "dropout": f"{model.dropout_kind}, p = {model.dropout:g}" if model.dropout_draws == "always" else "",
        "random member": f"one of {model.members}" if model.random_member else "",
    }
    return {name: strength for name, strength in found.items() if strength}


def noises_of(architecture: Mapping[str, Mapping[str, Any]] | None) -> dict[str, str] | None:
    """Return the same of a plan's architecture; None of a factory's model, which does not tell."""
    if architecture is None:
        return None
    return noises(ModelConfig(**architecture["model"]), KapConfig(**architecture["kap"]))


def described(found: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {strength}" for name, strength in found.items())
