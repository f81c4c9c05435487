"""What an attack found: integers added up, divided once, with their intervals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import Field, model_validator

from kapdist.records.attack_plan import SCREEN, AttackPlan, Stage, asks_no_gradient
from kapdist.records.chunks import PASSES
from kapdist.records.passes import passes_outside
from kapdist.records.record import Count, Record, Share, read_record
from kapdist.statistics.intervals import Proportion, Resampled, resampled, wilson

SQUARE_ALONE = 0.002


class AttackSummary(Record):
    """One attack at one eps, on those that the ones before had left: what it broke, it broke first."""

    name: str
    eps: float
    num_attacked: Count
    num_broken: Count
    num_robust_after: Count
    robust_accuracy_after: Share
    forwards: Count
    backwards: Count
    library_forwards: int
    """What the library asked for: its own passes on the same images; 0 of the screen, which is none of its."""
    library_backwards: int
    seconds: float = Field(ge=0)


class EpsSummary(Record):
    """What withstood every attack up to this eps."""

    eps: float
    num_robust: Count
    robust_accuracy: Proportion


class RescoredImages(Record):
    """Accuracy of a noisy model on given images under fresh draws."""

    single_draw: Resampled
    """Expected accuracy of one draw."""
    majority: Resampled
    """Accuracy of the class that most draws say."""
    worst: Resampled
    """Images that every draw was right on."""


class Rescored(Record):
    """The clean images and, at the largest eps, the stored adversarial ones, under `num_draws` fresh draws each.

    Of an image that no attack broke, the hardest point that one saw is scored.
    """

    num_draws: int = Field(ge=1)
    clean: RescoredImages
    adversarial: RescoredImages
    forwards: Count


class Smallest(Record):
    """The smallest perturbations that minimum-norm attacks found: upper bounds of the images' distances."""

    num_found: Count
    """Images that are right and have one."""
    median: float | None
    """Over all images, a wrong one having 0; null where half of the images have none."""


class Summary(Record):
    """The result of an attack: summary.json."""

    format: Literal[1] = 1
    name: str
    run: str
    plan_fingerprint: str
    norm: str
    eps: float = Field(gt=0)
    version: str
    noise: str
    num_images: int = Field(ge=1)
    num_clean_correct: Count
    clean_accuracy: Proportion
    num_robust: Count
    robust_accuracy: Proportion
    """At the largest eps; an image that falls at a smaller one has fallen."""
    sweep: tuple[EpsSummary, ...]
    attacks: tuple[AttackSummary, ...]
    screen: int
    eot: int
    rescored: Rescored | None
    smallest: Smallest | None = None
    """None: no attack of the list looked for it."""
    forwards: Count
    """Images passed forward, those of the clean predictions included, those of the re-scoring not."""
    backwards: Count
    library_forwards: int
    """The library's own passes on the same images, clean predictions included."""
    library_backwards: int
    seconds: float = Field(ge=0)
    """Of all shards together."""
    max_norm: float
    """Largest norm of an image that broke the model; 0 if none did."""
    weights_sha256: str
    device: str
    packages: dict[str, str | None]
    gradient_of: str | None = None
    functions: dict[str, str | None] = Field(default_factory=dict)
    """As in the plan: the user's own attacks and where gradients come from, with the sha256 of their files."""
    notes: tuple[str, ...]

    @model_validator(mode="after")
    def accuracies_are_the_counts(self) -> Summary:
        counts = (self.num_clean_correct, self.num_robust)
        for count, accuracy in zip(counts, (self.clean_accuracy, self.robust_accuracy), strict=True):
            if abs(accuracy.value - count / self.num_images) > 1e-6:
                raise ValueError(f"an accuracy equal to {count} of {self.num_images} images")
        if self.num_robust > self.num_clean_correct:
            raise ValueError(f"at most {self.num_clean_correct} robust images, as many as are correct")
        return self

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per stage, the clean images first: what summary.csv holds."""
        clean = {
            "stage": "clean",
            "eps": 0.0,
            "num_attacked": 0,
            "num_broken": 0,
            "num_robust": self.num_clean_correct,
            "accuracy": self.clean_accuracy,
            "forwards": self.num_images * self.eot,
            "backwards": 0,
        }
        after = [
            {
                "stage": attack.name,
                "eps": attack.eps,
                "num_attacked": attack.num_attacked,
                "num_broken": attack.num_broken,
                "num_robust": attack.num_robust_after,
                "accuracy": wilson(attack.num_robust_after, self.num_images),
                "forwards": attack.forwards,
                "backwards": attack.backwards,
            }
            for attack in self.attacks
        ]
        return [spread(row) for row in (clean, *after)]


def read_summary(path: Path) -> Summary:
    """Read a summary of an attack.

    Raises:
        InputError: the file is none, or its accuracies are not its counts.
    """
    return read_record(Summary, path, "merge it again")


def spread(row: dict[str, Any]) -> dict[str, Any]:
    share: Proportion = row.pop("accuracy")
    return row | {"accuracy": share.value, "accuracy_low": share.low, "accuracy_high": share.high}


def summarise(records: pl.DataFrame, plan: AttackPlan, notes: tuple[str, ...] = ()) -> Summary:
    """Add up the rows of a complete attack.

    Args:
        notes: what else a reader should know, about the files that the rows come from.
    """
    num_images = len(records)
    num_correct = records.filter(pl.col("label") == pl.col("clean_prediction")).height
    chunks = records.unique("chunk", maintain_order=True)
    attacks, robust = [], num_correct
    for number, stage in enumerate(plan.stages):
        robust -= int(records[f"{stage.name}_broke"].sum())
        attacks.append(summarise_stage(stage, number, records, chunks, robust))
    clean_forwards = num_images * plan.eot
    return Summary(
        name=plan.name,
        run=plan.run,
        plan_fingerprint=plan.fingerprint,
        norm=plan.norm,
        eps=plan.eps,
        version=plan.version,
        noise=plan.noise,
        num_images=num_images,
        num_clean_correct=num_correct,
        clean_accuracy=wilson(num_correct, num_images),
        num_robust=robust,
        robust_accuracy=wilson(robust, num_images),
        sweep=tuple(summarise_eps(eps, attacks, num_images) for eps in plan.sweep),
        attacks=tuple(attacks),
        screen=plan.screen,
        eot=plan.eot,
        rescored=rescored(records, chunks, plan),
        smallest=smallest(records) if "fmn" in plan.attacks else None,
        forwards=passes_outside(plan, num_images, num_correct - robust)
        + sum(attack.forwards for attack in attacks),
        backwards=sum(attack.backwards for attack in attacks),
        library_forwards=clean_forwards + sum(attack.library_forwards for attack in attacks),
        library_backwards=sum(attack.library_backwards for attack in attacks),
        seconds=float(chunks["chunk_seconds"].sum()),
        max_norm=max(largest_norm(stage, records) for stage in plan.stages),
        weights_sha256=plan.model.weights_sha256,
        device=plan.device,
        packages=plan.packages,
        gradient_of=plan.gradient_of,
        functions=plan.functions,
        notes=(*plan.notes, *notes, *notes_on_square(attacks, num_images)),
    )


def summarise_stage(
    stage: Stage, number: int, records: pl.DataFrame, chunks: pl.DataFrame, robust: int
) -> AttackSummary:
    broke = records[f"{stage.name}_broke"]
    passes = {name: int(chunks[f"chunk_{name}"].list.get(number).sum()) for name in PASSES}
    return AttackSummary(
        name=stage.name,
        eps=stage.eps,
        num_attacked=len(broke) - broke.null_count(),
        num_broken=int(broke.sum()),
        num_robust_after=robust,
        robust_accuracy_after=robust / len(records),
        seconds=float(chunks["chunk_stage_seconds"].list.get(number).sum()),
        **passes,
    )


def summarise_eps(eps: float, attacks: list[AttackSummary], num_images: int) -> EpsSummary:
    robust = [attack.num_robust_after for attack in attacks if attack.eps == eps][-1]
    return EpsSummary(eps=eps, num_robust=robust, robust_accuracy=wilson(robust, num_images))


def rescored(records: pl.DataFrame, chunks: pl.DataFrame, plan: AttackPlan) -> Rescored | None:
    if not plan.rescore:
        return None
    return Rescored(
        num_draws=plan.rescore,
        clean=rescored_images("clean", records, plan),
        adversarial=rescored_images("adversarial", records, plan),
        forwards=int(chunks["chunk_rescore_forwards"].sum()),
    )


def smallest(records: pl.DataFrame) -> Smallest:
    sizes = records["smallest"].fill_null(math.inf)
    median = float(sizes.sort()[len(sizes) // 2])
    found = sizes.is_finite() & (records["label"] == records["clean_prediction"])
    return Smallest(num_found=int(found.sum()), median=median if math.isfinite(median) else None)


def rescored_images(kind: str, records: pl.DataFrame, plan: AttackPlan) -> RescoredImages:
    """Turn the counts of one kind of images into shares; the bootstrap follows from the plan's seed."""
    correct = records[f"{kind}_draws_correct"].to_numpy()
    majority = (records[f"{kind}_majority"] == records["label"]).to_numpy().astype(int)
    every = (correct == plan.rescore).astype(int)
    return RescoredImages(
        single_draw=resampled(correct, plan.rescore, plan.seed, f"{kind} single draw"),
        majority=resampled(majority, 1, plan.seed, f"{kind} majority"),
        worst=resampled(every, 1, plan.seed, f"{kind} worst"),
    )


def largest_norm(stage: Stage, records: pl.DataFrame) -> float:
    norms, broke = records[f"{stage.name}_norm"], records[f"{stage.name}_broke"]
    largest = norms.filter(broke.fill_null(False)).max()
    return 0.0 if largest is None else float(largest)  # type: ignore[arg-type]


def notes_on_square(attacks: list[AttackSummary], num_images: int) -> list[str]:
    """The library's own alarm: where Square breaks what gradients could not, the gradients are masked.

    It is raised by what a whole attack with gradients had left at the same eps; the short screen is none.
    """
    tried: set[float] = set()
    alone = 0
    for attack in attacks:
        kind = attack.name.partition("@")[0]
        if kind == "square" and attack.eps in tried:
            alone += attack.num_broken
        elif kind != SCREEN and not asks_no_gradient(kind):
            tried.add(attack.eps)
    share = alone / num_images
    if share <= SQUARE_ALONE:
        return []
    return [f"square, without gradients, broke {share:.1%} that gradients had left: they may be masked"]
