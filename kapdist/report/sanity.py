"""What the page says of the sanity reports of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kapdist.records.sanity import CheckResult, Sanity, Status, read_sanity
from kapdist.report.plots import Plot
from kapdist.report.reading import Attack, Run
from kapdist.report.words import eps_in_full, plural


@dataclass(frozen=True)
class CheckView:
    """One check as the page shows it: the thresholds are for a warning and a failure."""

    result: CheckResult
    number: str
    limits: str
    paper: str
    link: str


@dataclass(frozen=True)
class SanityView:
    """A sanity report as the page shows it; `stale` where the run has other weights by now."""

    title: str
    anchor: str
    report: Sanity
    stale: bool
    plots: tuple[Plot, ...]
    earlier: bool = False
    """Whether stronger attacks were tried on other verdicts than those of the attack of this name by now."""

    @property
    def checks(self) -> list[CheckView]:
        return [check_view(check) for check in self.report.checks]

    def meanings(self, status: Status) -> dict[str, list[CheckView]]:
        """Return the causes that checks of a status name, each with those checks."""
        found: dict[str, list[CheckView]] = {}
        for check in self.checks:
            if check.result.status == status:
                found.setdefault(f"{check.result.cause}: {check.result.meaning}", []).append(check)
        return found

    @property
    def setting(self) -> str:
        report = self.report
        eps = f"{report.norm}, eps {eps_in_full(report.norm, report.eps)}, noise {report.noise}"
        drawn = f", {report.draws} draws" if report.draws > 1 else ""
        return f"{eps}, {plural(report.num_clean_correct, 'correct image')} of {report.num_images}{drawn}"


def check_view(check: CheckResult) -> CheckView:
    sign = ">" if check.worse == "above" else "<"
    limits = ", ".join("–" if limit is None else f"{sign} {limit:g}" for limit in (check.warn, check.fail))
    paper, _, address = check.source.partition(", http")
    number = "–" if check.value is None else f"{check.value:.3g}"
    return CheckView(check, number, limits, paper, "http" + address)


def is_of_earlier(report: Sanity, attacks: Sequence[Attack]) -> bool:
    """Whether stronger attacks were tried on verdicts other than those of a run's attack of this name by now."""
    tried_on = report.acted.plan_fingerprint if report.acted else None
    now = {attack.name: attack.summary.plan_fingerprint for attack in attacks}
    return tried_on is not None and now.get(report.name) != tried_on


def sanity_views(runs: Sequence[Run]) -> list[SanityView]:
    """Return what the page shows of all sanity reports, run by run."""
    from kapdist.report.sanity_plots import sanity_plots

    views: list[SanityView] = []
    for run in runs:
        for report in map(read_sanity, sorted(run.dir.attacks.glob("*/sanity.json"))):
            title = f"{run.label}, {report.name}"
            own = report.weights_sha256 in (None, run.weights_sha256) or run.weights_sha256 is None
            drawn = sanity_plots(report, f"{run.label}-{report.name}".replace("/", "-"))
            earlier = is_of_earlier(report, run.attacks)
            views.append(SanityView(title, f"sanity-{len(views) + 1}", report, not own, drawn, earlier))
    return views
