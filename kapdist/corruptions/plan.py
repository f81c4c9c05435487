"""What is done to which images of which model, fixed before it starts: corruptions/<name>/plan.json.

A cell is one kind at one severity on all images: the unit of work and of resume.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import cv2
import PIL

from kapdist.attack.plan import make_plan, protocol_of
from kapdist.config import AttackConfig
from kapdist.corruptions.frost import DRAWN, FrostSource
from kapdist.corruptions.levels import SIDES, nearest_side
from kapdist.errors import InputError
from kapdist.records.attack_plan import AttackPlan, Frozen, first_difference, parse_plan
from kapdist.records.sealed import write_json
from kapdist.run.files import fingerprint
from kapdist.run.paths import AttackDir, CorruptionsDir

CLEAN, GAUSSIAN, UNIFORM = "clean", "random_gaussian", "random_uniform"
RANDOM = (GAUSSIAN, UNIFORM)
NOT_ASKED = "not asked"
# Of an attack alone: no image under a corruption depends on it. The norm and every eps that count are in the cells.
NOT_OURS = ("norm", "eps", "smaller_eps", "version", "attacks", "settings", "screen", "compact", "rescore")


class Cell(Frozen):
    """One kind at one severity, on all images."""

    kind: str
    severity: int
    """1 to 5; of random noise the place in its list, from 1; 0 of the clean images."""
    level: float | None = None
    """Of random noise: its standard deviation, or its eps."""
    norm: Literal["Linf", "L2", "L1"] | None = None

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.severity}"


class CorruptionPlan(Frozen):
    """One model under corruptions, to the last detail that decides a prediction."""

    format: Literal[1] = 1
    subject: AttackPlan
    """Model, images, noise, seed, device: as an attack plans them, with an empty list of attacks."""
    cells: tuple[Cell, ...]
    side: int
    """Side of the published set whose constants are taken: 32, 64 or 224."""
    frost: str
    """The pictures of frost: "drawn", the sha256 of photographs, or "not asked"."""
    frost_folder: Path | None
    libraries: dict[str, str]
    """Versions of what the filters and files come from."""
    notes: tuple[str, ...]

    def identity(self) -> dict[str, Any]:
        """Return what decides the predictions, JSON values: no names, no places."""
        subject = self.subject.identity()
        values = self.model_dump(mode="json", exclude={"subject", "frost_folder", "notes"})
        return values | {"subject": {key: value for key, value in subject.items() if key not in NOT_OURS}}

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.identity())

    @property
    def frost_source(self) -> FrostSource:
        return FrostSource(self.frost_folder, self.frost)

    @property
    def num_passes(self) -> int:
        """Images that are predicted, over all cells."""
        return len(self.cells) * self.subject.num_images


def plan_corruptions(run: Path, config: AttackConfig, directory: CorruptionsDir) -> CorruptionPlan:
    """Plan and write plan.json; an equal plan that is there already is kept.

    Raises:
        InputError: the model or the images cannot be had, or another plan is there.
    """
    before = read_plan(directory) if directory.plan.exists() else None
    plan = new_plan(run, config, directory, before)
    if before and (difference := first_difference(before.identity(), plan.identity())):
        key, planned, now = difference
        raise InputError(directory.root, f"{key} = {planned} as this was planned (or another name=)", now)
    write_json(directory.plan, json.loads(plan.model_dump_json()))
    return plan


def new_plan(
    run: Path, config: AttackConfig, directory: CorruptionsDir, before: CorruptionPlan | None
) -> CorruptionPlan:
    update = {
        "version": "custom",
        "attacks": ("square",),  # whose plan asks no gradient of the model
        "eot": protocol_of(config).eot,
        "rescore": 0,
        "threads": config.threads or (before.subject.threads if before else 0),
        "keep_adversarial": False,
    }
    subject = make_plan(run, config.model_copy(update=update), AttackDir(directory.cells))
    wanted = config.corruptions
    frost = FrostSource.of(wanted.frost.resolve() if wanted.frost else None)
    return CorruptionPlan(
        subject=subject.model_copy(update={"attacks": (), "costs": (), "notes": ()}),
        cells=cells_of(config),
        side=nearest_side(subject.data.resolution, subject.data.resolution),
        frost=frost.name if "frost" in wanted.kinds else NOT_ASKED,
        frost_folder=frost.folder,
        libraries={"opencv": cv2.__version__, "pillow": PIL.__version__},
        notes=tuple(notes_on(subject, config)),
    )


def cells_of(config: AttackConfig) -> tuple[Cell, ...]:
    """Return the clean images, every kind at every severity, and random noise, in this order."""
    wanted = config.corruptions
    cells = [Cell(kind=CLEAN, severity=0)]
    cells += [Cell(kind=kind, severity=severity) for kind in wanted.kinds for severity in sorted(wanted.severities)]
    cells += [
        Cell(kind=GAUSSIAN, severity=place, level=std)
        for place, std in enumerate(sorted(wanted.noise_stds), start=1)
    ]
    sizes = protocol_of(config).sweep if wanted.uniform_noise else ()
    cells += [
        Cell(kind=UNIFORM, severity=place, level=eps, norm=config.norm) for place, eps in enumerate(sizes, start=1)
    ]
    return tuple(cells)


def notes_on(subject: AttackPlan, config: AttackConfig) -> list[str]:
    """Say what a reader of the numbers should know."""
    notes, side = [], subject.data.resolution
    if side not in SIDES:
        published = nearest_side(side, side)
        notes.append(f"images of {side} pixels take the constants of the published set of {published} unscaled")
    if "frost" in config.corruptions.kinds and config.corruptions.frost is None:
        notes.append(f"frost is {DRAWN}, not photographed: its numbers are not comparable with published ones")
    if config.noise == "off" and subject.model.architecture and subject.model.architecture["kap"]["noise_std"]:
        notes.append("the model's activation noise is off: this says nothing about the model with its noise on")
    if config.noise == "fresh" and subject.eot == 1:
        notes.append("every prediction is that of one noisy draw (eot averages over several)")
    return notes


def read_plan(directory: CorruptionsDir) -> CorruptionPlan:
    """Read the plan of a directory.

    Raises:
        InputError: there is none, or it is not one.
    """
    if not directory.plan.is_file():
        raise InputError(directory.root, "a directory of `kapdist attack corruptions`", "no plan.json")
    return parse_plan(CorruptionPlan, directory.plan)
