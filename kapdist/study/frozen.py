"""A study that has begun may grow, by seeds, arms, attacks and claims; what it began with stays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kapdist.errors import InputError, shown
from kapdist.records.study import FrozenStudy, read_frozen, write_study_record
from kapdist.run.lock import locked_in_turn
from kapdist.study.design import Design

OTHERWISE = "(or another name=)"
SUMMARIES = "attacks/*/summary.json"
WAIT_SECONDS = 30.0


def freeze(design: Design) -> FrozenStudy:
    """Write down what decides this study's numbers, beside what it began with.

    Raises:
        InputError: names what is gone or changed since.
    """
    with locked_in_turn(design.dir.root / "FREEZING", WAIT_SECONDS):
        return freeze_in_turn(design)


def freeze_in_turn(design: Design) -> FrozenStudy:
    path = design.dir.frozen
    now = FrozenStudy.model_validate(design.described())
    if path.exists():
        before = read_frozen(path)
        check_grown(design, before, now)
        begun = any(design.dir.runs.glob(f"*/{SUMMARIES}"))
        added = [text for text in now.claims if text not in before.claims]
        arms = grown(design, before)
        now = now.model_copy(
            update={
                "later": (*before.later, *(added if begun else ())),
                "grown": (*before.grown, *([arms] if arms else [])),
            }
        )
        if now == before:
            return now
    write_study_record(path, now)
    return now


def grown(design: Design, before: FrozenStudy) -> tuple[str, ...]:
    """Return the arms that have trainings which they did not begin with, though there are results of them."""
    found = []
    for arm in dict.fromkeys(run.setting.arm for run in design.trained):
        names = [run.name for run in design.trained if run.setting.arm == arm]
        old = [name for name in names if name in before.runs]
        if len(old) < len(names) and any(any((design.dir.runs / name).glob(SUMMARIES)) for name in old):
            found.append(arm)
    return tuple(found)


def check_grown(design: Design, before: FrozenStudy, now: FrozenStudy) -> None:
    for what, old, new in (
        ("run", before.runs, now.runs),
        ("attack", before.attacks, now.attacks),
        ("arms of attack", before.arms, now.arms),
    ):
        for name, value in old.items():
            if name not in new:
                raise InputError(design.root, f"the {what} {name}, as this study began {OTHERWISE}", "no such")
            check_equal(design, f"{what} {name}", value, new[name])
    if gone := [text for text in before.claims if text not in now.claims]:
        raise InputError(design.root, f"the claim {gone[0]!r}, as this study began {OTHERWISE}", "no such")


def check_equal(design: Design, what: str, old: Any, new: Any) -> None:
    if isinstance(old, Mapping):
        for key in old:
            if old[key] != new.get(key):
                expected = f"{what}: {key} = {shown(old[key])} as this study began {OTHERWISE}"
                raise InputError(design.root, expected, shown(new.get(key)))
    elif missing := set(old) - set(new):
        raise InputError(design.root, f"{what} with {min(missing)} {OTHERWISE}", ", ".join(new))
