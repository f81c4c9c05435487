"""The plots of a topography: similarity by distance, by layer, by step of the training, and what noise does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from kapdist.records.topography import (
    Measure,
    NoiseLevel,
    Quantity,
    Stage,
    SubjectTopography,
    Topography,
    beyond_chance,
)
from kapdist.report.plots import INK, STYLE, Plot, canvas, drawn, legend, look
from kapdist.report.topography_maps import maps, named

PANELS = 6
SMALL = 8.5
LONGEST_LAYER = 14
TITLES: dict[Quantity, str] = {
    "stored": "Stored weights by distance",
    "averaged": "Averaged weights by distance",
    "responses": "Responses before the average by distance",
    "averaged_responses": "Responses behind the average by distance",
}
MEASURES: dict[Quantity, str] = {
    "stored": "Cosine of kernels",
    "averaged": "Cosine of averaged kernels",
    "responses": "Correlation of responses",
    "averaged_responses": "Correlation of responses",
}


def topography_plots(record: Topography, suffix: str = "") -> tuple[Plot, ...]:
    """Return the plots of one record in reading order; `suffix` tells their files from another record's."""
    with matplotlib.rc_context(STYLE):
        plots = [layers_plot(record, "responses", suffix), layers_plot(record, "stored", suffix)]
        plots += [curves_plot(record, quantity, suffix) for quantity in TITLES]
        plots += [stages_plot(record, suffix), *maps(record, suffix)]
        plots += [logits_plot(record, suffix), moved_plot(record, suffix)]
        return tuple(plot for plot in plots if plot is not None)


def looks(record: Topography) -> list[dict[str, Any]]:
    return [look(index) for index in range(len(record.subjects))]


def curves_plot(record: Topography, quantity: Quantity, suffix: str) -> Plot | None:
    """Draw similarity against distance for some layers, each run with the band of its own null."""
    names = shown_layers(record, quantity)
    if not names:
        return None
    figure = Figure(figsize=(5.1, 3.9), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    rows = 1 if len(names) <= 2 else 2
    grid = figure.subplots(rows, -(-len(names) // rows), squeeze=False)
    for axes, name in zip(grid.flat, names, strict=False):
        panel(axes, record, quantity, name)
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    figure.supxlabel("Distance of two kernels", fontsize=10.5, color=INK)
    figure.supylabel(MEASURES[quantity], fontsize=10.5, color=INK)
    keys(figure, record, quantity)
    return drawn(figure, f"topography-{quantity}{suffix}", TITLES[quantity], told_curves(record, quantity, names))


def shown_layers(record: Topography, quantity: Quantity) -> list[str]:
    """Return some layers, evenly over the depth, that a run has the quantity of; the first one's if it has it."""
    having = next(filter(None, (one.measures(quantity) for one in record.subjects)), [])
    names = [layer.name for layer, _ in having]
    chosen = np.linspace(0, len(names) - 1, min(PANELS, len(names))).round().astype(int)
    return [names[index] for index in chosen]


def measured(subject: SubjectTopography, quantity: Quantity, name: str) -> Measure | None:
    return next((measure for layer, measure in subject.measures(quantity) if layer.name == name), None)


def panel(axes: Axes, record: Topography, quantity: Quantity, name: str) -> None:
    farthest = 2.0
    for subject, style in zip(record.subjects, looks(record), strict=True):
        found = measured(subject, quantity, name)
        if found is None:
            continue
        curve = found.curve
        axes.fill_between(curve.distance, curve.low, curve.high, color=style["color"], alpha=0.16, linewidth=0)
        axes.plot(curve.distance, curve.similarity, **style | {"markersize": 3.2, "linewidth": 1.2})
        farthest = max(farthest, curve.distance[-1])
    axes.set_title(last_words(name), fontsize=SMALL, color=INK, pad=3)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in (1, 2, 4, 8, 16, 32, 64) if tick <= farthest]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.tick_params(labelsize=SMALL)


def last_words(name: str) -> str:
    """Keep the end of a layer's name, which tells it from its neighbours."""
    return name if len(name) <= LONGEST_LAYER else f"…{name[-LONGEST_LAYER:]}"


def plain_logarithms(axes: Axes) -> None:
    """Label a logarithmic axis with numbers as they are."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1,) if high > 30 * low else (1, 2, 3, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def keys(figure: Figure, record: Topography, quantity: Quantity) -> None:
    """Name the runs that have the quantity."""
    pairs = zip(record.subjects, looks(record), strict=True)
    lines = [
        Line2D([], [], **style | {"markersize": 4}, label=named(record, one))
        for one, style in pairs
        if one.measures(quantity)
    ]
    figure.legend(handles=lines, loc="outside upper center", ncols=min(3, len(lines)), fontsize=SMALL + 0.5)


def told_curves(record: Topography, quantity: Quantity, names: Sequence[str]) -> str:
    told = []
    for subject in record.subjects:
        for name in names:
            if found := measured(subject, quantity, name):
                told.append(f"{subject.run} {name} {found.neighbours:.3g} and {found.others:.3g}")
    return f"{MEASURES[quantity]} of neighbours and of all others: " + "; ".join(told) + "."


def layers_plot(record: Topography, quantity: Quantity, suffix: str) -> Plot | None:
    """Draw neighbours less others of every layer by depth; a filled marker is found beyond chance."""
    if not any(one.measures(quantity) for one in record.subjects):
        return None
    figure, axes = canvas("Convolution, by depth", "Neighbours less others")
    told = []
    for subject, style in zip(record.subjects, looks(record), strict=True):
        found = subject.measures(quantity)
        if not found:
            continue
        y = [measure.contrast for _, measure in found]
        axes.plot(range(1, len(y) + 1), y, color=style["color"], linestyle=style["linestyle"], linewidth=1.1)
        for place, (_, measure) in enumerate(found, start=1):
            face = style["color"] if measure.is_found else "white"
            marker = style | {"linestyle": "none", "markersize": 5, "markerfacecolor": face}
            axes.plot([place], [measure.contrast], **marker)
        axes.plot([], [], **style | {"markersize": 5}, label=named(record, subject))
        beyond = beyond_chance([measure for _, measure in found])
        told.append(f"{subject.run}: mean {np.mean(y):.3g}, {beyond} layers beyond chance")
    axes.axhline(0, color="#888888", linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.plot([], [], linestyle="none", marker="o", color="#888888", label="filled: Holm's p ≤ 0.05")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9.5)
    title = f"{TITLES[quantity].removesuffix(' by distance')}, layer by layer"
    return drawn(figure, f"topography-layers-{quantity}{suffix}", title, "; ".join(told) + ".")


def stages_plot(record: Topography, suffix: str) -> Plot | None:
    """Draw the mean over layers of neighbours less others, of responses, by the step of the training."""
    lines = {one.run: stage_points(one.stages) for one in record.subjects}
    if not any(len(points) > 1 for points in lines.values()):
        return None
    figure, axes = canvas("Step of the training", "Neighbours less others, mean over layers")
    told = []
    for points, subject, style in zip(lines.values(), record.subjects, looks(record), strict=True):
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, **style | {"markersize": 5}, label=named(record, subject))
            told.append(f"{subject.run} from {y[0]:.3g} to {y[-1]:.3g}")
    axes.axhline(0, color="#888888", linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    legend(figure, axes)
    title = "Topography as it came about (responses before the average)"
    return drawn(figure, f"topography-stages{suffix}", title, "; ".join(told) + ".")


def stage_points(stages: Sequence[Stage]) -> list[tuple[int, float]]:
    """Return step and mean contrast of the responses; of two at one step the later told."""
    points = {}
    for stage in stages:
        values = [layer.responses[0] for layer in stage.layers if layer.responses]
        if stage.step is not None and values:
            points[stage.step] = float(np.mean(values))
    return sorted(points.items())


def logits_plot(record: Topography, suffix: str) -> Plot | None:
    """Draw how far the logits move under each noise, by its standard deviation."""
    if not any(one.noise for one in record.subjects):
        return None
    figure = Figure(figsize=(5.1, 3.9), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    told = []
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), ("input", "activation"), strict=True):
        for subject, style in zip(record.subjects, looks(record), strict=True):
            levels = [level for level in subject.noise if level.kind == kind]
            points = [(level.std, level.logits) for level in levels]
            axes.plot(*zip(*points, strict=True), **style | {"markersize": 5}, label=named(record, subject))
            told.append(f"{subject.run}, {kind} noise: " + ", ".join(map(told_level, levels)))
        axes.set_xscale("log")
        plain_logarithms(axes)
        stds = sorted({level.std for one in record.subjects for level in one.noise if level.kind == kind})
        axes.xaxis.set_major_locator(FixedLocator(stds))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_xlabel(f"{kind.capitalize()} noise, σ")
    figure.axes[0].set_ylabel("Variance of logits, of the signal's")
    legend(figure, figure.axes[0])
    return drawn(
        figure, f"topography-noise-logits{suffix}", "How far noise moves the logits", "; ".join(told) + "."
    )


def told_level(level: NoiseLevel) -> str:
    return f"{level.logits:.3g} at {level.std:g}"


def moved_plot(record: Topography, suffix: str) -> Plot | None:
    """Draw how far the middle input noise moves each layer, before its average (thin) and behind it."""
    levels = {one.run: middle(one) for one in record.subjects if one.noise}
    if not levels:
        return None
    figure, axes = canvas("Convolution, by depth", "Variance under noise, of the signal's")
    told = []
    for subject, style in zip(record.subjects, looks(record), strict=True):
        level = levels.get(subject.run)
        if level is None:
            continue
        before = [layer.before for layer in level.layers]
        x, plain = range(1, len(before) + 1), style | {"markersize": 4}
        if any(layer.after is not None for layer in level.layers):
            after = [layer.before if layer.after is None else layer.after for layer in level.layers]
            faint = {"color": style["color"], "linewidth": 0.9, "linestyle": ":"}
            axes.plot(x, before, **faint, label=f"{named(record, subject)}, before the average")
            axes.plot(x, after, **plain, label=f"{named(record, subject)}, behind it")
            told.append(f"{subject.run} before {np.mean(before):.3g}, behind {np.mean(after):.3g}")
        else:
            axes.plot(x, before, **plain, label=named(record, subject))
            told.append(f"{subject.run} {np.mean(before):.3g}")
    plain_logarithms(axes)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9.5)
    std = next(iter(levels.values())).std
    title = f"How far input noise of σ {std:g} moves each layer"
    return drawn(figure, f"topography-noise-layers{suffix}", title, "Mean over layers: " + "; ".join(told) + ".")


def middle(subject: SubjectTopography) -> NoiseLevel:
    levels = [level for level in subject.noise if level.kind == "input"]
    return levels[len(levels) // 2]
