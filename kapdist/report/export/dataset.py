"""Which data set was attacked: as the manifest of its beton says, or else the user."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from kapdist.data.beton.manifest import read_manifest
from kapdist.data.sources import SOURCES
from kapdist.errors import InputError
from kapdist.records.attack_plan import AttackPlan


def dataset_of(plan: AttackPlan, asked: str | None, datasets: Collection[str]) -> str:
    """Return the one of `datasets` that a plan's images are test images of.

    Raises:
        InputError: `asked` is none of them or another one than attacked, the images are those of training or of a
            data set beyond these, or nobody says what they are.
    """
    known = " or ".join(datasets)
    if asked is not None and asked not in datasets:
        raise InputError("--dataset", known, asked)
    source = source_of(plan)
    name, _, split = (source or "").partition("/")
    if name in {*datasets, *SOURCES}:
        if name not in ([asked] if asked else datasets) or split == "train":
            raise InputError(plan.data.path, f"test images of {asked or known}", str(source))
        return name
    if asked is None:
        expected = f"--dataset {known}, as the beton does not say what it was written from"
        raise InputError(plan.data.path, expected, source or "no manifest")
    return asked


def source_of(plan: AttackPlan) -> str | None:
    """Return what the attacked images were written from; None where their manifest is gone or another's."""
    return source_at(plan.data.path, plan.data.fingerprint)


def source_at(beton: Path, fingerprint: str | None) -> str | None:
    """Return what images of this fingerprint were written from; None where no manifest beside a beton says it."""
    try:
        manifest = read_manifest(beton)
    except InputError:
        return None
    return manifest.source if manifest.fingerprint == fingerprint else None
