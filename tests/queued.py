"""A list that plays Slurm's queue."""

from __future__ import annotations

from typing import Any

from launch.slurm import RefusedError
from launch.submission import Submission


class Queue:
    """Takes jobs and numbers them from 1."""

    def __init__(self) -> None:
        self.taken: list[Submission] = []
        self.cancelled: list[str] = []
        self.refuses = ""
        self.most = 1000

    def submit(self, what: Submission, calls: Any) -> str:
        if what.about["kind"] == self.refuses or len(self.taken) == self.most:
            raise RefusedError("sbatch", "a job that this cluster takes", "none")
        self.taken.append(what)
        return str(len(self.taken))

    def cancel(self, numbers: Any, users: Any = ()) -> None:
        self.cancelled += numbers

    @property
    def kinds(self) -> list[str]:
        return [what.about["kind"] for what in self.taken]
