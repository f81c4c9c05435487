"""The last word of a batch script: done, another start, or FAILED.

The script itself runs it when its ranks have ended, whatever ended them, so that no rank needs to requeue anything
and a rank that was killed cannot forget to. Where Slurm starts the job again by itself (a preempted or failed
node), it kills the script, and this is not needed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from kapdist.rundir import AttackDir, RunDir, write_atomic
from kapdist.sharding import chunks_and_costs, chunks_of, finished_chunks
from launch import slurm
from launch.cluster import ClusterConfig, load_cluster
from launch.died import tell_deaths
from launch.restarts import End, Restarts, Verdict, verdict

CLUSTER = "cluster.yaml"


def after_training(run: RunDir, code: int, cluster: ClusterConfig, job: str | None) -> Verdict:
    """Note how a start of a training ended; FAILED stays, or appears, only if there is no other start."""
    tell_deaths(run, code)
    ends = Restarts(run.slurm / "ends.jsonl").add(End(code, newest_step(run), job, first_line(run.failed)))
    what, why = verdict(ends, run.done.exists(), cluster)
    if what == "again" and run.failed.exists():
        run.failed.rename(run.attempts / str(run.last_attempt()) / "FAILED")  # not the last word
    if what == "give up":
        cause = run.failed.read_text() if run.failed.exists() else f"exit code {code}; see {run.slurm}\n"
        write_atomic(run.failed, f"given up: {why}\n{cause}")
    print(f"kapdist: {run.root}: {why}", flush=True)
    return what


def after_shard(
    attack: AttackDir, shard: int, num_shards: int, code: int, cluster: ClusterConfig, job: str | None
) -> Verdict:
    """Note how a start of a shard ended; why it was given up is in slurm/failed/shard-<n>."""
    planned, costs = chunks_and_costs(attack)
    mine = set(chunks_of(planned, shard, num_shards, costs))
    done = len(mine & finished_chunks(attack))
    ends = Restarts(shard_ends(attack, shard)).add(End(code, done, job))
    what, why = verdict(ends, done == len(mine), cluster)
    if what == "give up":
        write_atomic(shard_failed(attack, shard), f"{why}; exit code {code} (job {job})\n")
    print(f"kapdist: {attack.root}: shard {shard}, {done} of {len(mine)} chunks: {why}", flush=True)
    return what


def after_plan(attack: AttackDir, code: int, cluster: ClusterConfig, job: str | None) -> Verdict:
    """Note how a start of the planning ended."""
    ends = Restarts(attack.slurm / "ends" / "plan.jsonl").add(End(code, 0, job))
    what, why = verdict(ends, attack.plan.exists(), cluster)
    if what == "give up":
        write_atomic(attack.failed, f"the attack was not planned: {why}; see {attack.slurm}\n")
    print(f"kapdist: {attack.root}: plan: {why}", flush=True)
    return what


def after_aggregate(attack: AttackDir, code: int, cluster: ClusterConfig, job: str | None) -> Verdict:
    """Note how a start of the aggregation ended; what it found missing is in FAILED already."""
    ends = Restarts(attack.slurm / "ends" / f"aggregate-{job}.jsonl").add(End(code, 0, job))
    what, why = verdict(ends, code == 0, cluster)
    if what == "give up" and not attack.failed.exists():
        write_atomic(attack.failed, f"the shards were not added up: {why}; see {attack.slurm}\n")
    print(f"kapdist: {attack.root}: aggregation: {why}", flush=True)
    return what


def newest_step(run: RunDir) -> int:
    """Return the step of the newest checkpoint by its name, 0 if there is none."""
    return max((int(path.name.removeprefix("step-")) for path in run.checkpoints.glob("step-*")), default=0)


def shard_ends(attack: AttackDir, shard: int) -> Path:
    return attack.slurm / "ends" / f"shard-{shard}.jsonl"


def shard_failed(attack: AttackDir, shard: int) -> Path:
    return attack.slurm / "failed" / f"shard-{shard}"


def first_line(path: Path) -> str:
    lines = path.read_text().splitlines() if path.exists() else []
    return lines[0] if lines else ""


def act(what: Verdict, code: int) -> int:
    """Requeue if that is the verdict; return the exit code of the batch script.

    A job that was cancelled stays cancelled, and one that Slurm is already starting again is left to it.
    """
    job = slurm.this_job()
    if what == "done" or job is None:
        return 0
    if what == "give up":
        return code or 1
    fate = fate_of(slurm.job_facts(job), slurm.restart_count())
    if fate == "cancelled":
        print(f"kapdist: job {job} was cancelled; what is done stays", flush=True)
        return 1
    if fate == "ended" and not slurm.requeue(job):
        print(f"kapdist: Slurm does not requeue job {job}: submit it again to continue", flush=True)
        return 1
    return 0


def fate_of(facts: dict[str, str], restarts: str) -> Literal["ended", "restarted", "cancelled"]:
    """Say what became of a job whose batch script is still running, by `scontrol show job`.

    Slurm counts a restart when it decides on one. As long as a job is completing it hides the word CANCELLED; but
    only a cancelled job and one past its time limit complete before their script ends, and the latter says so.
    """
    if int(facts.get("Restarts", 0)) > int(restarts):
        return "restarted"
    if facts.get("JobState") in {"COMPLETING", "CANCELLED"} and facts.get("Reason") != "TimeLimit":
        return "cancelled"
    return "ended"


def main(words: list[str]) -> int:
    """Run as `python -m launch.after KIND PLACE ... CODE`, as the batch scripts do; CODE is that of the ranks."""
    kind, place, *numbers = words
    code, job = int(numbers[-1]), slurm.this_job()
    root = Path(place)
    cluster = load_cluster(root / "slurm" / CLUSTER)
    if kind == "train":
        what = after_training(RunDir(root), code, cluster, job)
    elif kind == "plan":
        what = after_plan(AttackDir(root), code, cluster, job)
    elif kind == "aggregate":
        what = after_aggregate(AttackDir(root), code, cluster, job)
    else:
        what = after_shard(AttackDir(root), int(numbers[0]), int(numbers[1]), code, cluster, job)
    return act(what, code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
