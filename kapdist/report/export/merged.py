"""A merged attack, read back: plan, summary and records, which must belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl

from kapdist.errors import InputError, first_line
from kapdist.records import summary as summaries
from kapdist.records.attack_plan import AttackPlan, read_plan, run_of
from kapdist.records.attacked import check_weights, read_records
from kapdist.records.sanity import believed_of, read_sanity
from kapdist.records.summary import Summary, summarise
from kapdist.run.paths import AttackDir, labels

RESULTS = ("num_images", "num_clean_correct", "clean_accuracy", "num_robust", "robust_accuracy", "sweep")


@dataclass(frozen=True)
class Merged:
    """One attack; `run` tells its run from those of the other attacks that are exported with it."""

    dir: AttackDir
    run: str
    plan: AttackPlan
    summary: Summary
    records: pl.DataFrame

    @property
    def name(self) -> str:
        return self.dir.root.resolve().name

    @cached_property
    def doubt(self) -> str | None:
        """What stronger attacks say against the robust accuracy, in words; None where nothing does."""
        acted = read_sanity(self.dir.sanity).acted if self.dir.sanity.exists() else None
        if acted is None or believed_of(acted, self.plan.fingerprint) is not False:
            return None
        return f"the robust accuracy is not to be believed: {acted.in_words()}"


def read_all(directories: Sequence[Path]) -> tuple[Merged, ...]:
    """Read attack directories, each once, in the order given.

    Raises:
        InputError: no directory at all, one without a merged attack, or files in it that do not belong together.
    """
    attacks = [AttackDir(path) for path in {Path(path).resolve(): path for path in directories}.values()]
    if not attacks:
        raise InputError("attacks", "at least one attack directory", "none")
    plans = [read_plan(attack) for attack in attacks]
    homes = [run_of(attack) for attack in attacks]
    names = dict(zip(dict.fromkeys(homes), labels(list(dict.fromkeys(homes))), strict=True))
    return tuple(
        read_merged(attack, names[home], plan) for attack, home, plan in zip(attacks, homes, plans, strict=True)
    )


def read_merged(attack: AttackDir, run: str, plan: AttackPlan) -> Merged:
    check_weights(plan, run_of(attack))
    summary = read_summary(attack, plan)
    records = read_records(attack, plan)
    check_results(attack, plan, summary, records)
    return Merged(attack, run, plan, summary, records)


def read_summary(attack: AttackDir, plan: AttackPlan) -> Summary:
    """Read the summary of a plan's attack.

    Raises:
        InputError: the attack is not merged, or the summary is damaged or of another plan.
    """
    if not attack.summary.exists():
        expected = f"a merged attack (kapdist attack merge {attack.root})"
        raise InputError(attack.root, expected, f"no {attack.summary.name}")
    summary = summaries.read_summary(attack.summary)
    if summary.plan_fingerprint != plan.fingerprint:
        expected = f"the summary of this plan ({plan.fingerprint[:12]}; merge again)"
        raise InputError(attack.summary, expected, f"that of {summary.plan_fingerprint[:12]}")
    return summary


def check_results(attack: AttackDir, plan: AttackPlan, summary: Summary, records: pl.DataFrame) -> None:
    """Raise InputError unless the summary is what the records add up to: nobody publishes a number that is not."""
    try:
        again = summarise(records, plan)
    except pl.exceptions.PolarsError as error:
        raise InputError(attack.records, "the columns of this version (merge again)", first_line(error)) from None
    for name in RESULTS:
        if getattr(summary, name) != getattr(again, name):
            expected = f"the {name} that {attack.records.name} adds up to (merge again)"
            raise InputError(attack.summary, expected, "another")
