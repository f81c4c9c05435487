"""Defaults that follow: a key that nobody wrote gives way to those that somebody did.

A rule names such a key and says, from what is written, its value; None leaves the default as it stands. A config
that was written down whole has no such key, so nothing follows when it is read again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Written = Mapping[str, Any]


class Rule(NamedTuple):
    """A key, and its value where it is not written, from the dotted keys that are."""

    key: str
    value: Callable[[Written], Any]


def follow(values: Any, rules: Sequence[Rule]) -> Any:
    """Return the values of a config, as written, with those that follow by the rules, one after another."""
    if not isinstance(values, dict):
        return values
    values = {key: as_written(value) for key, value in values.items()}
    for rule in rules:
        value = value_of(rule, dotted(values))
        if value is not None:
            values = put(values, rule.key.split("."), value)
    return values


def value_of(rule: Rule, written: Written) -> Any:
    """Return what follows for a rule's key; None where it is written, or its default stands."""
    if written.get(rule.key) is not None:
        return None
    try:
        return rule.value(written)
    except (TypeError, ValueError, OverflowError):  # no number: its own check will say so
        return None


def as_written(value: Any) -> Any:
    """Return a section that a program made as the keys that were set in it, and any other value as it is."""
    if not hasattr(type(value), "model_fields"):
        return value
    return {
        key: as_written(getattr(value, key)) for key in type(value).model_fields if key in value.model_fields_set
    }


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {dotted key: value}, mappings opened."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def put(values: dict[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    first, *rest = path
    below = values.get(first)
    if rest and not isinstance(below, dict | None):
        return values  # what stands in the place of a section is refused as such
    return values | {first: put(below or {}, rest, value) if rest else value}


def number(written: Written, *keys: str) -> float:
    """Return the largest of the numbers that are written under the keys; 0 where none is."""
    found = [written[key] for key in keys if written.get(key) is not None]
    if any(isinstance(value, bool) for value in found):
        raise TypeError
    found = [float(value) for value in found]
    return max((value for value in found if not math.isnan(value)), default=0.0)
