"""Which of the examined images the attack of the same name left standing, from its records."""

from __future__ import annotations

import polars as pl
import torch

from kapdist.records.attack_plan import AttackPlan, first_difference, read_plan
from kapdist.records.attacked import AnotherPlanError, read_records
from kapdist.run.paths import AttackDir
from kapdist.sanity.remedies import Verdicts

SAME = "model", "data", "norm", "eps", "noise"


def verdicts_of(attack: AttackDir, plan: AttackPlan) -> tuple[Verdicts | None, list[str]]:
    """Return what the attack in this directory found of the images of `plan`, and what to note about it.

    Returns:
        None where no attack was merged here, it was planned anew since, or it is one on another model, other data,
        another norm, eps or noise.

    Raises:
        InputError: its plan or its records are damaged.
    """
    if not (attack.plan.exists() and attack.records.exists() and attack.summary.exists()):
        return None, []
    attacked = read_plan(attack)
    differs = first_difference(question(attacked), question(plan))
    if differs:
        key, before, now = differs
        return None, [f"the attack of this name had {key} = {before}, not {now}: nothing is said of its number"]
    try:
        standing = robust_rows(attack, attacked)
    except AnotherPlanError:
        return None, [
            "the attack of this name was planned anew and not merged since: nothing is said of its number"
        ]
    rows = pl.DataFrame({"image": plan.images}).join(standing, on="image", how="left", maintain_order="left")
    known, robust = (torch.tensor(rows[name].fill_null(False).to_list()) for name in ("known", "robust"))
    if not known.any():
        return None, ["the attack of this name had none of these images: nothing is said of its number"]
    return Verdicts(f"The attack ({in_words(attacked)})", attacked.fingerprint, known, robust), []


def robust_rows(attack: AttackDir, plan: AttackPlan) -> pl.DataFrame:
    """Return (image, known, robust) of a merged attack."""
    correct = pl.col("clean_prediction") == pl.col("label")
    rows = read_records(attack, plan)
    return rows.select("image", known=pl.lit(True), robust=correct & pl.col("broken_by").is_null())


def question(plan: AttackPlan) -> dict[str, object]:
    """Return what must be the same for an attack's number to be the one in question."""
    identity = plan.identity()
    return {name: identity.get(name) for name in SAME}


def in_words(plan: AttackPlan) -> str:
    return ", ".join(plan.attacks) if plan.version == "custom" else f"AutoAttack {plan.version}"
