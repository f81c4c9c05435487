"""plan.json of a directory that was asked for by its kind. Another kind's is nobody's mistake to be removed."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TypeVar

from kapdist.errors import InputError
from kapdist.records.record import Record, read_record
from kapdist.run.files import mapping_in
from kapdist.run.paths import AttackDir

PLAN_AGAIN = "remove it and plan again: chunks of the same plan are kept"
AN_ATTACK = "an attack directory (kapdist attack plan RUN CONFIG)"
# Whose plan.json has this key.
KINDS = {
    "steps_per_epoch": "a run directory",
    "attacks": "that of an attack",
    "sigmas": "that of a certificate",
    "cells": "that of corruptions",
}
AnyPlan = TypeVar("AnyPlan", bound=Record)


def read_planned(kind: type[AnyPlan], directory: AttackDir, asked: str) -> AnyPlan:
    """Read plan.json as a plan of some kind.

    Args:
        asked: the kind of directory, as the user would be told.

    Raises:
        InputError: there is none, it is damaged, or of another kind.
    """
    if not directory.plan.is_file():
        raise InputError(directory.root, asked, "no plan.json")
    try:
        return read_record(kind, directory.plan, PLAN_AGAIN)
    except InputError:
        if other := other_kind(directory.plan, kind.model_fields):
            raise InputError(directory.root, asked, other) from None
        raise


def other_kind(plan: Path, own: Collection[str]) -> str:
    """Name the kind of directory that a plan tells, "" where it is damaged, or has no key that only others have.

    Args:
        own: keys of the kind that was asked for.
    """
    values = mapping_in(plan)
    return next((kind for key, kind in KINDS.items() if key in values and key not in own), "")
