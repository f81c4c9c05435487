"""The pictures of a study: frontiers of clean and robust accuracy, accuracy against eps, kernels and robustness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kapdist.records.study import Beside, Row
from kapdist.report.plots import STYLE, Plot, canvas, drawn, legend, look
from kapdist.report.words import eps_text, percent
from kapdist.statistics.frontier import Band

MANY = 8  # lines beyond which bands of all would hide each other
LEGEND_ROW = 0.19  # inches
LEGEND_COLUMNS = 3
FAINTEST = 0.4


def looks(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Give every arm a colour, a marker and a dash, the same in every picture."""
    return {arm: look(index) for index, arm in enumerate(dict.fromkeys(row.arm for row in rows))}


def frontier_plot(
    rows: Sequence[Row], attack: str, eps: float, bands: Mapping[str, Band] | None = None
) -> Plot | None:
    """Draw each arm's settings by clean and robust accuracy, means over seeds with 95% intervals, seeds as dots.

    Args:
        bands: {arm: region in which its frontier lies}, of the arms that have one.
    """
    robust = {row.setting: row for row in rows if (row.attack, row.eps) == (attack, eps)}
    clean = {row.setting: row for row in rows if (row.attack, row.eps) == (attack, 0.0)}
    if not robust:
        return None
    style, regions = looks(rows), bands or {}
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas("Clean accuracy, %", f"Robust accuracy at {size_of(robust)}, %")
        for arm in style:
            own = [(clean[name], row) for name, row in robust.items() if row.arm == arm]
            if own:
                draw_arm(axes, sorted(own, key=lambda pair: pair[0].value), style[arm], arm, regions.get(arm))
        arm_legend(figure, axes)
        said = "; ".join(f"{n}: clean {percent(clean[n].value)}, robust {percent(robust[n].value)}" for n in robust)
        shaded = " Shaded: where each frontier lies, 95% at each clean accuracy." if regions else ""
        alt = f"Clean against robust accuracy in percent of every setting.{shaded} {said}."
        title = f"Clean against robust accuracy under {attack} at {size_of(robust)}"
        return drawn(figure, f"frontier-{attack}-{eps:.6g}", title, alt)


def draw_arm(
    axes: Axes, points: Sequence[tuple[Row, Row]], style: Mapping[str, Any], arm: str, region: Band | None
) -> None:
    """Draw a frontier, its region, its settings with their intervals and seeds."""
    x, y = ([100 * row.value for row in side] for side in zip(*points, strict=True))
    quiet = {"linestyle": "none", "color": style["color"]}
    if region is not None:
        at, low, high = (100 * side for side in (region.clean, region.low, region.high))
        axes.fill_between(at, low, high, color=style["color"], alpha=0.12, linewidth=0)
    axes.plot(x, y, **style, markersize=6, label=arm)
    spread = [whiskers(side) for side in zip(*points, strict=True)]
    axes.errorbar(x, y, xerr=spread[0], yerr=spread[1], **quiet, elinewidth=0.7, capsize=0, alpha=0.55)
    for clean, robust in points:
        seeds = [[100 * value for value in row.per_seed] for row in (clean, robust)]
        axes.plot(*seeds, **quiet, marker=".", markersize=3.5, alpha=0.45)


def curve_plot(rows: Sequence[Row], attack: str) -> Plot | None:
    """Draw accuracy against eps, a line for each setting, with bands of 95%; None where there is one eps alone."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.attack == attack:
            found.setdefault(row.setting, []).append(row)
    if max(map(len, found.values()), default=0) < 3:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas("eps", "Accuracy left, %")
        for own, style in zip(found.values(), shades_of(rows, found), strict=True):
            x = [row.eps for row in own]
            axes.plot(x, [100 * row.value for row in own], **style, markersize=4.5)
            if len(found) <= MANY:
                low, high = ([100 * getattr(row, side) for row in own] for side in ("low", "high"))
                axes.fill_between(x, low, high, color=style["color"], alpha=0.13, linewidth=0)
        ticks = sorted({row.eps for own in found.values() for row in own})
        axes.set_xticks(
            ticks, ["0" if not eps else eps_text(next(iter(found.values()))[0].norm, eps) for eps in ticks]
        )
        axes.set_ylim(0, 100)
        arm_legend(figure, axes)
        said = "; ".join(f"{name}: " + ", ".join(percent(row.value) for row in own) for name, own in found.items())
        alt = f"In percent; of one arm's lines the fuller is further along its grid. {said}."
        return drawn(figure, f"curve-{attack}", f"Accuracy against eps under {attack}", alt)


def shades_of(rows: Sequence[Row], found: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    """Give every line its arm's look, fuller from one setting of a grid to the next, and its arm's name once."""
    style, arms = looks(rows), [own[0].arm for own in found.values()]
    shades = []
    for number, arm in enumerate(arms):
        nth, many = arms[:number].count(arm), arms.count(arm)
        alpha = 1.0 if many == 1 else FAINTEST + (1 - FAINTEST) * nth / (many - 1)
        named = {"label": arm} if nth == many - 1 else {}
        shades.append(style[arm] | {"alpha": alpha} | named)
    return shades


def topography_plot(rows: Sequence[Row], asked: Sequence[Beside], attack: str, eps: float) -> Plot | None:
    """Draw how much more alike neighbours are than other kernels beside robust accuracy; None if none was asked."""
    robust = {row.setting: row for row in rows if (row.attack, row.eps) == (attack, eps)}
    beyond = {one.setting: one.alike[0] - one.alike[1] for one in asked if one.alike and one.setting in robust}
    if not beyond:
        return None
    style = looks(rows)
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(
            "Neighbours more alike than other kernels by", f"Robust accuracy at {size_of(robust)}, %"
        )
        for arm in style:
            own = [name for name in beyond if robust[name].arm == arm]
            if own:
                points = [beyond[name] for name in own], [100 * robust[name].value for name in own]
                axes.plot(*points, **style[arm] | {"linestyle": "none"}, markersize=6, label=arm)
        arm_legend(figure, axes)
        said = "; ".join(f"{name}: {beyond[name]:.2f}, {percent(robust[name].value)}" for name in beyond)
        title = "Neighbouring kernels beside robustness"
        return drawn(figure, f"topography-{attack}", title, f"Correlation and accuracy in percent. {said}.")


def arm_legend(figure: Figure, axes: Axes) -> None:
    """Write the arms' names below, on a picture that is as much taller as they are many."""
    names = [name for name in axes.get_legend_handles_labels()[1] if not name.startswith("_")]
    rows = -(-len(names) // LEGEND_COLUMNS)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + LEGEND_ROW * max(0, rows - 1))
    legend(figure, axes)


def whiskers(rows: Sequence[Row]) -> list[list[float]]:
    below = [100 * max(0.0, row.value - row.low) for row in rows]
    return [below, [100 * max(0.0, row.high - row.value) for row in rows]]


def size_of(rows: Mapping[str, Row]) -> str:
    row = next(iter(rows.values()))
    return f"{row.norm} {eps_text(row.norm, row.eps)}"
