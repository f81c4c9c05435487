"""Which config an attack was planned with: slurm/planned.yaml, written with the plan.

An attack that was planned by hand has none; its plan tells the knobs that a plan takes over as they are.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kapdist.config import AttackConfig, flatten
from kapdist.config.file import load_config
from kapdist.errors import InputError
from kapdist.run.files import write_atomic
from kapdist.run.paths import AttackDir

ATTACK = "attack.yaml"  # the config that was submitted, and
PLANNED = "planned.yaml"  # the one that was planned, both in slurm/

AS_THEY_ARE = ("seed", "norm", "version", "noise", "images_per_pass", "chunk_size", "keep_adversarial")
NOT_PLANNED = ("name", "num_shards", "timeout_minutes", "sanity.", "corruptions.")
WHAT_IS_THERE = {"threads": 0, "device": "auto", "chunk_size": 0, "images_per_pass": 0}
"""These values stand for those of the plan."""
MATTERS: dict[str, Callable[[AttackConfig], bool]] = {
    "eot": lambda config: config.noise == "fresh",
    "rescore": lambda config: config.noise == "fresh",
    "compact": lambda config: config.noise != "fresh",
    "fold": lambda config: config.noise == "off" and config.model.factory is None,
    "random_draws": lambda config: "random-noise" in config.attacks,
    "hard_label_queries": lambda config: "hard-label" in config.attacks,
    "fmn_steps": lambda config: "fmn" in config.attacks,
}
"""Knobs that decide something in some attacks only."""


def remember_plan(attack: AttackDir, config: Path) -> None:
    """Write down that the plan of this directory is that of a config file."""
    write_atomic(attack.slurm / PLANNED, config.read_text())


def is_planned_as_submitted(attack: AttackDir) -> bool:
    """Return whether the plan is that of the config that was submitted last: one may be there from before."""
    files = (attack.slurm / ATTACK, attack.slurm / PLANNED)
    return attack.plan.exists() and all(map(Path.exists, files)) and len({file.read_text() for file in files}) == 1


def planned_with(attack: AttackDir) -> AttackConfig | None:
    """Return the config that the attack was planned with, None where no job planned it."""
    with contextlib.suppress(InputError):  # of a version that had other knobs
        if attack.plan.exists() and (attack.slurm / PLANNED).exists():
            return load_config(AttackConfig, attack.slurm / PLANNED)
    return None


def is_planned(attack: AttackDir, config: AttackConfig) -> bool:
    """Return whether this very config was planned here; else the plan job decides whether it may be."""
    return planned_with(attack) == config


def refuse_another(attack: AttackDir, config: AttackConfig) -> None:
    """Refuse a config that the plan of this directory cannot be of.

    Raises:
        InputError: names the first knob that differs.
    """
    before = known_knobs(attack)
    for key, now in flatten(config).items():
        then = before.get(key, now)
        if then != now and decides(key, config) and not stands_for_both(key, then, now):
            expected = f"{key} = {then!r} as this attack was planned (or another name=)"
            raise InputError(attack.root, expected, repr(now))


def decides(key: str, config: AttackConfig) -> bool:
    return not key.startswith(NOT_PLANNED) and MATTERS.get(key, lambda _: True)(config)


def stands_for_both(key: str, then: Any, now: Any) -> bool:
    return key in WHAT_IS_THERE and WHAT_IS_THERE[key] in (then, now)


def known_knobs(attack: AttackDir) -> dict[str, Any]:
    """Return {knob: value} of what is planned, JSON values, as far as it is known."""
    if config := planned_with(attack):
        return flatten(config)
    try:
        plan = json.loads(attack.plan.read_text())
        sweep = [*plan.get("smaller_eps", ()), plan["eps"]]
        return {key: plan[key] for key in AS_THEY_ARE} | {"eps": sweep if len(sweep) > 1 else sweep[0]}
    except (OSError, ValueError, LookupError, TypeError):
        return {}
