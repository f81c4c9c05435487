"""What the page says of runs whose kernels were looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from kapdist.records.topography import (
    ASKED,
    QUANTITIES,
    Measure,
    Quantity,
    SubjectTopography,
    Topography,
    beyond_chance,
    read_topography,
)
from kapdist.report.plots import Plot
from kapdist.report.reading import Run
from kapdist.report.words import percent, plural

NAMES: dict[Quantity, str] = {
    "stored": "stored weights",
    "averaged": "averaged weights",
    "responses": "responses before the average",
    "averaged_responses": "responses behind it",
}
ROW_COLUMNS = (
    "Run",
    "Quantity",
    "Neighbours",
    "Others",
    "Layers beyond chance",
    "Effective kernels",
    "In an ensemble",
)
LAYER_COLUMNS = (
    *("Layer", "Quantity", "Neighbours", "Others", "p", "Holm's p", "Effective kernels", "By chance", "Size"),
    "In an ensemble",
)


@dataclass(frozen=True)
class TopographyView:
    """One record as the page shows it; `stale` where the run has other weights by now."""

    title: str
    anchor: str
    found: Topography
    stale: bool
    plots: tuple[Plot, ...]

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """A row for each run and quantity, in the order of ROW_COLUMNS."""
        return [cells for one in self.found.subjects for quantity in QUANTITIES if (cells := row(one, quantity))]

    @property
    def layers(self) -> list[tuple[str, list[tuple[str, ...]]]]:
        """Each run with its layers' rows, in the order of LAYER_COLUMNS."""
        return [(one.run, list(layer_rows(one))) for one in self.found.subjects]

    @property
    def setting(self) -> str:
        found = self.found
        return f"{plural(found.num_images, 'image')}, {found.permutations:,} permutations"

    @property
    def lines(self) -> list[str]:
        """What is said of each run, and what noise does to it."""
        lines = [
            f"{one.run}: {one.kind}; {one.weights}; {percent(one.accuracy)}% right on these images."
            for one in self.found.subjects
        ]
        return [*lines, *(line for one in self.found.subjects for line in noise_lines(one))]


def row(subject: SubjectTopography, quantity: Quantity) -> tuple[str, ...] | None:
    """Return means over layers of one run's quantity; None where it has none."""
    pairs = subject.measures(quantity)
    if not pairs:
        return None
    measures = [measure for _, measure in pairs]
    beyond = beyond_chance(measures) if quantity in ASKED else "–"
    members = [one.members for one in measures if one.members is not None]
    return (
        subject.run,
        NAMES[quantity],
        f"{fmean(one.neighbours for one in measures):.3f}",
        f"{fmean(one.others for one in measures):.3f}",
        beyond,
        f"{100 * fmean(one.effective / layer.kernels for layer, one in pairs):.0f}%",
        f"{median(members):.1f}" if members else "all",
    )


def layer_rows(subject: SubjectTopography) -> Iterator[tuple[str, ...]]:
    for layer in subject.layers:
        for quantity in QUANTITIES:
            if found := layer.measure(quantity):
                grid = " × ".join(map(str, layer.grid))
                yield (f"{layer.name} ({grid})", NAMES[quantity], *numbers(found))


def numbers(found: Measure) -> tuple[str, ...]:
    chance = "–" if found.effective_null is None else "{:.1f} to {:.1f}".format(*found.effective_null)
    return (
        f"{found.neighbours:.3f}",
        f"{found.others:.3f}",
        f"{found.p:.2g}",
        "–" if found.p_holm is None else f"{found.p_holm:.2g}",
        f"{found.effective:.1f}",
        chance,
        "–" if found.size is None else f"{found.size:.1f}",
        "all" if found.members is None else f"{found.members:.1f}",
    )


def noise_lines(subject: SubjectTopography) -> Iterator[str]:
    """Yield one line for each kind of noise: how far it moves the logits, and how many predictions it turns."""
    for kind in ("input", "activation"):
        levels = [level for level in subject.noise if level.kind == kind]
        if levels:
            told = (f"σ {one.std:g}: {one.logits:.3g} ({percent(one.changed)}% turned)" for one in levels)
            what = "variance of the logits relative to the signal's"
            yield f"{subject.run}, {kind} noise, {what} (predictions): {', '.join(told)}."


def topography_views(runs: Sequence[Run]) -> list[TopographyView]:
    """Return what the page shows of all records, run by run.

    Raises:
        InputError: a file that is not what its name says.
    """
    from kapdist.report.topography_plots import topography_plots

    views: list[TopographyView] = []
    for run in runs:
        for path in sorted(run.dir.topographies.glob("*/topography.json")):
            found = read_topography(path)
            stale = found.subject.is_final and run.weights_sha256 not in (None, found.subject.weights_sha256)
            drawn = topography_plots(found, f"-{run.label}-{found.name}".replace("/", "-"))
            title = f"{run.label}, {found.name}"
            views.append(TopographyView(title, f"topography-{len(views) + 1}", found, stale, drawn))
    return views
