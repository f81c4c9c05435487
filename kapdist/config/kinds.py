"""The kinds of config that kapdist's commands read, and which of them a file is."""

from __future__ import annotations

from pathlib import Path

from kapdist.config.attack import AttackConfig
from kapdist.config.certify import CertifyConfig
from kapdist.config.evaluation import EvaluationConfig
from kapdist.config.fields import Section
from kapdist.config.file import merged, read_layers
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


def kind_of(path: Path) -> str:
    """Return the kind that knows most of the keys that a file and its bases write; of two, the first of KINDS.

    Raises:
        InputError: the file cannot be read, or none knows half of them.
    """
    written = merged(read_layers(path))
    known = {kind: len(written.keys() & model.model_fields.keys()) for kind, model in KINDS.items()}
    kind = max(KINDS, key=lambda kind: known[kind])
    if 2 * known[kind] < len(written):
        strange = next(key for key in written if key not in KINDS[kind].model_fields)
        raise InputError(path, f"a config ({', '.join(KINDS)})", f"keys of none, such as {shown(strange)}")
    return kind
