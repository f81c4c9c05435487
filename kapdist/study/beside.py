"""What stands beside the accuracies of each setting: what the sanity checks said, its kernels, what it cost.

Costs on the page are passes, the same whoever was killed; hours, which are not, are in `kapdist study plan`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from statistics import fmean

from kapdist.records.certificate import read_certificate_summary
from kapdist.records.corruptions import read_corruption_summary
from kapdist.records.sanity import read_sanity
from kapdist.records.study import Beside
from kapdist.records.summary import read_summary
from kapdist.records.topography import Measure, SubjectTopography, read_topography
from kapdist.report.words import percent
from kapdist.run.paths import RunDir
from kapdist.study.design import Design
from kapdist.study.tasks import TOPOGRAPHY, run_dir

SHOWN = 3  # radii of a certificate
LEVEL = 0.05  # of a layer's test, corrected for all layers


def beside(design: Design) -> Iterator[Beside]:
    """Yield a line for every setting of which there is anything."""
    for setting in design.settings:
        places = [run_dir(design, run) for run in design.of_setting(setting)]
        line = Beside(
            setting=setting.name,
            sanity=sanity_words(design, places),
            kernels=kernel_words(places),
            certified=certified_words(places),
            corrupted=corrupted_words(places),
            attack_passes=sum(passes(place, name) for place in places for name in design.attacks),
        )
        if any(value for key, value in line if key != "setting"):
            yield line


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


def kernel_words(places: list[RunDir]) -> str:
    """Say how alike neighbouring kernels answer, and in how many layers beyond chance, over the seeds."""
    records = [path for place in places if (path := place.topography(TOPOGRAPHY).record).exists()]
    found = [read_topography(path).subjects[0] for path in records]
    layers = [asked for one in found if (asked := list(measured(one)))]
    if not layers:
        return ""
    neighbours = fmean(fmean(m.neighbours for m in own) for own in layers)
    others = fmean(fmean(m.others for m in own) for own in layers)
    beyond = ", ".join(f"{sum((m.p_holm or 1) <= LEVEL for m in own)} of {len(own)}" for own in layers)
    return f"neighbours {neighbours:.2f}, others {others:.2f}; beyond chance in {beyond} layers"


def certified_words(places: list[RunDir]) -> str:
    """Say the certified accuracy at a few radii for every sigma, the mean over seeds."""
    paths = [path for place in places if (path := place.certified("certificate").summary).exists()]
    found = [read_certificate_summary(path).smoothed for path in paths]
    said = []
    for models in zip(*found, strict=True):
        radii = [at.radius for at in models[0].certified]
        shown = radii[:: max(1, len(radii) // SHOWN)]
        at = [[model.certified[radii.index(radius)].accuracy.value for model in models] for radius in shown]
        shares = [fmean(values) for values in at]
        pairs = ", ".join(f"{percent(share)}% at {radius:g}" for radius, share in zip(shown, shares, strict=True))
        said.append(f"σ {models[0].sigma:g}: {pairs}")
    return "; ".join(said)


def corrupted_words(places: list[RunDir]) -> str:
    """Say the mean accuracy under corruptions, the mean over seeds."""
    paths = [path for place in places if (path := place.corrupted("corruptions").summary).exists()]
    found = [summary.mean_corruption_accuracy for summary in map(read_corruption_summary, paths)]
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
