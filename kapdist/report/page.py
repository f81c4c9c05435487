"""The page: everything of the comparison in one HTML file that opens from disk, and the same as plain files."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from kapdist.config.file import dump_config
from kapdist.environment import package_version
from kapdist.report import plots
from kapdist.report.certificates import CertificateView, certificate_views
from kapdist.report.claims import Claim, lead
from kapdist.report.comparison import Comparison, comparison
from kapdist.report.corruptions import CorruptionsView, corruption_views
from kapdist.report.curve_plots import curve_plots
from kapdist.report.curves import Panel, curves_table, panels, smallest_lines
from kapdist.report.examples import Example, Pixels, encode_png, examples
from kapdist.report.facts import attack_facts, run_facts
from kapdist.report.norms import COLUMNS as NORM_COLUMNS
from kapdist.report.norms import norms_views
from kapdist.report.plots import Plot
from kapdist.report.render import COLUMNS, DOUBT, NUMBERS, SHORT_COLUMNS, cells
from kapdist.report.sanity import SanityView, sanity_views
from kapdist.report.table import Block, Row
from kapdist.report.topography import LAYER_COLUMNS, ROW_COLUMNS, TopographyView, topography_views
from kapdist.report.words import accuracy_text, enumeration, percent
from kapdist.report.worst import COLUMNS as WORST_COLUMNS
from kapdist.report.worst import worst_views
from kapdist.run.files import check_outputs, write_atomic
from kapdist.tracking.sender import tell

PAGE = "index.html"


@dataclass(frozen=True)
class View:
    """A block as the page shows it."""

    block: Block
    claims: tuple[Claim, ...]
    plots: tuple[Plot, ...]
    examples: tuple[tuple[Row, list[Example]], ...]


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Compare runs on one HTML page, with table.md, table.csv and the plots as PNG files beside it.

    `out` is made where it is missing. Returns the path of the page.

    Raises:
        InputError: no directory at all, one that is no run, or a file in it that is not what its name says.
    """
    check_outputs(out / PAGE, keep_folders=False)
    compared = comparison(runs)
    looks = {run.label: plots.look(index) for index, run in enumerate(compared.runs)}
    views = view_blocks(compared, looks)
    training = [draw(compared.runs, looks) for draw in (plots.loss_plot, plots.evaluation_plot)]
    curves = [plot for plot in training if plot is not None] + plots.robust_plots(compared.runs, looks)
    against_eps = panels(compared.runs)
    eps_curves = curve_plots(against_eps, looks)
    sanity = sanity_views(compared.runs)
    corruptions = corruption_views(compared.runs)
    certificates = certificate_views(compared.runs)
    topography = topography_views(compared.runs)
    shown = [*(plot for view in views for plot in view.plots), *(plot for view in sanity for plot in view.plots)]
    shown += [plot for view in topography for plot in view.plots]
    shown += [plot for view in certificates for plot in view.plots]
    for name, plot in file_names([*curves, *eps_curves, *shown]).items():
        write_atomic(out / f"{name}.png", plot.png)
    write_atomic(out / "table.md", compared.markdown())
    write_atomic(out / "table.csv", compared.csv())
    if (points := curves_table(against_eps)).height:
        write_atomic(out / "curves.csv", points.write_csv())
    drawn = curves, eps_curves, against_eps
    write_atomic(out / PAGE, render(compared, views, *drawn, sanity, corruptions, certificates, topography))
    tell(runs, [out / PAGE])
    return out / PAGE


def file_names(plots: Sequence[Plot]) -> dict[str, Plot]:
    """Return plots by the names of their files; where several are called alike, these are numbered."""
    found: dict[str, Plot] = {}
    for plot in plots:
        names = (plot.name if number == 1 else f"{plot.name}-{number}" for number in itertools.count(1))
        found[next(name for name in names if name not in found)] = plot
    return found


def view_blocks(compared: Comparison, looks: dict[str, dict[str, Any]]) -> list[View]:
    several = sum(block.setting is not None for block in compared.blocks) > 1
    views = []
    for block in compared.blocks:
        drawn: tuple[Plot, ...] = ()
        kept: list[list[Example]] = []
        if block.setting is not None:
            suffix = f"-{block.slug}" if several else ""
            drawn = (plots.accuracy_plot(block, looks, suffix), plots.stages_plot(block, looks, suffix))
            kept = examples([row.attack for row in block.rows if row.attack])
        views.append(View(block, compared.claims(block), drawn, tuple(zip(block.rows, kept, strict=False))))
    return views


def render(
    compared: Comparison,
    views: Sequence[View],
    curves: Sequence[Plot],
    eps_curves: Sequence[Plot],
    against_eps: Sequence[Panel],
    sanity: Sequence[SanityView],
    corruptions: Sequence[CorruptionsView],
    certificates: Sequence[CertificateView],
    topography: Sequence[TopographyView],
) -> str:
    loader = jinja2.PackageLoader("kapdist.report", package_path="")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"png_uri": png_uri, "svg_uri": svg_uri}
    return environment.get_template("page.html.j2").render(
        names=enumeration([run.label for run in compared.runs]),
        lead=lead(compared.runs, compared.blocks),
        views=views,
        curves=curves,
        eps_curves=eps_curves,
        smallest_lines=smallest_lines(against_eps),
        has_lists=not all(panel.of_smallest for panel in against_eps),
        sanity=sanity,
        corruptions=corruptions,
        certificates=certificates,
        topography=topography,
        topography_columns=ROW_COLUMNS,
        layer_columns=LAYER_COLUMNS,
        accuracy=accuracy_text,
        percent=percent,
        alarms=[(run.label, line) for run in compared.runs for line in run.metrics.alarm],
        without_metrics=[run.label for run in compared.runs if not run.metrics.train and not run.metrics.evaluate],
        runs=[(run, run_facts(run), [(it.name, attack_facts(it)) for it in run.attacks]) for run in compared.runs],
        worst=[view for run in compared.runs for view in worst_views(run)],
        worst_columns=WORST_COLUMNS,
        norms=[view for run in compared.runs for view in norms_views(run)[0]],
        apart=[line for run in compared.runs for line in norms_views(run)[1]],
        norm_columns=NORM_COLUMNS,
        columns=COLUMNS,
        short_columns=SHORT_COLUMNS,
        numbers=NUMBERS,
        doubt=DOUBT,
        cells=cells,
        caption=caption,
        config_text=lambda run: dump_config(run.config) if run.config else "",
        version=package_version("kapdist"),
    )


def caption(name: str, what: str) -> Markup:
    return Markup("<strong>{}</strong> {}").format(name, what)


def svg_uri(plot: Plot) -> str:
    return data_uri("image/svg+xml", plot.svg)


def png_uri(image: Pixels) -> str:
    return data_uri("image/png", encode_png(image))


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
