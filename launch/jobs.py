"""The jobs that were queued for a run or an attack, in the order of submission: slurm/jobs.jsonl."""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kapdist.environment import user_name
from kapdist.run.files import append_line, lines_in, time_in
from kapdist.run.paths import RunDir
from launch import slurm
from launch.submission import Submission


def remember(folder: Path, job: str, what: Submission) -> dict[str, Any]:
    """Add a job to the record and return its line."""
    line = {"job": job} | line_of(what)
    append_line(record(folder), line)
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
    return lines_in(record(folder))


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
    return living(line for line in remembered(run.slurm) if line["kind"] == "train")


def living(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the jobs of some lines that wait or run, whoever queued them, and those that may."""
    lines = list(lines)
    return slurm.alive([line["job"] for line in lines], users_of(lines))


def cancel(folder: Path, jobs: Sequence[str]) -> None:
    """Cancel jobs of a folder and wait until they are gone.

    Raises:
        TransientError: as `slurm.cancel_and_wait`; another user's job stays.
    """
    slurm.cancel_and_wait(jobs, users_of(remembered(folder)))


def users_of(lines: Iterable[Mapping[str, Any]]) -> set[str]:
    return {str(line["by"]).partition("@")[0] for line in lines if "by" in line}


def cut_off(lines: Sequence[Mapping[str, Any]], living: Collection[str], last: str) -> bool:
    """Return whether a chain of jobs has not got its last one: whoever queued it died in between."""
    return lines[-1]["kind"] != last and not any(line["kind"] == last and line["job"] in living for line in lines)


def record(folder: Path) -> Path:
    return folder / "jobs.jsonl"
