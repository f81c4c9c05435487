"""What the page says of certificates: the curve of certified accuracy, its table, and how sure the images are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kapdist.records.certificate import CertificateSummary, CertifiedAt, SmoothedSummary, read_certificate_summary
from kapdist.report.certificate_plots import accuracy_plot, chance_plot
from kapdist.report.plots import Plot
from kapdist.report.reading import Run
from kapdist.report.words import percent, plural

COLUMNS = 9
"""Of radii in the table."""


@dataclass(frozen=True)
class CertificateView:
    """A certification as the page shows it; `stale` where the run has other weights by now."""

    title: str
    anchor: str
    found: CertificateSummary
    stale: bool
    plots: tuple[Plot, ...]

    @property
    def setting(self) -> str:
        found = self.found
        drawn = f"{found.selection_draws:,} and {found.draws:,} draws"
        return f"{plural(found.num_images, 'image')}, {drawn}, alpha {found.alpha:g}"

    @property
    def bound(self) -> str:
        """How the chance of a class is bounded."""
        if len(self.found.looks) == 1:
            return "exact (Clopper and Pearson), after all draws"
        looks, part = len(self.found.looks), f"alpha/{len(self.found.looks)}"
        return (
            f"exact (Clopper and Pearson) at {part}, so that it holds at all {looks} looks at the count together; "
            f"the draws of an image end where a radius of {self.found.stop_radius:g} is reached or out of reach"
        )

    @property
    def radii(self) -> list[float]:
        return [at.radius for at in thinned(self.found.smoothed[0].certified)]

    @property
    def rows(self) -> list[tuple[SmoothedSummary, list[CertifiedAt]]]:
        return [(smoothed, thinned(smoothed.certified)) for smoothed in self.found.smoothed]

    @property
    def lines(self) -> list[str]:
        return [said(smoothed, self.found.num_images) for smoothed in self.found.smoothed]


def thinned(certified: Sequence[CertifiedAt]) -> list[CertifiedAt]:
    """Return the radii that a table has room for, from 0 on."""
    return list(certified[:: -(-len(certified) // COLUMNS)])


def said(smoothed: SmoothedSummary, num_images: int) -> str:
    low, _, middle, _, high = smoothed.p_a_quantiles
    return (
        f"σ {smoothed.sigma:g}: {plural(smoothed.num_abstained, 'image')} of {num_images} abstained; "
        f"noisy draws are right in {percent(smoothed.draw_accuracy.value)}%, of the median image in "
        f"{percent(middle)}% (5% to 95% of the images: {percent(low)} to {percent(high)}%); "
        f"{plural(smoothed.num_all_agreed, 'image')} at {smoothed.largest_radius:.3f}, the largest radius that so "
        "many draws can show"
    )


def certificate_views(runs: Sequence[Run]) -> list[CertificateView]:
    """Return what the page shows of runs that have certificates.

    Raises:
        InputError: a file that is not what its name says.
    """
    views: list[CertificateView] = []
    for run in runs:
        for path in sorted(run.dir.certificates.glob("*/summary.json")):
            found = read_certificate_summary(path)
            stale = run.weights_sha256 not in (None, found.weights_sha256)
            label, number = f"{run.label}, {found.name}", len(views) + 1
            name = f"{run.label}-{found.name}".replace("/", "-")
            plots = (accuracy_plot(found, name), chance_plot(found, name))
            views.append(CertificateView(label, f"certificate-{number}", found, stale, plots))
    return views
