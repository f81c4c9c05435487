"""What lies on disk: the folders by their paths, and the schema of every file that is a record."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType

from pydantic.fields import FieldInfo

import kapdist.records
from kapdist.data.beton import layout, manifest
from kapdist.records import chunks, metrics
from kapdist.records.record import Record
from kapdist.run import paths

from .python import prose
from .values import default_of, described

PLACES = {
    "A run": paths.RunDir(Path("RUN")),
    "An attack on it": paths.AttackDir(Path("RUN/attacks/NAME")),
    "The run under corruptions": paths.CorruptionsDir(Path("RUN/corruptions/NAME")),
    "Its certificates": paths.CertificateDir(Path("RUN/certificates/NAME")),
    "Its topography": paths.TopographyDir(Path("RUN/topography/NAME")),
    "A study": paths.StudyDir(Path("STUDY")),
}
WITHOUT_RECORDS = (chunks, metrics)  # files of many lines, whose docstrings say what a line is
INTRODUCTION = """\
# Files

Where everything lies, and what is in it. JSON has null where a number is not finite. Whatever adds up to a number
carries a checksum of its bytes (`seal` in JSON, metadata in Parquet), which is looked at before anything is read. A
key that a version does not know is left alone, but in plans, where it would change the meaning.
[How to read them with polars](../notebooks/reading_records.md).
"""
BETON = """\
## A beton

FFCV's file format, version 2: a header, {fields} as fields, one row of metadata for each image ({row}), the images'
bytes on pages that none of them crosses, and a table of where each one lies. Beside it lies `OUT.beton.json`, its
manifest.
"""


def page() -> str:
    """Return the reference page in Markdown."""
    parts = [INTRODUCTION, "## Where things lie"]
    for title, place in PLACES.items():
        lines = sorted({str(path) for path in vars(place).values() if isinstance(path, Path)})
        parts.append(f"**{title}**\n\n```text\n" + "\n".join(lines) + "\n```")
    for module in modules():
        parts += schema(module)
    return "\n\n".join([*parts, beton()])


def modules() -> Iterator[ModuleType]:
    for found in pkgutil.iter_modules(kapdist.records.__path__):
        module = importlib.import_module(f"{kapdist.records.__name__}.{found.name}")
        if module in WITHOUT_RECORDS or records_of(module):
            yield module


def records_of(module: ModuleType) -> list[type[Record]]:
    kinds = [kind for _, kind in inspect.getmembers(module, inspect.isclass) if kind.__module__ == module.__name__]
    own = [kind for kind in kinds if issubclass(kind, Record) and kind.model_fields]
    return sorted(own, key=lambda kind: inspect.getsourcelines(kind)[1])


def schema(module: ModuleType) -> Iterator[str]:
    """Yield what a module of records declares."""
    yield f"## {module.__name__.rpartition('.')[2]}\n\n{prose(module.__doc__ or '')}"
    for kind in records_of(module):
        said = inspect.getattr_static(kind, "__doc__") or ""
        yield f"### {kind.__name__}\n\n{prose(said)}\n\n{table(kind)}"


def table(kind: type[Record]) -> str:
    told = attribute_docstrings(kind)
    rows = ["| field | type | what it is |", "|---|---|---|"]
    rows += [row(name, field, told.get(name, "")) for name, field in kind.model_fields.items()]
    return "\n".join(rows)


def row(name: str, field: FieldInfo, told: str) -> str:
    where = "" if field.is_required() else f" Default {default_of(field)}."
    text = " ".join(f"{told}{where}".split())
    return f"| `{name}` | {described(field.annotation, field.metadata)} | {text} |".replace(" | none", " \\| none")


def attribute_docstrings(kind: type[Record]) -> dict[str, str]:
    """Return the strings behind the fields of a record and of those that it builds on."""
    from pydantic._internal._docs_extraction import extract_docstrings_from_cls

    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if isinstance(one, type) and issubclass(one, Record) and one is not Record:
            found |= extract_docstrings_from_cls(one)
    return found


def beton() -> str:
    names = ", ".join(f"`{name}`" for name, _ in layout.FIELDS)
    image = ", ".join(f"{name} {layout.IMAGE_TYPE[name].str}" for name in layout.IMAGE_TYPE.names or ())
    told = prose(inspect.getdoc(manifest.Manifest) or "")
    listed = "\n".join(f"- `{field.name}`: `{field.type}`" for field in fields(manifest.Manifest))
    return f"{BETON.format(fields=names, row=f'`{image}, label <i8`')}\n### Manifest\n\n{told}\n\n{listed}"
