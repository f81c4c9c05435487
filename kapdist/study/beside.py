"""What stands beside the accuracies of each setting: what the sanity checks said, its kernels, what it cost.

Costs on the page are passes, the same whoever was killed; hours, which are not, are in `kapdist study plan`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from statistics import fmean

from kapdist.records.metrics import read_metrics
from kapdist.records.sanity import read_sanity
from kapdist.records.study import Beside
from kapdist.records.summary import read_summary
from kapdist.records.topography import Measure, SubjectTopography, read_topography
from kapdist.run.paths import RunDir
from kapdist.study.design import Design, Setting
from kapdist.study.tasks import TOPOGRAPHY, run_dir

LEVEL = 0.05  # of a layer's test, corrected for all layers


def beside(design: Design) -> Iterator[Beside]:
    """Yield a line for every setting of which there is anything."""
    for setting in design.settings:
        places = [run_dir(design, run) for run in design.of_setting(setting)]
        line = Beside(
            setting=setting.name,
            sanity=sanity_words(design, places),
            kernels=kernel_words(places),
            attack_passes=sum(passes(place, name) for place in places for name in design.attacks),
        )
        if line.sanity or line.kernels or line.attack_passes:
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


def measured(subject: SubjectTopography) -> Iterator[Measure]:
    return (layer.responses for layer in subject.layers if layer.responses is not None)


def passes(place: RunDir, attack: str) -> int:
    path = place.attack(attack).summary
    if not path.exists():
        return 0
    found = read_summary(path)
    return found.forwards + found.backwards


def hours(design: Design, setting: Setting) -> tuple[float, float]:
    """Return (hours of training, hours of attacks) that were used for a setting so far."""
    places = [run_dir(design, run) for run in design.of_setting(setting)]
    ends = [read_metrics(place.metrics).end for place in places]
    trained = sum(end.get("seconds", 0.0) for end in ends if end)
    summaries = [place.attack(name).summary for place in places for name in design.attacks]
    attacked = sum(read_summary(path).seconds for path in summaries if path.exists())
    return trained / 3600, attacked / 3600
