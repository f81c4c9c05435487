"""The jobs that were queued for a run or an attack, in the order of submission: slurm/jobs.jsonl."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from kapdist.environment import user_name
from kapdist.run.files import time_in, to_json
from launch.submission import Submission


def remember(folder: Path, job: str, what: Submission) -> dict[str, Any]:
    """Add a job to the record and return its line."""
    folder.mkdir(parents=True, exist_ok=True)
    line = {
        "job": job,
        "name": what.parameters["job_name"],
        "elements": what.elements,
        "submitted": time_in(folder),
        "by": f"{user_name()}@{socket.gethostname()}",
        **what.about,
    }
    with record(folder).open("a") as file:
        file.write(to_json(line) + "\n")
    return line


def remembered(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of the record, oldest first."""
    path = record(folder)
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def queued_until(folder: Path, job: str | None) -> list[dict[str, Any]]:
    """Return the lines up to a job's own; all if it has none."""
    lines = remembered(folder)
    own = [number for number, line in enumerate(lines) if line["job"] == job]
    return lines[: own[0] + 1] if own else lines


def queued_after(folder: Path, job: str | None) -> list[dict[str, Any]]:
    """Return the lines that follow a job's own: what was queued since; none if it has no line."""
    return remembered(folder)[len(queued_until(folder, job)) :]


def record(folder: Path) -> Path:
    return folder / "jobs.jsonl"
