"""The plots of a sanity report: plateaus, the eps sweep, the loss landscape, cosines of gradients."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from kapdist.records.sanity import Acted, Curve, Sanity
from kapdist.report.plots import COLOURS, FAINT, INK, STYLE, Plot, canvas, drawn
from kapdist.report.words import percent

LEVELS = 12


def sanity_plots(report: Sanity, name: str) -> tuple[Plot, ...]:
    """Return the plots of one report in reading order; `name` tells their files from another report's."""
    with matplotlib.rc_context(STYLE):
        plots = [attacks_plot(report, name), iterations_plot(report, name), eps_plot(report, name)]
        if report.acted:
            plots.append(remedies_plot(report.acted, name))
        if report.curves.draws:
            plots.append(draws_plot(report, report.curves.draws, name))
        if report.curves.agreement:
            plots.append(agreement_plot(report.curves.agreement, name))
        return (*plots, neighbours_plot(report, name), landscape_plot(report, name))


def attacks_plot(report: Sanity, name: str) -> Plot:
    """Draw what each attack leaves, the strongest at the bottom."""
    left = sorted(report.attacks.items(), key=lambda item: -item[1])
    names, values = [item[0] for item in left], [100 * item[1] for item in left]
    figure, axes = canvas("Accuracy left, % of the correct images", "")
    bars(axes, names, values)
    told = ", ".join(f"{attack} {percent(value)}" for attack, value in left)
    return drawn(figure, f"sanity-attacks-{name}", "What each attack leaves", f"Accuracy left in percent: {told}.")


def remedies_plot(acted: Acted, name: str) -> Plot:
    """Draw what was left after each stronger attack that was run, in their order."""
    after = [(remedy.attack, left) for remedy, left in acted.after() if not remedy.skipped]
    rows = [("the attack's verdict", acted.robust_accuracy), *after]
    figure, axes = canvas("Accuracy left, % of the examined images", "")
    bars(axes, [row[0] for row in rows], [100 * row[1] for row in rows])
    told = ", ".join(f"{attack} {percent(value)}" for attack, value in rows)
    title = "What stronger attacks leave"
    return drawn(figure, f"sanity-remedies-{name}", title, f"Accuracy left in percent: {told}.")


def bars(axes: Axes, names: list[str], values: list[float]) -> None:
    axes.barh(names, values, color=COLOURS[0], height=0.6)
    axes.invert_yaxis()
    axes.set_xlim(0, 116)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.grid(visible=False, axis="y")
    for place, value in enumerate(values):
        axes.annotate(f"{value:.1f}", (value, place), (4, 0), textcoords="offset points", va="center", color=INK)


def iterations_plot(report: Sanity, name: str) -> Plot:
    figure, axes = accuracy_canvas("Iterations of PGD")
    line(axes, report.curves.iterations)
    ticks(axes, report.curves.iterations.x)
    marked(axes, report.iterations, "the config's")
    return told(figure, f"sanity-iterations-{name}", "More iterations", "iterations", report.curves.iterations)


def draws_plot(report: Sanity, curve: Curve, name: str) -> Plot:
    figure, axes = accuracy_canvas("Draws that the attack averages over (EoT)")
    line(axes, curve)
    ticks(axes, curve.x)
    marked(axes, report.draws, "the config's")
    return told(figure, f"sanity-draws-{name}", "More draws of the noise", "draws", curve)


def eps_plot(report: Sanity, name: str) -> Plot:
    curve = report.curves.eps
    figure, axes = accuracy_canvas("eps, in 255ths" if report.norm == "Linf" else "eps")
    scale = 255 if report.norm == "Linf" else 1
    points = [(scale * x, y) for x, y in zip(curve.x, curve.y, strict=True) if x > 0]  # eps 0 leaves all of them
    scaled = Curve(x=tuple(x for x, _ in points), y=tuple(y for _, y in points))
    line(axes, scaled)
    ticks(axes, scaled.x)
    marked(axes, scale * report.eps, "the attack's")
    if curve.unbounded is not None:
        axes.axhline(100 * curve.unbounded, color=COLOURS[1], linestyle="--", clip_on=False)
        axes.annotate(
            f"no bound: {percent(curve.unbounded)}%",
            (1, 100 * curve.unbounded),
            (-4, 4),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            color=COLOURS[1],
        )
    return told(figure, f"sanity-eps-{name}", "Larger perturbations", axes.get_xlabel(), scaled)


def neighbours_plot(report: Sanity, name: str) -> Plot:
    figure, axes = canvas("Distance of a random point, in eps", "Cosine of the two gradients")
    line(axes, report.curves.neighbours, scale=1)
    axes.set_xlim(left=0)
    axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.02)
    title, curve = "Gradients of neighbouring points", report.curves.neighbours
    return told(figure, f"sanity-neighbours-{name}", title, "distance in eps", curve, "Cosine", scale=1)


def agreement_plot(curve: Curve, name: str) -> Plot:
    figure, axes = canvas("Draws averaged over", "Cosine of two independent gradients")
    line(axes, curve, scale=1)
    ticks(axes, curve.x)
    axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.02)
    return told(
        figure, f"sanity-agreement-{name}", "Gradients of independent draws", "draws", curve, "Cosine", scale=1
    )


def landscape_plot(report: Sanity, name: str) -> Plot:
    """Draw the loss around the first correct image as filled contours."""
    grid = report.curves.landscape
    loss = np.asarray(grid.loss)
    figure, axes = canvas("Along a random direction, in eps", "Along the gradient, in eps")
    low, high = loss.min(), loss.max()
    levels = np.linspace(low, high if high > low else low + 1, LEVELS)
    filled = axes.contourf(grid.steps, grid.steps, loss, levels=levels, cmap="viridis")
    figure.colorbar(filled, ax=axes, format="%.3g").set_label("Cross-entropy")
    side = [-1, 1, 1, -1, -1], [-1, -1, 1, 1, -1]
    axes.plot(*side, color="white", linewidth=1, linestyle="--")
    axes.plot([0], [0], marker="o", color="white", markeredgecolor=INK)
    alt = f"Cross-entropy around one image, from {low:.3g} to {high:.3g}; the dashed square is eps."
    return drawn(figure, f"sanity-landscape-{name}", "The loss around one image", alt)


def accuracy_canvas(x: str) -> tuple[Figure, Axes]:
    figure, axes = canvas(x, "Accuracy left, % of the correct images")
    axes.set_ylim(-2, 102)
    return figure, axes


def line(axes: Axes, curve: Curve, scale: float = 100) -> None:
    points = [(x, scale * y) for x, y in zip(curve.x, curve.y, strict=True) if y is not None]
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=COLOURS[0], marker="o", markersize=5, linewidth=1.5, clip_on=False)


def ticks(axes: Axes, counts: tuple[float, ...]) -> None:
    """Show counts that double and more on a logarithmic scale, each with its number."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(counts)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{count:g}" for count in counts])


def marked(axes: Axes, x: float, name: str) -> None:
    axes.axvline(x, color=FAINT, linewidth=6, zorder=0)
    where = "data", "axes fraction"
    axes.annotate(
        name, (x, 1), (0, 3), xycoords=where, textcoords="offset points", ha="center", fontsize=9.5, color=INK
    )


def told(
    figure: Figure, file: str, title: str, x: str, curve: Curve, y: str = "Accuracy left", scale: float = 100
) -> Plot:
    points = (
        f"{at:.3g}: {'not measured' if value is None else f'{scale * value:.3g}'}"
        for at, value in zip(curve.x, curve.y, strict=True)
    )
    return drawn(figure, file, title, f"{y} by {x}: {', '.join(points)}.")
