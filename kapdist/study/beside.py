"""What stands beside the accuracies of each setting: what the sanity checks said, its kernels, what it cost.

Passes are the same whoever was killed; hours, which are not, are in costs.json and in the page's last section.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

from kapdist.records.certificate import SmoothedSummary, read_certificate_summary
from kapdist.records.corruptions import read_corruption_summary
from kapdist.records.sanity import read_sanity
from kapdist.records.sealed import read_json
from kapdist.records.study import Beside, Cost
from kapdist.records.summary import read_summary
from kapdist.records.topography import Measure, SubjectTopography, beyond_chance, read_topography
from kapdist.report.words import percent
from kapdist.run.files import mapping_in
from kapdist.run.paths import RunDir
from kapdist.study.design import Design
from kapdist.study.hours import hours_of_tasks, total
from kapdist.study.tasks import ATTACK, TOPOGRAPHY, TRAINING, Task, run_dir, tasks

SHOWN = 3  # radii of a certificate
KINDS = (TRAINING, ATTACK)  # whose hours have a column of their own


def beside(design: Design) -> Iterator[Beside]:
    """Yield a line for every setting of which there is anything."""
    every = tasks(design)
    for setting in design.settings:
        places = [run_dir(design, run) for run in design.of_setting(setting)]
        done: dict[str, list[Path]] = {}
        for task in every:
            if task.run.setting == setting and task.done:
                done.setdefault(task.kind, []).append(task.result)
        looked = done.get(TOPOGRAPHY, [])
        line = Beside(
            setting=setting.name,
            sanity=sanity_words(design, places),
            kernels=kernel_words(looked),
            certified=certified_words(done.get("certificate", [])),
            corrupted=corrupted_words(done.get("corruptions", [])),
            attack_passes=sum(passes(place, name) for place in places for name in design.attacks),
            alike=alike(looked),
        )
        if any(value for key, value in line if key != "setting"):
            yield line


def costs(design: Design) -> Iterator[Cost]:
    """Yield what each setting took, as far as it is recorded."""
    every = tasks(design)
    hours = hours_of_tasks(design, every)
    for setting in design.settings:
        own = [task for task in every if task.run.setting.name == setting.name]
        own.sort(key=lambda task: task.kind != TRAINING)
        of_kind = {kind: total(hours, [task.name for task in own if task.kind == kind]) for kind in KINDS}
        rest = total(hours, [task.name for task in own if task.kind not in KINDS])
        yield Cost(
            setting=setting.name,
            trained=of_kind[TRAINING].used,
            lost=of_kind[TRAINING].lost,
            attacked=of_kind[ATTACK].used,
            asked=rest.used,
            machines=tuple(dict.fromkeys(filter(None, map(machine, own)))),
        )


def machine(task: Task) -> str:
    """Say where a command was done, as far as its results do."""
    if not task.done:
        return ""
    if task.kind == TRAINING:
        found = mapping_in(RunDir(task.result.parent).environment)
        return f"trained on {found['host']} ({found.get('device', 'cpu')})" if "host" in found else ""
    device = read_json(task.result).get("device", "") if task.kind == ATTACK else ""
    return f"attacked on {device}" if device else ""


def sanity_words(design: Design, places: list[RunDir]) -> str:
    """Say of each examined attack how often it passed, and why it did not."""
    said = []
    for name in design.config.sanity:
        found = [read_sanity(path) for place in places if (path := place.attack(name).sanity).exists()]
        if not found:
            continue
        verdicts = Counter(one.verdict for one in found)
        causes = Counter(cause for one in found for cause in (*one.causes, *one.suspected))
        why = f" ({', '.join(cause for cause, _ in causes.most_common(3))})" if causes else ""
        said.append(f"{name}: " + ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()) + why)
    return "; ".join(said)


def kernel_words(records: list[Path]) -> str:
    """Say how alike neighbouring kernels answer, and in how many layers beyond chance, over the seeds."""
    layers, means = layers_of(records), alike(records)
    if means is None:
        return ""
    neighbours, others = means
    beyond = ", ".join(map(beyond_chance, layers))
    return f"neighbours {neighbours:.2f}, others {others:.2f}; beyond chance in {beyond} layers"


def alike(records: list[Path]) -> tuple[float, float] | None:
    """Return how alike neighbouring kernels answer and how alike others do; None where nobody asked."""
    layers = layers_of(records)
    if not layers:
        return None
    neighbours = fmean(fmean(m.neighbours for m in own) for own in layers)
    return neighbours, fmean(fmean(m.others for m in own) for own in layers)


def layers_of(records: list[Path]) -> list[list[Measure]]:
    """Return the measured layers of each model."""
    found = [read_topography(path).subjects[0] for path in records]
    return [asked for one in found if (asked := list(measured(one)))]


def certified_words(summaries: list[Path]) -> str:
    """Say the certified accuracy at a few radii for every sigma, the mean over seeds."""
    found = [read_certificate_summary(path) for path in summaries]
    said = []
    for sigma in sorted({model.sigma for one in found for model in one.smoothed}):
        models = [model for one in found for model in one.smoothed if model.sigma == sigma]
        radii = max(([at.radius for at in model.certified] for model in models), key=max)
        shown = radii[:: max(1, len(radii) // SHOWN)]
        shares = [fmean(certified_at(model, radius) for model in models) for radius in shown]
        pairs = ", ".join(f"{percent(share)}% at {radius:g}" for radius, share in zip(shown, shares, strict=True))
        said.append(f"σ {sigma:g}: {pairs}")
    return "; ".join(said)


def certified_at(model: SmoothedSummary, radius: float) -> float:
    """Return the certified accuracy at a radius, as it is at the next larger one that is stated; 0 beyond all."""
    return next((at.accuracy.value for at in model.certified if at.radius >= radius - 1e-9), 0.0)


def corrupted_words(summaries: list[Path]) -> str:
    """Say the mean accuracy under corruptions, the mean over seeds."""
    found = [summary.mean_corruption_accuracy for summary in map(read_corruption_summary, summaries)]
    means = [mean.value for mean in found if mean is not None]
    return f"{percent(fmean(means))}% (mCA)" if means else ""


def measured(subject: SubjectTopography) -> Iterator[Measure]:
    return (layer.responses for layer in subject.layers if layer.responses is not None)


def passes(place: RunDir, attack: str) -> int:
    path = place.attack(attack).summary
    if not path.exists():
        return 0
    found = read_summary(path)
    return found.forwards + found.backwards
