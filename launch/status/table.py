"""The status of a run as a table for a terminal, the verdict first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kapdist.study.hours import figure
from launch.status.attack import Attack, Shards
from launch.status.explanation import LogLine
from launch.status.run import Status
from launch.status.slurm import JobStatus
from launch.status.training import GpuHours, Training, Verdict

COLOURS = {"DONE": "green", "FAILED": "red", "RUNNING": "cyan", "PENDING": "yellow"}
WORDS = {"STOPPED": "stopped", "UNKNOWN": "unknown"}
SHOWN = 5
LONGEST_LINE = 300
BAR_WIDTH = 24

Row = tuple[str, RenderableType]


def render(found: Status) -> RenderableType:
    """Draw a status."""
    blocks: list[RenderableType] = []
    if found.training:
        blocks += [headline(found.directory, found.verdict), table(training_rows(found.training, found.now))]
    elif len(found.attacks) != 1:
        blocks.append(Text(found.directory, style="bold"))
    for attack in found.attacks:
        name = found.directory if not found.training and len(found.attacks) == 1 else f"attack {attack.name}"
        blocks += [headline(name, attack.verdict), table(attack_rows(attack, found.now))]
    blocks += [Text(line, style="yellow") for line in warnings(found)]
    return Group(*blocks)


def headline(name: str, verdict: Verdict) -> Text:
    colour = COLOURS.get(verdict.state, "magenta")
    text = Text.assemble((WORDS.get(verdict.state, verdict.state), f"bold {colour}"), overflow="fold")
    text.append(f": {short(verdict.why)}" if verdict.why else "")
    return text.append(f"  ({name})", style="bold")


def table(rows: Iterator[Row]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(f"  {name}", Text(value, overflow="fold") if isinstance(value, str) else value)
    return grid


def training_rows(found: Training, now: float) -> Iterator[Row]:
    """Yield what there is to say of a training, the cause of a failure first."""
    yield from cause(found.log_line, found.verdict)
    if found.total_steps:
        yield "", ProgressBar(total=found.total_steps, completed=found.step, width=2 * BAR_WIDTH)
        yield "progress", steps(found)
    if found.train:
        yield "train", f"loss {found.train['loss']:.4g}, lr {found.train['lr']:.4g} at step {found.train['step']}"
    if found.evaluation:
        last = found.evaluation
        yield "evaluation", f"top-1 {last['top1']:.2%}, top-5 {last['top5']:.2%} at step {last['step']}"
    if found.robust:
        yield "robust", robust(found.robust)
    for alarm in found.alarms[-SHOWN:]:
        yield "alarm", Text(alarm, style="bold red")
    if found.checkpoint_age_seconds is not None:
        yield "checkpoint", f"step {found.checkpoint_step}, {duration(found.checkpoint_age_seconds)} old"
    if found.ranks and found.verdict.state != "DONE":
        yield "ranks", ranks(found)
    for odd in found.silent:
        yield "", Text(odd, style="bold red")
    yield from job_rows(found.jobs, now, found.queueing)
    if found.hours:
        yield "hours", spent(found.hours)
    if found.num_attempts:
        yield "attempts", f"{found.num_attempts} ({count(found.restarts, 'restart')})"
    for attempt in found.attempts[-SHOWN:]:
        if attempt.failed:
            yield "", f"attempt {attempt.number} failed at step {attempt.step}: {short(attempt.failed)}"
    # The end of a run that is done was no stop.
    for end in (found.ends[:-1] if found.verdict.state == "DONE" else found.ends)[-SHOWN:]:
        yield "ended", ending(end)


def robust(last: dict[str, Any]) -> str:
    attack = (
        f"{last['attack_steps']} steps of PGD, {last['norm']} eps {last['eps']:.4g}, {last['num_images']} images"
    )
    return f"{last['accuracy']:.2%} of {last['clean_accuracy']:.2%} under {attack}, at step {last['step']}"


def steps(found: Training) -> str:
    words = [f"step {found.step}/{found.total_steps}", f"epoch {found.epoch:.2f}/{found.epochs}"]
    if found.images_per_second and found.seconds_left is not None:
        words += [f"{found.images_per_second:,.0f} images/s", f"{duration(found.seconds_left)} left"]
    return ", ".join(words)


def ranks(found: Training) -> str:
    newest = min(rank.silent_seconds for rank in found.ranks)
    return f"{len(found.ranks)}, last sign of life {duration(newest)} ago"


def spent(hours: GpuHours) -> str:
    return f"{figure(hours.used)} {hours.unit} used, {figure(hours.lost)} of them lost"


def ending(end: dict[str, Any]) -> str:
    word = f"failed with exit code {end['code']}" if end["failed"] else "was stopped"
    reason = f": {short(end['reason'])}" if end["reason"] else ""
    return f"{'job ' + end['job'] if end['job'] else 'a start here'} {word} at step {end['progress']}{reason}"


def job_rows(jobs: list[JobStatus], now: float, trouble: str = "") -> Iterator[Row]:
    """Yield a line for each of the newest jobs, and what is wrong with the newest submission."""
    for job in jobs[-SHOWN:]:
        states = ", ".join(
            f"{n} {state}" if sum(job.states.values()) > 1 else state for state, n in job.states.items()
        )
        reason = f" ({job.reason})" if job.reason else ""
        yield "job", f"{job.job} {job.kind}: {states}{reason}, queued {duration(now - job.submitted)} ago"
    if trouble:
        yield "job", Text(short(trouble), style="red")


def attack_rows(found: Attack, now: float) -> Iterator[Row]:
    """Yield what there is to say of an attack."""
    yield from cause(found.log_line, found.verdict)
    if found.chunks_total is not None:
        yield "", ProgressBar(total=found.chunks_total, completed=found.chunks_done, width=2 * BAR_WIDTH)
        left = f", {duration(found.seconds_left)} left" if found.seconds_left is not None else ""
        yield "chunks", f"{found.chunks_done}/{found.chunks_total} done{left}"
    if found.shards:
        yield from shard_rows(found.shards)
    for name in ("clean", "robust"):
        if result := found.summary.get(f"{name}_accuracy"):
            yield name, f"{result['value']:.2%} (95% interval {result['low']:.2%} to {result['high']:.2%})"
    yield from job_rows(found.jobs, now, found.queueing)


def shard_rows(shards: Shards) -> Iterator[Row]:
    """Yield how many shards are where, and name those that need somebody."""
    words = [f"{shards.finished}/{shards.total} finished", f"{shards.running} running", f"{shards.waiting} waiting"]
    for name, which in (("failed", shards.failed), ("missing", shards.missing), ("unknown", shards.unknown)):
        words += [f"{len(which)} {name}"] if which else []
    yield "shards", ", ".join(words)
    for name, which in (("failed", shards.failed), ("missing", shards.missing)):
        if which:
            yield name, Text(listed(which), style="red")
    for shard in shards.explained:
        line = f": {short(shard.log_line.line)} ({shard.log_line.file})" if shard.log_line else ""
        yield "", f"shard {shard.shard} ({count(shard.starts, 'start')}): {short(shard.reason)}{line}"


def cause(line: LogLine | None, verdict: Verdict) -> Iterator[Row]:
    """Yield the line that explains a failure, unless the verdict has said it."""
    if line and line.line != verdict.why:
        yield "cause", Text.assemble((short(line.line), "red"), f"\n{line.file}")


def warnings(found: Status) -> Iterator[str]:
    """Yield what may stop it next, and why less is shown than might be."""
    if found.disk_low:
        yield f"disk nearly full: {found.disk_free_bytes / 2**30:.1f} GiB free"
    if not found.slurm_answers:
        yield "squeue does not answer: shown is what accounting and files say"


def short(line: str) -> str:
    """Cut what would fill the terminal: an aggregation names each missing shard."""
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ..."


def listed(numbers: list[int]) -> str:
    more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    return ", ".join(map(str, numbers[:SHOWN])) + more


def count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return e.g. "40 s", "12 min", "3 h 05 min", "2 d 4 h"."""
    minutes = int(seconds // 60)
    if minutes < 2:
        return f"{max(0.0, seconds):.0f} s"
    if minutes < 120:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes // 60 % 24} h"
