"""Whether what was attacked is still what is there: old verdicts say nothing about new weights or a new plan."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kapdist.errors import InputError
from kapdist.records.attack_plan import AttackPlan, read_plan
from kapdist.records.sealed import read_table
from kapdist.run.files import file_sha256
from kapdist.run.paths import AttackDir

if TYPE_CHECKING:  # imported where it is used: a login node needs none
    import polars as pl

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


class AnotherPlanError(InputError):
    """Records are of an earlier plan than the one beside them."""


def read_records(attack: AttackDir, plan: AttackPlan, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """Read the records of a merged attack, one row per image of its plan, in order.

    Raises:
        AnotherPlanError: they are of another plan.
        InputError: they are missing or damaged, or lack one of the columns.
    """
    remedy = f"kapdist attack merge {attack.root}"
    if not attack.records.is_file():
        raise InputError(attack.records, f"the records of a merged attack ({remedy})", "none")
    wanted = None if columns is None else list(dict.fromkeys(("plan", "image", *columns)))
    records = read_table(attack.records, wanted, remedy)
    if missing := {"plan", "image"} - set(records.columns):
        raise InputError(attack.records, f"the column {min(missing)} ({remedy})", ", ".join(records.columns))
    expected = f"the records of this plan's {plan.num_images} images ({remedy})"
    if set(records["plan"]) != {plan.fingerprint}:
        raise AnotherPlanError(attack.records, expected, "those of another plan")
    if records["image"].to_list() != list(plan.images):
        raise InputError(attack.records, expected, "others")
    return records


def planned_anew(attack: AttackDir, merged_plan: str) -> bool:
    """Return whether plan.json is by now another than that of this fingerprint, which was merged.

    A plan that is missing, damaged or of another version does not tell.
    """
    try:
        return read_plan(attack).fingerprint != merged_plan
    except InputError:
        return False
