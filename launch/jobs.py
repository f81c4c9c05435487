"""The jobs that were queued for a run or an attack, in the order of submission: slurm/jobs.jsonl."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from kapdist.environment import user_name
from kapdist.run.files import append_whole, sync, time_in, to_json
from kapdist.run.paths import RunDir
from launch import slurm
from launch.submission import Submission


def remember(folder: Path, job: str, what: Submission) -> dict[str, Any]:
    """Add a job to the record and return its line."""
    line = {"job": job} | line_of(what)
    append(record(folder), line)
    return line


def line_of(what: Submission) -> dict[str, Any]:
    """Return what the record says of a submission, but for the job's number."""
    what.folder.mkdir(parents=True, exist_ok=True)
    return {
        "name": what.parameters["job_name"],
        "elements": what.elements,
        "submitted": time_in(what.folder),
        "by": f"{user_name()}@{socket.gethostname()}",
        **what.about,
    }


def remembered(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of the record, oldest first."""
    return read(record(folder))


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of JSON lines, none where there is none; one that was cut off is passed over."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a line to a file of JSON lines; it is on the disk then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")
    with path.open("ab", buffering=0) as file:
        append_whole(file, (("" if whole else "\n") + to_json(line) + "\n").encode())
        os.fsync(file.fileno())
    sync(path.parent)


def queued_until(folder: Path, job: str | None) -> list[dict[str, Any]]:
    """Return the lines up to a job's own; all if it has none."""
    lines = remembered(folder)
    own = [number for number, line in enumerate(lines) if line["job"] == job]
    return lines[: own[0] + 1] if own else lines


def queued_after(folder: Path, job: str | None) -> list[dict[str, Any]]:
    """Return the lines that follow a job's own: what was queued since; none if it has no line."""
    return remembered(folder)[len(queued_until(folder, job)) :]


def training_jobs(run: RunDir) -> list[str]:
    """Return the jobs that train a run, or wait to."""
    return slurm.alive(line["job"] for line in remembered(run.slurm) if line["kind"] == "train")


def cut_off(lines: Sequence[Mapping[str, Any]], living: Collection[str], last: str) -> bool:
    """Return whether a chain of jobs has not got its last one: whoever queued it died in between."""
    return lines[-1]["kind"] != last and not any(line["kind"] == last and line["job"] in living for line in lines)


def record(folder: Path) -> Path:
    return folder / "jobs.jsonl"
