"""Claims are decided by tests whose answers are known: simulated studies, and closed forms."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from scipy import stats

from kapdist.config.claims import ClaimConfig
from kapdist.statistics.frontier import (
    Band,
    Frontier,
    band,
    distance,
    dominance,
    frontier_difference,
    heights,
)
from kapdist.statistics.holm import holm
from kapdist.statistics.seeds import Interval, of_two_parts, seed_difference
from kapdist.study.claims import decide, seeds_in_words
from kapdist.study.results import Attacked, Results, rows_of
from kapdist.study.settings import Setting
from tools.interval_coverage import STRENGTHS, expected_frontier, frontiers

IMAGES = 200


def attacked(setting: Setting, accuracy: float, robust: float, seeds: int = 3, shared: Any = None) -> Attacked:
    """Models that are right on the images of lowest hardness; each seed draws a little of its own."""
    hardness = np.linspace(0, 1, IMAGES) if shared is None else shared
    own = np.random.default_rng(crc32(setting.name.encode())).normal(0, 0.005, (seeds, 1))
    broken = np.where(hardness + own < robust, np.inf, 8 / 255)
    summary: Any = SimpleNamespace(sweep=[SimpleNamespace(eps=8 / 255)], norm="Linf")
    files = tuple(Path(f"{setting.name}-{seed}") for seed in range(seeds))
    images, correct = np.arange(IMAGES), hardness + own < accuracy
    return Attacked(setting, "standard", tuple(range(seeds)), images, correct, broken, (summary,) * seeds, files)


def study(claims: list[str], *found: Attacked, planned: int = 3) -> Results:
    settings = [one.setting for one in found]
    design: Any = SimpleNamespace(
        config=SimpleNamespace(claims=tuple(ClaimConfig.model_validate(text) for text in claims)),
        attacks={"standard": SimpleNamespace(eps=(8 / 255,))},
        of_arm=lambda arm: [setting for setting in settings if setting.arm == arm],
        attacked=lambda setting, attack: [
            SimpleNamespace(seed=seed, name=f"{setting.name}_{seed}") for seed in range(planned)
        ],
        attack_of=lambda claim: "standard",
    )
    return Results(design, {(one.setting.name, "standard"): one for one in found})


def a(name: str, **point: float) -> Setting:
    return Setting(name, point)


def test_a_claim_is_shown_refuted_or_not_decided() -> None:
    claims = ["good over bad, robust accuracy", "bad over good, robust accuracy", "good over same, robust accuracy"]
    found = decide(
        study(claims, attacked(a("good"), 0.9, 0.5), attacked(a("bad"), 0.9, 0.3), attacked(a("same"), 0.9, 0.5))
    )
    assert [one.verdict for one in found] == ["shown", "refuted", "not decided"]
    assert found[0].difference == pytest.approx(0.2, abs=0.02)
    assert found[0].difference == -found[1].difference
    assert "points or more" in found[2].more
    assert [one.p_holm for one in found] == pytest.approx(holm([one.p for one in found]))


def test_too_few_seeds_are_not_said_to_show_more_points_than_there_are() -> None:
    """Two seeds that disagree: t with one degree of freedom asks for hundreds of points."""
    apart = np.zeros((2, 16))
    apart[0, :8], apart[1, :8] = 1, -1
    found = seeds_in_words(apart, Interval("t", -1.0, 1.0), 0.0, 1, 1)
    assert found == "2 seeds and 16 images show no difference, however large"


def test_a_margin_moves_what_is_tested() -> None:
    first, second = attacked(a("a"), 0.88, 0.5), attacked(a("b"), 0.9, 0.5)
    claims = [
        f"a over b, clean accuracy, {margin}" for margin in ("at most 10 points lost", "at most 1 point lost")
    ]
    lost, one = decide(study(claims, first, second))
    assert lost.verdict == "shown"
    assert (lost.low, lost.high) == (one.low, one.high)
    assert lost.p < one.p
    found = seed_difference(first.right(0), second.right(0), margin=-0.1)
    assert lost.p == found.decides.p


@pytest.mark.parametrize(
    ("first", "second", "planned", "why"),
    [
        (1, 1, 1, "one seed"),
        (2, 3, 3, "a under standard has no result for seed 2"),
    ],
)
def test_what_is_missing_decides_nothing(first: int, second: int, planned: int, why: str) -> None:
    sides = attacked(a("a"), 0.9, 0.5, first), attacked(a("b"), 0.9, 0.1, second)
    (found,) = decide(study(["a over b, robust accuracy"], *sides, planned=planned))
    assert found.verdict == "not decided"
    assert why in found.why
    assert found.p_holm is None


def test_no_result_at_all_and_other_images_decide_nothing() -> None:
    one, other = attacked(a("a"), 0.9, 0.5), attacked(a("b"), 0.9, 0.1)
    results = study(["a over b, robust accuracy"], one, other)
    del results.found["b", "standard"]
    assert "b under standard has no result for seed 0, 1, 2" in decide(results)[0].why
    elsewhere = replace(other, data="of another beton")
    assert "not attacked on the same images" in decide(study(["a over b, robust accuracy"], one, elsewhere))[0].why
    other.images[0] = 10**6
    assert "not attacked on the same images" in decide(study(["a over b, robust accuracy"], one, other))[0].why


def test_one_image_decides_nothing_and_has_a_row_all_the_same() -> None:
    """Of a beton with one image, all of which are attacked."""
    one, other = (
        replace(found, images=found.images[:1], correct=found.correct[:, :1], broken_eps=found.broken_eps[:, :1])
        for found in (attacked(a("a"), 0.9, 0.5), attacked(a("b"), 0.9, 0.1))
    )
    (found,) = decide(study(["a over b, robust accuracy"], one, other))
    assert (found.verdict, found.why) == ("not decided", "one image, and how much images differ is not known")
    clean, robust = rows_of(one)
    assert (clean.value, clean.num_images, clean.method) == (1.0, 1, "Wilson over images, of one image")
    assert 0 < robust.low < robust.high == 1.0


def test_a_robust_accuracy_that_is_not_to_be_believed_decides_nothing() -> None:
    """A clean accuracy does as before, and the others' correction too: the claim still counts as one."""
    one, other = attacked(a("a"), 0.9, 0.5), attacked(a("b"), 0.7, 0.1)
    claims = ["a over b, robust accuracy", "a over b, clean accuracy"]
    before = decide(study(claims, one, other))
    assert [found.verdict for found in before] == ["shown", "shown"]
    doubted = replace(one, doubted=dict.fromkeys((0, 1), "50.0% robust; with averaged gradients 1.0% are left"))
    robust, clean = decide(study(claims, doubted, other))
    assert (robust.verdict, robust.p) == ("not decided", None)
    assert robust.why == "the robust accuracy of a_seed0, a_seed1 is not to be believed"
    assert (clean.verdict, clean.p) == ("shown", before[1].p)
    assert (
        "and 1 more is not to be believed"
        in decide(study(claims, doubted, replace(other, doubted=dict.fromkeys((0, 2), "none are left"))))[0].why
    )


def test_a_frontier_with_a_doubted_point_decides_nothing() -> None:
    arms = [
        attacked(a(name, s=x), 0.9 - x, 0.2 + x + higher)
        for name, higher in (("a", 0.1), ("b", 0.0))
        for x in (0.1, 0.3)
    ]
    claim = ["a over b, robust accuracy, at equal clean accuracy"]
    assert decide(study(claim, *arms))[0].verdict == "shown"
    arms[3] = replace(arms[3], doubted={2: "none are left"})
    (found,) = decide(study(claim, *arms))
    assert (found.verdict, found.why) == (
        "not decided",
        "the robust accuracy of b_0.3_seed2 is not to be believed",
    )


def test_a_claim_that_came_later_says_so() -> None:
    sides = attacked(a("a"), 0.9, 0.5), attacked(a("b"), 0.9, 0.1)
    claims = ["a over b, robust accuracy", "a over b, clean accuracy"]
    assert [one.later for one in decide(study(claims, *sides), (claims[1],))] == [False, True]


def test_who_adds_seeds_until_it_is_decided_pays_for_every_look() -> None:
    claims = ["a over b, robust accuracy", "c over b, robust accuracy"]
    results = study(claims, attacked(a("a"), 0.9, 0.5), attacked(a("b"), 0.9, 0.49), attacked(a("c"), 0.9, 0.4))
    once, thrice = decide(results), decide(results, grown=[["a", "x"], ["a", "b"], ["x"]])
    assert [one.looks for one in once] == [1, 1]
    assert [one.looks for one in thrice] == [3, 2]
    assert [one.p for one in once] == [one.p for one in thrice]
    assert [one.p_holm for one in thrice] == pytest.approx(holm([min(1, 3 * once[0].p), min(1, 2 * once[1].p)]))
    assert "corrected for 3 looks, as trainings were added to results, and for 2 claims (Holm)" in thrice[0].why
    assert "look" not in once[0].why


def test_a_claim_that_cannot_be_tested_yet_counts_as_one() -> None:
    """Else a verdict of a study that is half done could fall when the rest is."""
    claims = ["a over b, robust accuracy", "c over b, robust accuracy"]
    sides = attacked(a("a"), 0.9, 0.5), attacked(a("b"), 0.9, 0.45), attacked(a("c"), 0.9, 0.4)
    half = study(claims, *sides)
    del half.found["c", "standard"]
    waiting, whole = decide(half), decide(study(claims, *sides))
    assert waiting[0].p_holm == pytest.approx(2 * waiting[0].p)
    assert "for 2 claims (Holm)" in waiting[0].why
    assert waiting[1].p_holm is None
    assert whole[0].p_holm <= waiting[0].p_holm


def test_what_it_would_take_counts_the_tests_that_it_is_corrected_for() -> None:
    claims = ["a over b, robust accuracy", "c over d, robust accuracy", "d over c, robust accuracy"]
    sides = [attacked(a(name), 0.9, robust) for name, robust in (("a", 0.5), ("b", 0.478), ("c", 0.5), ("d", 0.5))]
    alone, looked_at = (decide(study(claims[:1], *sides[:2]), grown=grown)[0] for grown in ([], [["a"]] * 3))
    first = decide(study(claims, *sides))[0]
    assert first.p < min(decide(study(claims, *sides))[n].p for n in (1, 2)), "or Holm corrects it for itself alone"
    shows = [float(one.more.partition("difference of ")[2].split()[0]) for one in (alone, first, looked_at)]
    assert shows == sorted(set(shows))
    assert 100 * (first.high - first.low) / 2 <= shows[0] + 0.05


def test_frontiers_are_compared_at_equal_clean_accuracy() -> None:
    """Arm a is more robust at each sigma, and at equal clean accuracy it is not: it only has other sigmas."""
    line = lambda clean: 1.2 - clean  # noqa: E731  (both lie on it)
    points = [("a", 0.5), ("a", 0.6), ("a", 0.7), ("b", 0.55), ("b", 0.65), ("b", 0.75)]
    found = [attacked(a(arm, sigma=clean), clean, min(clean, line(clean))) for arm, clean in points]
    (same,) = decide(study(["a over b, robust accuracy, at equal clean accuracy"], *found))
    assert same.verdict == "not decided"
    assert same.difference == pytest.approx(0, abs=0.02)
    assert same.clean == pytest.approx((0.55, 0.7), abs=0.02)
    lifted = [
        attacked(one.setting, clean, min(clean, line(clean)) - 0.1 * (arm == "b"))
        for one, (arm, clean) in zip(found, points, strict=True)
    ]
    (shown,) = decide(study(["a over b, robust accuracy, at equal clean accuracy"], *lifted))
    assert shown.verdict == "shown"
    assert shown.difference == pytest.approx(0.1, abs=0.03)
    assert "neither arm dominates" in shown.dominance
    assert "3 seeds (a bootstrap of so few may be too narrow)" in shown.why


def test_frontiers_that_do_not_meet_decide_nothing() -> None:
    found = [
        attacked(a(arm, sigma=clean), clean, 0.3) for arm, clean in (("a", 0.5), ("a", 0.6), ("b", 0.8), ("b", 0.9))
    ]
    (one,) = decide(study(["a over b, robust accuracy, at equal clean accuracy"], *found))
    assert one.verdict == "not decided"
    assert "no clean accuracy in common" in one.why


def test_the_distance_of_broken_lines_is_their_area() -> None:
    """A line of slope -1 above one of slope -1 by 0.1, and a tent above its base."""
    clean = np.array([0.2, 0.4, 0.9])
    found = distance(clean, 1 - clean, np.array([0.1, 0.8]), np.array([0.8, 0.1]))
    assert (found.mean, found.low, found.high) == pytest.approx((0.1, 0.2, 0.8))
    tent = distance(np.array([0.0, 0.5, 1.0]), np.array([0.0, 1.0, 0.0]), np.array([0.0, 1.0]), np.zeros(2))
    assert tent.mean == pytest.approx(0.5)
    assert distance(np.array([0.0, 0.1]), np.zeros(2), np.array([0.1, 0.2]), np.zeros(2)) is None


def simulated(
    random: np.random.Generator, lift: float, seeds: int, differ: float = 0.1
) -> tuple[Frontier, Frontier]:
    """Two arms of three strengths on the same images; the first withstands more by `lift` on a probit scale."""
    return frontiers(random, seeds, 256, lift, differ)


@pytest.mark.parametrize(("seeds", "differ"), [(3, 0.1), (10, 0.4)])
def test_the_interval_of_frontiers_covers_and_its_test_keeps_its_level(seeds: int, differ: float) -> None:
    """Of 60 studies: at a nominal 95% and 5%, fewer than 51 or more than 9 come once in 1,000 times."""
    random = np.random.default_rng(1)
    null = [frontier_difference(*simulated(random, 0.0, seeds, differ)) for _ in range(60)]
    arms = [expected_frontier(*arm, differ) for arm in zip(STRENGTHS, (0.3, 0.0), strict=True)]
    truth = distance(*arms[0], *arms[1]).mean
    lifted = [frontier_difference(*simulated(random, 0.3, seeds, differ)) for _ in range(60)]
    assert sum(one.decides.p < 0.05 for one in null if one) <= 9
    assert sum(one.decides.low <= truth <= one.decides.high for one in lifted if one) >= 51
    assert sum(one is None for one in [*null, *lifted]) == 0  # also where those of a seed alone would not meet


def test_where_clean_accuracy_is_the_same_for_all_seeds_each_says_what_its_own_frontiers_do() -> None:
    """Then the distance is linear in what the seeds withstand: the jackknife's values are those of each alone."""
    random, images = np.random.default_rng(2), np.arange(200)
    sides = []
    for level in (0.5, 0.3):
        clean = np.stack([np.tile(images < 200 * share, (4, 1)) for share in (0.6, 0.9)])
        sides.append(Frontier(clean, random.random((2, 4, 200)) < level))
    found = frontier_difference(*sides)
    alone = [
        distance(*(table[:, seed].mean(1) for side in sides for table in (side.clean, side.robust))).mean
        for seed in range(4)
    ]
    assert found.per_seed == pytest.approx(alone, abs=1e-9)
    assert np.mean(found.per_seed) == pytest.approx(found.value)


def test_frontiers_whose_ends_lie_side_by_side_rarely_differ() -> None:
    """Of 240 studies of one frontier, some of whose strengths are one arm's and some the other's, at 5%: more than
    23 come once in 1,000 times. Seeds that made their ends meet make them differ: 26 were said to.
    """
    said = sum(side_by_side(np.random.default_rng(seed)) for seed in (9, 10))
    assert said <= 23


def side_by_side(draw: np.random.Generator) -> int:
    said = 0
    for _ in range(120):
        images, sides = draw.normal(0, 1, 256), []
        for strengths in ((0.2, 0.4), (0.42, 0.6)):
            right = [images + draw.normal(0, 0.3, (5, 1)) + draw.normal(0, 0.5, (5, 256)) for _ in strengths]
            clean = [z > s - 1.2 for z, s in zip(right, strengths, strict=True)]
            robust = [z > 1.2 - s for z, s in zip(right, strengths, strict=True)]
            sides.append(Frontier(np.array(clean), np.array(robust)))
        found = frontier_difference(sides[0], sides[1])
        said += found is not None and found.decides.p < 0.05
    return said


ON_ANOTHER_CPU = """
import numpy as np
from kapdist.statistics.frontier import band, frontier_difference
from tools.interval_coverage import frontiers
pairs = [frontiers(np.random.default_rng(seed), 5, 256, 0.1, 0.3) for seed in range(4)]
print([frontier_difference(*pair) for pair in pairs], [band(first).high.tolist() for first, _ in pairs])
"""


def test_a_frontier_s_numbers_are_those_of_every_cpu() -> None:
    """OpenBLAS has a kernel for each and takes the one that is named, where it is one of x86."""
    said = {
        subprocess.run(
            [sys.executable, "-c", ON_ANOTHER_CPU],
            env=os.environ | {"OPENBLAS_CORETYPE": core},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for core in ("Prescott", "Haswell")
    }
    assert len(said) == 1


def test_two_points_of_one_clean_accuracy_do_not_make_an_interval_boundless() -> None:
    """Their order, and with it the broken line, depends on the least weight of a seed."""
    random, widths = np.random.default_rng(3), []
    first, second = simulated(random, 0.3, 5)
    for images in (0, 1):  # by which the accuracies of two points differ
        clean = first.clean.copy()
        clean[1] = clean[0][::-1]  # another order of the seeds: the same mean
        clean[1, 0, :images] ^= True
        found = frontier_difference(Frontier(clean, first.robust), second)
        widths.append(found.decides.high - found.decides.low)
    assert max(widths) < 2 * min(widths)


def two_parts(mean: float, of_seeds: float, freedom: int, of_images: float, margin: float) -> Interval:
    return of_two_parts(mean, (of_seeds, of_images), (freedom, math.inf), "t", margin)


@pytest.mark.parametrize(("of_seeds", "of_images"), [(1e-3, 0.0), (0.0, 1e-3), (4e-4, 9e-4)])
@pytest.mark.parametrize("margin", [0.0, 0.02])
def test_an_interval_of_two_parts(of_seeds: float, of_images: float, margin: float) -> None:
    """SciPy's t and normal where there is one part; with two, p is 5% where the margin is an end."""
    found = two_parts(0.1, of_seeds, 3, of_images, margin)
    half = math.sqrt(stats.t.ppf(0.975, 3) ** 2 * of_seeds + stats.norm.ppf(0.975) ** 2 * of_images)
    assert (found.low, found.high) == pytest.approx((0.1 - half, 0.1 + half))
    for end in (found.low, found.high):
        assert two_parts(0.1, of_seeds, 3, of_images, end).p == pytest.approx(0.05)
    t = (0.1 - margin) / math.sqrt(of_seeds + of_images)
    both = 2 * stats.t.sf(t, 3), 2 * stats.norm.sf(t)
    assert min(both) * (1 - 1e-6) <= found.p <= max(both) * (1 + 1e-6)
    if not of_images:
        assert found.p == pytest.approx(both[0])
    if not of_seeds:
        assert found.p == pytest.approx(both[1])
    assert two_parts(0.1, of_seeds, 3, of_images, 0.1).p == 1.0
    assert two_parts(1.0, 1e-12, 300, 1e-12, 0.0).p < 1e-100
    for little in (0.0, 1e-300, 1e-12):  # of two seeds that are alike, by chance or because they are one
        assert 0 <= two_parts(0.5, little, 1, 1e-8, margin).p < 1e-5


def test_the_region_of_a_frontier_holds_it() -> None:
    """Of 40 studies of 3 seeds at a nominal 95%: fewer than 33 hits in its middle come once in 1,000 times."""
    random = np.random.default_rng(2)
    true, _ = simulated(random, 0.0, 400)
    clean, robust = true.clean.mean((1, 2)), true.robust.mean((1, 2))
    middle = float(np.median(clean))
    height = float(heights(clean, robust, np.array([middle]))[0])
    found = [band(simulated(random, 0.0, 3)[0]) for _ in range(40)]
    assert sum(holds(one, middle, height) for one in found) > 32
    wide = [one for one in found if one.high.max() - one.low.min() > 0.9]
    assert not wide


def holds(one: Band, clean: float, robust: float) -> bool:
    low, high = (float(np.interp(clean, one.clean, side)) for side in (one.low, one.high))
    return low <= robust <= high


def test_the_region_of_one_seed_is_that_of_its_images() -> None:
    """Of two points that all images share, the height between them has a binomial mean's deviation."""
    images = np.random.default_rng(3).random(500) < 0.4
    clean = np.stack([np.arange(500) < 400, np.arange(500) < 450])[:, None]
    one = band(Frontier(clean, np.stack([images, images])[:, None]))
    assert one.method == "bootstrap over images, of one seed alone"
    deviation = np.sqrt(images.mean() * (1 - images.mean()) / 500)
    assert (one.high - one.low)[12] / 2 == pytest.approx(1.965 * deviation, rel=0.15)


def test_an_arm_dominates_that_is_better_on_both_than_each_setting() -> None:
    random = np.random.default_rng(4)
    hardness = random.normal(0, 1, 256)

    def arm(points: list[tuple[float, float]]) -> Frontier:
        own = [hardness + random.normal(0, 0.05, (4, 1)) + random.normal(0, 0.3, (4, 256)) for _ in points]
        clean, robust = ([z < point[side] for z, point in zip(own, points, strict=True)] for side in (0, 1))
        return Frontier(np.stack(clean), np.stack(robust))

    above, below = arm([(1.4, 0.2), (0.8, 0.6)]), arm([(0.9, -0.3), (0.4, 0.2)])
    assert dominance(above, below) < 0.01
    assert dominance(below, above) == 1.0
    crossing = arm([(1.6, -0.3), (0.2, 0.2)])  # cleaner than either at one end
    assert min(dominance(above, crossing), dominance(crossing, above)) > 0.5


def test_dominance_is_rarely_shown_where_there_is_none() -> None:
    """Of 60 studies of two equal arms at 5%: more than 9 come once in 1,000 times."""
    random = np.random.default_rng(5)
    shown = 0
    for _ in range(60):
        right = random.normal(0, 1, 128) + random.normal(0, 0.2, (2, 3, 1)) + random.normal(0, 0.5, (2, 3, 128))
        first, second = (Frontier(side[None] > -1, side[None] > 0.5) for side in right)
        shown += dominance(first, second) < 0.05
    assert shown <= 9


def test_frontiers_of_other_shapes_are_refused() -> None:
    table = np.ones((2, 3, 5), bool)
    with pytest.raises(ValueError, match="points x seeds x images"):
        Frontier(table, table[:, :2])
    with pytest.raises(ValueError, match="the same seeds"):
        dominance(Frontier(table, table), Frontier(table[:, :2], table[:, :2]))
    with pytest.raises(ValueError, match="the same seeds"):
        frontier_difference(Frontier(table, table), Frontier(table[:, :2], table[:, :2]))
