"""Robust accuracy per norm and over all of them, as papers on several norms state it.

Tramèr & Boneh 2019, https://arxiv.org/abs/1904.13000, section 4.1: an image is robust to the union if no attack of
any norm broke it, each norm up to its own eps. So all attacks are on the same images and the same model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl

from kapdist.errors import InputError
from kapdist.records.attack_plan import AttackPlan, PlannedModel, read_plan
from kapdist.records.attacked import read_records
from kapdist.records.record import Count, Record
from kapdist.run.files import fingerprint
from kapdist.run.paths import AttackDir
from kapdist.statistics.intervals import Proportion, wilson

NORMS = ("Linf", "L2", "L1")
RECORDS = ["image", "label", "clean_prediction", "broken_by", "broken_eps"]
Member = tuple[AttackDir, AttackPlan, pl.DataFrame]


class OneNorm(Record):
    """What withstood all attacks of a norm."""

    norm: str
    eps: float
    """The largest that was tried."""
    sources: tuple[str, ...]
    num_robust: Count
    robust_accuracy: Proportion


class AcrossNorms(Record):
    """One model and image set under attacks of several norms."""

    weights_sha256: str
    factory: str | None = None
    """Of a model that is not the run's own."""
    noise: str
    num_images: Count
    num_clean_correct: Count
    """In every source."""
    clean_accuracy: Proportion
    norms: tuple[OneNorm, ...]
    num_robust: Count
    """Broken by no attack of any norm."""
    robust_accuracy: Proportion


def sha(values: object) -> str:
    return fingerprint(values)[:12]


def in_words(model: PlannedModel) -> str:
    """Say which function of the images a model is; two are the same where the words are."""
    known = model.function
    words = [f"weights {known.pop('weights_sha256')[:12]}", f"code {str(known.pop('factory_sha256'))[:12]}"]
    words += [f"{key} {value}" for key, value in known.items() if value and key != "architecture"]
    return ", ".join([*words, f"architecture {sha(known['architecture'])}"] if known["architecture"] else words)


ALIKE: dict[str, Callable[[AttackPlan], object]] = {
    "model": lambda plan: in_words(plan.model),
    "noise": lambda plan: plan.noise if plan.eot == 1 else f"{plan.noise}, mean of {plan.eot} draws",
    "data": lambda plan: sha(plan.data.model_dump(mode="json", exclude={"path"})),
    "number of images": lambda plan: plan.num_images,
    "images": lambda plan: plan.images_sha256[:12],
}
"""What attacks must have in common for their finds to be of one model on the same images."""


def likeness(plan: AttackPlan) -> tuple[object, ...]:
    return tuple(value(plan) for value in ALIKE.values())


def read_member(attack: AttackDir) -> Member:
    """Read a merged attack.

    Raises:
        InputError: it is none, damaged, or was planned anew since it was merged.
    """
    plan = read_plan(attack)
    return attack, plan, read_records(attack, plan, RECORDS)


def read_across(directories: Sequence[Path]) -> AcrossNorms:
    """Unite merged attacks of several norms.

    Raises:
        InputError: as `across_norms`, or one is no merged attack.
    """
    members = []
    for path in {Path(path).resolve(): path for path in directories}.values():
        if not AttackDir(path).records.is_file():
            read_plan(AttackDir(path))  # what is no attack cannot be merged
            raise InputError(path, f"a merged attack (kapdist attack merge {path})", "none")
        members.append(read_member(AttackDir(path)))
    return across_norms(members)


def across_norms(members: Sequence[Member]) -> AcrossNorms:
    """Unite the attacks of several norms on one model and the same images.

    Raises:
        InputError: they are all of one norm, or differ in what they attacked; names the first difference.
    """
    check_alike(members)
    plan = members[0][1]
    table = pl.concat(rows_of(member) for member in members)
    wrong = table.filter(~pl.col("right"))["image"].unique()
    right = table.filter(~pl.col("image").is_in(wrong.implode()))
    fallen = right.filter("fallen")
    num_correct, total = right["image"].n_unique(), plan.num_images

    def left(broken: pl.DataFrame) -> tuple[int, Proportion]:
        count = num_correct - broken["image"].n_unique()
        return count, wilson(count, total)

    norms = []
    for norm in sorted({plan.norm for _, plan, _ in members}, key=NORMS.index):
        ours = [(attack.root.resolve().name, plan.eps) for attack, plan, _ in members if plan.norm == norm]
        num_robust, accuracy = left(fallen.filter(pl.col("norm") == norm))
        eps, sources = max(eps for _, eps in ours), tuple(name for name, _ in ours)
        norms.append(OneNorm(norm=norm, eps=eps, sources=sources, num_robust=num_robust, robust_accuracy=accuracy))
    num_robust, accuracy = left(fallen)
    return AcrossNorms(
        weights_sha256=plan.model.weights_sha256,
        factory=plan.model.factory,
        noise=plan.noise,
        num_images=total,
        num_clean_correct=num_correct,
        clean_accuracy=wilson(num_correct, total),
        norms=tuple(norms),
        num_robust=num_robust,
        robust_accuracy=accuracy,
    )


def check_alike(members: Sequence[Member]) -> None:
    """Raise InputError unless there are several norms, on one model and the same images."""
    if len({plan.norm for _, plan, _ in members}) < 2:
        found = ", ".join(sorted({plan.norm for _, plan, _ in members})) or "no attack"
        raise InputError("attacks", "attacks of at least two norms", found)
    first, *others = members
    for attack, plan, _ in others:
        for name, value in ALIKE.items():
            if value(plan) != value(first[1]):
                expected = f"the {name} of {first[0].root.resolve().name} ({value(first[1])})"
                raise InputError(attack.root, expected, str(value(plan)))


def rows_of(member: Member) -> pl.DataFrame:
    """Return image, norm, right, fallen: whether some stage broke it."""
    _, plan, table = member
    return table.select(
        "image",
        right=pl.col("label") == pl.col("clean_prediction"),
        fallen=pl.col("broken_by").is_not_null(),
        norm=pl.lit(str(plan.norm)),
    )
