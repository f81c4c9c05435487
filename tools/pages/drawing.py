"""A graph that docs write in Mermaid, as SVG: it is read without a network and without a script."""

from __future__ import annotations

import re
from html import escape

ARROW = re.compile(r"^\s*(\w+) --> (\w+)$", flags=re.MULTILINE)
GRAPH = re.compile(r"```mermaid\n(graph TD\n.*?)```", flags=re.DOTALL)
WIDTH, HEIGHT, GAP_X, GAP_Y = 104, 30, 18, 48  # pixels
SWEEPS = 8
Place = dict[str, tuple[float, float]]


def drawn(markdown: str) -> str:
    """Return a page with every graph of Mermaid's drawn."""
    return GRAPH.sub(lambda found: svg(ARROW.findall(found[1])), markdown)


def svg(arrows: list[tuple[str, str]]) -> str:
    """Return a picture of arrows that point down and form no circle; its colours are those of the page."""
    places = placed(arrows)
    right = max(x for x, _ in places.values()) + WIDTH / 2 + 1
    bottom = max(y for _, y in places.values()) + HEIGHT / 2 + 1
    lines = "".join(line(places[start], places[end]) for start, end in arrows)
    boxes = "".join(box(name, *place) for name, place in places.items())
    head = '<marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    head = f'<defs>{head}<path d="M0 0L8 4L0 8z" fill="currentColor"/></marker></defs>'
    shape = f'viewBox="-1 -1 {right + 2:.0f} {bottom + 2:.0f}" style="width:100%;max-width:{right:.0f}px"'
    look = 'font-size="13" text-anchor="middle" fill="currentColor" stroke-width="1"'
    told = escape("; ".join(f"{start} to {end}" for start, end in arrows))
    return f'<svg role="img" aria-label="{told}" {shape} {look}>{head}{lines}{boxes}</svg>'


def line(start: tuple[float, float], end: tuple[float, float]) -> str:
    (x, y), (to_x, to_y) = start, end
    y, to_y = y + HEIGHT / 2, to_y - HEIGHT / 2
    bend = (to_y - y) / 2
    path = f"M{x:.0f} {y:.0f}C{x:.0f} {y + bend:.0f} {to_x:.0f} {to_y - bend:.0f} {to_x:.0f} {to_y:.0f}"
    return f'<path d="{path}" fill="none" stroke="currentColor" opacity=".6" marker-end="url(#head)"/>'


def box(name: str, x: float, y: float) -> str:
    corner = f'x="{x - WIDTH / 2:.0f}" y="{y - HEIGHT / 2:.0f}" width="{WIDTH}" height="{HEIGHT}"'
    look = 'rx="5" fill="var(--md-default-bg-color)" stroke="var(--md-primary-fg-color)"'
    return f'<rect {corner} {look}/><text x="{x:.0f}" y="{y + 4:.0f}">{escape(name)}</text>'


def placed(arrows: list[tuple[str, str]]) -> Place:
    """Return where the middle of each box is: below all that point to it, near those that it is tied to."""
    rows = ordered(layers(arrows), arrows)
    widest = max(map(len, rows))
    places: Place = {}
    for depth, row in enumerate(rows):
        free = (widest - len(row)) * (WIDTH + GAP_X) / 2
        for number, name in enumerate(row):
            places[name] = free + number * (WIDTH + GAP_X) + WIDTH / 2, depth * (HEIGHT + GAP_Y) + HEIGHT / 2
    return places


def layers(arrows: list[tuple[str, str]]) -> list[list[str]]:
    """Return the names by the longest way that leads to them."""
    depth = dict.fromkeys(sorted({name for arrow in arrows for name in arrow}), 0)
    for _ in depth:
        for start, end in arrows:
            depth[end] = max(depth[end], depth[start] + 1)
    return [[name for name in depth if depth[name] == level] for level in range(max(depth.values()) + 1)]


def ordered(rows: list[list[str]], arrows: list[tuple[str, str]]) -> list[list[str]]:
    """Sort rows by the mean places of the boxes tied to each (Sugiyama 1981), so that few arrows cross."""
    place = {name: (number + 0.5) / len(row) for row in rows for number, name in enumerate(row)}
    for _ in range(SWEEPS):
        for row in rows:
            row.sort(key=lambda name: mean([place[other] for other in tied(name, arrows)]))
            place |= {name: (number + 0.5) / len(row) for number, name in enumerate(row)}
    return rows


def tied(name: str, arrows: list[tuple[str, str]]) -> list[str]:
    return [end if start == name else start for start, end in arrows if name in (start, end)]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)
