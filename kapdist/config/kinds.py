"""The kinds of config that kapdist's commands read, and which of them written keys are of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kapdist.config.attack import AttackConfig
from kapdist.config.certify import CertifyConfig
from kapdist.config.evaluation import EvaluationConfig
from kapdist.config.fields import Section
from kapdist.config.study import StudyConfig
from kapdist.config.training import Config
from kapdist.errors import InputError, shown

KINDS: dict[str, type[Section]] = {
    "training": Config,
    "attack": AttackConfig,
    "evaluation": EvaluationConfig,
    "certificate": CertifyConfig,
    "study": StudyConfig,
}


def kind_of(path: Path, written: Mapping[str, Any]) -> str:
    """Return the kind that knows most of the keys that a file and its bases write; of two, the first of KINDS.

    Raises:
        InputError: none knows half of them.
    """
    kind = best(written)
    if not knows_half(KINDS[kind], written):
        strange = next(key for key in written if key not in KINDS[kind].model_fields)
        raise InputError(path, f"a config ({', '.join(KINDS)})", f"keys of none, such as {shown(strange)}")
    return kind


def mistaken(written: Mapping[str, Any], model: type[Section]) -> tuple[str, str] | None:
    """Return the kind that was to be read and the one that keys are of; None unless that is another one clearly."""
    asked = next((kind for kind, own in KINDS.items() if own is model), None)
    own = {key: value for key, value in written.items() if key != "name"}  # which all kinds have
    found = best(own)
    if asked is None or knows_half(model, own) or not knows_half(KINDS[found], own):
        return None
    return asked, found


def best(written: Mapping[str, Any]) -> str:
    return max(KINDS, key=lambda kind: num_known(KINDS[kind], written))


def knows_half(model: type[Section], written: Mapping[str, Any]) -> bool:
    return 2 * num_known(model, written) >= len(written)


def num_known(model: type[Section], written: Mapping[str, Any]) -> int:
    return len(written.keys() & model.model_fields.keys())
