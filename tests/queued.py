"""A list that plays Slurm's queue."""

from __future__ import annotations

from typing import Any

from kapdist.errors import InputError
from launch.submission import Submission


class Queue:
    """Takes jobs and numbers them from 1."""

    def __init__(self) -> None:
        self.taken: list[Submission] = []
        self.cancelled: list[str] = []
        self.refuses = ""

    def submit(self, what: Submission, calls: Any) -> str:
        if what.about["kind"] == self.refuses:
            raise InputError("sbatch", "a job that this cluster takes", "none")
        self.taken.append(what)
        return str(len(self.taken))

    def cancel(self, numbers: Any) -> None:
        self.cancelled += numbers

    @property
    def kinds(self) -> list[str]:
        return [what.about["kind"] for what in self.taken]
