"""The study's one page; beside it the same as plain files, and the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2

from kapdist.environment import package_version
from kapdist.errors import InputError
from kapdist.records.study import Beside, FrozenStudy, StudyCosts, StudyResults, write_study_record
from kapdist.report.page import svg_uri
from kapdist.report.plots import Plot
from kapdist.report.words import percent, points, short
from kapdist.run.files import check_outputs, write_atomic
from kapdist.statistics.frontier import Band, band
from kapdist.study.beside import beside, costs
from kapdist.study.claims import decide, frontier_of
from kapdist.study.design import Design
from kapdist.study.export import (
    ONE_SEED,
    column,
    csv_text,
    interval,
    latex,
    lonely,
    markdown,
    marked,
    sentence,
    tables,
    write_parquet,
)
from kapdist.study.frozen import as_frozen
from kapdist.study.hours import figure
from kapdist.study.plots import curve_plot, frontier_plot, topography_plot
from kapdist.study.results import Results, read_results
from kapdist.study.tasks import tasks

ASIDES = {
    "sanity": "what the sanity checks said",
    "kernels": "are neighbouring kernels alike",
    "certified": "certified accuracy at L2 radii",
    "corrupted": "under corruptions",
}
"""What may stand beside the accuracies, and its heading; the page has what was asked of any setting."""


def write_study_report(design: Design) -> Path:
    """Write the page of what there is so far of a study; return its path.

    Raises:
        InputError: the directory holds another study or none that has begun, or a file in it is damaged.
    """
    out = design.dir.report
    if not design.dir.frozen.exists():
        raise InputError(design.root, "a study that has begun (kapdist study run)", "none")
    check_outputs(design.dir.page, keep_folders=False)
    frozen = as_frozen(design)
    results = read_results(design)
    found = conclude(design, results, frozen)
    spent = StudyCosts(name=design.config.name, costs=tuple(costs(design)))
    plots = [plot for plot in pictures(results, found.beside) if plot is not None]
    for plot in plots:
        write_atomic(out / f"{plot.name}.png", plot.png)
    write_study_record(design.dir.results, found)
    write_study_record(out / "costs.json", spent)
    write_atomic(out / "table.csv", csv_text(found.rows))
    write_parquet(out / "table.parquet", found.rows)
    write_atomic(out / "table.md", markdown(found))
    write_atomic(out / "table.tex", latex(found.rows))
    write_atomic(design.dir.page, render(design, found, spent, plots))
    return design.dir.page


def conclude(design: Design, results: Results, frozen: FrozenStudy) -> StudyResults:
    """Return all that the page says."""
    every = tasks(design)
    return StudyResults(
        name=design.config.name,
        fingerprint=design.fingerprint,
        num_tasks=len(every),
        num_done=sum(task.done for task in every),
        missing=tuple(task.name for task in every if not task.done),
        rows=results.rows,
        decisions=decide(results, frozen.later, frozen.grown),
        beside=tuple(beside(design)),
        notes=results.notes,
    )


def pictures(results: Results, asked: Sequence[Beside]) -> list[Plot | None]:
    drawn: list[Plot | None] = []
    for name, attack in results.design.attacks.items():
        drawn += [frontier_plot(results.rows, name, eps, bands(results, name, eps)) for eps in attack.eps]
        drawn.append(curve_plot(results.rows, name))
    first, attack = next(iter(results.design.attacks.items()))
    drawn.append(topography_plot(results.rows, asked, first, max(attack.eps)))
    return drawn


def bands(results: Results, attack: str, eps: float) -> dict[str, Band]:
    """Return the regions of the arms' frontiers, of those whose settings all have results of the same seeds."""
    regions = {}
    for arm in results.design.config.arms:
        settings = results.design.of_arm(arm)
        points = [found for setting in settings if (found := results.of(setting, attack))]
        if len(points) < max(2, len(settings)) or any(found.seeds != points[0].seeds for found in points):
            continue
        if all(found.on_images_of(points[0]) for found in points):
            regions[arm] = band(frontier_of(points, points[0].seeds, eps))
    return regions


def render(design: Design, found: StudyResults, spent: StudyCosts, plots: Sequence[Plot]) -> str:
    loader = jinja2.ChoiceLoader(
        [jinja2.PackageLoader(f"kapdist.{room}", package_path="") for room in ("study", "report")]
    )
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"svg_uri": svg_uri}
    return environment.get_template("study.html.j2").render(
        study=found,
        costs=spent.costs,
        figure=figure,
        design=design,
        asides={key: head for key, head in ASIDES.items() if any(getattr(line, key) for line in found.beside)},
        tables=tables(found.rows),
        plots=plots,
        percent=percent,
        points=points,
        interval=interval,
        column=column,
        marked=marked,
        lonely=lonely,
        ONE_SEED=ONE_SEED,
        short=short,
        sentence=sentence,
        version=package_version("kapdist"),
    )
