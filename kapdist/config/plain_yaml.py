"""YAML as far as a config needs it: text, numbers, true, false, nothing, lists, and mappings whose keys are words.

All else that YAML knows (dates, sets, bytes, objects of Python) is refused with the line it stands in, and so are
numbers that no machine counts with: whatever the text, its value comes back, or one InputError. What is written
here is read here as the same values.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, NoReturn

import yaml

from kapdist.errors import InputError, shown

DEEPEST, MOST_VALUES = 16, 10_000  # no config comes near; aliases of aliases would
ONE_LINE = 1 << 30  # columns: as wide as any value
TAG, PLAIN = "tag:yaml.org,2002:", "plain"
# YAML 1.1 wants a point in 3e-4; everybody else reads it as a number.
FLOAT = re.compile(
    r"[-+]?(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
INTEGER = re.compile(r"[-+]?(?:0b[01_]+|0x[\da-fA-F_]+|0o?[0-7_]+|[1-9][\d_]*|0)")
WORDS: dict[str, dict[str, Any]] = {
    TAG + "null": dict.fromkeys(("", "~", "null", "Null", "NULL")),
    TAG + "bool": {
        **dict.fromkeys(("true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"), True),
        **dict.fromkeys(("false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"), False),
    },
}


class Loader(yaml.SafeLoader):
    """PyYAML's parser alone: it says what is text by its quotes, and we say what the rest is."""

    depth = 0

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        plain = kind is yaml.ScalarNode and implicit[0]
        return PLAIN if plain else super().resolve(kind, value, (False, False))

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > DEEPEST:
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, f"more than {DEEPEST} levels", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def parse(text: str, place: object) -> Any:
    """Return the value of a YAML text: JSON values.

    Raises:
        InputError: it is no YAML, or more than a config holds; names the line of a text that has several.
    """
    try:
        node = compose(text)
        return None if node is None else Reader().value(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{place}, line {mark.line + 1}" if mark and "\n" in text else place
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or type(error).__name__
        raise InputError(where, "YAML", problem) from None


@functools.lru_cache(maxsize=128)
def compose(text: str) -> yaml.Node | None:
    """Parse a text, once: many configs build on one base."""
    return yaml.compose(text, Loader)


class Reader:
    """Makes values of nodes, and counts them, for an alias stands for as many as it likes."""

    def __init__(self) -> None:
        self.count = 0

    def value(self, node: yaml.Node, depth: int = 0) -> Any:
        self.count += 1
        if depth > DEEPEST or self.count > MOST_VALUES:
            refuse(node, f"more than {DEEPEST} levels or {MOST_VALUES:,} values")
        if isinstance(node, yaml.MappingNode) and node.tag == TAG + "map":
            return self.mapping(node, depth)
        if isinstance(node, yaml.SequenceNode) and node.tag == TAG + "seq":
            return [self.value(one, depth + 1) for one in node.value]
        if isinstance(node, yaml.ScalarNode):
            return scalar(node)
        return refuse(
            node, f"a value of kind {node.tag.removeprefix(TAG)!r}, where text, numbers, lists and mappings go"
        )

    def mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        stated: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                refuse(key, "a key that is no word")
            if key.value == "<<" and key.tag == PLAIN:
                merged = self.merged(value, depth) | merged
            elif key.value in stated:
                refuse(key, f"duplicate key {key.value[:100]}")
            else:
                stated[key.value] = self.value(value, depth + 1)
        return merged | stated

    def merged(self, node: yaml.Node, depth: int) -> dict[str, Any]:
        """Return what the mappings behind `<<` give; of two that state a key, the first counts."""
        values = self.value(node, depth + 1)
        whole: dict[str, Any] = {}
        for one in values if isinstance(values, list) else [values]:
            if not isinstance(one, dict):
                refuse(node, "something that is no mapping behind <<")
            whole = one | whole
        return whole


def scalar(node: yaml.ScalarNode) -> Any:
    """Return the value of a scalar: of its tag's kind, or what it looks like where it has none."""
    kinds = (TAG + "null", TAG + "bool", TAG + "int", TAG + "float") if node.tag == PLAIN else (node.tag,)
    for kind in kinds:
        if kind in WORDS and node.value in WORDS[kind]:
            return WORDS[kind][node.value]
        if kind in NUMBERS and NUMBERS[kind][0].fullmatch(node.value):
            return number(node, NUMBERS[kind][1])
    if node.tag in (PLAIN, TAG + "str"):
        return node.value
    return refuse(node, f"{shown(node.value)} as a value of kind {node.tag.removeprefix(TAG)!r}")


def number(node: yaml.ScalarNode, convert: Callable[[str], int | float]) -> int | float:
    try:
        return convert(node.value.replace("_", ""))
    except (ValueError, OverflowError):
        refuse(node, f"{shown(node.value)}, where numbers are of at most 64 bits")


def integer(text: str) -> int:
    digits = text.lstrip("+-").lower()
    base = {"0x": 16, "0b": 2, "0o": 8}.get(digits[:2], 8 if digits[0] == "0" else 10)  # 017 as YAML 1.1 has it
    value = int(digits, base) * (-1 if text.startswith("-") else 1)
    if not -(2**63) <= value < 2**63:
        raise OverflowError
    return value


def real(text: str) -> float:
    words = text.lower()
    return float(words.replace(".", "") if words.endswith(("inf", "nan")) else words)


def refuse(node: yaml.Node, problem: str) -> NoReturn:
    raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


NUMBERS: dict[str, tuple[re.Pattern[str], Callable[[str], int | float]]] = {
    TAG + "int": (INTEGER, integer),
    TAG + "float": (FLOAT, real),
}


class Dumper(yaml.SafeDumper):
    """PyYAML's, with quotes around text that we take for a number and YAML 1.1 does not: 1e-3, 08, 0o17."""


for _tag, (_pattern, _) in NUMBERS.items():
    Dumper.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern.pattern})\Z"), [*"+-.0123456789"])


def dump(values: Any, **style: Any) -> str:
    """Return values as YAML that `parse` reads as the same ones; `style` is PyYAML's."""
    return str(yaml.dump(values, Dumper=Dumper, **{"sort_keys": False, **style}))
