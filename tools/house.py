"""The house, read off the code: which rooms import which, as a drawing in Mermaid, and its numbers.

python tools/house.py            the drawing that docs/house.md shows
python tools/house.py --numbers  files, lines, arrows, circles
"""

from __future__ import annotations

import ast
import functools
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
Graph = dict[str, set[str]]


def files(top: str) -> list[Path]:
    return sorted((ROOT / top).rglob("*.py"))


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path, counts: Callable[[ast.AST], bool] = lambda node: True) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of every import at run time, name "" of a whole module.

    Imports for annotations alone do not count.
    """
    tree = parsed(path)
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only or not counts(node):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


def arrows(paths: list[Path]) -> Graph:
    """Return which of these files each one imports."""
    known = {module(path) for path in paths}
    graph: Graph = {}
    for path in paths:
        found = {f"{name}.{part}" if f"{name}.{part}" in known else name for name, part in imports(path)}
        graph[module(path)] = (found & known) - {module(path)}
    return graph


def circles(graph: Graph) -> list[list[str]]:
    """Return a circle for every file that a search comes back to (depth first)."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> None:
        if name in way:
            found.append(way[way.index(name) :])
        elif name not in done:
            for other in sorted(graph[name]):
                visit(other, [*way, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])
    return found


def room(name: str) -> str:
    """Return the room of a module of kapdist; what lies loose is at the door."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and (ROOT / "kapdist" / parts[1]).is_dir() else "door"


def rooms(graph: Graph) -> Graph:
    """Return which rooms each room imports, but for the door, which stands open to all."""
    found: Graph = {}
    for name, others in graph.items():
        found.setdefault(room(name), set()).update(map(room, others))
    return {name: others - {name, "door"} for name, others in found.items() if name != "door"}


def without_detours(graph: Graph) -> Graph:
    """Leave out the arrows that follow from others, so that a drawing can be read."""

    def below(name: str) -> set[str]:
        return graph[name].union(*(below(other) for other in graph[name]))

    return {name: others - set().union(*(below(other) for other in others)) for name, others in graph.items()}


def drawing() -> str:
    """Return the rooms as a Mermaid graph, those that import nothing at the bottom."""
    graph = without_detours(rooms(arrows(files("kapdist"))))
    lines = [f"    {name} --> {other}" for name in sorted(graph) for other in sorted(graph[name])]
    return "\n".join(["graph TD", *lines])


def numbers() -> dict[str, object]:
    paths = files("kapdist")
    lengths = [path.read_text().count("\n") for path in paths]
    graph = arrows([*paths, *files("launch")])
    return {
        "files of kapdist": len(paths),
        "loose files at its root": len(list((ROOT / "kapdist").glob("*.py"))),
        "lines of kapdist": sum(lengths),
        "median lines of a file": statistics.median(lengths),
        "lines of launch": sum(path.read_text().count("\n") for path in files("launch")),
        "arrows between files": sum(map(len, graph.values())),
        "arrows between rooms": sum(map(len, rooms(arrows(paths)).values())),
        "circles": len(circles(graph)),
    }


if __name__ == "__main__":
    if "--numbers" in sys.argv[1:]:
        for name, value in numbers().items():
            print(f"{name:26} {value}")
    else:
        print(drawing())
