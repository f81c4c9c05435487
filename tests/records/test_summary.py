"""Intervals against published values; the progress line; notes."""

import pytest

from kapdist.records.summary import AttackSummary, notes_on_square
from kapdist.run.progress import Progress
from kapdist.statistics.intervals import wilson


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3; the paper prints four digits
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals_are_the_published_ones(count: int, total: int, low: float, high: float) -> None:
    share = wilson(count, total)
    assert share.value == count / total
    assert (share.low, share.high) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson(total - count, total)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((share.low, share.high), abs=1e-12)


def test_robustbench_s_interval_at_35_percent_of_5000_is_1_3_points() -> None:
    share = wilson(1750, 5000)
    assert (share.high - share.low) / 2 == pytest.approx(0.0132, abs=1e-4)


def attack(name: str, num_broken: int) -> AttackSummary:
    return AttackSummary(
        name=name,
        eps=0.1,
        num_attacked=1000,
        num_broken=num_broken,
        num_robust_after=0,
        robust_accuracy_after=0,
        forwards=0,
        backwards=0,
        library_forwards=0,
        library_backwards=0,
        seconds=0,
    )


def test_what_square_alone_breaks_is_noted() -> None:
    assert notes_on_square([attack("apgd-ce", 500), attack("square", 2)], 1000) == []
    assert "square" in notes_on_square([attack("apgd-ce", 500), attack("square", 3)], 1000)[0]
    assert notes_on_square([attack("square", 300)], 1000) == []


@pytest.mark.parametrize(
    "before", ["hard-label", "random-noise", "transfer", "transfer:plain", "mine.py:attack", "screen"]
)
def test_square_after_no_whole_attack_with_gradients_says_nothing_of_them(before: str) -> None:
    assert notes_on_square([attack(before, 500), attack("square", 300)], 1000) == []


def test_square_is_counted_where_gradients_were_followed_before_it_at_the_same_eps() -> None:
    early = [attack("screen@0.1", 5), attack("square@0.1", 300), attack("apgd-ce@0.1", 10)]
    assert notes_on_square(early, 1000) == []
    larger = [attack(name, 300).model_copy(update={"eps": 0.2}) for name in ("square@0.2", "fab-t@0.2")]
    assert notes_on_square([*early, *larger], 1000) == []
    last = attack("square@0.2", 30).model_copy(update={"eps": 0.2})
    (note,) = notes_on_square([*early, *larger, last], 1000)
    assert note.startswith("square, without gradients, broke 3.0% that")


def test_the_progress_line_names_rate_and_time_left() -> None:
    progress = Progress("attack", 8)
    progress.first = 2
    assert progress.line(2, 5.0, "") == "attack: 2/8 chunks, after 5 s"
    assert progress.line(4, 4.0, "3/9 robust") == "attack: 4/8 chunks, 0.50/s, 8 s left, 3/9 robust"
