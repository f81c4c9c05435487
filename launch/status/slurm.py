"""What Slurm says of the jobs of a directory: at most one squeue and one sacct, each with a short limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from kapdist.run.slurm import RUNS
from launch import slurm
from launch.jobs import users_of

SECONDS = 4.0  # a controller that hangs is as good as none

WAITS = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
FAILS = {"FAILED", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "TIMEOUT"}


@dataclass(frozen=True)
class JobStatus:
    """One job, or one array, as it was queued and as Slurm knows it."""

    job: str
    name: str
    kind: str
    submitted: float
    """Seconds since the epoch."""
    states: dict[str, int]
    """{Slurm's word: number of elements}; UNKNOWN where Slurm has none."""
    reason: str = ""
    """Why it waits, in Slurm's word."""
    logs: str = ""
    """Where its logs are, if that is not beside the record of the job."""

    @property
    def runs(self) -> bool:
        return bool(RUNS & self.states.keys())

    @property
    def waits(self) -> bool:
        return bool(WAITS & self.states.keys())


@dataclass(frozen=True)
class Answers:
    """The answers; `queue` is None where squeue gave none."""

    queue: dict[str, tuple[str, str]] | None = None
    accounts: dict[str, str] = field(default_factory=dict)

    def state(self, key: str) -> str | None:
        """Return the state of a job or array element, None if nobody knows it."""
        if self.queue is not None and key in self.queue:
            return self.queue[key][0]
        state = self.accounts.get(key)
        if self.queue is not None and state in RUNS | WAITS:
            return None  # it has left the queue, and the accounts are late
        return state

    def job(self, line: Mapping[str, Any]) -> JobStatus:
        """Return the status of a job by its line of slurm/jobs.jsonl."""
        keys = keys_of(line)
        found = Counter(self.state(key) or "UNKNOWN" for key in keys)
        reasons = [
            reason for key in keys for state, reason in [(self.queue or {}).get(key, ("", ""))] if state in WAITS
        ]
        return JobStatus(
            job=line["job"],
            name=line["name"],
            kind=line["kind"],
            submitted=line["submitted"],
            states=dict(found),
            reason=next((reason for reason in reasons if reason != "None"), ""),
            logs=line.get("logs", ""),
        )


def keys_of(line: Mapping[str, Any]) -> list[str]:
    """Return Slurm's names of the elements of an array, or of the job."""
    elements = int(line["elements"])
    return [f"{line['job']}_{index}" for index in range(elements)] if elements > 1 else [line["job"]]


def newest_of_shards(lines: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    """Return {shard: Slurm's name of the newest job that has it}."""
    arrays = [line for line in lines if line["kind"] == "shards"]
    return {shard: key for line in arrays for shard, key in zip(line["shards"], keys_of(line), strict=True)}


def ask_slurm(lines: Iterable[Mapping[str, Any]], seconds: float = SECONDS) -> Answers:
    """Ask for all jobs of some lines at once, the queue and the accounts side by side."""
    lines = list(lines)
    if not lines:
        return Answers(queue={})
    numbers = [line["job"] for line in lines]
    with ThreadPoolExecutor(2) as pool:
        queue = pool.submit(slurm.queued, numbers, users_of(lines), seconds)
        accounts = pool.submit(slurm.accounted, numbers, seconds)
        return Answers(queue.result(), accounts.result())
