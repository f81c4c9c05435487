"""What there is to tell of a run, read from its directory and nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kapdist.config import flatten
from kapdist.errors import InputError
from kapdist.records.metrics import parse_line
from kapdist.records.sealed import read_json
from kapdist.run.paths import RunDir, StudyDir

# What comes after a training, by the first word of its names: where its files lie.
RESULTS = {
    "evaluation": "evaluations/*.json",
    "attack": "attacks/*/summary.json",
    "worst_case": "attacks/worst_case.json",
    "sanity": "attacks/*/sanity.json",
    "corruptions": "corruptions/*/summary.json",
    "certificate": "certificates/*/summary.json",
}
LABELS = ("norm", "eps", "sigma", "radius")  # the first that an entry of a list has tells it from the others
NUMBERS = {"top1", "top5", "loss", "ece", "accuracy", "clean_accuracy", "robust_accuracy"}
NUMBERS |= {"mean_corruption_accuracy", "mean_corruption_error", "average_certified_radius"}
OF_A_SHARE = {"value": "", "low": "_low", "high": "_high"}  # no folders: MLflow has a file where the share is
TOLD = NUMBERS | OF_A_SHARE.keys() | {"verdict", "sweep", "cases", "smoothed", "certified"}
PAGES = "attacks/*/report/index.html"
ABOUT = ("config.yaml", "plan.json", "environment.json")


class Row(NamedTuple):
    """All numbers of a step, by the names that TensorBoard has for them."""

    step: int
    time: float
    values: dict[str, float]


class Results(NamedTuple):
    """What is known of a run beside its steps."""

    numbers: dict[str, float]
    words: dict[str, str]
    files: dict[str, dict[str, Path]]
    """{kind: {name: file}}: those that the numbers come from, and pages."""


def settled_rows(run: RunDir) -> list[Row]:
    """Return the rows of steps that are over for good, ascending.

    Those of the newest checkpoint's own step are not: an evaluation that a stop cut short is made by the next
    attempt. Nor is the last line's, as what a full disk did not take is written later.
    """
    last = math.inf if run.done.exists() else run.newest_step()  # before the lines are read: they may become more
    content = run.metrics.read_bytes() if run.metrics.exists() else b""
    lines = (parse_line(line) for line in content.splitlines(keepends=True) if line.endswith(b"\n"))
    entries = [entry for entry in lines if entry is not None]
    if entries and last < math.inf:
        last = min(last, entries[-1]["step"])
    rows: dict[int, Row] = {}
    for entry in entries:
        if entry["step"] < last:
            row = rows.setdefault(entry["step"], Row(entry["step"], float(entry.get("time", 0)), {}))
            row.values.update(numbers_of(entry))
    return sorted(rows.values())


def numbers_of(entry: Mapping[str, Any]) -> dict[str, float]:
    kind = entry["kind"]
    return {f"{kind}/{key}": value for key, value in entry.items() if isinstance(value, float) and key != "time"}


def about(run: RunDir) -> dict[str, Any]:
    """Return {dotted key: value} of the run's config, as it is resolved."""
    return flatten(run.read_config())


def group_of(run: RunDir) -> tuple[str, str] | None:
    """Return (study, setting) of a run of a study; its seed is in its config."""
    study = StudyDir(run.root.resolve().parent.parent)
    return (study.name, run.name.rpartition("_seed")[0]) if study.frozen.exists() else None


def results_of(run: RunDir, pages: Sequence[Path] = ()) -> Results:
    """Return what evaluations and attacks have found so far; a damaged file is for others to name.

    Args:
        pages: reports that the run is part of, wherever they lie.
    """
    found = Results({}, {}, {"run": {}, "report": {}})
    for name in ABOUT:
        if (run.root / name).exists():
            found.files["run"][name] = run.root / name
    for kind, pattern in RESULTS.items():
        for path in sorted(run.root.glob(pattern)):
            place = path.relative_to(run.root)
            parts = [kind, place.parts[1].removesuffix(".json")] if "*" in pattern else [kind]
            try:
                values = read_json(path)
            except InputError:
                continue
            found.files["run"][place.as_posix()] = path
            for key, value in leaves("/".join(parts), values):
                if isinstance(value, str):
                    found.words[key] = value
                else:
                    found.numbers[key] = value
    for page in [*sorted(run.root.glob(PAGES)), *pages]:
        at, root = page.resolve(), run.root.resolve()
        place = at.relative_to(root) if at.is_relative_to(root) else Path(at.parent.name, at.name)
        found.files["report"][place.as_posix()] = page
    found.words.update({f"alarm/{name}": text for name, text in alarms(run).items()})
    return found


def alarms(run: RunDir) -> dict[str, str]:
    lines = (parse_line(line) for line in (run.metrics.read_bytes() if run.metrics.exists() else b"").splitlines())
    return {line["name"]: line["text"] for line in lines if line and line["kind"] == "alarm"}


def leaves(name: str, value: Any) -> Iterator[tuple[str, float | str]]:
    """Yield (name, number or word) of all that is told of a JSON value; a list adds none of its own."""
    if isinstance(value, dict):
        for key in TOLD & value.keys():
            behind = OF_A_SHARE.get(key, "" if isinstance(value[key], list) else f"/{key}")
            yield from leaves(name + behind, value[key])
    elif isinstance(value, list):
        for entry in value:
            label = next(key for key in LABELS if key in entry)
            yield from leaves(f"{name}/{label}-{in_short(entry[label])}", entry)
    elif isinstance(value, str | int | float):
        yield name, value if isinstance(value, str) else float(value)


def in_short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
