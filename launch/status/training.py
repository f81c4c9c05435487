"""The status of a training, read off its directory and off what Slurm says. Writes nothing."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kapdist.errors import InputError
from kapdist.records.hours import training_hours
from kapdist.records.metrics import parse_line
from kapdist.run.ends import deaths
from kapdist.run.files import first_line_in, mapping_in
from kapdist.run.lock import holder_of, lives_here
from kapdist.run.paths import RunDir
from launch.after import CLUSTER, Start
from launch.cluster import load_cluster
from launch.jobs import time_in
from launch.journal import last_trouble
from launch.restarts import End
from launch.status.explanation import LogLine, explain, last_line, tail
from launch.status.pace import images_per_second, pause_per_step
from launch.status.slurm import Answers, JobStatus

SILENT_SECONDS = 30.0  # a rank says that it lives every five seconds
IDLE_SECONDS = 120.0
METRICS_BYTES = 2**20
SHOWN_ATTEMPTS = 20
SHOWN_KINDS = ("evaluate", "robust", "alarm")


@dataclass(frozen=True)
class Verdict:
    """DONE, FAILED, RUNNING, PENDING, STOPPED or UNKNOWN, and why."""

    state: str
    why: str = ""


@dataclass(frozen=True)
class AttemptStatus:
    """One start of the ranks."""

    number: int
    ranks: int
    step: int
    """The furthest of its ranks."""
    silent_seconds: float
    """Since any of its ranks gave a sign of life."""
    failed: str = ""
    """The last line of its FAILED, if it failed and was not the last."""


@dataclass(frozen=True)
class Rank:
    rank: int
    step: int
    silent_seconds: float
    idle_seconds: float
    """Without progress."""


@dataclass(frozen=True)
class GpuHours:
    """What a training has taken: the GPUs that its ranks had, times the hours that they had them."""

    unit: str
    """GPU-hours; rank-hours where it had no GPUs."""
    used: float
    """Those that were lost among them."""
    lost: float
    """Of steps that were done again, or will be, and of starts that came to no step."""


@dataclass(frozen=True)
class Training:
    """The status of a training."""

    verdict: Verdict
    jobs: list[JobStatus]
    num_attempts: int
    restarts: int
    attempts: list[AttemptStatus]
    """The newest ones, oldest first."""
    ends: list[dict[str, Any]]
    """How starts of the job ended, since it was last queued by hand."""
    step: int = 0
    total_steps: int | None = None
    epoch: float | None = None
    epochs: int | None = None
    images_per_second: float | None = None
    """Of the newest steps alone."""
    seconds_left: float | None = None
    """Evaluations included."""
    train: dict[str, Any] = field(default_factory=dict)
    """The last line of metrics of the training."""
    evaluation: dict[str, Any] = field(default_factory=dict)
    robust: dict[str, Any] = field(default_factory=dict)
    """The last line of metrics of robust validation."""
    alarms: list[str] = field(default_factory=list)
    """What robust validation warned of."""
    checkpoint_step: int | None = None
    checkpoint_age_seconds: float | None = None
    ranks: list[Rank] = field(default_factory=list)
    """Of the newest attempt."""
    silent: list[str] = field(default_factory=list)
    """What is odd about ranks of a training that runs."""
    log_line: LogLine | None = None
    hours: GpuHours | None = None
    """Of all attempts; None before the first."""
    queueing: str = ""
    """What is wrong with its newest submission."""


def read_training(run: RunDir, lines: Iterable[Mapping[str, Any]], answers: Answers) -> Training:
    """Read the status of a training."""
    jobs = [answers.job(line) for line in lines if line["kind"] == "train"]
    ends = Start("train", run.root).ends.read()
    newest = run.last_attempt()
    ranks = heartbeats(run.attempts / str(newest))
    quiet = min((rank.silent_seconds for rank in ranks), default=float("inf"))
    worker = trainer(run, seen_elsewhere=quiet < SILENT_SECONDS)
    found = verdict(run, jobs, ends, answers, worker, newest)
    runs = found.state == "RUNNING"
    return Training(
        verdict=found,
        jobs=jobs,
        num_attempts=newest,
        restarts=max(0, newest - 1),
        attempts=attempts(run, newest),
        ends=[asdict(end) | {"failed": end.failed} for end in ends],
        **progress(run, ranks, runs),
        **newest_checkpoint(run),
        ranks=ranks,
        silent=oddities(ranks) if runs else [],
        log_line=explanation(run, found, jobs, ends, newest),
        hours=gpu_hours(run, going_on=found.state in ("RUNNING", "DONE")),
        queueing=last_trouble(run.slurm),
    )


def gpu_hours(run: RunDir, *, going_on: bool) -> GpuHours | None:
    """Return the hours of all ranks, times the GPUs of each where it has any."""
    (used, lost), gpus = training_hours(run, going_on), gpus_per_rank(run)
    if not used:
        return None
    return GpuHours("GPU-hours" if gpus else "rank-hours", (gpus or 1) * used, (gpus or 1) * lost)


def gpus_per_rank(run: RunDir) -> float:
    """Return how many GPUs are taken for each rank: as many as were asked for; without Slurm one, if it has any."""
    with contextlib.suppress(InputError):
        cluster = load_cluster(run.slurm / CLUSTER).of("train")
        if cluster.gpus_per_node:
            return cluster.gpus_per_node / cluster.ranks_per_node
    return float(mapping_in(run.environment).get("device", "cpu") != "cpu")


def verdict(
    run: RunDir, jobs: list[JobStatus], ends: list[End], answers: Answers, worker: str | None, newest: int
) -> Verdict:
    """Say what state it is in; a FAILED that a restart will set aside is not the last word."""
    runs = [job for job in jobs if job.runs]
    waits = [job for job in jobs if job.waits]
    if run.done.exists():
        return Verdict("DONE")
    if first := first_line_in(run.failed):
        again = runs or waits or at_work(run.launcher, seen_elsewhere=False)
        if first.startswith("given up") or not again:
            return Verdict("FAILED", first)
    if runs:
        return Verdict("RUNNING", f"job {runs[-1].job}")
    if waits:
        return Verdict("PENDING", waits[-1].reason or "no reason given yet")
    if worker:
        return Verdict("RUNNING", worker)
    if jobs and answers.queue is None:
        return Verdict("UNKNOWN", f"squeue says nothing here of job {jobs[-1].job}")
    return Verdict("STOPPED", "not queued; " + how_it_ended(jobs, ends, newest))


def how_it_ended(jobs: list[JobStatus], ends: list[End], newest: int) -> str:
    if jobs and "UNKNOWN" not in jobs[-1].states:
        return f"job {jobs[-1].job}: {', '.join(jobs[-1].states)}"
    if ends:
        return f"its last start failed with exit code {ends[-1].code}" if ends[-1].failed else "it was stopped"
    return f"attempt {newest} has ended" if newest else "never started"


def trainer(run: RunDir, *, seen_elsewhere: bool) -> str | None:
    """Name the process that trains, or that will start the ranks of a local run again."""
    return at_work(run.lock, seen_elsewhere=seen_elsewhere) or at_work(run.launcher, seen_elsewhere=False)


def at_work(lock: Path, *, seen_elsewhere: bool) -> str | None:
    """Name the process that holds a lock if it lives; on other hosts only its heartbeat can tell."""
    found = holder_of(lock)
    if found is None:
        return None
    lives = lives_here(found)
    return f"process {found.pid} on {found.host}" if (seen_elsewhere if lives is None else lives) else None


def heartbeats(folder: Path) -> list[Rank]:
    """Return the ranks of an attempt in order, as they last wrote of themselves."""
    now, found = time_in(folder), []
    for entry in scan(folder):
        if entry.name.startswith("heartbeat-"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                beat = json.loads(Path(entry.path).read_text())
                rank = int(entry.name.removeprefix("heartbeat-").removesuffix(".json"))
                silent = max(0.0, now - entry.stat().st_mtime)
                found.append(Rank(rank, beat["step"], round(silent, 1), beat["idle_seconds"]))
    return sorted(found, key=lambda rank: rank.rank)


def oddities(ranks: list[Rank]) -> list[str]:
    """Name the ranks that are silent; if none is, those that are furthest behind and make no progress."""
    silent = [rank for rank in ranks if rank.silent_seconds > SILENT_SECONDS]
    if silent:
        return [f"rank {r.rank} silent for {r.silent_seconds:.0f} s, at step {r.step}" for r in silent]
    idle = [rank for rank in ranks if rank.idle_seconds > IDLE_SECONDS]
    behind = min((rank.step for rank in idle), default=0)
    return [
        f"rank {r.rank} without progress for {r.idle_seconds:.0f} s, at step {r.step}"
        for r in idle
        if r.step == behind
    ]


def attempts(run: RunDir, newest: int) -> list[AttemptStatus]:
    return [attempt(run, number) for number in range(max(1, newest - SHOWN_ATTEMPTS + 1), newest + 1)]


def attempt(run: RunDir, number: int) -> AttemptStatus:
    folder = run.attempts / str(number)
    ranks = heartbeats(folder)
    return AttemptStatus(
        number=number,
        ranks=len(ranks),
        step=max((rank.step for rank in ranks), default=0),
        silent_seconds=min((rank.silent_seconds for rank in ranks), default=0.0),
        failed=last_line(folder / "FAILED"),
    )


def progress(run: RunDir, ranks: list[Rank], runs: bool) -> dict[str, Any]:
    """Return how far it is, how fast, and the last numbers; how fast only while it runs."""
    plan = run.recorded()
    lines = newest_lines(run.metrics)
    trained = [line for line in lines if line["kind"] == "train"]
    evaluated, attacked, alarms = ([line for line in lines if line["kind"] == kind] for kind in SHOWN_KINDS)
    step = max([line["step"] for line in lines[-1:]] + [rank.step for rank in ranks], default=0)
    found: dict[str, Any] = {
        "step": step,
        "train": trained[-1] if trained else {},
        "evaluation": evaluated[-1] if evaluated else {},
        "robust": attacked[-1] if attacked else {},
        "alarms": [line["text"] for line in alarms],
    }
    if plan:
        total, per_epoch = plan["total_steps"], plan["steps_per_epoch"]
        found |= {"total_steps": total, "epochs": plan["epochs"], "epoch": step / per_epoch}
        if runs and (rate := images_per_second(lines)):
            images = plan["num_images"] / per_epoch
            left = (total - step) * (images / rate + pause_per_step(lines, images))
            found |= {"images_per_second": rate, "seconds_left": left}
    return found


def newest_lines(path: Path) -> list[dict[str, Any]]:
    """Return the newest lines of metrics.jsonl; a last one that is being written, or a damaged one, is left out."""
    lines = map(parse_line, tail(path, METRICS_BYTES).splitlines())
    return [line for line in lines if line is not None]


def newest_checkpoint(run: RunDir) -> dict[str, Any]:
    """Return the step of the newest checkpoint and its age, by its name: whether it is whole is for the resume."""
    step = run.newest_step()
    if not step:
        return {}
    with contextlib.suppress(FileNotFoundError):
        age = max(0.0, time_in(run.root) - run.checkpoint(step).stat().st_mtime)
        return {"checkpoint_step": step, "checkpoint_age_seconds": round(age, 1)}
    return {}


def explanation(run: RunDir, found: Verdict, jobs: list[JobStatus], ends: list[End], newest: int) -> LogLine | None:
    """Explain a failure, or a stop that nothing asked for."""
    if found.state not in {"FAILED", "STOPPED"}:
        return None
    folder = run.rank_log(newest, 0).parent
    if found.state == "STOPPED" and (died := deaths(folder)):
        return LogLine(died[0], str(folder))
    # The rank that wrote first failed first; the others fail because it left.
    logs = sorted(folder.glob("rank-*.log"), key=lambda path: path.stat().st_mtime)
    if jobs and (found.state == "FAILED" or (ends and ends[-1].failed)):
        logs += sorted(Path(jobs[-1].logs or run.slurm).glob(f"{jobs[-1].job}_*_log.out"))
    return explain(run.failed, logs)


def scan(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, none if it is not there."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
