"""The plots of the page: matplotlib's object-oriented interface, one figure per function, no global state."""

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from kapdist.config.attack import attack_of_stage, size_name
from kapdist.report.facts import validation_attack
from kapdist.report.reading import Run
from kapdist.report.table import Block, Row
from kapdist.report.words import eps_text, percent
from kapdist.statistics.intervals import Proportion

# Okabe and Ito's colours, which colour-blind readers can tell apart, without the yellow that white swallows;
# a marker and a dash of its own tell each line apart without any colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#E69F00", "#444444", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
INK, FAINT, CARD = "#222222", "#d9d9d6", "#fbfbfa"
STYLE: dict[Any, Any] = {
    "axes.edgecolor": "#888888",
    "axes.facecolor": CARD,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "figure.facecolor": CARD,
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "svg.hashsalt": "kapdist",
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}
LONGEST_NAME = 28
LEGEND_WIDTH = 60  # characters, a line's sample being as wide as six
LEGEND_ROW = 0.2  # inches
HAIR_SPACE = "\N{HAIR SPACE}"
Stage = tuple[str, float]  # an attack and its eps


@dataclass(frozen=True)
class Plot:
    """A figure: `name` is its file's, `alt` says what it shows to somebody who cannot see it.

    It is drawn in a format when that is asked for, which takes up to a second.
    """

    name: str
    title: str
    alt: str
    figure: Figure

    @functools.cached_property
    def svg(self) -> bytes:
        return self.saved(format="svg", metadata={"Date": None})

    @functools.cached_property
    def png(self) -> bytes:
        return self.saved(format="png", dpi=160)

    def saved(self, **options: Any) -> bytes:
        picture = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            self.figure.savefig(picture, **options)
        return picture.getvalue()


def look(index: int) -> dict[str, Any]:
    """Return colour, marker and dash of the run at `index`, the same in every plot."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[(index + index // len(COLOURS)) % len(MARKERS)],
        "linestyle": DASHES[(index // len(COLOURS)) % len(DASHES)],
    }


def styles(rows: Sequence[Row], looks: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each row's look, that of its run; a run's further attacks have other dashes and hollow markers."""
    labels = [row.run.label for row in rows]
    found = []
    for number, label in enumerate(labels):
        style, before = looks[label], labels[:number].count(label)
        other = DASHES[(DASHES.index(style["linestyle"]) + before) % len(DASHES)]
        found.append(style | {"linestyle": other, "markerfacecolor": CARD} if before else style)
    return found


def accuracy_plot(block: Block, looks: dict[str, dict[str, Any]], suffix: str = "") -> Plot:
    """Draw clean against robust accuracy with 95% intervals, one labelled point per row."""
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas("Clean accuracy, %", "Robust accuracy, %")
        for row in block.rows:
            point(axes, row, looks[row.run.label])
        axes.margins(0.18, 0.12)
        if min(found(row.robust).value for row in block.rows) < 0.2:
            axes.set_ylim(bottom=min(-2.0, axes.get_ylim()[0]))  # a point at zero stands clear of the axis
        label_points(figure, axes, block.rows, looks)
        alt = "Clean against robust accuracy. " + "; ".join(map(said, block.rows)) + "."
        return drawn(figure, "clean-against-robust" + suffix, "Clean against robust accuracy", alt)


def point(axes: Axes, row: Row, style: dict[str, Any]) -> None:
    (x, y), clean, robust = position(row), found(row.clean), found(row.robust)
    looks = style | {"linestyle": "none", "markersize": 7, "elinewidth": 1.3, "capsize": 3}
    axes.errorbar([x], [y], xerr=whiskers(clean), yerr=whiskers(robust), **looks)


def stages_plot(block: Block, looks: dict[str, dict[str, Any]], suffix: str = "") -> Plot:
    """Draw the accuracy that each attack of the list leaves, a line per row, each value above its attack's name."""
    names = stage_names(block.rows)
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas("", "Accuracy left, %")
        for row, style in zip(block.rows, styles(block.rows, looks), strict=True):
            places = [list(names).index(key) for key in stages(row)]
            values = [100 * value for value in stages(row).values()]
            axes.plot(places, values, **style, label=row_name(row, block.rows), clip_on=False)
        axes.set_xticks(range(len(names)), list(names.values()), **tilted(len(names)))
        axes.set_ylim(0, 100)
        legend(figure, axes)
        told = (stages_said(row, names) for row in block.rows)
        alt = f"Accuracy in percent after {', '.join(names.values())}. " + "; ".join(told) + "."
        return drawn(figure, "accuracy-by-attack" + suffix, "Accuracy left after each attack", alt)


def tilted(count: int) -> dict[str, Any]:
    """Return how so many names are written below an axis without running into each other."""
    if count > 8:
        return {"rotation": 90, "fontsize": 8 if count < 20 else 6}
    return {"rotation": 20 if count > 5 else 0}


def loss_plot(runs: Sequence[Run], looks: dict[str, dict[str, Any]]) -> Plot | None:
    """Draw the training loss by epoch; None where no run has one."""
    lines = {run.label: [(line["epoch"], line["loss"]) for line in run.metrics.train] for run in runs}
    return curves(lines, looks, "training-loss", "Training loss", "Training loss")


def evaluation_plot(runs: Sequence[Run], looks: dict[str, dict[str, Any]]) -> Plot | None:
    """Draw the clean accuracy of the evaluations by epoch; None where no run has one."""
    lines = {run.label: [(line["epoch"], 100 * line["top1"]) for line in run.metrics.shown] for run in runs}
    return curves(lines, looks, "evaluation-accuracy", "Clean accuracy during training", "Clean accuracy, %")


def robust_plots(runs: Sequence[Run], looks: dict[str, dict[str, Any]]) -> list[Plot]:
    """Draw the accuracy that robust validation leaves, by epoch: a plot for each attack, so that none mixes two."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for run in runs:
        for line in run.metrics.withstood:
            points = found.setdefault(validation_attack(line), {}).setdefault(run.label, [])
            points.append((line["epoch"], 100 * line["accuracy"]))
    plots = []
    for number, (attack, lines) in enumerate(found.items(), start=1):
        name = "robust-validation" if number == 1 else f"robust-validation-{number}"
        plots.append(
            curves(lines, looks, name, f"Robust validation during training: {attack}", "Robust accuracy, %")
        )
    return [plot for plot in plots if plot is not None]


def curves(
    lines: dict[str, list[tuple[float, float]]], looks: dict[str, dict[str, Any]], name: str, title: str, y: str
) -> Plot | None:
    lines = {label: line for label, line in lines.items() if line}
    if not lines:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas("Epoch", y)
        for label, line in lines.items():
            x, values = np.asarray(line, dtype=float).T
            style = looks[label] | {"markersize": 5, "markevery": max(1, len(line) // 12)}
            axes.plot(x, values, **style, linewidth=1.5, label=shortened(label, list(lines)))
        whole = max(line[-1][0] for line in lines.values()) >= 2
        axes.set_xlim(left=0)  # one evaluation after one epoch is a point at the end, not a point in the middle
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=whole))
        legend(figure, axes)
        last = "; ".join(f"{label} ends at {line[-1][1]:.4g}" for label, line in lines.items())
        return drawn(figure, name, title, f"{y} by epoch: {last}.")


def canvas(x: str, y: str) -> tuple[Figure, Axes]:
    # Narrow on purpose: on a phone the picture shrinks to about 340 px and its words must stay readable.
    figure = Figure(figsize=(5.1, 3.9), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def legend(figure: Figure, axes: Axes) -> None:
    """Name the lines below the axes; more than a few rows of names make the figure higher, not the axes lower."""
    handles, names = axes.get_legend_handles_labels()
    columns = columns_of(names)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + LEGEND_ROW * max(0, -(-len(names) // columns) - 3))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize=9.5)


def columns_of(names: Sequence[str]) -> int:
    """Return how many columns of names fit below the axes, three at most; they are filled one after the other."""
    for columns in range(min(3, len(names)), 1, -1):
        lengths = np.array_split([len(name) for name in names], columns)
        if sum(6 + max(column) for column in lengths) <= LEGEND_WIDTH:
            return columns
    return 1


def drawn(figure: Figure, name: str, title: str, alt: str) -> Plot:
    """Return the plot of a figure that is complete: its parts are given their places once, for every format."""
    if layout := figure.get_layout_engine():
        layout.execute(figure)
        figure.set_layout_engine("none")
    return Plot(name, title, alt, figure)


def label_points(figure: Figure, axes: Axes, rows: Sequence[Row], looks: dict[str, dict[str, Any]]) -> None:
    """Write each point's name beside it, or where there is room with a line to the point."""
    figure.draw_without_rendering()
    frame = axes.get_window_extent()
    taken = [obstacle for row in rows for obstacle in obstacles(axes, row)]
    for row in rows:
        name = row_name(row, rows)
        trial = label(axes, row, name, PLACES[0])
        boxes = [placed(trial, place) for place in PLACES]
        trial.remove()
        best = min(range(len(PLACES)), key=lambda index: cost(boxes[index], taken, frame) + index / 16)
        taken.append((boxes[best], 4))
        leader = {"arrowstyle": "-", "color": looks[row.run.label]["color"], "linewidth": 0.8, "shrinkB": 4}
        far = max(map(abs, PLACES[best])) > NEAR
        placed(label(axes, row, name, PLACES[best], arrowprops=leader if far else None), PLACES[best])


def label(axes: Axes, row: Row, name: str, place: tuple[float, float], **options: Any) -> Annotation:
    text = axes.annotate(name, position(row), place, textcoords="offset points", fontsize=10, color=INK, **options)
    text.set_path_effects([withStroke(linewidth=2.5, foreground=CARD)])
    return text


def placed(text: Annotation, place: tuple[float, float]) -> Bbox:
    """Move a label to an offset from its point, growing away from it; return the box that it fills."""
    x, y = place
    text.set(position=place, ha="left" if x > 0 else "right", va="bottom" if y > 0 else "top")
    return text.get_window_extent().padded(1)


# Offsets in points: near ones first, beside the whiskers, then farther and farther away.
NEAR = 7
PLACES = tuple(
    (side * reach, height * (5 + step))
    for step in (0, 14, 28, 42, 56, 70)
    for reach in (NEAR, 24)
    for height in (1, -1)
    for side in (1, -1)
)


def obstacles(axes: Axes, row: Row) -> list[tuple[Bbox, float]]:
    """Return what a label should not cover, in pixels, with how bad that is: the marker, then the whiskers."""
    (x, y), clean, robust = position(row), found(row.clean), found(row.robust)
    marker = axes.transData.transform([(x, y), (x, y)])
    across = axes.transData.transform([(100 * clean.low, y), (100 * clean.high, y)])
    upright = axes.transData.transform([(x, 100 * robust.low), (x, 100 * robust.high)])
    return [(Bbox(marker).padded(6), 4), (Bbox(across).padded(1), 1), (Bbox(upright).padded(1), 1)]


def cost(box: Bbox, taken: Sequence[tuple[Bbox, float]], frame: Bbox) -> float:
    """Add up what a label would cover; leaving the frame is worst."""
    outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
    return 100 * outside + sum(weight for other, weight in taken if box.overlaps(other))


def stage_names(rows: Sequence[Row]) -> dict[Stage, str]:
    """Return what the stages of all rows are called, in the order that they ran in: by eps, then as listed."""
    longest_first = sorted(map(stages, rows), key=len, reverse=True)
    found = dict.fromkeys(stage for row in longest_first for stage in row)
    listed = list(dict.fromkeys(attack for attack, _ in found))
    ordered = sorted(found, key=lambda stage: (stage[1], listed.index(stage[0])))
    several = len({eps for _, eps in found}) > 2  # that of the clean images is one
    norm = block_norm(rows)
    return {
        (attack, eps): f"{attack} {eps_text(norm, eps)}" if several and eps else attack for attack, eps in ordered
    }


def block_norm(rows: Sequence[Row]) -> str:
    """Return the norm, which all rows of a block share."""
    assert rows[0].attack is not None
    return rows[0].attack.summary.norm


def stages(row: Row) -> dict[Stage, float]:
    """Return the accuracy that each attack left at each eps, that on clean images first."""
    assert row.attack is not None
    summary = row.attack.summary
    after = {
        (attack_of_stage(stage.name, stage.eps), float(size_name(stage.eps))): stage.robust_accuracy_after
        for stage in summary.attacks
    }
    return {("clean", 0.0): summary.clean_accuracy.value} | after


def stages_said(row: Row, names: dict[Stage, str]) -> str:
    """Say a row's values; where it lacks some of the names, each with its own."""
    found = stages(row)
    whole = len(found) == len(names)
    said = (percent(value) if whole else f"{names[key]} {percent(value)}" for key, value in found.items())
    return f"{row.name}: " + ", ".join(said)


def position(row: Row) -> tuple[float, float]:
    return 100 * found(row.clean).value, 100 * found(row.robust).value


def found(accuracy: Proportion | None) -> Proportion:
    assert accuracy is not None, "a row of a block with a setting has both accuracies"
    return accuracy


def whiskers(accuracy: Proportion) -> list[list[float]]:
    below, above = accuracy.value - accuracy.low, accuracy.high - accuracy.value
    return [[100 * max(0.0, below)], [100 * max(0.0, above)]]


def said(row: Row) -> str:
    return f"{row.name}: clean {percent(found(row.clean).value)}, robust {percent(found(row.robust).value)} percent"


def shortened(name: str, among: Sequence[str] = ()) -> str:
    """Keep a long name's two ends, which tell siblings apart; more of them where others are cut to the same."""
    names = {name, *among}
    lengths = itertools.count(LONGEST_NAME, 4)
    length = next(length for length in lengths if len({cut(one, length) for one in names}) == len(names))
    short = cut(name, length)
    # matplotlib leaves labels that begin with an underscore out of legends.
    return f"{HAIR_SPACE}{short}" if short.startswith("_") else short


def row_name(row: Row, rows: Sequence[Row]) -> str:
    """Return what a row is called in a plot of some."""
    return shortened(row.name, [other.name for other in rows])


def cut(name: str, length: int) -> str:
    half = (length - 1) // 2
    return name if len(name) <= length else f"{name[:half]}…{name[-half:]}"
