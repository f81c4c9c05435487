"""The last word of a batch script: done, another start, or FAILED.

The script itself runs it when its ranks have ended, whatever ended them, so that no rank needs to requeue anything
and a rank that was killed cannot forget to. Where Slurm starts the job again by itself (a preempted or failed
node), it kills the script, and this is not needed.
"""

from __future__ import annotations

import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Literal, cast

from kapdist.records.sharding import chunks_and_costs, chunks_of, finished_chunks
from kapdist.run.files import write_atomic
from kapdist.run.lock import other_at_work
from kapdist.run.paths import AttackDir, RunDir
from launch import jobs, slurm
from launch.cluster import ClusterConfig, Kind, load_cluster
from launch.died import tell_deaths
from launch.planned import plan_stands
from launch.restarts import HELD, End, Restarts, Verdict, verdict

CLUSTER = "cluster.yaml"
CANCELLED = 130  # exit code of a script whose job was cancelled: Slurm has its own word for that
RETRY_SECONDS = 5.0
NOT_AGAIN = "not started again"


def after_training(run: RunDir, code: int, cluster: ClusterConfig, job: str | None) -> Verdict:
    """Note how a start of a training ended; FAILED stays, or appears, only if there is no other start.

    Where somebody else is at work by now, DONE and FAILED are theirs.
    """
    code, reason = unless_held(run.lock, code, first_line(run.failed))
    if code != HELD:
        tell_deaths(run, code)
    ends = Restarts(run.slurm / "ends.jsonl").add(
        End(code, newest_step(run), job, reason or first_line(run.failed))
    )
    what, why = verdict(ends, run.done.exists(), cluster)
    if what == "again" and code != HELD and run.failed.exists():
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
    code, reason = unless_held(attack.lock, code)
    ends = Restarts(attack.slurm / "ends" / "plan.jsonl").add(End(code, 0, job, reason))
    what, why = verdict(ends, plan_stands(attack), cluster)
    if what == "give up":
        write_atomic(attack.failed, f"the attack was not planned: {why}; see {attack.slurm}\n")
    print(f"kapdist: {attack.root}: plan: {why}", flush=True)
    return what


def after_aggregate(attack: AttackDir, code: int, cluster: ClusterConfig, job: str | None) -> Verdict:
    """Note how a start of the aggregation ended; what it found missing is in FAILED already.

    It is done when the shards are added up and reported, or another aggregation is queued: one that was told to
    stop leaves with 0 too.
    """
    code, reason = unless_held(attack.lock, code)
    ends = Restarts(attack.slurm / "ends" / f"aggregate-{job}.jsonl").add(End(code, 0, job, reason))
    what, why = verdict(ends, is_aggregated(attack) or has_successor(attack, job), cluster)
    if what == "give up" and not attack.failed.exists():
        write_atomic(attack.failed, f"the shards were not added up: {why}; see {attack.slurm}\n")
    print(f"kapdist: {attack.root}: aggregation: {why}", flush=True)
    return what


def is_aggregated(attack: AttackDir) -> bool:
    return attack.summary.exists() and (attack.root / "report" / "index.html").exists()


def has_successor(attack: AttackDir, job: str | None) -> bool:
    """Return whether another aggregation was queued after a job's own."""
    return any(line["kind"] == "aggregate" for line in jobs.queued_after(attack.slurm, job))


def unless_held(lock: Path, code: int, reason: str = "") -> tuple[int, str]:
    """Return the exit code of ranks and their reason, or that somebody else is at work where they wanted to."""
    if code and (other := other_at_work(lock)):
        return HELD, str(other)
    return code, reason


def newest_step(run: RunDir) -> int:
    """Return the step of the newest checkpoint by its name, 0 if there is none."""
    return max((int(path.name.removeprefix("step-")) for path in run.checkpoints.glob("step-*")), default=0)


def shard_ends(attack: AttackDir, shard: int) -> Path:
    return attack.slurm / "ends" / f"shard-{shard}.jsonl"


def shard_failed(attack: AttackDir, shard: int) -> Path:
    return attack.slurm / "failed" / f"shard-{shard}"


def first_line(path: Path) -> str:
    return words_of(path).partition("\n")[0]


def words_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def act(what: Verdict, code: int, cluster: ClusterConfig, failed: Path, cause: str = "") -> int:
    """Requeue if that is the verdict; return the exit code of the batch script.

    A job that was cancelled stays cancelled, and one that Slurm is already starting again is left to it.

    Args:
        failed: says that the job does not start again, as long as it cannot be had.
        cause: the ranks' own words, which then belong there too.
    """
    job = slurm.this_job()
    if what == "done" or job is None:
        return 0
    if what != "again":
        return code or 1
    say = partial(not_again, failed if code != HELD else None, cause)
    fate, refusal = start_again(job)
    deadline = time.monotonic() + 60 * cluster.time_minutes
    if fate == "silent":
        say(f"Slurm does not answer ({refusal})")
    while fate == "silent" and time.monotonic() < deadline:
        time.sleep(RETRY_SECONDS)
        fate, refusal = start_again(job)
    if fate == "restarted":
        if first_line(failed).startswith(NOT_AGAIN):
            failed.unlink(missing_ok=True)
        return 0
    if fate == "cancelled":
        print(f"kapdist: job {job} was cancelled; what is done stays", flush=True)
        return CANCELLED
    if fate == "refused":
        say(refusal)
    return code or 1


def start_again(job: str) -> tuple[Literal["restarted", "cancelled", "silent", "refused"], str]:
    """Ask Slurm to start the job again; return what becomes of it, and why it does not start.

    Even a cancelled job can be requeued, so that is not asked of a controller that says nothing of the job.
    """
    if shutil.which("scontrol") is None:
        return "refused", "no scontrol on this node"
    facts = slurm.job_facts(job)
    if not facts:
        return "silent", "nothing about this job"
    fate = fate_of(facts, slurm.restart_count())
    if fate != "ended":
        return fate, ""
    refusal = slurm.requeue(job)
    if not refusal:
        return "restarted", ""
    # A controller that still speaks of the job means what it said.
    return "refused" if slurm.job_facts(job) else "silent", refusal


def not_again(failed: Path | None, cause: str, why: str) -> None:
    line = f"{NOT_AGAIN}: {why}; submit it again to continue"
    print(f"kapdist: {line}", flush=True)
    if failed:
        write_atomic(failed, f"{line}\n{cause}")


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
    run, attack = RunDir(Path(place)), AttackDir(Path(place))
    cluster = load_cluster(run.slurm / CLUSTER)
    failed = attack.failed
    cause = words_of(failed) if kind == "train" else ""
    if kind != "shard":  # shards work side by side, without a lock
        code, _ = unless_held(run.lock, code)
    if kind == "train":
        what = after_training(run, code, cluster, job)
    elif kind == "plan":
        what = after_plan(attack, code, cluster, job)
    elif kind == "aggregate":
        what = after_aggregate(attack, code, cluster, job)
    else:
        shard, num_shards = map(int, numbers[:2])
        what, failed = after_shard(attack, shard, num_shards, code, cluster, job), shard_failed(attack, shard)
    ended = act(what, code, cluster.of(cast(Kind, kind)), failed, cause)
    if ended == CANCELLED and kind == "shard":  # without accounts Slurm forgets it in minutes
        write_atomic(failed, f"cancelled (job {job})\n")
    return ended


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a requeue sends it before scontrol has its answer
    sys.exit(main(sys.argv[1:]))
