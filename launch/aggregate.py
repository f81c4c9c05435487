"""The aggregation of an attack: if every chunk is there, merge and report; if not, the missing shards once more.

What somebody cancelled stays cancelled: nothing is queued again then, and FAILED says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kapdist.config import AttackConfig
from kapdist.config.file import load_config
from kapdist.errors import InputError, LockedError
from kapdist.records.sharding import missing_shards
from kapdist.run.files import first_line_in, text_in, write_atomic
from kapdist.run.paths import AttackDir, RunDir
from launch import jobs, journal, slurm
from launch.after import CLUSTER, Start, has_successor, shard_failed
from launch.array import AttackJobs, folders_of
from launch.cluster import load_cluster
from launch.planned import ATTACK, is_planned_as_submitted
from launch.status.slurm import Answers, ask_slurm, newest_of_shards


def aggregate(run: RunDir, attack: AttackDir, retry: int) -> None:
    """Merge the attack, or queue what is missing, or say what is.

    Args:
        retry: how often missing shards were queued again before.

    Raises:
        InputError: shards are missing after all retries or were cancelled, each by name with its reason, or the
            chunks do not merge.
    """
    cluster = load_cluster(attack.slurm / CLUSTER)
    try:
        if not is_planned_as_submitted(attack):
            raise InputError(attack.root, "a plan", "none: the plan job failed, or jobs were cancelled")
        lines = jobs.queued_until(attack.slurm, slurm.this_job())
        array = [line for line in lines if line["kind"] == "shards"][-1]
        missing = missing_shards(attack, array["num_shards"], look_inside=True)
        if not missing:
            merge_and_report(run, attack)
        elif retry < cluster.shard_retries and not note_cancelled(attack, missing, lines):
            folders = folders_of(run, load_config(AttackConfig, attack.slurm / ATTACK))
            queued = AttackJobs(run, attack, cluster, Path(array["snapshot"]), folders=folders)
            once_more(queued, list(missing), array["num_shards"], retry)
        else:
            found = "; ".join(describe(attack, shard, chunks) for shard, chunks in missing.items())
            raise InputError(attack.root, "every shard", found)
    except LockedError:
        raise  # no fault of the attack's
    except InputError as error:
        write_atomic(attack.failed, f"{error}\n")
        raise


def note_cancelled(attack: AttackDir, missing: Iterable[int], lines: list[dict[str, Any]]) -> list[int]:
    """Return those of the missing shards that were cancelled; slurm/failed says it of each."""
    answers = ask_slurm(lines, slurm.SECONDS)
    keys = newest_of_shards(lines)
    cancelled = [shard for shard in missing if shard in keys and was_cancelled(attack, shard, keys[shard], answers)]
    for shard in cancelled:
        write_atomic(shard_failed(attack, shard), f"cancelled (job {keys[shard]})\n")
    return cancelled


def was_cancelled(attack: AttackDir, shard: int, key: str, answers: Answers) -> bool:
    """Say whether somebody cancelled a shard's newest job: by its own last word, else by Slurm's.

    Of a job that never started there is no last word, and without accounts Slurm forgets it; but it has no log, and
    nothing but scancel ends what has not begun.
    """
    if first_line_in(shard_failed(attack, shard)).startswith("cancelled"):
        return True
    state = answers.state(key)
    forgotten = state is None and answers.queue is not None
    return state == "CANCELLED" or (forgotten and not (attack.slurm / f"{key}_0_log.out").exists())


def once_more(queued: AttackJobs, missing: list[int], num_shards: int, retry: int) -> None:
    """Queue the missing shards and the next aggregation, once: this job may itself have been started twice."""
    attack, mine = queued.attack, slurm.this_job()
    with slurm.submitting(attack.slurm):
        journal.settle(attack.slurm)
        if has_successor(attack, mine):
            return
        # An earlier start of this job was killed before its last submission.
        jobs.cancel(attack.slurm, jobs.living(jobs.queued_after(attack.slurm, mine)))
        for shard in missing:
            shard_failed(attack, shard).unlink(missing_ok=True)
            Start("shard", attack.root, shard=shard).ends.forget()
        print(f"kapdist: missing shards once more: {', '.join(map(str, missing))}", flush=True)
        print(queued.submit(missing, num_shards, with_plan=False, retry=retry + 1), flush=True)


def describe(attack: AttackDir, shard: int, chunks: list[int]) -> str:
    """Name a missing shard, its chunks and why."""
    why = text_in(shard_failed(attack, shard)).strip() or "ended without a word"
    return f"shard {shard} without {len(chunks)} chunks (the first is {chunks[0]}): {why}"


def merge_and_report(run: RunDir, attack: AttackDir) -> None:
    from kapdist.attack.merge import merge
    from kapdist.report import write_report

    summary = merge(attack.root)
    print(f"kapdist: {attack.root}: {summary.describe()}", flush=True)
    print(f"kapdist: {write_report([run.root], attack.root / 'report')}", flush=True)
