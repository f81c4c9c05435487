"""Configs in words: each value beside where it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kapdist.config.file import merged, read_layers
from kapdist.config.kinds import KINDS, kind_of
from kapdist.config.origins import Value, values_of
from kapdist.config.plain_yaml import ONE_LINE, dump
from kapdist.errors import InputError
from kapdist.run.paths import RunDir

COLUMN = 44  # of the origins, where a value leaves room for it


class Resolved(NamedTuple):
    """A config as a command would have it."""

    path: Path
    kind: str
    values: Mapping[str, Value]

    def describe(self) -> dict[str, Any]:
        """Return JSON values."""
        values = {key: value.describe() for key, value in self.values.items()}
        return {"file": str(self.path), "kind": self.kind, "values": values}


class Difference(NamedTuple):
    """A key and its two values."""

    key: str
    first: Value
    second: Value

    def describe(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"key": self.key, "first": self.first.describe(), "second": self.second.describe()}


def resolve(place: Path, overrides: Sequence[str] = (), kind: str | None = None) -> Resolved:
    """Read the config in a file, or of a run directory.

    Args:
        kind: one of KINDS; by default what the file's keys say.

    Raises:
        InputError: as `load_config`; another kind.
    """
    if kind is not None and kind not in KINDS:
        raise InputError("--kind", f"one of {', '.join(KINDS)}", repr(kind))
    path = RunDir(place).config if place.is_dir() else place
    kind = kind or kind_of(path, merged(read_layers(path)))
    return Resolved(path, kind, values_of(KINDS[kind], path, overrides))


def differences(first: Resolved, second: Resolved) -> list[Difference]:
    """Return the keys of two configs whose values differ; by their names alone they do not.

    Raises:
        InputError: they are of two kinds.
    """
    if first.kind != second.kind:
        raise InputError(second.path, f"the config of a kind, {first.kind}, as {first.path} is", second.kind)
    pairs = [Difference(key, value, second.values[key]) for key, value in first.values.items() if key != "name"]
    return [pair for pair in pairs if pair.first.value != pair.second.value]


def as_yaml(found: Resolved) -> Iterator[str]:
    """Yield the lines of a config: YAML that means the same, the origins as comments."""
    above: list[str] = []
    for key, value in found.values.items():
        *sections, last = key.split(".")
        for depth in range(len(sections)):
            if sections[: depth + 1] != above[: depth + 1]:
                yield "  " * depth + f"{sections[depth]}:"
        above = sections
        line = "  " * len(sections) + entry(last, value.value)
        yield f"{line:<{COLUMN}}  # {value.origin}"


def entry(key: str, value: Any) -> str:
    """Return a key and its value as one line of YAML."""
    flow = dump({key: value}, default_flow_style=True, width=ONE_LINE, allow_unicode=True)
    return flow.strip().removeprefix("{").removesuffix("}")
