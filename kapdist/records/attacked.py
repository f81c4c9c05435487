"""Whether the weights that were attacked are still the run's: old verdicts say nothing about new weights."""

from __future__ import annotations

import logging
from pathlib import Path

from kapdist.errors import InputError
from kapdist.records.attack_plan import AttackPlan
from kapdist.run.files import file_sha256

log = logging.getLogger(__name__)


def check_weights(plan: AttackPlan, run: Path) -> None:
    """Compare the weights where the attacked ones lay with the plan; say so where they are gone.

    What a factory brings along is not asked for: only its own code could tell.

    Raises:
        InputError: they are others by now.
    """
    path = plan.model.weights_file(run)
    if path is None:
        return
    planned = plan.model.weights_sha256
    if not path.is_file():
        log.warning("%s is gone: it could not be checked against the attacked weights (%s)", path, planned[:12])
        return
    found = file_sha256(path)
    if found != planned:
        expected = f"the weights that {plan.name} attacked (sha256 {planned[:12]}; or attack again, another name=)"
        raise InputError(path, expected, f"sha256 {found[:12]}")
