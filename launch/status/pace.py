"""How fast a training goes by its metrics: the rate of its steps, and what evaluations between them take. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any

RECENT_LINES = 10


def images_per_second(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the rate of the newest steps, evaluations left out; None where no line tells it."""
    rates = [line["images_per_second"] for line in lines if tells_a_rate(line)]
    return statistics.harmonic_mean(rates[-RECENT_LINES:]) if rates else None


def pause_per_step(lines: Sequence[Mapping[str, Any]], images_per_step: float) -> float:
    """Return the seconds that evaluations take for each step of the training; 0 where no line tells them.

    Between two lines of steps lie the steps, by the rate of the second, and the evaluation in their midst.
    The median is taken: where a start has ended lies the time until the next one too.
    """
    steps = [line["step"] for line in lines if is_evaluation(line)]
    found = list(pauses(lines, images_per_step))
    if not found:
        return 0.0
    *_, earlier, last = sorted({0, *steps})
    return statistics.median(found) / (last - earlier)


def pauses(lines: Sequence[Mapping[str, Any]], images_per_step: float) -> Iterator[float]:
    """Yield the seconds of each evaluation that has lines of steps before and behind it."""
    before, evaluations = None, 0
    for line in lines:
        evaluations += is_evaluation(line)
        if not tells_a_rate(line):
            continue
        if before is not None:
            steps = (line["step"] - before["step"]) * images_per_step / line["images_per_second"]
            yield from repeat(max(0.0, line["time"] - before["time"] - steps), evaluations)
        before, evaluations = line, 0


def is_evaluation(line: Mapping[str, Any]) -> bool:
    return bool(line["kind"] == "evaluate" and line["step"] > 0)


def tells_a_rate(line: Mapping[str, Any]) -> bool:
    """Tell a line of steps that has a rate and a time; one that is damaged has none."""
    numbers = (line.get("images_per_second"), line.get("time"))
    whole = all(isinstance(number, int | float) for number in numbers)
    return whole and line["kind"] == "train" and line["images_per_second"] > 0
