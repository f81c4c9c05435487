"""The status of an attack, read off its chunk files and off what Slurm says. Writes nothing, opens no chunk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kapdist.errors import InputError
from kapdist.records.sealed import read_json
from kapdist.records.sharding import finished_chunks, missing_shards, num_chunks
from kapdist.run.files import first_line_in
from kapdist.run.paths import AttackDir
from launch.after import Start, shard_failed
from launch.jobs import time_in
from launch.journal import last_trouble
from launch.status.explanation import LogLine, explain
from launch.status.slurm import FAILS, RUNS, WAITS, Answers, JobStatus, newest_of_shards
from launch.status.training import Verdict, at_work, scan

EXPLAINED = 5  # shards whose logs are looked into
SAMPLED = 200  # chunk files whose time is asked for: a shared file system takes its time for each


@dataclass(frozen=True)
class FailedShard:
    """A shard that was given up, or that ended badly and is not queued."""

    shard: int
    reason: str
    starts: int
    log_line: LogLine | None


@dataclass(frozen=True)
class Shards:
    """What became of the shards; each is counted once."""

    total: int
    finished: int
    running: int
    waiting: int
    failed: list[int]
    missing: list[int]
    """Neither finished nor queued, and nothing says that they failed."""
    unknown: list[int]
    """Not finished, and Slurm says nothing of them."""
    explained: list[FailedShard]
    """The first few of the failed ones."""


@dataclass(frozen=True)
class Attack:
    """The status of an attack."""

    name: str
    verdict: Verdict
    jobs: list[JobStatus]
    chunks_done: int = 0
    chunks_total: int | None = None
    shards: Shards | None = None
    """None where no array was queued."""
    chunks_per_second: float | None = None
    seconds_left: float | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    """The merged result: counts and accuracies with their intervals."""
    log_line: LogLine | None = None
    queueing: str = ""
    """What is wrong with its newest submission."""


def read_attack(directory: AttackDir, lines: Iterable[Mapping[str, Any]], answers: Answers) -> Attack:
    """Read the status of an attack."""
    lines = list(lines)
    jobs = [answers.job(line) for line in lines]
    finished, total = finished_chunks(directory), planned_chunks(directory)
    shards = shards_of(directory, lines, answers) if total is not None else None
    summary: dict[str, Any] = {}
    with contextlib.suppress(InputError):  # not merged yet
        summary = read_json(directory.summary)
    found = verdict(directory, jobs, shards, summary, answers)
    rate = chunk_rate(directory, finished) if found.state == "RUNNING" else None
    return Attack(
        name=directory.root.resolve().name,
        verdict=found,
        jobs=jobs,
        chunks_done=len(finished),
        chunks_total=total,
        shards=shards,
        chunks_per_second=rate,
        seconds_left=(total - len(finished)) / rate if rate and total is not None else None,
        summary={key: summary[key] for key in RESULT if key in summary},
        log_line=explanation(directory, found, jobs),
        queueing=last_trouble(directory.slurm),
    )


RESULT = ("num_images", "clean_accuracy", "robust_accuracy")


def planned_chunks(directory: AttackDir) -> int | None:
    """Return the number of chunks, None before there is a plan."""
    try:
        return num_chunks(directory)
    except InputError:
        return None


def verdict(
    directory: AttackDir, jobs: list[JobStatus], shards: Shards | None, summary: dict[str, Any], answers: Answers
) -> Verdict:
    """Say what state it is in."""
    runs = [job for job in jobs if job.runs]
    waits = [job for job in jobs if job.waits]
    if summary:
        return Verdict("DONE")
    if why := first_line_in(directory.failed):
        return Verdict("FAILED", why)
    if runs:
        return Verdict("RUNNING", f"{runs[0].kind}, job {', '.join(job.job for job in runs)}")
    if waits:
        return Verdict("PENDING", next((job.reason for job in waits if job.reason), "no reason given yet"))
    if worker := at_work(directory.lock, seen_elsewhere=True):
        return Verdict("RUNNING", worker)
    if jobs and answers.queue is None:
        return Verdict("UNKNOWN", f"squeue says nothing here of job {jobs[-1].job}")
    if shards and shards.failed:
        return Verdict("STOPPED", f"not queued; {len(shards.failed)} shards failed")
    return Verdict("STOPPED", "not queued; " + ("not merged" if directory.plan.exists() else "not planned"))


def shards_of(directory: AttackDir, lines: list[Mapping[str, Any]], answers: Answers) -> Shards | None:
    """Sort the shards by what became of them; the word of the newest job that has a shard counts."""
    arrays = [line for line in lines if line["kind"] == "shards"]
    if not arrays:
        return None
    total = int(arrays[-1]["num_shards"])
    keys = newest_of_shards(lines)
    names = [entry.name.removeprefix("shard-") for entry in scan(shard_failed(directory, 0).parent)]
    given_up = {int(name) for name in names if name.isdecimal()}  # a killed writer leaves names of its own
    sorted_out: dict[str, list[int]] = {kind: [] for kind in ("running", "waiting", "failed", "missing", "unknown")}
    for shard in missing_shards(directory, total):
        state = answers.state(keys[shard]) if shard in keys else None
        sorted_out[fate(state, shard in given_up, silent=shard in keys and answers.queue is None)].append(shard)
    return Shards(
        total=total,
        finished=total - sum(map(len, sorted_out.values())),
        running=len(sorted_out["running"]),
        waiting=len(sorted_out["waiting"]),
        failed=sorted_out["failed"],
        missing=sorted_out["missing"],
        unknown=sorted_out["unknown"],
        explained=[failed_shard(directory, n, keys.get(n), answers) for n in sorted_out["failed"][:EXPLAINED]],
    )


def fate(state: str | None, given_up: bool, *, silent: bool) -> str:
    """Say what became of a shard that lacks chunks; one that was queued again is no longer given up."""
    if state in RUNS:
        return "running"
    if state in WAITS:
        return "waiting"
    if given_up or state in FAILS:
        return "failed"
    return "unknown" if silent and state is None else "missing"


def failed_shard(directory: AttackDir, shard: int, key: str | None, answers: Answers) -> FailedShard:
    """Look into the sentinel and the log of a shard."""
    marker = shard_failed(directory, shard)
    reason = first_line_in(marker) or (answers.state(key) if key else None) or "given up"
    starts = len(Start("shard", directory.root, shard=shard).ends.read())
    logs = [directory.slurm / f"{key}_0_log.out"] if key else []
    return FailedShard(shard, reason, starts, explain(None, [*logs, directory.shard_log(shard)]))


def chunk_rate(directory: AttackDir, finished: set[int]) -> float | None:
    """Return the chunks per second of late: the newer half of the files, over the time since the oldest of those.

    Only some of the files are asked for their time, evenly chosen.
    """
    chunks = sorted(finished)
    times = []
    for chunk in chunks[:: -(-len(chunks) // SAMPLED) or 1]:
        with contextlib.suppress(FileNotFoundError):
            times.append(directory.chunk(chunk).stat().st_mtime)
    newer = sorted(times)[len(times) // 2 :]
    if len(newer) < 2:
        return None
    share = (len(newer) - 1) / len(times)  # the oldest began the time that is measured
    return share * len(chunks) / max(time_in(directory.root) - newer[0], 1e-3)


def explanation(directory: AttackDir, found: Verdict, jobs: list[JobStatus]) -> LogLine | None:
    """Explain a failure of the plan or of the merge; shards explain themselves."""
    if found.state != "FAILED":
        return None
    # What comes after a plan that failed only says that there is none.
    kind = "aggregate" if directory.plan.exists() else "plan"
    logs = [directory.slurm / f"{job.job}_0_log.out" for job in reversed(jobs) if job.kind == kind]
    return (None if directory.plan.exists() else explain(None, logs)) or explain(directory.failed, logs)
