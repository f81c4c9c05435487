"""The worst case over everything tried on a model: per image, the union of all that broke it.

A source is one merged attack of the run, whatever its protocol, list and eps. An image that fell at some eps has
fallen at every larger one.
The union is over protocols too: what broke the model with its noise off counts against the model with its noise on,
so that nothing that was found is left out; each source's own numbers stand beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import polars as pl

from kapdist.config.attack import size_name
from kapdist.errors import InputError
from kapdist.records.attack_plan import AttackPlan
from kapdist.records.norms import AcrossNorms, Member, across_norms, check_alike, likeness, read_member
from kapdist.records.record import Count, Record, read_record
from kapdist.records.sealed import write_json
from kapdist.run.files import fingerprint
from kapdist.run.lock import locked_in_turn
from kapdist.run.paths import AttackDir, RunDir
from kapdist.statistics.intervals import Proportion, wilson

BREAKS = pl.Schema({"image": pl.Int64, "attack": pl.String, "eps": pl.Float64, "order": pl.Int64})
WAIT_SECONDS = 30.0


class Source(Record):
    """One attack that takes part."""

    name: str
    plan_fingerprint: str
    version: str
    noise: str
    num_images: int
    largest_eps: float


class First(Record):
    """What one attack broke before any other did: at the smallest eps, then in the order of its list."""

    source: str
    attack: str
    eps: float
    num_broken_first: int
    num_broken: int
    """Images that it broke, whoever was first."""


class WorstAtEps(Record):
    """What withstood everything up to this eps, of the images that were attacked at this eps."""

    eps: float
    num_images: Count | None = None
    """Those images. None: an older version counted all of the case, whatever was tried on them."""
    num_robust: Count
    robust_accuracy: Proportion


class WorstCase(Record):
    """One model, image set and norm under everything that was tried."""

    norm: str
    weights_sha256: str
    factory: str | None = None
    """Of a model that is not the run's own."""
    sources: tuple[Source, ...]
    num_images: int
    num_clean_correct: int
    """In every source that has the image."""
    sweep: tuple[WorstAtEps, ...]
    first: tuple[First, ...]
    notes: tuple[str, ...]


class WorstCases(Record):
    """attacks/worst_case.json: one entry per norm, model and images."""

    format: Literal[1] = 1
    cases: tuple[WorstCase, ...]
    across: tuple[AcrossNorms, ...] = ()
    """The union over norms, where attacks of several are on one model and the same images."""
    apart: str | None = None
    """Why attacks of several norms are not all in one union."""
    left_out: tuple[str, ...] = ()
    """Attacks that could not be read or were planned anew, each with its reason: what they broke is not in here."""


def read_worst_cases(path: Path) -> WorstCases:
    """Read a run's worst cases.

    Raises:
        InputError: the file is none.
    """
    return read_record(WorstCases, path, "kapdist attack worst writes it again")


def write_worst_case(run: Path) -> WorstCases:
    """Work out the worst case of a run from the records of its merged attacks; writes attacks/worst_case.json."""
    directory = RunDir(run)
    with locked_in_turn(directory.attacks / "WORST_CASE_LOCK", WAIT_SECONDS):
        cases = worst_cases(directory.attacks)
        write_json(directory.worst_case, cases.describe())
    return cases


def worst_cases(attacks: Path) -> WorstCases:
    groups: dict[tuple[object, ...], list[Member]] = {}
    left_out = []
    for path in sorted(attacks.glob("*/records.parquet")):
        attack = AttackDir(path.parent)
        try:
            member = read_member(attack)
        except InputError as error:  # another version's plan, an earlier plan's records, or damage
            left_out.append(f"{attack.root.name}: {error}")
            continue
        plan = member[1]
        key = plan.norm, fingerprint(plan.model.function), plan.data.fingerprint, *plan.data.shape
        groups.setdefault(key, []).append(member)
    cases = tuple(worst_case(members) for members in groups.values())
    every = [member for members in groups.values() for member in members]
    return WorstCases(cases=cases, across=unions(every), apart=why_apart(every), left_out=tuple(left_out))


def unions(members: list[Member]) -> tuple[AcrossNorms, ...]:
    """Unite what may be united over norms."""
    alike: dict[tuple[object, ...], list[Member]] = {}
    for member in members:
        alike.setdefault(likeness(member[1]), []).append(member)
    several = [group for group in alike.values() if len({plan.norm for _, plan, _ in group}) > 1]
    return tuple(across_norms(group) for group in several)


def why_apart(members: list[Member]) -> str | None:
    if len({plan.norm for _, plan, _ in members}) < 2:
        return None
    try:
        check_alike(members)
    except InputError as error:
        return str(error)
    return None


def worst_case(members: list[Member]) -> WorstCase:
    """Unite the attacks of one norm on one model and on the same pixels of one data set."""
    plans = [plan for _, plan, _ in members]
    correct = (pl.col("label") == pl.col("clean_prediction")).all()
    clean = pl.concat([table for _, _, table in members]).group_by("image").agg(ok=correct)
    broken = pl.concat([breaks_of(table, plan, attack.root.name) for attack, plan, table in members])
    breaks = broken.join(clean.filter("ok"), on="image", how="semi")
    earliest = breaks.sort("eps", "source", "order", "image").unique("image", keep="first", maintain_order=True)
    num_images, num_correct = len(clean), int(clean["ok"].sum())
    # By their names: 0.0313725 and 8/255 are one size, at the larger of which both have fallen.
    sizes = {size_name(eps): eps for eps in sorted(eps for plan in plans for eps in plan.sweep)}
    return WorstCase(
        norm=plans[0].norm,
        weights_sha256=plans[0].model.weights_sha256,
        factory=plans[0].model.factory,
        sources=tuple(source_of(attack, plan) for attack, plan, _ in members),
        num_images=num_images,
        num_clean_correct=num_correct,
        sweep=tuple(worst_at(eps, plans, clean, earliest) for eps in sizes.values()),
        first=first_breaks(breaks, earliest),
        notes=notes_on(plans, num_images),
    )


def worst_at(eps: float, plans: list[AttackPlan], clean: pl.DataFrame, earliest: pl.DataFrame) -> WorstAtEps:
    """Count over the images of the attacks that have this eps among theirs.

    What was attacked at other ones alone has not withstood this one. Nor do those of them count whose fate here is
    known all the same, fallen at a smaller eps or standing at a larger: chosen by their fate they are no sample.

    Args:
        clean: (image, ok), whether every source says that it is right.
        earliest: (image, eps), where it fell.
    """
    at_it = [plan for plan in plans if size_name(eps) in map(size_name, plan.sweep)]
    tried = {image for plan in at_it for image in plan.images}
    fallen = earliest.filter(pl.col("eps") <= eps)
    right = set(clean.filter("ok")["image"]) - set(fallen["image"])
    left = len(tried & right)
    return WorstAtEps(eps=eps, num_images=len(tried), num_robust=left, robust_accuracy=wilson(left, len(tried)))


def breaks_of(table: pl.DataFrame, plan: AttackPlan, source: str) -> pl.DataFrame:
    """Return (image, attack, eps, order, source) of what a merged attack broke."""
    names = [stage.name for stage in plan.stages]
    attacks = [stage.attack for stage in plan.stages]
    broken = table.filter(pl.col("broken_by").is_not_null())
    order = broken["broken_by"].replace_strict(names, range(len(names)), return_dtype=pl.Int64)
    attack = broken["broken_by"].replace_strict(names, attacks, return_dtype=pl.String)
    columns = {"image": broken["image"], "attack": attack, "eps": broken["broken_eps"], "order": order}
    return pl.DataFrame(columns, schema=BREAKS).with_columns(source=pl.lit(source))


def first_breaks(breaks: pl.DataFrame, earliest: pl.DataFrame) -> tuple[First, ...]:
    keys = ["eps", "source", "order", "attack"]
    every = breaks.group_by(keys).len("num_broken")
    first = earliest.group_by(keys).len("num_broken_first")
    table = every.join(first, on=keys, how="left").fill_null(0).sort("eps", "source", "order")
    return tuple(First(**row) for row in table.drop("order").to_dicts())


def source_of(attack: AttackDir, plan: AttackPlan) -> Source:
    return Source(
        name=attack.root.name,
        plan_fingerprint=plan.fingerprint,
        version=plan.version,
        noise=plan.noise,
        num_images=plan.num_images,
        largest_eps=plan.eps,
    )


def notes_on(plans: list[AttackPlan], num_images: int) -> tuple[str, ...]:
    notes = []
    if any(set(plan.images) != set(plans[0].images) for plan in plans):
        fewest = min(plan.num_images for plan in plans)
        notes.append(f"not every attack was tried on all of the {num_images} images; the smallest had {fewest}")
    if len({plan.noise for plan in plans}) > 1:
        notes.append("attacks with the noise on and off are united: the strictest reading, of no single model")
    return tuple(notes)
