"""The picture of robust accuracy against eps, with the Wilson interval of every point as a band."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from kapdist.report.curves import Curve, Panel, ends
from kapdist.report.plots import STYLE, Plot, canvas, drawn, legend, row_name, styles

LABELS = {"Linf": "eps, in 255ths (Linf)", "L2": "eps (L2)", "L1": "eps (L1)"}


def curve_plots(panels: Sequence[Panel], looks: dict[str, dict[str, Any]]) -> list[Plot]:
    """Draw every panel; where a norm has several, their files are numbered."""
    names: list[str] = []
    plots = []
    for panel in panels:
        kind = "smallest-perturbation" if panel.of_smallest else "accuracy-by-eps"
        stem = f"{kind}-{panel.setting.norm}"
        names.append(stem)
        number = names.count(stem)
        plots.append(curve_plot(panel, looks, stem if number == 1 else f"{stem}-{number}"))
    return plots


def curve_plot(panel: Panel, looks: dict[str, dict[str, Any]], name: str) -> Plot:
    scale = 255.0 if panel.setting.norm == "Linf" else 1.0
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(LABELS[panel.setting.norm], "Robust accuracy, %")
        last = scale * max(curve.points[-1].eps for curve in panel.curves) or 1.0
        rows = [curve.row for curve in panel.curves]
        for curve, style in zip(panel.curves, styles(rows, looks), strict=True):
            draw(axes, curve, row_name(curve.row, rows), style, scale, last if panel.of_smallest else None)
        axes.set_xlim(0, last * 1.02)
        axes.set_ylim(0, 100)
        legend(figure, axes)
        alt = f"{panel.title}. " + "; ".join(ends(curve, panel.setting.norm) for curve in panel.curves) + "."
        return drawn(figure, name, panel.title, alt)


def draw(axes: Axes, curve: Curve, name: str, style: dict[str, Any], scale: float, end: float | None) -> None:
    """Draw a line through an eps list's points, or (`end`) steps that go on to the end, each with its band."""
    eps = np.array([point.eps for point in curve.points]) * scale
    shares = np.array([(p.accuracy.value, p.accuracy.low, p.accuracy.high) for p in curve.points]) * 100
    if end is not None:
        eps, shares = np.r_[eps, end * 1.02], np.r_[shares, shares[-1:]]
    middle, low, high = shares.T
    steps: dict[str, Any] = {} if end is None else {"step": "post"}
    axes.fill_between(eps, low, high, color=style["color"], alpha=0.16, linewidth=0, **steps)
    shape: dict[str, Any] = {} if end is None else {"markevery": 0.12, "drawstyle": "steps-post"}
    shape |= {"markersize": 5, "linewidth": 1.5, "clip_on": False}
    axes.plot(eps, middle, **style | shape, label=name)
