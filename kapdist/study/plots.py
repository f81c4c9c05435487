"""The pictures of a study: the frontier of clean against robust accuracy, and accuracy against eps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes

from kapdist.records.study import Row
from kapdist.report.plots import STYLE, Plot, canvas, drawn, legend, look
from kapdist.report.words import eps_text, percent


def looks(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Give every arm a colour, a marker and a dash, the same in every picture."""
    return {arm: look(index) for index, arm in enumerate(dict.fromkeys(row.arm for row in rows))}


def frontier_plot(rows: Sequence[Row], attack: str, eps: float) -> Plot | None:
    """Draw each arm's settings by clean and robust accuracy, means over seeds with 95% intervals, seeds as dots."""
    robust = {row.setting: row for row in rows if (row.attack, row.eps) == (attack, eps)}
    clean = {row.setting: row for row in rows if (row.attack, row.eps) == (attack, 0.0)}
    if not robust:
        return None
    style = looks(rows)
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas("Clean accuracy, %", f"Robust accuracy at {size_of(robust)}, %")
        for arm in style:
            own = [(clean[name], row) for name, row in robust.items() if row.arm == arm]
            if own:
                draw_arm(axes, sorted(own, key=lambda pair: pair[0].value), style[arm], arm)
        legend(figure, axes)
        said = "; ".join(f"{n}: clean {percent(clean[n].value)}, robust {percent(robust[n].value)}" for n in robust)
        alt = f"Clean against robust accuracy in percent of every setting. {said}."
        title = f"Clean against robust accuracy under {attack} at {size_of(robust)}"
        return drawn(figure, f"frontier-{attack}-{eps:.6g}", title, alt)


def draw_arm(axes: Axes, points: Sequence[tuple[Row, Row]], style: Mapping[str, Any], arm: str) -> None:
    x, y = ([100 * row.value for row in side] for side in zip(*points, strict=True))
    spread = [whiskers(side) for side in zip(*points, strict=True)]
    axes.plot(x, y, **style, markersize=6, label=arm)
    quiet = {"linestyle": "none", "color": style["color"]}
    axes.errorbar(x, y, xerr=spread[0], yerr=spread[1], **quiet, elinewidth=0.9, capsize=2, alpha=0.7)
    for clean, robust in points:
        seeds = [[100 * value for value in row.per_seed] for row in (clean, robust)]
        axes.plot(*seeds, **quiet, marker=".", markersize=4, alpha=0.45)


def curve_plot(rows: Sequence[Row], attack: str) -> Plot | None:
    """Draw accuracy against eps, a line for each setting, with bands of 95%; None where there is one eps alone."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.attack == attack:
            found.setdefault(row.setting, []).append(row)
    if max(map(len, found.values()), default=0) < 3:
        return None
    style = {setting: look(index) for index, setting in enumerate(found)}
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas("eps", "Accuracy left, %")
        for setting, own in found.items():
            x = [row.eps for row in own]
            axes.plot(x, [100 * row.value for row in own], **style[setting], markersize=5, label=setting)
            low, high = ([100 * getattr(row, side) for row in own] for side in ("low", "high"))
            axes.fill_between(x, low, high, color=style[setting]["color"], alpha=0.13, linewidth=0)
        ticks = sorted({row.eps for own in found.values() for row in own})
        axes.set_xticks(
            ticks, ["0" if not eps else eps_text(next(iter(found.values()))[0].norm, eps) for eps in ticks]
        )
        axes.set_ylim(0, 100)
        legend(figure, axes)
        said = "; ".join(f"{name}: " + ", ".join(percent(row.value) for row in own) for name, own in found.items())
        return drawn(figure, f"curve-{attack}", f"Accuracy against eps under {attack}", f"In percent. {said}.")


def whiskers(rows: Sequence[Row]) -> list[list[float]]:
    below = [100 * max(0.0, row.value - row.low) for row in rows]
    return [below, [100 * max(0.0, row.high - row.value) for row in rows]]


def size_of(rows: Mapping[str, Row]) -> str:
    row = next(iter(rows.values()))
    return f"{row.norm} {eps_text(row.norm, row.eps)}"
