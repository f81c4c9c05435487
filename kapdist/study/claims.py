"""A claim of a study and what became of it: shown, refuted, or not decided and what it would take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kapdist.config.claims import ClaimConfig
from kapdist.records.study import Decision
from kapdist.report.words import p_text
from kapdist.statistics.frontier import Frontier, dominance, frontier_difference
from kapdist.statistics.holm import holm
from kapdist.statistics.power import detectable_by_seeds, seeds_needed
from kapdist.statistics.seeds import Interval, no_chance_seen, seed_difference, variances
from kapdist.study.design import Design, meant
from kapdist.study.results import Attacked, Results
from kapdist.study.settings import Setting

LEVEL = 0.05  # of a claim's test, corrected for all claims of the study
FEWEST_SEEDS = FEWEST_IMAGES = 2
# Below so many, percentiles of a bootstrap cover too little where seeds differ (tools/interval_coverage.py).
FEW_SEEDS = 10
SHOWN = 3  # models that a reason names
ONE_SEED = "one seed, and how much seeds differ is not known"


class UndecidedError(Exception):
    """A claim cannot be tested; says why."""


@dataclass(frozen=True)
class Compared:
    """What a claim's two sides came to."""

    first: str
    over: str
    seeds: tuple[int, ...]
    num_images: int
    value: float
    per_seed: tuple[float, ...]
    interval: Interval
    clean: tuple[float, float] | None
    more: Callable[[int, int], str]
    """What it would take to decide it, by how many tests it is corrected for, now and with another look."""
    dominance: str = ""


def decide(
    results: Results, later: tuple[str, ...] = (), grown: Sequence[Sequence[str]] = ()
) -> tuple[Decision, ...]:
    """Decide every claim of a study; tests are corrected for all claims of it by Holm's method.

    A claim that cannot be tested yet counts as one: no verdict falls when it is.

    Args:
        later: claims that came when there were results.
        grown: at each growth, the arms that got more trainings when there were results of them. Who adds seeds
            until a claim is decided tests it again and again: each look counts as a test (Bonferroni).
    """
    tested: dict[str, Compared | str] = {}
    for claim in results.design.config.claims:
        try:
            tested[claim.text] = compare(results, claim)
        except UndecidedError as error:
            tested[claim.text] = str(error)
    compared = {text: found for text, found in tested.items() if isinstance(found, Compared)}
    claims = {claim.text: claim for claim in results.design.config.claims}
    looks = {
        text: 1 + sum(claim.first in arms or claim.over in arms for arms in grown) for text, claim in claims.items()
    }
    looked = dict.fromkeys(claims, 1.0)
    looked |= {text: min(1.0, looks[text] * found.interval.p) for text, found in compared.items()}
    corrected = dict(zip(claims, holm(list(looked.values())), strict=True))
    # Holm's steps: the smallest p-value is corrected for all, the largest for itself.
    steps = {text: sum(p >= looked[text] for p in looked.values()) for text in claims}
    decided = (
        decision(claim, tested[text], corrected[text], len(claims), steps[text], looks[text])
        for text, claim in claims.items()
    )
    return tuple(found.model_copy(update={"later": found.claim in later}) for found in decided)


def decision(
    claim: ClaimConfig, found: Compared | str, p_holm: float, family: int, step: int, looks: int
) -> Decision:
    """Return what becomes of a claim.

    Args:
        step: how many claims Holm's method corrects its p-value for, of the `family`.
    """
    if isinstance(found, str):
        return Decision(
            claim=claim.text, verdict="not decided", why=found, first=claim.first, over=claim.over, looks=looks
        )
    decided = p_holm <= LEVEL
    above = found.value > claim.margin
    corrected = f", corrected for {looks} looks, as trainings were added to results" if looks > 1 else ""
    corrected += f", {'and' if corrected else 'corrected'} for {family} claims (Holm)" if family > 1 else ""
    return Decision(
        claim=claim.text,
        verdict=("shown" if above else "refuted") if decided else "not decided",
        why=f"{method_in_words(found)}, {found.num_images} images{corrected}",
        first=found.first,
        over=found.over,
        difference=found.value,
        low=found.interval.low,
        high=found.interval.high,
        margin=claim.margin,
        p=found.interval.p,
        p_holm=p_holm,
        per_seed=found.per_seed,
        seeds=found.seeds,
        num_images=found.num_images,
        clean=found.clean,
        more="" if decided else found.more(step * looks, step * (looks + 1)),
        dominance=found.dominance,
        looks=looks,
    )


def method_in_words(found: Compared) -> str:
    """Say which method was used, and why no other where one fails."""
    seeds = len(found.seeds)
    why = " (a bootstrap of so few may be too narrow)" if seeds < FEW_SEEDS else ""
    return f"{found.interval.method}, {seeds} seeds{why}"


def compare(results: Results, claim: ClaimConfig) -> Compared:
    """Compare the two sides of a claim.

    Raises:
        UndecidedError: something that it needs is missing.
    """
    attack = results.design.attack_of(claim)
    return (between_frontiers if claim.equal_clean else between_settings)(results, claim, attack)


def between_settings(results: Results, claim: ClaimConfig, attack: str) -> Compared:
    sides = [meant(results.design, claim, arm) for arm in (claim.first, claim.over)]
    first, second = (complete(results, side, attack) for side in sides)
    seeds = common_seeds(first, second)
    check_believed(claim, seeds, first, second)
    eps = eps_of(results.design, claim, attack)
    ours, theirs = first.right(eps)[first.of_seeds(seeds)], second.right(eps)[second.of_seeds(seeds)]
    found = seed_difference(ours, theirs, margin=claim.margin)
    differences = ours.astype(np.int8) - theirs.astype(np.int8)

    def more(tests: int, then: int) -> str:
        return seeds_in_words(differences, found.decides, found.value - claim.margin, tests, then)

    return Compared(
        first=sides[0].name,
        over=sides[1].name,
        seeds=seeds,
        num_images=found.num_images,
        value=found.value,
        per_seed=found.per_seed,
        interval=found.decides,
        clean=None,
        more=more,
    )


def between_frontiers(results: Results, claim: ClaimConfig, attack: str) -> Compared:
    arms = [
        [complete(results, setting, attack) for setting in results.design.of_arm(arm)]
        for arm in (claim.first, claim.over)
    ]
    seeds = common_seeds(*arms[0], *arms[1])
    check_believed(claim, seeds, *arms[0], *arms[1])
    eps = eps_of(results.design, claim, attack)
    first, second = (frontier_of(points, seeds, eps) for points in arms)
    found = frontier_difference(first, second, margin=claim.margin)
    if found is None:
        raise UndecidedError("the frontiers have no clean accuracy in common, or no more than by chance")
    more = lambda *_: f"more seeds than {len(seeds)}, or points of the grid nearer to each other"  # noqa: E731
    return Compared(
        first=claim.first,
        over=claim.over,
        seeds=seeds,
        num_images=arms[0][0].correct.shape[1],
        value=found.value,
        per_seed=found.per_seed,
        interval=found.decides,
        clean=found.clean,
        more=more,
        dominance=dominance_in_words(claim, first, second),
    )


def frontier_of(points: Sequence[Attacked], seeds: tuple[int, ...], eps: float) -> Frontier:
    return Frontier(
        np.stack([found.right(0)[found.of_seeds(seeds)] for found in points]),
        np.stack([found.right(eps)[found.of_seeds(seeds)] for found in points]),
    )


def dominance_in_words(claim: ClaimConfig, first: Frontier, second: Frontier) -> str:
    """Say whether one of two arms is better on both accuracies, whichever setting of the other one takes."""
    ways = ((claim.first, claim.over, first, second), (claim.over, claim.first, second, first))
    found = [(dominance(mine, theirs), name, other) for name, other, mine, theirs in ways]
    p, name, other = min(found)
    if p <= LEVEL:
        return f"{name} dominates {other}: better on both accuracies than each of its settings ({p_text(p, LEVEL)})"
    said = [p_text(one[0], LEVEL).removeprefix("p = ") for one in found]
    return f"neither arm dominates the other (p = {said[0]} and {said[1]})"


def complete(results: Results, setting: Setting, attack: str) -> Attacked:
    """Return the results of a setting, all of its seeds.

    Raises:
        UndecidedError: some are missing: what is left of a setting some of whose runs failed is no fair sample.
    """
    found = results.of(setting, attack)
    planned = [run.seed for run in results.design.attacked(setting, attack)]
    missing = [seed for seed in planned if found is None or seed not in found.seeds]
    if missing or found is None:
        raise UndecidedError(f"{setting.name} under {attack} has no result for seed {', '.join(map(str, missing))}")
    return found


def common_seeds(*found: Attacked) -> tuple[int, ...]:
    """Return the seeds that all have.

    Raises:
        UndecidedError: fewer than two, of seeds or images, or not the same images.
    """
    if not all(one.on_images_of(found[0]) for one in found):
        raise UndecidedError("the two sides were not attacked on the same images")
    if len(found[0].images) < FEWEST_IMAGES:
        raise UndecidedError("one image, and how much images differ is not known")
    seeds = tuple(seed for seed in found[0].seeds if all(seed in one.seeds for one in found))
    if len(seeds) < FEWEST_SEEDS:
        raise UndecidedError(ONE_SEED if seeds else "the two sides have no seed in common")
    return seeds


def check_believed(claim: ClaimConfig, seeds: tuple[int, ...], *found: Attacked) -> None:
    """Refuse to decide by a robust accuracy of which stronger attacks left less, as `kapdist attack sanity` found.

    Raises:
        UndecidedError: names the models.
    """
    names = [f"{one.setting.name}_seed{seed}" for one in found for seed in seeds if seed in one.doubted]
    if names and claim.measure == "robust":
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise UndecidedError(f"the robust accuracy of {', '.join(names[:SHOWN])}{more} is not to be believed")


def eps_of(design: Design, claim: ClaimConfig, attack: str) -> float:
    if claim.measure == "clean":
        return 0.0
    return max(design.attacks[attack].eps) if claim.eps is None else claim.eps


def seeds_in_words(differences: np.ndarray, found: Interval, distance: float, tests: int, then: int) -> str:
    """Say what this design could have shown, and how many seeds would show what was seen.

    Args:
        tests: that the test is corrected for, and `then`, with more seeds, which are another look.
    """
    parts, (num_seeds, num_images) = variances(differences), differences.shape
    half = (found.high - found.low) / 2  # also where no chance was seen
    smallest = max(half, detectable_by_seeds(parts, num_seeds, num_images, LEVEL / tests))
    points = f"a difference of {100 * smallest:.1f} points or more"
    shown = points if smallest <= 1 else "no difference, however large"
    said = f"{num_seeds} seeds and {num_images} images show {shown}"
    if not distance:
        return said
    needed = seeds_needed(parts, distance, num_images, LEVEL / then)
    if needed is None or abs(distance) < no_chance_seen(num_images):
        return f"{said}; one as small as was seen takes more images, too"
    return f"{said}; one as small as was seen takes about {max(needed, num_seeds + 1)} seeds"
