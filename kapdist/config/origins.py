"""Where each value of a config comes from: a line of a file, the command line, other keys, the default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from kapdist.config.fields import Section, opened, sections_of
from kapdist.config.file import Layer, config_of, parse_override, read_stated, states, text_of
from kapdist.config.following import dotted, put, value_of
from kapdist.config.plain_yaml import compose
from kapdist.config.training import flatten


class Origin(NamedTuple):
    """Where a value comes from."""

    kind: Literal["file", "command line", "file name", "follows", "default"]
    file: str | None = None
    line: int | None = None
    keys: tuple[str, ...] = ()
    """That it follows from."""

    def __str__(self) -> str:
        if self.kind == "file":
            return f"{self.file}:{self.line}"
        return f"follows from {', '.join(self.keys)}" if self.kind == "follows" else self.kind


class Value(NamedTuple):
    """A value, as JSON has it, and its origin."""

    value: Any
    origin: Origin

    def describe(self) -> dict[str, Any]:
        """Return JSON values."""
        said = {key: value for key, value in self.origin._asdict().items() if value}
        return {"value": self.value, "origin": said}


def values_of(model: type[Section], path: Path, overrides: Sequence[str] = ()) -> dict[str, Value]:
    """Return {dotted key: value} of a config, in the order of its class.

    Raises:
        InputError: as `load_config`.
    """
    stated = read_stated(model, path, overrides)
    config = config_of(model, path, stated)
    words = [(word.partition("=")[0], parse_override(word, model)) for word in stated.overrides]
    followed = dict(following(model, stated.values))
    lines = [(layer, lines_of(text_of(layer.path))) for layer in reversed(stated.layers)]

    def origin(key: str) -> Origin:
        if key in followed:
            return Origin("follows", keys=followed[key])
        if any(word.startswith(f"{key}.") or states(said, key) for word, said in words):
            return Origin("command line")
        return in_files(key, lines) or Origin("file name" if key == "name" else "default")

    return {key: Value(value, origin(key)) for key, value in flatten(config).items()}


def in_files(key: str, lines: Sequence[tuple[Layer, Mapping[str, int]]]) -> Origin | None:
    """Return the line that states a key, of the uppermost file that does; or a line that stands for its section."""
    for layer, numbers in lines:
        if decides(layer.values, key):
            while key not in numbers:
                key = key.rpartition(".")[0]
            return Origin("file", str(layer.path), numbers[key])
    return None


def decides(values: Any, key: str) -> bool:
    """Return whether a file states a key, or what it is a part of by an interpolation."""
    for part in key.split("."):
        if not isinstance(values, Mapping):
            return isinstance(values, str) and "${" in values
        if part not in values:
            return False
        values = values[part]
    return True


def lines_of(text: str) -> dict[str, int]:
    """Return {dotted key: line, from 1} of the mappings in a YAML text."""
    node = compose(text)
    return {} if node is None else dict(key_lines(node))


def key_lines(node: yaml.Node, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Yield keys and their lines, those behind `<<` before a mapping's own, which count."""
    entries = node.value if isinstance(node, yaml.MappingNode) else []
    for key, value in entries:
        if key.value == "<<":
            for one in reversed(value.value) if isinstance(value, yaml.SequenceNode) else [value]:
                yield from key_lines(one, prefix)
    for key, value in (entry for entry in entries if entry[0].value != "<<"):
        yield prefix + key.value, key.start_mark.line + 1
        yield from key_lines(value, f"{prefix}{key.value}.")


class Asked(dict[str, Any]):
    """What is written, and which keys of it a rule went by."""

    def __init__(self, written: Mapping[str, Any]) -> None:
        super().__init__(written)
        self.keys_asked: dict[str, None] = {}

    def get(self, key: str, default: Any = None) -> Any:
        found = super().get(key)
        if found is not None:
            self.keys_asked[key] = None
        return default if found is None else found

    def __getitem__(self, key: str) -> Any:
        self.keys_asked[key] = None
        return super().__getitem__(key)


def following(model: type[Section], values: Any, prefix: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the keys that take a value from others, and those others, as `follow` lets them."""
    values = opened(model, values)
    if not isinstance(values, dict):
        return
    for rule in model.follows:
        written = Asked(dotted(values))
        if (value := value_of(rule, written)) is not None:
            values = put(values, rule.key.split("."), value)
            yield prefix + rule.key, tuple(prefix + key for key in written.keys_asked)
    for key, section in sections_of(model).items():
        yield from following(section, values.get(key, {}), f"{prefix}{key}.")
