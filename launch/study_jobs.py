"""The jobs of one study: arrays of trainings, arrays of what is asked of each model behind them, the page."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kapdist.run.paths import RunDir, StudyDir
from launch import jobs, slurm
from launch.array import needs
from launch.call import Call
from launch.cluster import ClusterConfig, Kind
from launch.submission import Submission, submission


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


@dataclass(frozen=True)
class StudyJobs:
    """What is submitted for one study. The methods that return a Submission are pure."""

    study: StudyDir
    cluster: ClusterConfig
    code: Path
    """Snapshot that the jobs run."""

    def pieces(self, runs: Sequence[RunDir]) -> Iterator[Sequence[RunDir]]:
        """Yield the models of each array, none larger than the cluster allows."""
        size = self.cluster.max_array_size or slurm.max_array_size()
        for start in range(0, len(runs), size):
            yield runs[start : start + size]

    def trainings(self, runs: Sequence[RunDir]) -> Submission:
        return self.array("train", runs)

    def models(self, behind: Behind) -> Submission:
        return self.array("model", behind.runs, behind.dependency)

    def page(self, before: Sequence[str]) -> Submission:
        """It starts when all others have ended, however that was, since it checks for itself what there is."""
        root = shlex.quote(str(self.study.root))
        return self.job("study", self.cluster.of("study"), f"launch.after study {root}", needs(ended=before))

    def array(self, kind: Kind, runs: Sequence[RunDir], dependency: dict[str, str] | None = None) -> Submission:
        """An element for each model; which one that is, the script looks up."""
        places = " ".join(shlex.quote(str(run.root)) for run in runs)
        lookup = f"models=({places}); model=${{models[${{SLURM_ARRAY_TASK_ID:-0}}]}}"
        cluster = self.cluster.of(kind)
        cluster = cluster.model_copy(update={"setup": (*cluster.setup, lookup)})
        names = [run.name for run in runs]
        last_word = f'launch.after {kind} "$model"'
        return self.job(kind, cluster, last_word, dependency or {}, elements=len(runs), models=names)

    def job(
        self, kind: Kind, cluster: ClusterConfig, last_word: str, dependency: dict[str, str], **more: Any
    ) -> Submission:
        name, folder = f"{self.study.name}/{kind}", self.study.slurm
        return submission(name, folder, cluster, self.code, last_word, sbatch=dependency, kind=kind, **more)

    def queue(self, what: Submission, calls: Sequence[Call], runs: Sequence[RunDir] = ()) -> str:
        """Submit; the study and each of its models remember the job, a model its own element."""
        job = slurm.submit(what, calls)
        jobs.remember(self.study.slurm, job, what)
        alone = replace(what, elements=0, about=what.about | {"logs": str(what.folder.absolute())})
        for number, run in enumerate(runs):
            jobs.remember(run.slurm, f"{job}_{number}" if what.elements > 1 else job, alone)
        return job
