"""What a value may be, in words: the type of a field and its bounds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

WORDS = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "true or false",
    Path: "path",
    NoneType: "none",
    dict: "mapping",
    Any: "any value",
    object: "any value",
}
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "max_length": "length at most"}
FRACTION = "fraction"  # kapdist/config/fields.py reads 8/255


def described(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Return a type and its bounds in words, in Markdown."""
    if isinstance(annotation, str):
        return f"`{annotation}`"
    bounds = bounds_of(metadata)
    return ", ".join([kind(annotation), *bounds])


def kind(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return described(parts[0], parts[1:])
    if origin is Literal:
        return " · ".join(f"`{value}`" for value in parts)
    if origin in (Union, UnionType):
        return " or ".join(described(part) for part in parts)
    if origin is tuple and parts[-1:] != (Ellipsis,) and len(set(parts)) == 1:
        return f"list of {len(parts)}: {described(parts[0])}"
    if origin in (tuple, list):
        return "list of: " + ", ".join(described(part) for part in parts if part is not Ellipsis)
    if origin is dict and parts[1] is not Any:
        return f"mapping, each value: {described(parts[1])}"
    known = WORDS.get(origin or annotation)
    return known or f"`{getattr(annotation, '__name__', annotation)}`"


def bounds_of(metadata: Iterable[Any]) -> list[str]:
    found = []
    for item in metadata:
        if isinstance(item, FieldInfo):  # within a union pydantic leaves it as it was written
            found += bounds_of(item.metadata)
            continue
        found += [f"{word} {getattr(item, name):g}" for name, word in BOUNDS.items() if hasattr(item, name)]
        if getattr(item, "pattern", None):
            found.append(f"matching `{item.pattern}`")
        if getattr(item, "min_length", 0):
            found.append("not empty")
        if getattr(getattr(item, "func", None), "__name__", "") == FRACTION:
            found.append("also a fraction such as 8/255")
    return found


def default_of(field: FieldInfo) -> str:
    """Return the default of a field in Markdown."""
    if field.is_required():
        return "required"
    return shown(field.get_default(call_default_factory=True))


def shown(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "see its keys"
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{plain(value)}`"


def plain(value: Any) -> str:
    """Return a value as YAML has it on one line."""
    if isinstance(value, str | Path):
        return str(value) or '""'
    return json.dumps(value, default=str)
