"""What was to be submitted, written before Slurm is asked: whoever dies in between has not submitted twice.

slurm/submissions.jsonl has a line for each intent, and one for each that came to nothing; the number of any other
is in slurm/jobs.jsonl, or is still to be found: the job carries the intent's token. Each run of an array has the
intent of its element too, as the next command may be for that run alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from kapdist.errors import TransientError
from kapdist.run.files import append_line, lines_in
from launch import jobs, slurm
from launch.call import Call
from launch.submission import Submission

JOURNAL = "submissions.jsonl"
ON_ITS_WAY_SECONDS = 10.0  # an sbatch may outlive whoever called it


@dataclass(frozen=True)
class Intent:
    """A submission that was about to be made."""

    token: str
    line: dict[str, Any]
    """Of the record of jobs, but for the number."""
    runs: tuple[str, ...] = ()
    """Folders that remember the job too, an element of it each."""
    element: str = ""
    """Of the folder's own: what stands behind the job's number."""

    def of_run(self, folder: Path, number: int) -> Intent:
        """Return what the run of an element has to know of a submission from a folder."""
        own = self.line | {"elements": 0, "logs": str(folder.absolute())}
        return Intent(self.token, own, element=f"_{number}" if self.line["elements"] > 1 else "")

    @property
    def user(self) -> str:
        return str(self.line["by"]).partition("@")[0]


def queue(what: Submission, calls: Sequence[Call], runs: Sequence[Path] = ()) -> str:
    """Submit a job, or an array of them, and remember it; return its number.

    Args:
        runs: folders that remember it too, an element of an array each.

    Raises:
        RefusedError, TransientError: as `slurm.submit`.
    """
    token = uuid4().hex[:12]
    intent = Intent(token, jobs.line_of(what), tuple(map(str, runs)))
    write(what.folder, {"token": token, "intent": intent.line, "runs": list(intent.runs)})
    for number, run in enumerate(runs):
        own = intent.of_run(what.folder, number)
        write(run, {"token": token, "intent": own.line, "runs": [], "element": own.element})
    try:
        job = slurm.submit(replace(what, token=token), calls)
    except slurm.RefusedError as error:
        for folder in (what.folder, *runs):
            write(folder, {"token": token, "refused": str(error)})
        raise
    remember(what.folder, intent, job)
    return job


def settle(folder: Path) -> None:
    """Find out what became of the submissions that nobody has noted the end of; those that are jobs are remembered.

    Raises:
        TransientError: Slurm does not answer.
    """
    began = time.monotonic()
    while unknown := unanswered(folder):
        found = slurm.submitted_as(
            [intent.token for intent in unknown],
            {intent.user for intent in unknown},
            min(intent.line["submitted"] for intent in unknown),
        )
        if found is None:
            raise TransientError("squeue does not answer; a submission was cut off here, and may be a job")
        waited = time.monotonic() - began  # the files' clock may be set back
        for intent in unknown:
            if intent.token in found:
                remember(folder, intent, found[intent.token])
                job = found[intent.token] + intent.element
                print(f"{folder.parent}: job {job} was queued by a command that was cut off")
            elif max(jobs.time_in(folder) - intent.line["submitted"], waited) > ON_ITS_WAY_SECONDS:
                write(folder, {"token": intent.token, "absent": True})
        if unanswered(folder):
            time.sleep(0.5)


def unanswered(folder: Path) -> list[Intent]:
    """Return the intents of which it is not known whether they became jobs, oldest first."""
    lines = lines_in(folder / JOURNAL)
    ended = {line["token"] for line in lines if "intent" not in line}
    ended |= {line.get("token") for line in jobs.remembered(folder)}
    made = [
        Intent(line["token"], line["intent"], tuple(line["runs"]), line.get("element", ""))
        for line in lines
        if "intent" in line
    ]
    return [intent for intent in made if intent.token not in ended]


def remember(folder: Path, intent: Intent, job: str) -> None:
    """Write down an intent's job wherever it is looked for, and last in the folder of the intent."""
    for number, run in enumerate(map(Path, intent.runs)):
        if intent.token not in {known.get("token") for known in jobs.remembered(run)}:
            remember(run, intent.of_run(folder, number), job)
    line = {"job": job + intent.element} | intent.line | {"token": intent.token}
    append_line(jobs.record(folder), line)


def last_trouble(folder: Path) -> str:
    """Say what is wrong with the newest submission: refused, or cut off; "" if nothing is."""
    if unknown := unanswered(folder):
        return f"a {unknown[-1].line['kind']} job that was submitted, or not: the command was cut off; run it again"
    lines = lines_in(folder / JOURNAL)
    return str(lines[-1].get("refused", "")) if lines else ""


def write(folder: Path, line: dict[str, Any]) -> None:
    append_line(folder / JOURNAL, line)
