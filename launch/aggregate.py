"""The aggregation of an attack: if every chunk is there, merge and report; if not, the missing shards once more."""

from __future__ import annotations

from pathlib import Path

from kapdist.errors import InputError
from kapdist.rundir import AttackDir, RunDir, write_atomic
from kapdist.sharding import missing_shards
from launch import jobs, slurm
from launch.after import CLUSTER, shard_ends, shard_failed
from launch.array import AttackJobs
from launch.cluster import load_cluster
from launch.restarts import Restarts


def aggregate(run: RunDir, attack: AttackDir, retry: int) -> None:
    """Merge the attack, or queue what is missing, or say what is.

    Args:
        retry: how often missing shards were queued again before.

    Raises:
        InputError: shards are missing after all retries, each by name with its reason, or the chunks do not merge.
    """
    cluster = load_cluster(attack.slurm / CLUSTER)
    try:
        if not attack.plan.exists():
            raise InputError(attack.root, "a plan", "none: the plan job failed")
        array = [line for line in jobs.remembered(attack.slurm) if line["kind"] == "shards"][-1]
        missing = missing_shards(attack, array["num_shards"], look_inside=True)
        if not missing:
            merge_and_report(run, attack)
        elif retry < cluster.shard_retries:
            queued = AttackJobs(run, attack, cluster, Path(array["snapshot"]))
            once_more(queued, list(missing), array["num_shards"], retry)
        else:
            found = "; ".join(describe(attack, shard, chunks) for shard, chunks in missing.items())
            raise InputError(attack.root, "every shard", found)
    except InputError as error:
        write_atomic(attack.failed, f"{error}\n")
        raise


def once_more(queued: AttackJobs, missing: list[int], num_shards: int, retry: int) -> None:
    """Queue the missing shards and the next aggregation, once: this job may itself have been started twice."""
    lines = jobs.remembered(queued.attack.slurm)
    mine = [line["job"] for line in lines].index(str(slurm.this_job()))
    if any(line["kind"] == "aggregate" for line in lines[mine + 1 :]):
        return
    for shard in missing:
        shard_failed(queued.attack, shard).unlink(missing_ok=True)
        Restarts(shard_ends(queued.attack, shard)).forget()
    print(f"kapdist: missing shards once more: {', '.join(map(str, missing))}", flush=True)
    print(queued.submit(missing, num_shards, with_plan=False, retry=retry + 1), flush=True)


def describe(attack: AttackDir, shard: int, chunks: list[int]) -> str:
    """Name a missing shard, its chunks and why."""
    path = shard_failed(attack, shard)
    why = path.read_text().strip() if path.exists() else "ended without a word"
    return f"shard {shard} without {len(chunks)} chunks (the first is {chunks[0]}): {why}"


def merge_and_report(run: RunDir, attack: AttackDir) -> None:
    from kapdist.attack import merge
    from kapdist.report import write_report

    summary = merge(attack.root)
    print(f"kapdist: {attack.root}: {summary.describe()}", flush=True)
    print(f"kapdist: {write_report([run.root], attack.root / 'report')}", flush=True)
