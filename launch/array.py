"""The jobs of one attack: a plan, arrays of shards, an aggregation after them, whatever became of them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kapdist.rundir import AttackDir, RunDir
from launch import jobs, slurm
from launch.cluster import ClusterConfig
from launch.rank import Aggregate, AttackShard, PlanAttack
from launch.submission import Submission, submission

ATTACK = "attack.yaml"


@dataclass(frozen=True)
class AttackJobs:
    """What is submitted for one attack. The methods that return a Submission are pure."""

    run: RunDir
    attack: AttackDir
    cluster: ClusterConfig
    code: Path
    """Snapshot that the jobs run."""

    def submit(self, shards: list[int], num_shards: int, *, with_plan: bool, retry: int = 0) -> str:
        """Queue the plan if need be, these shards and the aggregation; return the line for the user."""
        plan = self.queue(self.plan(), [PlanAttack(self.run.root, self.attack.slurm / ATTACK)]) if with_plan else ""
        arrays = []
        for array in self.arrays(shards, num_shards, after=plan):
            calls = [AttackShard(self.attack.root, shard, num_shards) for shard in array.about["shards"]]
            arrays.append(self.queue(array, calls))
        last = self.queue(self.aggregation(arrays), [Aggregate(self.run.root, self.attack.root, retry)])
        planned = f"plan {plan}, " if plan else ""
        return f"{self.attack.root}: {planned}{len(shards)} shards in job {', '.join(arrays)}, aggregation {last}"

    def queue(self, what: Submission, calls: Sequence[Callable[[], None]]) -> str:
        job = slurm.submit(what, calls)
        jobs.remember(self.attack.slurm, job, what)
        return job

    def plan(self) -> Submission:
        return self.job("plan", self.last_word("plan"))

    def arrays(self, shards: list[int], num_shards: int, after: str = "") -> list[Submission]:
        """Return the arrays that run these shards, none larger than the cluster allows."""
        size = self.cluster.max_array_size or slurm.max_array_size()
        pieces = [shards[start : start + size] for start in range(0, len(shards), size)]
        at_once = max(1, self.cluster.shards_at_once // len(pieces))
        return [self.array(piece, num_shards, after, at_once) for piece in pieces]

    def array(self, shards: list[int], num_shards: int, after: str, at_once: int) -> Submission:
        # The array's elements are numbered from 0; which shard that is, the script looks up.
        lookup = f"shards=({' '.join(map(str, shards))}); shard=${{shards[${{SLURM_ARRAY_TASK_ID:-0}}]}}"
        # An array whose plan failed must not wait for ever.
        dependency = {"dependency": f"afterok:{after}", "kill-on-invalid-dep": "yes"} if after else {}
        return self.job(
            "shards",
            self.last_word("shard", f"$shard {num_shards}"),
            self.cluster.model_copy(update={"setup": (*self.cluster.setup, lookup), "shards_at_once": at_once}),
            dependency,
            elements=len(shards),
            shards=shards,
            num_shards=num_shards,
        )

    def aggregation(self, arrays: list[str]) -> Submission:
        """It starts after the arrays however they end, since it checks for itself what is missing."""
        return self.job(
            "aggregate", self.last_word("aggregate"), dependency={"dependency": f"afterany:{':'.join(arrays)}"}
        )

    def job(
        self,
        kind: str,
        last_word: str,
        cluster: ClusterConfig | None = None,
        dependency: dict[str, str] | None = None,
        **more: Any,
    ) -> Submission:
        name = f"{self.run.name}/{self.attack.root.name}/{kind}"
        cluster = cluster or self.cluster
        return submission(
            name, self.attack.slurm, cluster, self.code, last_word, sbatch=dependency, kind=kind, **more
        )

    def last_word(self, kind: str, more: str = "") -> str:
        return " ".join(filter(None, ["launch.after", kind, shlex.quote(str(self.attack.root)), more]))
