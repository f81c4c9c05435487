"""A study that has begun may grow, by seeds, arms, attacks and claims; what it began with stays."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from kapdist.errors import InputError, shown
from kapdist.records.study import FrozenStudy, read_frozen, write_study_record
from kapdist.run.lock import locked_in_turn
from kapdist.study.design import Design
from kapdist.study.settings import Trained
from kapdist.study.tasks import run_dir

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
    now = as_frozen(design)
    if not design.dir.frozen.exists() or now != read_frozen(design.dir.frozen):
        write_study_record(design.dir.frozen, now)
    return now


def as_frozen(design: Design) -> FrozenStudy:
    """Return what would be written down of this study now; for whoever only looks at it.

    Raises:
        InputError: as `freeze`.
    """
    path = design.dir.frozen
    now = FrozenStudy.model_validate(design.described())
    before = read_frozen(path) if path.exists() else None
    check_trained(design, () if before is None else before.runs)
    if before is None:
        return now
    check_grown(design, before, now)
    begun = any(design.dir.runs.glob(f"*/{SUMMARIES}"))
    added = [text for text in now.claims if text not in before.claims]
    arms = grown(design, before)
    return now.model_copy(
        update={
            "later": (*before.later, *(added if begun else ())),
            "grown": (*before.grown, *([arms] if arms else [])),
        }
    )


def check_trained(design: Design, known: Collection[str]) -> None:
    """Refuse runs that lie here and began with another config: what they found would stand under this one's name.

    Args:
        known: runs that this study has begun with, whose commands refuse it themselves.
    """
    for run in design.trained:
        if run.name not in known:
            run_dir(design, run).check(run.config)


def grown(design: Design, before: FrozenStudy) -> tuple[str, ...]:
    """Return the arms that have results and are to be attacked with more seeds than they began with."""
    found = []
    for arm in dict.fromkeys(run.setting.arm for run in design.trained):
        runs = [run for run in design.trained if run.setting.arm == arm]
        for name, attack in design.attacks.items():
            asked = [run for run in runs if attack.of(run)]
            old = [run for run in asked if began_with(before, name, run)]
            if len(old) < len(asked) and any(any((design.dir.runs / run.name).glob(SUMMARIES)) for run in old):
                found.append(arm)
                break
    return tuple(found)


def began_with(before: FrozenStudy, attack: str, run: Trained) -> bool:
    """Tell whether a study was to make this attack on this training before."""
    seeds = before.seeds.get(attack)
    asked = run.setting.arm in before.arms.get(attack, ()) and (seeds is None or run.seed in seeds)
    return asked and run.name in before.runs


def began_examined(before: FrozenStudy, attack: str, run: Trained) -> bool:
    """Tell whether a study was to examine this attack on this training before."""
    fewer = before.examined.get(attack, {})
    asked = run.setting.arm in fewer.get("arms", [run.setting.arm]) and run.seed in fewer.get("seeds", [run.seed])
    return asked and attack in before.sanity and began_with(before, attack, run)


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
    for name, asked in design.asked.items():
        if left := [run.seed for run in design.trained if began_with(before, name, run) and not asked.of(run)]:
            expected = f"seeds of attack {name} with {left[0]}, as this study began {OTHERWISE}"
            raise InputError(design.root, expected, ", ".join(map(str, asked.seeds or ())))
    for name, asked in design.sanity.items():
        if gone := [run.name for run in design.trained if began_examined(before, name, run) and not asked.of(run)]:
            expected = f"the sanity of {name!r} on {gone[0]}, as this study began {OTHERWISE}"
            raise InputError(design.root, expected, "not on it")
    for what, said, still in (
        ("claim", before.claims, now.claims),
        ("sanity of", before.sanity, now.sanity),
    ):
        if gone := [text for text in said if text not in still]:
            raise InputError(design.root, f"the {what} {gone[0]!r}, as this study began {OTHERWISE}", "no such")
    if before.topography:
        check_equal(design, "topography", before.topography, now.topography or {})
    for claim in design.config.claims:
        if claim.text in before.claims and (attack := attack_before(before, claim.text)):
            check_equal(design, f"claim {claim.text!r}", {"attack": attack}, {"attack": design.attack_of(claim)})


def attack_before(before: FrozenStudy, claim: str) -> str | None:
    """Return the attack that a claim was about, the only one if there was one; None if nothing tells."""
    attacks = [name for name in before.attacks if not name.startswith("the ")]
    return before.under.get(claim, attacks[0] if len(attacks) == 1 else None)


def check_equal(design: Design, what: str, old: Any, new: Any) -> None:
    if isinstance(old, Mapping):
        for key in old:
            if old[key] != new.get(key):
                expected = f"{what}: {key} = {shown(old[key])} as this study began {OTHERWISE}"
                raise InputError(design.root, expected, shown(new.get(key)))
    elif missing := set(old) - set(new):
        raise InputError(design.root, f"{what} with {min(missing)} {OTHERWISE}", ", ".join(new))
