"""The maps of a topography: kernels, orientations and classes as they lie on their sheet."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from kapdist.records.topography import KernelPictures, Neighbourhood, SubjectTopography, Topography
from kapdist.report.plots import INK, Plot, drawn, shortened

NAMED_CLASSES = 12  # more than that have no legend
SMALL = 8.5
NEVER = (0.93, 0.93, 0.92)

WIDE = 1.5

Panels = list[tuple[str, np.ndarray]]


def maps(record: Topography, suffix: str) -> list[Plot | None]:
    return [kernels_map(record, suffix), orientations_map(record, suffix), classes_map(record, suffix)]


def panels_of(panels: Panels) -> Figure:
    """Return a figure with one picture beside the other, wide ones one below the other, without axes."""
    figure = Figure(figsize=(5.1, 3.9), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    rows = 1 if len(panels) <= 3 else 2
    if len(panels) <= 3 and all(picture.shape[1] >= WIDE * picture.shape[0] for _, picture in panels):
        rows = len(panels)
    grid = figure.subplots(rows, -(-len(panels) // rows), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (title, picture) in zip(grid.flat, panels, strict=False):
        axes.imshow(picture, interpolation="nearest", aspect="equal")
        axes.set_title(title, fontsize=SMALL + 0.5, color=INK)
    return figure


def kernels_map(record: Topography, suffix: str) -> Plot | None:
    """Draw the kernels that see the image, each in its place."""
    panels: Panels = []
    for subject in record.subjects:
        if found := subject.kernels:
            name = named(record, subject)
            panels.append((f"{name}: stored" if found.averaged else name, mosaic(found, found.stored)))
            if found.averaged:
                panels.append((f"{name}: averaged", mosaic(found, found.averaged)))
    if not panels:
        return None
    alt = "The kernels that see the image, as they lie on their sheet, each scaled by its largest weight."
    return drawn(panels_of(panels), f"topography-kernels{suffix}", "The kernels that see the image", alt)


def mosaic(found: KernelPictures, kernels: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """Return kernels beside each other, a line of one pixel between them, (height, width, 3) in [0, 1]."""
    height, width, channels = found.shape
    rows, columns = wrapped(found.grid)
    values = np.asarray(kernels, dtype=float).reshape(-1, height, width, channels) / 255
    values = values if channels == 3 else np.repeat(values.mean(-1, keepdims=True), 3, axis=-1)
    picture = np.ones((rows * (height + 1) - 1, columns * (width + 1) - 1, 3))
    for number, kernel in enumerate(values):
        top, left = (number // columns) * (height + 1), (number % columns) * (width + 1)
        picture[top : top + height, left : left + width] = kernel
    return picture


def wrapped(grid: tuple[int, ...]) -> tuple[int, int]:
    """Return rows and columns of a picture; a long line is broken into rows, as one reads."""
    if len(grid) == 2:
        return grid[0], grid[1]
    columns = int(np.ceil(np.sqrt(grid[0])))
    return -(-grid[0] // columns), columns


def field(grid: tuple[int, ...], colours: np.ndarray) -> np.ndarray:
    """Return one pixel for each kernel, (rows, columns, 3); what a broken line leaves is white."""
    rows, columns = wrapped(grid)
    picture = np.ones((rows * columns, 3))
    picture[: len(colours)] = colours
    return picture.reshape(rows, columns, 3)


def orientations_map(record: Topography, suffix: str) -> Plot | None:
    """Draw the orientation that each kernel prefers, paler the less it prefers any."""
    panels: Panels = []
    told = []
    wheel = matplotlib.colormaps["hsv"]
    most = max((max(one.orientations.selectivity) for one in record.subjects if one.orientations), default=1.0)
    for subject in record.subjects:
        if found := subject.orientations:
            colours = wheel(np.asarray(found.degrees) / 180)[:, :3]
            strength = np.asarray(found.selectivity)[:, None] / max(most, 1e-12)
            picture = field(found.grid, strength * colours + (1 - strength))
            panels.append((headed(named(record, subject), found.alike), picture))
            told.append(f"{subject.run} {found.alike.neighbours:.3g}")
    if not panels:
        return None
    figure = panels_of(panels)
    bar = figure.colorbar(
        matplotlib.cm.ScalarMappable(Normalize(0, 180), wheel), ax=figure.axes, location="bottom", shrink=0.6
    )
    bar.set_label("Preferred orientation, degrees (0: vertical bars)", fontsize=SMALL)
    bar.set_ticks([0, 45, 90, 135, 180])
    bar.ax.tick_params(labelsize=SMALL)
    title = "Orientation that each kernel of the first layer prefers"
    alt = "Likeness of neighbours' orientations: " + ", ".join(told) + "."
    return drawn(figure, f"topography-orientations{suffix}", title, alt)


def classes_map(record: Topography, suffix: str) -> Plot | None:
    """Draw the class that each kernel of the last convolution prefers."""
    names = record.class_names
    colours = class_colours(len(names))
    panels: Panels = []
    told = []
    for subject in record.subjects:
        if found := subject.classes:
            picture = field(found.grid, np.stack([colours[index] for index in found.preferred]))
            panels.append((headed(named(record, subject), found.alike), picture))
            told.append(f"{subject.run} {100 * found.alike.neighbours:.0f}%")
    if not panels:
        return None
    figure = panels_of(panels)
    if len(names) <= NAMED_CLASSES:
        patches = [Patch(color=colours[index], label=shortened(name, names)) for index, name in enumerate(names)]
        figure.legend(handles=patches, loc="outside lower center", ncols=4, fontsize=SMALL)
    title = "Class that each kernel of the last convolution prefers"
    alt = "Neighbours that prefer the same class: " + ", ".join(told) + "."
    return drawn(figure, f"topography-classes{suffix}", title, alt)


def class_colours(count: int) -> np.ndarray:
    """Return a colour for each class, and for -1, which is the last, (count + 1, 3)."""
    wheel = matplotlib.colormaps["tab20" if count <= 20 else "gist_rainbow"]
    places = np.arange(count) if count <= 20 else np.linspace(0, 1, count)
    return np.concatenate([np.atleast_2d(wheel(places))[:, :3], [NEVER]])


def named(record: Topography, subject: SubjectTopography) -> str:
    """Return what a run is called in the plots of a record."""
    return shortened(subject.run, [one.run for one in record.subjects])


def headed(name: str, alike: Neighbourhood) -> str:
    found = f"{name}: {round(alike.neighbours, 2) + 0.0:.2f}"  # never -0.00
    return f"{found}\nby chance to {round(alike.high, 2) + 0.0:.2f}, p {alike.p:.2g}"
