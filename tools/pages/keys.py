"""Every key of every config: a page for each kind of config, a heading for each key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import cleandoc
from typing import NamedTuple, cast

from pydantic.fields import FieldInfo

from kapdist.config import MAY_CHANGE, AttackConfig, Config
from kapdist.config.certify import CertifyConfig
from kapdist.config.evaluation import EvaluationConfig
from kapdist.config.fields import Section, kinds_in
from kapdist.config.study import StudyConfig
from launch.cluster import ClusterConfig

from .values import default_of, described

OWNER = re.compile(r"^Owner: \S+\.\s*")


class Kind(NamedTuple):
    """A kind of config, and how it is used."""

    title: str
    config: type[Section]
    used: str


KINDS = {
    "training": Kind("Keys of a training", Config, "`kapdist train CONFIG`, `launch/train.py CONFIG`"),
    "attack": Kind("Keys of an attack", AttackConfig, "`kapdist attack run`, `plan`, `sanity`, `corruptions`"),
    "evaluation": Kind("Keys of an evaluation", EvaluationConfig, "`kapdist evaluate RUN`"),
    "certification": Kind("Keys of a certification", CertifyConfig, "`kapdist certify RUN`"),
    "study": Kind("Keys of a study", StudyConfig, "`kapdist study plan FILE`, `launch/study.py FILE`"),
    "cluster": Kind(
        "Keys of a cluster", ClusterConfig, "`--cluster FILE` of what is in `launch/`, or `cluster.key=value`"
    ),
}
INTRODUCTION = """\
# {title}

For {used}. Defaults, then the YAML file, then `section.key=value`. An unknown key, a value of another type or out
of its bounds is refused in one line that names the place. *Follows* marks a default that gives way to what is
written beside it.
"""


class Key(NamedTuple):
    """A key by its dotted name, or a section of keys."""

    name: str
    field: FieldInfo
    section: type[Section] | None
    follows: bool


def keys_of(config: type[Section], prefix: str = "", rules: frozenset[str] = frozenset()) -> Iterator[Key]:
    """Yield every key of a config, those of its sections behind each."""
    rules |= {prefix + rule.key for rule in config.follows}
    plain: list[Key] = []
    sections: list[Key] = []
    for name, field in config.model_fields.items():
        section = section_in(field)
        key = Key(prefix + name, field, section, prefix + name in rules)
        (sections if section else plain).append(key)
    yield from plain
    for key in sections:
        yield key
        yield from keys_of(cast(type[Section], key.section), f"{key.name}.", rules)


def section_in(field: FieldInfo) -> type[Section] | None:
    """Return the section that a key opens, alone, in a list or where it is written at all."""
    kinds = [part for part in kinds_in(field.annotation) if isinstance(part, type) and issubclass(part, Section)]
    return kinds[0] if kinds else None


def page(name: str) -> str:
    """Return a reference page in Markdown."""
    kind = KINDS[name]
    parts = [INTRODUCTION.format(title=kind.title, used=kind.used)]
    for key in keys_of(kind.config):
        parts.append(opened(key) if key.section else told(key, kind.config))
    return "\n".join(parts)


def opened(key: Key) -> str:
    """Return the heading of a section."""
    section = cast(type[Section], key.section)
    said = OWNER.sub("", cleandoc(section.__doc__ or ""))
    lines = [f"## {key.name} {{ #{key.name} }}", "", key.field.description or said]
    if section.stands_for:
        lines += ["", f"One value in the place of the section is its `{section.stands_for}`."]
    return "\n".join([*lines, ""])


def told(key: Key, config: type[Section]) -> str:
    text = " ".join((key.field.description or "").split())
    marks = [described(key.field.annotation, key.field.metadata)]
    if not key.field.is_required():
        marks.append(f"default {default_of(key.field)}")
    elif "by default" not in text:
        marks.append("**required**")
    marks += ["*follows*"] if key.follows else []
    marks += ["may change when a run is continued"] if config is Config and key.name in MAY_CHANGE else []
    return f"#### {key.name} {{ #{key.name} }}\n\n<small>{'; '.join(marks)}</small>\n\n{text}\n"
