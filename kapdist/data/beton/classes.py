"""Classes by their names: what two betons, or a beton and a run, have to agree in wherever they meet."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kapdist.config import Config
from kapdist.config.fields import ClassRule
from kapdist.data.beton.layout import BetonInfo
from kapdist.data.beton.manifest import read_manifest
from kapdist.errors import InputError
from kapdist.run.paths import RunDir


@dataclass(frozen=True)
class ClassList:
    """Names of classes in the order of a model's logits, and whose they are."""

    names: tuple[str, ...]
    whose: str


def classes_of(run: RunDir, config: Config) -> ClassList | None:
    """Return the classes that a run was trained on; None where nothing says them any more.

    A run of before its plan.json had them is taken to have those of its training beton, or else of its validation
    beton, if one is still there.
    """
    names = run.recorded().get("classes")
    if isinstance(names, list):
        return ClassList(tuple(map(str, names)), str(run.root))
    for path in (config.data.train, config.data.validation):
        try:
            return ClassList(read_manifest(path).class_names, str(path))
        except InputError:
            continue
    return None


def with_classes(info: BetonInfo, known: ClassList, rule: ClassRule) -> BetonInfo:
    """Return the beton with labels that count in the known classes.

    Args:
        rule: exact refuses any other list of names; by-name takes any part of the known ones, in any order.

    Raises:
        InputError: names the first class that differs.
    """
    if info.class_names == known.names:
        return info
    number = {name: index for index, name in enumerate(known.names)}
    unknown = [name for name in info.class_names if name not in number]
    if rule == "exact":
        raise InputError(info.path, *first_difference(info.class_names, known, part=not unknown))
    if unknown:
        expected = f"no class but those of {known.whose} (data.classes=by-name)"
        raise InputError(info.path, expected, f"{unknown[0]!r} ({len(unknown)} such classes)")
    labels = np.array([number[name] for name in info.class_names], np.int64)[info.labels]
    return replace(info, class_names=known.names, labels=labels)


def first_difference(found: tuple[str, ...], known: ClassList, part: bool) -> tuple[str, str]:
    """Return what is expected and what is found at the first place where two lists differ; one of them may end."""
    place = next((i for i, names in enumerate(zip(found, known.names, strict=False)) if names[0] != names[1]), None)
    place = min(len(found), len(known.names)) if place is None else place
    here = repr(found[place]) if place < len(found) else "none"
    there = repr(known.names[place]) if place < len(known.names) else "none"
    hint = " (or data.classes=by-name)" if part else ""
    counted = "" if len(found) == len(known.names) else f" ({len(found)} classes, not {len(known.names)})"
    return f"class {place} to be {there}, as of {known.whose}{hint}", here + counted
