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
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, cast

from kapdist.records.sharding import chunks_and_costs, chunks_of, finished_chunks
from kapdist.run.ends import deaths, end_of, killed_by
from kapdist.run.files import first_line_in, text_in, write_atomic, write_first
from kapdist.run.lock import clear, other_at_work
from kapdist.run.paths import AttackDir, RunDir, StudyDir
from launch import jobs, slurm
from launch.cluster import ClusterConfig, Kind, load_cluster
from launch.planned import is_planned_as_submitted
from launch.restarts import HELD, WRONG_INPUT, End, Restarts, Verdict, verdict

CLUSTER = "cluster.yaml"
CANCELLED = 130  # exit code of a script whose job was cancelled: Slurm has its own word for that
RETRY_SECONDS = 5.0
PREEMPTED_SECONDS = 1.0  # between two looks at a clock of whole seconds
NOT_AGAIN = "not started again"


@dataclass(frozen=True)
class Start:
    """One start of a job."""

    kind: Kind
    place: Path
    """Directory of the run or of the attack."""
    job: str | None = None
    shard: int = 0
    num_shards: int = 1

    @property
    def run(self) -> RunDir:
        return RunDir(self.place)

    @property
    def attack(self) -> AttackDir:
        return AttackDir(self.place)

    @property
    def ends(self) -> Restarts:
        return Restarts(self.attack.slurm / ENDINGS[self.kind].ends.format(**vars(self)))

    @property
    def failed(self) -> Path:
        """Says that the job does not start again."""
        if self.kind == "model":
            return self.run.not_asked
        return shard_failed(self.attack, self.shard) if self.kind == "shard" else self.attack.failed

    def held_by(self, code: int) -> str:
        """Name who is at work where the ranks that ended with this code wanted to be; shards work side by side."""
        alone = self.kind not in ("shard", "model")
        if code == HELD and alone:
            clear(self.run.lock)
        return str(other_at_work(self.run.lock) or "") if code and alone else ""


class Ending(NamedTuple):
    """What the end of a start comes to, of one kind of job."""

    ends: str
    """The file under slurm/ in which ends are noted."""
    progress: Callable[[Start], tuple[int, bool, str]]
    """Return (step of the newest checkpoint or number of finished chunks, whether it is done, what to call it)."""
    given_up: str
    """What is written where there is no other start."""


def progress_of_shard(start: Start) -> tuple[int, bool, str]:
    planned, costs = chunks_and_costs(start.attack)
    mine = set(chunks_of(planned, start.shard, start.num_shards, costs))
    done = len(mine & finished_chunks(start.attack))
    return done, done == len(mine), f"shard {start.shard}, {done} of {len(mine)} chunks: "


def progress_of_aggregation(start: Start) -> tuple[int, bool, str]:
    """It is done when the shards are added up and reported, or another aggregation is queued: one that was told to
    stop leaves with 0 too.
    """
    attack = start.attack
    reported = attack.summary.exists() and (attack.root / "report" / "index.html").exists()
    return 0, reported or has_successor(attack, start.job), "aggregation: "


def progress_of_model(start: Start) -> tuple[int, bool, str]:
    """Count what there is of all that the model is asked; it is done when the job has got to its end."""
    names = ("*.json", "chunks/*.parquet", "cells/*.parquet")  # not what a killed writer left aside
    made = [path for name in names for path in start.place.glob(f"*/*/{name}")]
    return len(made), start.run.asked.exists(), "model: "


def progress_of_study(start: Start) -> tuple[int, bool, str]:
    return 0, StudyDir(start.place).finished.exists(), "study: "


ENDINGS: dict[Kind, Ending] = {
    "train": Ending(
        "ends.jsonl",
        lambda start: (start.run.newest_step(), start.run.done.exists(), ""),
        "given up: {why}\n{cause}",
    ),
    "plan": Ending(
        "ends/plan.jsonl",
        lambda start: (0, is_planned_as_submitted(start.attack), "plan: "),
        "the attack was not planned: {why}; see {slurm}\n",
    ),
    "model": Ending("ends/model.jsonl", progress_of_model, "{why}; exit code {code} (job {job})\n"),
    "study": Ending("ends/study.jsonl", progress_of_study, "the study was not finished: {why}; see {slurm}\n"),
    "shard": Ending("ends/shard-{shard}.jsonl", progress_of_shard, "{why}; exit code {code} (job {job})\n"),
    "aggregate": Ending(
        "ends/aggregate-{job}.jsonl",
        progress_of_aggregation,
        "the shards were not added up: {why}; see {slurm}\n",
    ),
}


def conclude(start: Start, code: int, cluster: ClusterConfig) -> tuple[Verdict, int]:
    """Note how a start ended; FAILED stays, or appears, only if there is no other start.

    Returns what follows, and the exit code: HELD where somebody else is at work by now, who has the say.
    """
    reason = start.held_by(code)
    code = HELD if reason else code
    if start.kind == "train":
        if code != HELD:
            write_deaths(start.run, code)
        reason = reason or first_line_in(start.failed)
    progress, done, name = ENDINGS[start.kind].progress(start)
    what, why = verdict(start.ends.add(End(code, progress, start.job, reason)), done, cluster)
    if what == "again" and code != HELD and start.kind == "train":
        start.run.set_aside(start.failed, start.run.last_attempt())  # not the last word
    if what == "give up":
        give_up(start, code, why)
    print(f"kapdist: {start.place}: {name}{why}", flush=True)
    return what, code


def give_up(start: Start, code: int, why: str) -> None:
    """Write down that a job is given up; what an aggregation found missing is in FAILED already."""
    if start.kind == "aggregate" and start.failed.exists():
        return
    folder = start.run.slurm
    cause = text_in(start.failed) or f"exit code {code}; see {folder}\n"
    line = ENDINGS[start.kind].given_up.format(why=why, code=code, job=start.job, slurm=folder, cause=cause)
    write_atomic(start.failed, line)


def has_successor(attack: AttackDir, job: str | None) -> bool:
    """Return whether another aggregation was queued after a job's own."""
    return any(line["kind"] == "aggregate" for line in jobs.queued_after(attack.slurm, job))


def write_deaths(run: RunDir, code: int) -> None:
    """Write down why ranks ended with this exit code, if they left a sign of it and nobody has said it yet."""
    if code and not run.done.exists() and (cause := cause_of(run, code)):
        write_first(run.failed, f"{cause}\n")


def cause_of(run: RunDir, code: int) -> str:
    folder = run.rank_log(run.last_attempt(), 0).parent
    end, died = end_of(folder), deaths(folder)
    if code == WRONG_INPUT:
        return end if end.startswith("wrong input") else ""
    if died:
        return "; ".join(died)
    return f"a rank died of {killed_by(code)} (exit code {code})" if killed_by(code) else ""


def shard_failed(attack: AttackDir, shard: int) -> Path:
    return attack.slurm / "failed" / f"shard-{shard}"


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
        if first_line_in(failed).startswith(NOT_AGAIN):
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
    only a cancelled job, one past its time limit, and one that is preempted where Slurm requeues none
    (PreemptMode=CANCEL) complete before their script ends, and the latter two say so.
    """
    if int(facts.get("Restarts", 0)) > int(restarts):
        return "restarted"
    completes = facts.get("JobState") in {"COMPLETING", "CANCELLED", "PREEMPTED"}
    if completes and facts.get("Reason") != "TimeLimit" and not ended_by_preemption(facts):
        return "cancelled"
    return "ended"


def ended_by_preemption(facts: dict[str, str]) -> bool:
    """Return whether a job's end came with its preemption; one that was cancelled in its grace ended later."""
    try:
        preempted, ended = (datetime.fromisoformat(facts[key]) for key in ("PreemptTime", "EndTime"))
    except (KeyError, ValueError):  # "None": it was not
        return False
    return abs((ended - preempted).total_seconds()) <= PREEMPTED_SECONDS


def main(words: list[str]) -> int:
    """Run as `python -m launch.after KIND PLACE ... CODE`, as the batch scripts do; CODE is that of the ranks."""
    kind, place, *shard, code = words
    start = Start(cast(Kind, kind), Path(place), slurm.this_job(), *map(int, shard))
    cluster = load_cluster(start.run.slurm / CLUSTER)
    cause = text_in(start.failed) if kind == "train" else ""
    what, number = conclude(start, int(code), cluster)
    ended = act(what, number, cluster.of(start.kind), start.failed, cause)
    if ended == CANCELLED and kind == "shard":  # without accounts Slurm forgets it in minutes
        write_atomic(start.failed, f"cancelled (job {start.job})\n")
    return ended


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a requeue sends it before scontrol has its answer
    sys.exit(main(sys.argv[1:]))
