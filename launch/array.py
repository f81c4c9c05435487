"""The jobs of one attack: a plan, arrays of shards, an aggregation after them, whatever became of them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kapdist.config import AttackConfig
from kapdist.errors import InputError, TransientError
from kapdist.run.paths import AttackDir, RunDir
from launch import journal, slurm
from launch.call import Call
from launch.cluster import ClusterConfig
from launch.container import folders_named
from launch.planned import ATTACK
from launch.submission import Submission, submission

Queue = Callable[[Submission, Sequence[Call]], str]


@dataclass(frozen=True)
class AttackJobs:
    """What is submitted for one attack. The methods that return a Submission are pure."""

    run: RunDir
    attack: AttackDir
    cluster: ClusterConfig
    code: Path
    """Snapshot that the jobs run."""
    trainings: Sequence[str] = ()
    """Jobs that the plan waits for."""
    folders: Sequence[Path] = ()
    """That the jobs read and write, beside the attack's own."""
    taken: list[str] = field(default_factory=list)
    """The jobs that Slurm has taken so far."""

    def submit(self, shards: list[int], num_shards: int, *, with_plan: bool, retry: int = 0) -> str:
        """Queue the plan if need be, these shards and the aggregation; return the line for the user.

        Raises:
            InputError: Slurm refuses one of them; those before it are cancelled, and named.
        """
        try:
            plan, arrays, last = self.each(shards, num_shards, self.queue, with_plan=with_plan, retry=retry)
        except InputError as error:
            error.args = ("; ".join(filter(None, [str(error), self.take_back()])),)
            raise
        except BaseException:
            print(f"kapdist: {self.take_back() or 'nothing was queued'}", file=sys.stderr)
            raise
        waits = f" after job {', '.join(self.trainings)}" if self.trainings else ""
        planned = f"plan {plan}{waits}, " if plan else ""
        return f"{self.attack.root}: {planned}{len(shards)} shards in job {', '.join(arrays)}, aggregation {last}"

    def each(
        self, shards: list[int], num_shards: int, queue: Queue, *, with_plan: bool, retry: int = 0
    ) -> tuple[str, list[str], str]:
        """Give `queue` one submission after the other; return the numbers of the plan, the arrays, the aggregation.

        Where the cluster's arrays are so small that there are more of them than shards may run at one time, each
        waits for an earlier one to end.
        """
        planning = Call("launch.rank:plan_attack", (self.run.root, self.attack.slurm / ATTACK))
        plan = queue(self.plan(), [planning]) if with_plan else ""
        pieces = self.pieces(shards)
        abreast = min(len(pieces), self.cluster.shards_at_once)
        arrays: list[str] = []
        for number, piece in enumerate(pieces):
            before = arrays[number - abreast] if number >= abreast else ""
            array = self.array(piece, num_shards, self.cluster.shards_at_once // abreast, plan, before)
            calls = [Call("kapdist.attack.shard:run_shard", (self.attack.root, n, num_shards)) for n in piece]
            arrays.append(queue(array, calls))
        last = Call("launch.aggregate:aggregate", (self.run, self.attack, retry))
        return plan, arrays, queue(self.aggregation(arrays), [last])

    def queue(self, what: Submission, calls: Sequence[Call]) -> str:
        self.taken.append(journal.queue(what, calls))
        return self.taken[-1]

    def take_back(self) -> str:
        """Cancel what was queued so far; return what is to be said of it."""
        if not self.taken:
            return ""
        named = f"job {', '.join(self.taken)}, queued before it,"
        try:
            slurm.cancel_and_wait(self.taken)
        except (OSError, TransientError) as error:
            return f"{named} is left: {error} (scancel {' '.join(self.taken)})"
        return f"{named} is cancelled"

    def pieces(self, shards: list[int]) -> list[list[int]]:
        """Return the shards of each array, none larger than the cluster allows."""
        size = self.cluster.max_array_size or slurm.max_array_size()
        return [shards[start : start + size] for start in range(0, len(shards), size)]

    def plan(self) -> Submission:
        """It starts when the trainings are done; if one of them fails the attack is called off."""
        return self.job("plan", self.cluster.of("plan"), self.last_word("plan"), needs(self.trainings))

    def array(self, shards: list[int], num_shards: int, at_once: int, plan: str, before: str) -> Submission:
        """It starts when the plan is there and the array before it has ended, however that was."""
        # The array's elements are numbered from 0; which shard that is, the script looks up.
        lookup = f"shards=({' '.join(map(str, shards))}); shard=${{shards[${{SLURM_ARRAY_TASK_ID:-0}}]}}"
        cluster = self.cluster.of("shard")
        return self.job(
            "shards",
            cluster.model_copy(update={"setup": (*cluster.setup, lookup), "shards_at_once": at_once}),
            self.last_word("shard", f"$shard {num_shards}"),
            needs([plan] if plan else [], [before] if before else []),
            elements=len(shards),
            shards=shards,
            num_shards=num_shards,
        )

    def aggregation(self, arrays: list[str]) -> Submission:
        """It starts after the arrays however they end, since it checks for itself what is missing."""
        cluster = self.cluster.of("aggregate")
        return self.job("aggregate", cluster, self.last_word("aggregate"), needs(ended=arrays))

    def job(
        self, kind: str, cluster: ClusterConfig, last_word: str, dependency: dict[str, str], **more: Any
    ) -> Submission:
        name = f"{self.run.name}/{self.attack.root.name}/{kind}"
        folder = self.attack.slurm
        folders = [self.run.root, *self.folders]
        return submission(
            name, folder, cluster, self.code, last_word, sbatch=dependency, kind=kind, folders=folders, **more
        )

    def last_word(self, kind: str, more: str = "") -> str:
        return " ".join(filter(None, ["launch.after", kind, shlex.quote(str(self.attack.root)), more]))


def folders_of(run: RunDir, config: AttackConfig) -> list[Path]:
    """Return the folders that an attack and the run that it is on name: data, weights, other runs."""
    configs = (run.read_config(), config) if run.config.exists() else (config,)
    return list(folders_named(configs))


def needs(done: Sequence[str] = (), ended: Sequence[str] = ()) -> dict[str, str]:
    """Return sbatch's options for a job that waits until some jobs are done and others have ended.

    What waits for a job that failed must not wait for ever. A job that is requeued has not failed.
    """
    words = [f"{word}:{':'.join(jobs)}" for word, jobs in (("afterok", done), ("afterany", ended)) if jobs]
    return ({"dependency": ",".join(words)} if words else {}) | ({"kill-on-invalid-dep": "yes"} if done else {})
