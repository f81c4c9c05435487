"""What lies in certificates/<name>/: plan.json, chunks/ with a file per unit, and summary.json that they add up to.

A unit is some images under noise of one sigma, and some of the draws of each. The noise of a draw is a function of
(seed, image, sigma, block of draws), so counts add up to the same numbers however the units are dealt.

chunks/chunk-*.parquet, one row per image of a unit:

    image, label, sigma
    selected, selection_count    class of most selection draws and how many they were; null but in block 0
    classes, counts              lists: the classes that the estimation draws fell on, and how often
    draws                        estimation draws: the sum of counts
    unit, plan, seconds

records.parquet, one row per image and sigma:

    image, label, sigma, selected, selection_count, draws
    count, label_count           draws of the selected class, and of the label's
    p_a, p_a_low                 count / draws, and its lower bound at alpha
    predicted, radius            null and 0 where the smoothed model abstains
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import polars as pl
from pydantic import Field

from kapdist.records.attack_plan import AttackPlan, check_models
from kapdist.records.corruptions import NOT_OURS
from kapdist.records.planned import read_planned
from kapdist.records.record import Count, Exact, Record, read_record
from kapdist.records.sealed import read_unit
from kapdist.run.files import fingerprint
from kapdist.run.paths import CertificateDir
from kapdist.statistics.binomial import looks, lower_bound
from kapdist.statistics.intervals import Proportion

COLUMNS = (
    *("image", "label", "sigma", "selected", "selection_count", "classes", "counts", "draws"),
    *("unit", "plan", "seconds"),
)
P_A_BINS = 20
P_A_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class CertificateUnit(NamedTuple):
    """A unit of work: the images of a chunk, one sigma, one block of their draws."""

    number: int
    sigma: float
    chunk: int
    block: int
    """Block 0 selects the class too."""
    draws: int
    """Most estimation draws of each image."""


class CertificatePlan(Exact):
    """One smoothed model for each sigma, to the last detail that decides a certificate."""

    format: Literal[1] = 1
    subject: AttackPlan
    """Model, images, noise, seed, device: as an attack plans them, with an empty list of attacks."""
    sigmas: tuple[float, ...] = Field(min_length=1)
    selection_draws: int
    draws: int
    alpha: float
    stop_radius: float | None
    unit_draws: int
    own_noise: str
    """What the model draws by itself in every pass and the smoothed model with it; "" where that is nothing."""
    notes: tuple[str, ...]

    def identity(self) -> dict[str, Any]:
        """Return what decides the certificates, JSON values: no names, no places."""
        subject = self.subject.identity()
        values = self.model_dump(mode="json", exclude={"subject", "own_noise", "notes"})
        return values | {"subject": {key: value for key, value in subject.items() if key not in NOT_OURS}}

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.identity())

    @property
    def looks(self) -> tuple[int, ...]:
        """After how many draws the count may be looked at; the last one is all of them."""
        return looks(self.draws) if self.stop_radius is not None else (self.draws,)

    @property
    def alpha_of_a_look(self) -> float:
        return self.alpha / len(self.looks)

    def lower_bound(self, count: int, draws: int) -> float:
        """Return the bound on the chance of a class that this plan makes of a count at one of its looks."""
        return lower_bound(count, draws, self.alpha_of_a_look)

    @property
    def num_blocks(self) -> int:
        """Units that share the draws of an image; whoever may stop early draws them one after another."""
        return 1 if self.stop_radius is not None else -(-self.draws // self.unit_draws)

    @cached_property
    def units(self) -> tuple[CertificateUnit, ...]:
        places = [
            (sigma, chunk, block)
            for sigma in self.sigmas
            for chunk in range(self.subject.num_chunks)
            for block in range(self.num_blocks)
        ]
        return tuple(CertificateUnit(n, *place, self.draws_of(place[2])) for n, place in enumerate(places))

    def draws_of(self, block: int) -> int:
        return self.draws if self.num_blocks == 1 else min(self.unit_draws, self.draws - block * self.unit_draws)


def read_plan(directory: CertificateDir) -> CertificatePlan:
    """Read the plan of a directory.

    Raises:
        InputError: there is none, it is not one, or its model had its noise before its average.
    """
    plan = read_planned(CertificatePlan, directory, "a directory of `kapdist certify`")
    check_models(plan.subject, directory.plan)
    return plan


def read_certificate_unit(
    directory: CertificateDir, plan: CertificatePlan, unit: CertificateUnit
) -> pl.DataFrame | None:
    """Return the rows of a unit that is done; a damaged file does not count.

    Raises:
        InputError: the file belongs to another plan, and is not overwritten.
    """
    images = plan.subject.chunk_images(unit.chunk)
    table = read_unit(directory.chunk(unit.number), COLUMNS, "unit", plan.fingerprint, images)
    return table if table is not None and set(table["unit"]) == {unit.number} else None


class CertifiedAt(Record):
    """How many images are certified at a radius: of the right class, and their radius is no smaller."""

    radius: float
    num_certified: Count
    accuracy: Proportion


class SmoothedSummary(Record):
    """The model smoothed by noise of one sigma."""

    sigma: float = Field(gt=0)
    num_abstained: Count
    num_correct: Count
    """Of the smoothed model, which is wrong where it abstains."""
    accuracy: Proportion
    draw_accuracy: Proportion
    """Share of single noisy draws that are right."""
    average_certified_radius: float
    """Mean over images of the radius, 0 where the class is wrong."""
    largest_radius: float
    """Of an image whose draws all agree: more draws would raise it."""
    num_all_agreed: Count
    """Images that have it."""
    p_a_quantiles: tuple[float, ...]
    """Over images of the chance of the right class, label_count / draws, at P_A_QUANTILES."""
    p_a_histogram: tuple[int, ...]
    """The same in P_A_BINS equal parts of [0, 1]."""
    certified: tuple[CertifiedAt, ...]
    """By radius, ascending from 0; the same radii for every sigma."""
    num_draws: Count
    """Selection and estimation, of all images."""


class CertificateSummary(Record):
    """summary.json."""

    format: Literal[1] = 1
    name: str
    run: str
    plan_fingerprint: str
    weights_sha256: str
    data_fingerprint: str
    images_sha256: str
    num_images: int = Field(ge=1)
    noise: str
    own_noise: str
    selection_draws: int
    draws: int
    alpha: float
    stop_radius: float | None
    looks: tuple[int, ...]
    """At each the bound holds at alpha / len(looks)."""
    seed: int
    smoothed: tuple[SmoothedSummary, ...]
    seconds: float
    device: str
    packages: dict[str, str | None]
    notes: tuple[str, ...]


def read_certificate_summary(path: Path) -> CertificateSummary:
    """Read the summary of a certification.

    Raises:
        InputError: the file is none.
    """
    return read_record(CertificateSummary, path, "kapdist certify writes it again")
