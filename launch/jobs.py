"""The jobs that were queued for a run or an attack, in the order of submission: slurm/jobs.jsonl."""

from __future__ import annotations

import getpass
import json
import socket
import time
from pathlib import Path
from typing import Any

from launch.submission import Submission


def remember(folder: Path, job: str, what: Submission) -> dict[str, Any]:
    """Add a job to the record and return its line."""
    line = {
        "job": job,
        "name": what.parameters["job_name"],
        "elements": what.elements,
        "submitted": time.time(),
        "by": f"{getpass.getuser()}@{socket.gethostname()}",
        **what.about,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with record(folder).open("a") as file:
        file.write(json.dumps(line) + "\n")
    return line


def remembered(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of the record, oldest first."""
    path = record(folder)
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def queued_after(folder: Path, job: str | None) -> list[dict[str, Any]]:
    """Return the lines that follow a job's own: what was queued since; none if it has no line."""
    lines = remembered(folder)
    own = [number for number, line in enumerate(lines) if line["job"] == job]
    return lines[own[0] + 1 :] if own else []


def record(folder: Path) -> Path:
    return folder / "jobs.jsonl"
