"""A study that goes on where another machine left it: what is done stays, what was begun there is begun anew here.

An attack is bound to the kind of device and to the versions that it was planned with, as its chunks are added up.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from kapdist.attack.devices import device_kind
from kapdist.environment import package_versions, pixel_libraries
from kapdist.run.files import last_number, mapping_in
from kapdist.run.lock import locked
from kapdist.study.design import Asked, Design
from kapdist.study.tasks import ATTACK, SANITY, TRAINING, Task

ON_CPU = "device=cpu"
"""What a machine without a GPU has to be told of a model that was trained on one, and one with a GPU of a plan for
CPUs, which its own plan would be refused for."""


@cache
def here() -> str:
    """Return "cpu", or the name of this machine's GPU."""
    return device_kind("auto")


def words_here(design: Design, task: Task) -> tuple[str, ...]:
    """Return the words of a command as this machine can follow them."""
    asked: Asked[Any] | None = design.others.get(task.kind)
    if task.kind in (ATTACK, SANITY):
        asked = design.attacks[task.attack]
    if asked is None or asked.config.device != "auto":
        return task.words
    on_cpu = "cpu" in (here(), subject_in(mapping_in(task.lock.parent / "plan.json")).get("device"))
    return (*task.words, ON_CPU) if on_cpu else task.words


def planned_elsewhere(task: Task) -> str:
    """Say on what a command's work was planned that this machine has not; "" where it may go on here."""
    whole = mapping_in(task.lock.parent / "plan.json") if task.kind != TRAINING else {}
    plan = subject_in(whole)
    if plan.get("device", "cpu") not in (here(), "cpu"):
        return str(plan["device"])
    planned = plan.get("packages", {})
    found: dict[str, str | None] = package_versions(tuple(planned))
    if "libraries" in whole:  # of corruptions, whose pixels they make
        planned, found = planned | whole["libraries"], {**found, **pixel_libraries()}
    return next((f"{name} {version}" for name, version in planned.items() if found.get(name) != version), "")


def subject_in(plan: dict[str, Any]) -> dict[str, Any]:
    """Return what a plan says of the model and the machine."""
    subject: dict[str, Any] = plan.get("subject", plan)
    return subject


def set_aside(design: Design, task: Task) -> Path:
    """Move what was begun elsewhere out of the way, so that it can be begun here; return where it is kept.

    Raises:
        LockedError: somebody is at work there by now.
    """
    begun = task.lock.parent
    name = f"{task.run.name}-{begun.name}-"
    kept = design.dir.elsewhere / f"{name}{1 + last_number(design.dir.elsewhere, name)}"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with locked(task.lock):
        begun.rename(kept)
        (kept / task.lock.name).unlink()
    return kept
