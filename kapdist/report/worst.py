"""What the page says about everything that was tried on a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kapdist.records.worst import WorstAtEps, WorstCase, read_worst_cases
from kapdist.report.reading import Attack, Run
from kapdist.report.words import accuracy_text, attack_text, eps_in_full, plural


@dataclass(frozen=True)
class WorstView:
    """One case as the page shows it."""

    title: str
    lines: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


COLUMNS = ("Attack", "Of", "eps", "Broke first", "Broke")


def worst_views(run: Run) -> list[WorstView]:
    """Read a run's worst case; nothing where none was worked out or a later merge is not in it.

    Raises:
        InputError: the file is not what its name says.
    """
    if not run.dir.worst_case.exists():
        return []
    cases = read_worst_cases(run.dir.worst_case)
    return [view(run, case, cases.left_out) for case in cases.cases]


def view(run: Run, case: WorstCase, left_out: tuple[str, ...]) -> WorstView:
    here = {attack.summary.plan_fingerprint for attack in run.attacks}
    lines = [at_eps(case, at) for at in case.sweep]
    lines += gone_lines(source.name for source in case.sources if source.plan_fingerprint not in here)
    known = {source.plan_fingerprint for source in case.sources}
    unread = {attack.partition(":")[0] for attack in left_out}
    others = [attack for attack in run.attacks if attack.name not in unread]
    late = [attack.name for attack in others if attack.summary.plan_fingerprint not in known]
    if late and len(case.sources) != len(others):
        lines.append(f"Not of this norm, this model or these images, and so not in it: {', '.join(late)}.")
    lines += [note[0].upper() + note[1:] + "." for note in case.notes]
    lines += [f"Could not be read, and so not in it: {attack}." for attack in left_out]
    rows = [
        (
            attack_text(first.attack),
            first.source,
            eps_in_full(case.norm, first.eps),
            str(first.num_broken_first),
            str(first.num_broken),
        )
        for first in case.first
    ]
    tried = ", ".join(source.name for source in case.sources)
    model = f", {case.factory}" if case.factory else ""
    title = f"{run.label}{model}, {case.norm}, {plural(case.num_images, 'image')}: {tried}"
    return WorstView(title, tuple(lines), tuple(rows))


def gone_lines(names: Iterable[str]) -> list[str]:
    """Say which attacks a union still has that the run has not, or not so; nothing where there is none."""
    gone = list(dict.fromkeys(names))
    remedy = "kapdist attack worst works it out again"
    return [f"Also of attacks that are gone or were made anew since ({remedy}): {', '.join(gone)}."] if gone else []


def at_eps(case: WorstCase, at: WorstAtEps) -> str:
    """Say what withstood an eps, and of how many images that were attacked at it."""
    size, share = eps_in_full(case.norm, at.eps), accuracy_text(at.robust_accuracy)
    if at.num_images is not None:
        return f"{size}: {share} of {plural(at.num_images, 'image')} withstood everything."
    untried = any(source.num_images < case.num_images for source in case.sources)
    again = " (images that nobody attacked at this eps may be among them; kapdist attack worst counts anew)"
    return f"{size}: {share} withstood everything{again if untried else ''}."


def rescored_lines(attack: Attack) -> list[tuple[str, str]]:
    """Say how a noisy model does under fresh draws, as facts of its attack."""
    rescored = attack.summary.rescored
    if rescored is None:
        return []
    facts = []
    for kind, images in (("clean", rescored.clean), ("adversarial", rescored.adversarial)):
        text = (
            f"one draw {accuracy_text(images.single_draw)}, majority {accuracy_text(images.majority)}, "
            f"all draws {accuracy_text(images.worst)}"
        )
        facts.append((f"Under {rescored.num_draws} fresh draws, {kind} images", text))
    return facts
