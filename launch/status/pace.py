"""How fast a training goes by its metrics: the rate of its steps, and what evaluations between them take. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

RECENT_LINES = 10


def images_per_second(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the rate of the newest steps, evaluations left out; None where no line tells it."""
    rates = [line["images_per_second"] for line in trained(lines)]
    return statistics.harmonic_mean(rates[-RECENT_LINES:]) if rates else None


def pause_per_step(lines: Sequence[Mapping[str, Any]], images_per_step: float) -> float:
    """Return the seconds that evaluations take for each step of the training; 0 where no line tells them.

    Between two lines of steps lie the steps, by the rate of the second, and the evaluation in their midst.
    The median is taken: where a start has ended lies the time until the next one too.
    """
    places = [place for place, line in enumerate(lines) if line["kind"] == "evaluate" and line["step"] > 0]
    pauses = [pause for place in places if (pause := pause_at(place, lines, images_per_step)) is not None]
    if not pauses:
        return 0.0
    *_, earlier, last = sorted({0, *(lines[place]["step"] for place in places)})
    return statistics.median(pauses) / (last - earlier)


def pause_at(place: int, lines: Sequence[Mapping[str, Any]], images_per_step: float) -> float | None:
    before, after = trained(lines[:place])[-1:], trained(lines[place:])[:1]
    if not before or not after:
        return None
    steps = (after[0]["step"] - before[0]["step"]) * images_per_step / after[0]["images_per_second"]
    return max(0.0, after[0]["time"] - before[0]["time"] - steps)


def trained(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the lines of steps that tell a rate and a time; one that is damaged tells none."""
    numbers = ("images_per_second", "time")
    whole = [line for line in lines if all(isinstance(line.get(key), int | float) for key in numbers)]
    return [line for line in whole if line["kind"] == "train" and line["images_per_second"] > 0]
