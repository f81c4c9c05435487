"""The jobs of one study: arrays of trainings, arrays of what is asked of each model behind them, the page."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from kapdist.run.paths import RunDir
from launch.array import needs
from launch.runs import RunArrays
from launch.submission import Submission


@dataclass(frozen=True)
class Behind:
    """Models that are asked in one array, and the jobs that it waits for."""

    runs: Sequence[RunDir]
    trainings: str = ""
    """The array that trains them, element by element, or the one job that trains the only one."""
    attacks: Sequence[str] = ()
    """The last jobs of attacks that have jobs of their own."""

    @property
    def dependency(self) -> dict[str, str]:
        """An element waits for the training of its own model; where that fails, there is nothing to ask."""
        options = needs([self.trainings] if self.trainings else [], self.attacks)
        if len(self.runs) > 1 and self.trainings:
            options["dependency"] = options["dependency"].replace("afterok:", "aftercorr:")
        return options


class StudyJobs(RunArrays):
    """What is submitted for one study. The methods that return a Submission are pure."""

    def models(self, behind: Behind) -> Submission:
        return self.array("model", behind.runs, behind.dependency)

    def page(self, before: Sequence[str]) -> Submission:
        """It starts when all others have ended, however that was, since it checks for itself what there is."""
        root = shlex.quote(str(self.place.root))
        return self.job("study", self.cluster.of("study"), f"launch.after study {root}", needs(ended=before))
