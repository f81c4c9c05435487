"""What a shell offers for half a word: the keys of a config. Folders and files it offers by itself.

A key is offered twice, as `key=` and with its default: where there is a choice, a shell puts no space behind the
part that all of it shares. `kapdist --install-completion` has a shell ask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from kapdist.config.fields import Section


def keys_of(kind: str) -> Callable[[str], list[str]]:
    """Return what completes `section.key=value` for a kind of config; nothing is imported before it is asked."""

    def complete(incomplete: str) -> list[str]:
        # Without a letter to go by the shell offers files: a config may come first.
        from kapdist.config.kinds import KINDS

        return completions(KINDS[kind], incomplete) if incomplete else []

    return complete


def completions(model: type[Section], incomplete: str) -> list[str]:
    """Return the words that a beginning may become: sections, keys, the values of a key that lists them."""
    if "=" in incomplete:
        key = incomplete.partition("=")[0]
        values = [f"{key}={value}" for name, field in fields_of(model) if name == key for value in choices(field)]
        return [word for word in values if word.startswith(incomplete)]
    words = [word for name, field in fields_of(model) for word in (f"{name}=", with_default(name, field))]
    words = [word for word in dict.fromkeys(words) if word.startswith(incomplete)]
    heads = list(dict.fromkeys(f"{word.partition('.')[0]}." for word in words if "." in word.partition("=")[0]))
    if "." in incomplete or len(heads) < 2:
        return words
    return heads + [word for word in words if "." not in word.partition("=")[0]]


def fields_of(model: type[Section], prefix: str = "") -> Iterator[tuple[str, Any]]:
    from kapdist.config.fields import sections_of

    sections = sections_of(model)
    for key, field in model.model_fields.items():
        if key in sections:
            yield from fields_of(sections[key], f"{prefix}{key}.")
        else:
            yield prefix + key, field


def with_default(name: str, field: Any) -> str:
    """Return a key with its default in YAML; the key alone where it has none that fits a word."""
    from kapdist.run.files import to_json

    default = field.get_default(call_default_factory=True) if not field.is_required() else None
    if isinstance(default, bool | int | float | str):
        return f"{name}={default if isinstance(default, str) else to_json(default)}"
    return f"{name}="


def choices(field: Any) -> list[str]:
    """Return the words of a key that takes one of a few."""
    kinds = [part for part in (field.annotation, *get_args(field.annotation)) if part is not None]
    words = [word for kind in kinds for word in get_args(kind) or (kind,) if isinstance(word, str)]
    return list(dict.fromkeys(words)) or (["true", "false"] if bool in kinds else [])
