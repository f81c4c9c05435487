"""Robust accuracy against eps: a curve per eps list, and one from each image's smallest perturbation found.

Curves stand in one panel where all but eps is equal: norm, list of attacks, noise and number of images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from kapdist.records.norms import NORMS
from kapdist.records.summary import Summary
from kapdist.report.reading import Attack, Run
from kapdist.report.table import Row, Setting, named_rows, setting, told
from kapdist.report.words import percent, plural
from kapdist.statistics.intervals import Proportion, wilson


@dataclass(frozen=True)
class Point:
    """What withstood everything up to an eps; the first is the clean accuracy, at 0."""

    eps: float
    num_robust: int
    accuracy: Proportion


@dataclass(frozen=True)
class Curve:
    """One attack's points, eps ascending."""

    row: Row
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Panel:
    """Curves that may be compared with each other."""

    setting: Setting
    title: str
    curves: tuple[Curve, ...]
    of_smallest: bool
    """Steps at each image's smallest perturbation, not the eps of a list."""


def curve_points(summary: Summary) -> tuple[Point, ...]:
    """Return the points of an eps list, the clean accuracy first."""
    clean = Point(0.0, summary.num_clean_correct, summary.clean_accuracy)
    return (clean, *(Point(at.eps, at.num_robust, at.robust_accuracy) for at in summary.sweep))


def curve_rows(summary: Summary) -> list[dict[str, Any]]:
    """Return the points as rows of a table, accuracies in [0, 1]."""
    return [
        {"eps": point.eps, "num_images": summary.num_images, "num_robust": point.num_robust}
        | {"robust": point.accuracy.value, "robust_low": point.accuracy.low, "robust_high": point.accuracy.high}
        for point in curve_points(summary)
    ]


def curves_table(panels: Sequence[Panel]) -> pl.DataFrame:
    """Return the points of all eps lists: a row per run, attack and eps."""
    lists = [curve.row for panel in panels if not panel.of_smallest for curve in panel.curves]
    rows = [
        {"run": row.run.label, "attack": row.attack.name, "norm": row.attack.summary.norm} | point
        for row in lists
        if row.attack is not None
        for point in curve_rows(row.attack.summary)
    ]
    return pl.DataFrame(rows)


def smallest_points(attack: Attack) -> tuple[Point, ...]:
    """Return the empirical curve: an image withstands what is smaller than its smallest perturbation found."""
    assert attack.records is not None
    total = len(attack.records)
    sizes, counts = np.unique(attack.records["smallest"].drop_nulls().to_numpy(), return_counts=True)
    if not len(sizes) or sizes[0] > 0:  # no image is misclassified
        sizes, counts = np.r_[0.0, sizes], np.r_[0, counts]
    left = total - counts.cumsum()
    return tuple(Point(float(e), int(n), wilson(int(n), total)) for e, n in zip(sizes, left, strict=True))


def panels(runs: Sequence[Run]) -> list[Panel]:
    """Return the panels, per norm and protocol: that of eps lists, then that of smallest perturbations."""
    found: dict[Setting, list[tuple[Run, Attack]]] = {}
    for run in runs:
        for attack in run.attacks:
            found.setdefault(replace(setting(attack), eps=0.0), []).append((run, attack))
    norms = [where.norm for where in found]
    drawn: list[Panel | None] = []
    for where, pairs in sorted(found.items(), key=lambda item: NORMS.index(item[0].norm)):
        title = where.norm if norms.count(where.norm) == 1 else protocol(where, found)
        drawn += [list_panel(where, title, pairs), step_panel(where, title, pairs)]
    return [panel for panel in drawn if panel is not None]


def list_panel(where: Setting, title: str, pairs: Sequence[tuple[Run, Attack]]) -> Panel | None:
    """Return the panel of a protocol; None where no attack had several eps."""
    if all(len(attack.summary.sweep) < 2 for _, attack in pairs):
        return None
    curves = (Curve(row, curve_points(row.attack.summary)) for row in named_rows(pairs) if row.attack)
    return Panel(where, f"Robust accuracy against eps, {title}", tuple(curves), of_smallest=False)


def step_panel(where: Setting, title: str, pairs: Sequence[tuple[Run, Attack]]) -> Panel | None:
    """Return the panel of the smallest perturbations; None where no attack looked for them."""
    pairs = [pair for pair in pairs if pair[1].summary.smallest and pair[1].records is not None]
    if not pairs:
        return None
    curves = tuple(Curve(row, smallest_points(row.attack)) for row in named_rows(pairs) if row.attack)
    return Panel(where, f"Smallest perturbation found, {title}", curves, of_smallest=True)


def protocol(where: Setting, among: Iterable[Setting]) -> str:
    images = plural(where.num_images, "image")
    return f"{where.norm}, {where.version_text}, {images}, {where.protocol(told(where, among))}"


def smallest_lines(panels: Sequence[Panel]) -> list[str]:
    """Say of each curve how many images it knows a perturbation of, and the median."""
    rows = [(panel.setting.norm, curve.row) for panel in panels if panel.of_smallest for curve in panel.curves]
    return [said(norm, row.name, row.attack.summary) for norm, row in rows if row.attack]


def said(norm: str, name: str, summary: Summary) -> str:
    found = summary.smallest
    assert found is not None
    median = "beyond all that was found" if found.median is None else size_text(norm, found.median)
    text = f"{name}, {norm}: found for {found.num_found} of {summary.num_clean_correct} images that are right"
    return f"{text}; median over all images {median}."


def size_text(norm: str, size: float) -> str:
    """Say a size that was measured, as eps is said."""
    return f"{255 * size:.4g}/255" if norm == "Linf" else f"{size:.4g}"


def ends(curve: Curve, norm: str) -> str:
    """Say a curve's ends to somebody who cannot see it."""
    first, last = curve.points[0], curve.points[-1]
    return (
        f"{curve.row.name}: {percent(first.accuracy.value)} percent at 0, "
        f"{percent(last.accuracy.value)} percent at {size_text(norm, last.eps)}"
    )
