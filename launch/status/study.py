"""The status of a study and of its jobs: what `kapdist study status` says, and what Slurm does."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from kapdist.run.files import first_line_in
from kapdist.run.paths import StudyDir
from kapdist.study.status import StudyStatus, find_design, read_study_status
from kapdist.study.view import render
from launch.jobs import remembered
from launch.journal import last_trouble
from launch.status.slurm import JobStatus, ask_slurm
from launch.status.table import job_rows, table


@dataclass(frozen=True)
class StudyJobsStatus:
    """A study, and the jobs that were queued for it."""

    study: StudyStatus
    jobs: list[JobStatus]
    """Those that Slurm still has, and the last."""
    slurm_answers: bool
    failed: str
    """What the job of the page says of its failure."""
    now: float
    queueing: str = ""
    """What is wrong with the newest submission."""
    unknown: bool = False
    """Nobody says whether some of its jobs wait or run."""

    @property
    def ended(self) -> bool:
        """Nothing more will happen by itself."""
        return not (self.unknown or self.study.at_work or any(job.runs or job.waits for job in self.jobs))

    def describe(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return asdict(self) | {"study": self.study.describe(), "ended": self.ended}

    def render(self) -> RenderableType:
        notes = [Text(f"the page failed: {self.failed}", style="red")] if self.failed else []
        if not self.slurm_answers:
            notes.append(Text("Slurm does not answer", style="yellow"))
        return Group(render(self.study), *notes, table(job_rows(self.jobs, self.now, self.queueing)))


def is_study(root: Path) -> bool:
    return StudyDir(root).frozen.is_file()


def read_study_jobs(root: Path, now: float) -> StudyJobsStatus:
    """Read the status of a study's directory; Slurm is asked once for all of its jobs."""
    place = StudyDir(root)
    lines = remembered(place.slurm)
    answers = ask_slurm(lines)
    found = [answers.job(line) for line in lines]
    moving = [job for job in found[:-1] if job.runs or job.waits]
    return StudyJobsStatus(
        study=read_study_status(find_design(root)),
        jobs=[*moving, *found[-1:]],
        slurm_answers=answers.queue is not None,
        failed=first_line_in(place.failed),
        now=now,
        queueing=last_trouble(place.slurm),
        unknown=answers.queue is None
        and not place.finished.exists()
        and any("UNKNOWN" in job.states for job in found),
    )
