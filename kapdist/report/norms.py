"""What the page says about robustness to several norms at once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from kapdist.records.norms import AcrossNorms
from kapdist.records.worst import read_worst_cases
from kapdist.report.reading import Run
from kapdist.report.words import accuracy_text, enumeration, eps_text, plural
from kapdist.report.worst import gone_lines

COLUMNS = ("Norm", "eps", "Robust accuracy [95% interval]", "Attacks")


@dataclass(frozen=True)
class NormsView:
    """One model under several norms, as the page shows it."""

    title: str
    lead: str
    rows: tuple[tuple[str, ...], ...]


def norms_views(run: Run) -> tuple[list[NormsView], list[str]]:
    """Read a run's unions over norms, and why attacks of several norms are not in one.

    Raises:
        InputError: the file is not what its name says.
    """
    if not run.dir.worst_case.exists():
        return [], []
    cases = read_worst_cases(run.dir.worst_case)
    apart = f"{run.label}: attacks of several norms are not all in one union: {cases.apart}."
    united = {source.name: source.plan_fingerprint for case in cases.cases for source in case.sources}
    here = {attack.name: attack.summary.plan_fingerprint for attack in run.attacks}
    gone = {name for name, plan in united.items() if here.get(name) != plan}
    return [view(run, found, gone) for found in cases.across], [apart] if cases.apart else []


def view(run: Run, found: AcrossNorms, gone: Collection[str]) -> NormsView:
    """Return a union as the page shows it.

    Args:
        gone: attacks of before that the run has not, or not so.
    """
    names = enumeration([one.norm for one in found.norms])
    rows = [
        (one.norm, eps_text(one.norm, one.eps), accuracy_text(one.robust_accuracy), ", ".join(one.sources))
        for one in found.norms
    ]
    union = (f"Union of {names}", "–", accuracy_text(found.robust_accuracy), "all of these")
    late = gone_lines(name for one in found.norms for name in one.sources if name in gone)
    lead = (
        f"Clean accuracy {accuracy_text(found.clean_accuracy)} on {plural(found.num_images, 'image')}, "
        f"noise {found.noise}. The union has the images that no attack of any norm broke."
    )
    lead = " ".join([lead, *late])
    model = f", {found.factory}" if found.factory else ""
    return NormsView(f"{run.label}{model}, {names}", lead, (*rows, union))
