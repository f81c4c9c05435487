"""Arrays of jobs with an element for each of several runs: the trainings of a study, or of several seeds."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kapdist.config import Config
from kapdist.run.paths import RunDir, SeedsDir, StudyDir
from launch import journal, slurm
from launch.call import Call
from launch.cluster import ClusterConfig, Kind
from launch.container import folders_named
from launch.submission import Submission, submission


@dataclass(frozen=True)
class RunArrays:
    """What is submitted for several runs. The methods that return a Submission are pure."""

    place: StudyDir | SeedsDir
    cluster: ClusterConfig
    code: Path
    """Snapshot that the jobs run."""
    configs: Sequence[Config] = ()
    """Of the runs, for the folders that they name."""

    def pieces(self, runs: Sequence[RunDir]) -> Iterator[Sequence[RunDir]]:
        """Yield the runs of each array, none larger than the cluster allows."""
        size = self.cluster.max_array_size or slurm.max_array_size()
        for start in range(0, len(runs), size):
            yield runs[start : start + size]

    def trainings(self, runs: Sequence[RunDir]) -> Submission:
        return self.array("train", runs)

    def train(self, runs: Sequence[RunDir]) -> str:
        """Queue the trainings of some runs; return the job's number."""
        return self.queue(self.trainings(runs), [Call("launch.rank:train", (run.root,)) for run in runs], runs)

    def array(self, kind: Kind, runs: Sequence[RunDir], dependency: dict[str, str] | None = None) -> Submission:
        """An element for each run; which one that is, the script looks up."""
        places = " ".join(shlex.quote(str(run.root)) for run in runs)
        lookup = f"models=({places}); model=${{models[${{SLURM_ARRAY_TASK_ID:-0}}]}}"
        cluster = self.cluster.of(kind)
        cluster = cluster.model_copy(update={"setup": (*cluster.setup, lookup)})
        names = [run.name for run in runs]
        last_word = f'launch.after {kind} "$model"'
        folders = [run.root for run in runs]
        return self.job(kind, cluster, last_word, dependency or {}, folders, elements=len(runs), models=names)

    def job(
        self,
        kind: Kind,
        cluster: ClusterConfig,
        last_word: str,
        dependency: dict[str, str],
        folders: Sequence[Path] = (),
        **more: Any,
    ) -> Submission:
        name, folder = f"{self.place.name}/{kind}", self.place.slurm
        folders = [self.place.root, *folders, *folders_named(tuple(self.configs))]
        return submission(
            name, folder, cluster, self.code, last_word, sbatch=dependency, kind=kind, folders=folders, **more
        )

    def queue(self, what: Submission, calls: Sequence[Call], runs: Sequence[RunDir] = ()) -> str:
        """Submit; each of the runs remembers its own element too."""
        return journal.queue(what, calls, [run.slurm for run in runs])
