"""The Python face: signatures and docstrings of what may be called from a program."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from dataclasses import is_dataclass
from typing import Any

INTRODUCTION = """\
# Python

`import kapdist` imports nothing else; what follows is imported when it is asked for. Tensors of images are (batch,
3, height, width), floating point in [0, 1]. [How-to: your own model](../how-to/own-model.md) and
[the notebook](../notebooks/kap_in_your_own_model.md) use them.
"""
STARS: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Attributes):$", flags=re.MULTILINE)


def page() -> str:
    """Return the reference page in Markdown."""
    parts = [INTRODUCTION]
    for module, names in modules().items():
        found = importlib.import_module(module)
        parts.append(f"## {module}\n\n{prose(found.__doc__ or '')}")
        parts += [described(module, name, getattr(found, name)) for name in names]
    return "\n\n".join(parts)


def modules() -> dict[str, list[str]]:
    """Return the public names of each module of the Python face."""
    import kapdist
    from kapdist import api

    functions = [*kapdist.CALLED, "evaluate"]
    results = [
        name for name, value in vars(api).items() if is_dataclass(value) and value.__module__ == api.__name__
    ]
    public = {module: importlib.import_module(module).__all__ for module in ("kapdist.kap", "kapdist.models")}
    return {"kapdist.api": [*functions, *results]} | {module: sorted(names) for module, names in public.items()}


def described(module: str, name: str, value: Any) -> str:
    heading = f"### {name}\n\n"
    if isinstance(value, dict):
        return f"{heading}A table: {', '.join(f'`{key}`' for key in value)}."
    if not callable(value):
        return f"{heading}`{value!r}`"
    text = f"{heading}```python\n{signature(name, value)}\n```\n\n{prose(inspect.getdoc(value) or '')}"
    return f"{text}\n\n{attributes(value)}" if is_dataclass(value) else text


def signature(name: str, value: Any) -> str:
    """Return how something is called, a parameter a line where they are many."""
    try:
        found = inspect.signature(value)
    except ValueError:
        return name
    parts: list[str] = []
    for parameter in found.parameters.values():
        parts += marks_before(parameter, parts)
        parts.append(one_parameter(parameter))
        if parameter.kind is parameter.POSITIONAL_ONLY:
            parts = [part for part in parts if part != "/"] + ["/"]
    returns = found.return_annotation
    arrow = "" if returns is found.empty else f" -> {written(returns)}"
    line = f"{name}({', '.join(parts)}){arrow}"
    return line if len(line) <= 90 else f"{name}(\n    " + ",\n    ".join(parts) + f",\n){arrow}"


def marks_before(parameter: inspect.Parameter, parts: list[str]) -> list[str]:
    alone = parameter.kind is parameter.KEYWORD_ONLY and not any(part.startswith("*") for part in parts)
    return ["*"] if alone else []


def one_parameter(parameter: inspect.Parameter) -> str:
    star = STARS.get(parameter.kind, "")
    text = star + parameter.name
    typed = parameter.annotation is not parameter.empty
    if typed:
        text += f": {written(parameter.annotation)}"
    if parameter.default is not parameter.empty:
        text += f"{' = ' if typed else '='}{written_value(parameter.default)}"
    return text


def written(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def written_value(value: Any) -> str:
    return getattr(value, "__name__", None) or repr(value)


def attributes(value: Any) -> str:
    """Return the fields of a dataclass with the strings behind them."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(value))).body
    lines, body = [], tree.body  # type: ignore[attr-defined]
    for field, behind in zip(body, [*body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign):
            told = behind.value.value if is_text(behind) else ""
            lines.append(
                f"- `{ast.unparse(field.target)}`: `{ast.unparse(field.annotation)}`. {' '.join(told.split())}"
            )
    return "\n".join(lines)


def is_text(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def prose(docstring: str) -> str:
    """Return a docstring as Markdown: its sections in bold, an item for each name, indented text as code."""
    text, *sections = SECTION.split(inspect.cleandoc(docstring))
    parts = [text.strip()]
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        parts.append(f"**{title}**\n\n{items(body)}")
    return "\n\n".join(parts)


def items(body: str) -> str:
    """Return `name: text` lines as a list; what is indented further goes on with the item above."""
    lines, rest = [], ""
    block = textwrap.dedent(body.strip("\n"))
    for line in block.splitlines():
        if line and not line[0].isspace() and not rest:
            name, colon, text = line.partition(": ")
            lines.append(f"- `{name}`: {text}" if colon else f"- {line}")
        elif line and line[0].isspace() and lines and not rest:
            lines[-1] += f" {line.strip()}"
        else:
            rest += line + "\n"
    return "\n".join(lines) + ("\n\n" + rest.strip() if rest.strip() else "")
