"""metrics.jsonl: what a training tells as it goes, a line of JSON each time; what is not finite is null."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Metrics:
    """metrics.jsonl after the earlier lines that a resumed run went over again are gone."""

    train: tuple[dict[str, Any], ...] = ()
    evaluate: tuple[dict[str, Any], ...] = ()
    robust: tuple[dict[str, Any], ...] = ()
    alarm: tuple[dict[str, Any], ...] = ()
    end: dict[str, Any] | None = None
    num_unreadable: int = 0

    @property
    def shown(self) -> tuple[dict[str, Any], ...]:
        """The evaluations of the weights that are exported."""
        return exported(self.evaluate)

    @property
    def withstood(self) -> tuple[dict[str, Any], ...]:
        """The robust validations of the weights that are exported, as `shown`."""
        return exported(self.robust)


# What time decides: it differs between two runs of the same numbers.
TIMED = {"time", "seconds", "images_per_second", "peak_memory_bytes"}
TIMED |= {"data_wait", "straggler", "straggler_lag", "flop_share"}
# The numbers that a line of each kind has.
NEEDED = {
    "train": ("epoch", "loss"),
    "evaluate": ("epoch", "top1", "num_images"),
    "robust": ("epoch", "accuracy", "clean_accuracy", "eps", "attack_steps", "num_images"),
    "alarm": ("epoch",),
    "end": (),
}


def exported(lines: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
    """Return the lines of the weights that are exported: the moving average's where there is one."""
    kinds = {line.get("weights", "model") for line in lines}
    wanted = "ema" if "ema" in kinds else "model"
    return tuple(line for line in lines if line.get("weights", "model") == wanted)


def read_metrics(path: Path) -> Metrics:
    """Read metrics.jsonl; a killed process leaves half a line, which is counted and not read."""
    text = path.read_text(errors="replace") if path.exists() else ""
    streams: dict[tuple[str, str], list[dict[str, Any]]] = {}
    num_unreadable = 0
    for line in filter(str.strip, text.splitlines()):
        entry = parse_line(line)
        if entry is None or not all(
            isinstance(entry.get(key), int | float) for key in NEEDED.get(entry["kind"], ())
        ):
            num_unreadable += 1
        elif entry["kind"] in NEEDED:
            append(streams.setdefault((entry["kind"], str(entry.get("weights", entry.get("name", "")))), []), entry)
    return Metrics(
        train=tuple(of_kind(streams, "train")),
        evaluate=tuple(of_kind(streams, "evaluate")),
        robust=tuple(of_kind(streams, "robust")),
        alarm=tuple(of_kind(streams, "alarm")),
        end=next(reversed(of_kind(streams, "end")), None),
        num_unreadable=num_unreadable,
    )


def parse_line(line: str | bytes) -> dict[str, Any] | None:
    """Return the values of a line; None where it is damaged, and has no kind and step."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(entry, dict) and isinstance(entry.get("kind"), str) and isinstance(entry.get("step"), int)
    return entry if whole else None


def append(stream: list[dict[str, Any]], entry: dict[str, Any]) -> None:
    """Add a line; one that goes back in steps comes from a resume and takes the place of what it repeats."""
    while stream and stream[-1]["step"] >= entry["step"]:
        stream.pop()
    stream.append(entry)


def of_kind(streams: dict[tuple[str, str], list[dict[str, Any]]], kind: str) -> list[dict[str, Any]]:
    found: Iterable[dict[str, Any]] = (entry for key, lines in streams.items() if key[0] == kind for entry in lines)
    return sorted(found, key=lambda entry: entry["step"])
