"""What is done to which images of which model, fixed before it starts: corruptions/<name>/plan.json.

A cell is one kind at one severity on all images: the unit of work and of resume.
"""

from __future__ import annotations

from pathlib import Path

from kapdist.attack.notes import notes_of_factory
from kapdist.attack.plan import config_of, image_set_of, make_plan, protocol_of
from kapdist.config import AttackConfig
from kapdist.config.noises import described, noises_of
from kapdist.corruptions.frost import DRAWN, FrostSource
from kapdist.corruptions.levels import SIDES, nearest_side
from kapdist.corruptions.published import plan_published
from kapdist.environment import pixel_libraries
from kapdist.errors import InputError
from kapdist.records.attack_plan import AttackPlan, first_difference
from kapdist.records.corruptions import (
    CLEAN,
    GAUSSIAN,
    NOT_ASKED,
    UNIFORM,
    Cell,
    CorruptionPlan,
    read_plan,
)
from kapdist.records.sealed import write_json
from kapdist.run.paths import AttackDir, CorruptionsDir


def plan_corruptions(run: Path, config: AttackConfig, directory: CorruptionsDir) -> CorruptionPlan:
    """Plan and write plan.json; an equal plan that is there already is kept, whatever the number of shards.

    Raises:
        InputError: the model or the images cannot be had, or another plan is there.
    """
    before = read_plan(directory) if directory.plan.exists() else None
    plan = new_plan(run, config, directory, before)
    if before and (difference := first_difference(before.identity(), plan.identity())):
        key, planned, now = difference
        raise InputError(directory.root, f"{key} = {planned} as this was planned (or another name=)", now)
    write_json(directory.plan, plan.model_dump(mode="json"))
    return plan


def new_plan(
    run: Path, config: AttackConfig, directory: CorruptionsDir, before: CorruptionPlan | None
) -> CorruptionPlan:
    update = {
        "version": "custom",
        "attacks": ("square",),  # whose plan asks no gradient of the model
        "gradient_of": None,
        "eot": protocol_of(config).eot,
        "rescore": 0,
        "keep_adversarial": False,
    }
    if before:
        update |= kept(config, before.subject)
    subject = make_plan(run, config.model_copy(update=update), AttackDir(directory.cells))
    wanted = config.corruptions
    published = plan_published(config, subject, class_names(run, config)) if wanted.published else None
    frost = FrostSource.of(wanted.frost.resolve() if wanted.frost else None)
    return CorruptionPlan(
        subject=subject.model_copy(update={"attacks": (), "costs": (), "notes": ()}),
        published=published.plan if published else None,
        cells=(*cells_of(config), *(published.cells if published else ())),
        side=nearest_side(subject.data.resolution, subject.data.resolution),
        frost=frost.name if "frost" in wanted.kinds else NOT_ASKED,
        frost_folder=frost.folder,
        libraries=pixel_libraries(),
        notes=(*notes_on(subject, config), *(published.notes if published else ())),
    )


def kept(config: AttackConfig, before: AttackPlan) -> dict[str, int]:
    """Return what a plan that is there decides where the config does not.

    Threads and rows follow from the number of processes, which may be another at each start.
    """
    return {
        "threads": config.threads or before.threads,
        "chunk_size": config.chunk_size or before.chunk_size,
        "images_per_pass": config.images_per_pass or before.images_per_pass,
    }


def class_names(run: Path, config: AttackConfig) -> tuple[str, ...]:
    """Return the names of the model's classes, in their order."""
    return image_set_of(run, config, config_of(run, config)).class_names


def cells_of(config: AttackConfig) -> tuple[Cell, ...]:
    """Return our own: the clean images, every kind at every severity, and random noise, in this order."""
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
    notes, side = notes_of_factory(subject), subject.data.resolution
    if side not in SIDES and config.corruptions.kinds:
        published = nearest_side(side, side)
        notes.append(f"images of {side} pixels take the constants of the published set of {published} unscaled")
    if "frost" in config.corruptions.kinds and config.corruptions.frost is None:
        notes.append(f"frost is {DRAWN}, not photographed: its numbers are not comparable with published ones")
    if config.noise == "off" and (found := noises_of(subject.model.architecture)):
        notes.append(f"off is {described(found)}: this says nothing about the model with its noise on")
    if config.noise == "fresh" and subject.eot == 1:
        notes.append("every prediction is that of one noisy draw (eot averages over several)")
    return notes
