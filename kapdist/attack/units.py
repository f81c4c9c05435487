"""What is asked of a model, cut into units: each is written to a file of its own, once, and never done again.

A kind of work (the chunks of an attack, the cells of corruptions) says what its units are, how one is done and what
its files add up to. Here they are dealt to shards and done, by this process or by others of this machine; any of
them may be ended and started again at any time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Generic, NoReturn, TypeVar

import polars as pl

from kapdist.attack.devices import own_gpu
from kapdist.errors import InputError
from kapdist.records.attack_plan import AttackPlan
from kapdist.records.sharding import chunks_of
from kapdist.run.asked import started_here
from kapdist.run.ends import cause_in, fatal_file, killed_by, stacks_at_death
from kapdist.run.files import output
from kapdist.run.installed import extras_named
from kapdist.run.paths import AttackDir
from kapdist.run.progress import Progress

POLL_SECONDS = 0.2
GRACE_SECONDS = 10.0
LOG_LINES = 15
Unit = TypeVar("Unit")
Tell = Callable[[int, str], None]
"""Is told how much is done, and what else there is to say."""


class Work(ABC, Generic[Unit]):
    """One kind of work, as it is planned in a directory."""

    module: ClassVar[str]
    """`python -m MODULE DIRECTORY SHARD NUM_SHARDS` does one shard."""
    name: ClassVar[str]
    """Of its units, more than one."""
    counted: ClassVar[str]
    """What its progress counts; `weight` of them to a unit."""
    right: ClassVar[pl.Expr]
    """Whether the model got an image right, whatever was done to it."""
    note: ClassVar[str]
    """What a progress says besides, with {done} and {units}, {right} and {images} to be filled in."""

    def __init__(self, directory: AttackDir, subject: AttackPlan, files: dict[Unit, Path], weight: int = 1) -> None:
        self.directory, self.subject, self.files, self.weight = directory, subject, files, weight
        self.units = list(files)

    @abstractmethod
    def read(self, unit: Unit) -> pl.DataFrame | None:
        """Return what a unit left behind, one row per image; None where there is no file, or a damaged one.

        Raises:
            InputError: the file is of another plan, and is not overwritten.
        """

    @abstractmethod
    def do(self, units: Sequence[Unit], tell: Tell) -> None:
        """Do these units, in order.

        Raises:
            InputError: something here is not what was planned with.
        """

    def is_done(self, unit: Unit) -> bool:
        return self.read(unit) is not None

    def num_right(self, table: pl.DataFrame) -> int:
        return table.filter(self.right).height

    def progress(self, title: str, num_units: int) -> Progress:
        return Progress(title, num_units * self.weight, unit=self.counted)


class Tally(Generic[Unit]):
    """What is done so far; every file is read once."""

    def __init__(self, work: Work[Unit]) -> None:
        self.work, self.right, self.images = work, 0, 0
        self.missing = {file: unit for unit, file in work.files.items()}

    def count(self) -> tuple[int, str]:
        """Return how much is done, and what else there is to say."""
        work, folder = self.work, self.work.files[self.work.units[0]].parent
        for file in sorted(self.missing.keys() & set(folder.glob("*.parquet"))):
            table = work.read(self.missing[file])
            if table is not None:  # else one from before: its shard does it again
                del self.missing[file]
                self.right, self.images = self.right + work.num_right(table), self.images + len(table)
        units, done = len(work.units), len(work.units) - len(self.missing)
        return done * work.weight, work.note.format(done=done, units=units, right=self.right, images=self.images)


def do_shard(work: Work[Unit], shard: int, num_shards: int) -> None:
    """Do those of this shard's units that are not done yet.

    Raises:
        InputError: no such shard, or as `Work.do`.
    """
    if not 0 <= shard < num_shards:
        raise InputError("shard", f"a number from 0 to {num_shards - 1}", str(shard))
    mine = [work.units[place] for place in chunks_of(len(work.units), shard, num_shards, work.subject.costs)]
    todo = [unit for unit in mine if not work.is_done(unit)]
    done = len(mine) - len(todo)
    print(
        f"shard {shard} of {num_shards}: {len(mine)} {work.name}, {done} done already", file=sys.stderr, flush=True
    )
    if todo:
        stacks = stacks_at_death(fatal_file(work.directory.logs, shard))
        with output(work.directory.root), stacks, work.progress(work.name, len(todo)) as progress:
            progress.show(0)
            work.do(todo, progress.show)


def do_all(work: Work[Unit], num_shards: int, timeout_minutes: float, *, here: bool = False) -> None:
    """Do all units that are not done yet; whatever ends this ends the processes too.

    Args:
        here: in this process, and not in `num_shards` others.

    Raises:
        InputError: as `Work.do`, or a process ended so: its line is in the message.
        RuntimeError: a process failed; its last lines are in the message.
        TimeoutError: the time is up. What is done is kept.
    """
    deadline, tally = time.monotonic() + timeout_minutes * 60, Tally(work)
    with work.progress(f"{work.subject.run}/{work.subject.name}", len(work.units)) as progress:
        progress.show(*tally.count())
        if here:
            do_here(tally, progress, deadline)
        else:
            do_in_processes(tally, min(num_shards, len(work.units)), progress, deadline)


def do_here(tally: Tally[Unit], progress: Progress, deadline: float) -> None:
    work, before = tally.work, tally.count()[0]

    def tell(done: int, note: str) -> None:
        progress.show(before + done, note)
        if time.monotonic() > deadline:
            raise TimeoutError(f"{work.directory.root}: timeout_minutes are over; finished {work.name} are kept")

    if todo := [unit for unit in work.units if not work.is_done(unit)]:
        work.do(todo, tell)


def do_in_processes(tally: Tally[Unit], num_shards: int, progress: Progress, deadline: float) -> None:
    children: list[subprocess.Popen[bytes]] = []
    try:
        for shard in range(num_shards):
            children.append(start_shard(tally.work, shard, num_shards))
        watch(children, tally, progress, deadline)
    finally:
        end(children)


def start_shard(work: Work[Unit], shard: int, num_shards: int) -> subprocess.Popen[bytes]:
    """Start a process with the plan's threads and, where the plan is for GPUs, one of this machine's."""
    log, subject = work.directory.shard_log(shard), work.subject
    log.parent.mkdir(parents=True, exist_ok=True)
    variables = {"OMP_NUM_THREADS": str(subject.threads)} | own_gpu(subject.device, shard)
    environment = os.environ | variables | started_here()
    command = shard_command(work, shard, num_shards)
    with log.open("wb") as file:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment)


def shard_command(work: Work[Unit], shard: int, num_shards: int) -> list[str]:
    return [sys.executable, "-m", work.module, str(work.directory.root), str(shard), str(num_shards)]


def watch(children: list[subprocess.Popen[bytes]], tally: Tally[Unit], progress: Progress, deadline: float) -> None:
    """Wait for the children; raise as soon as one fails or the time is up."""
    directory = tally.work.directory
    while True:
        codes = [child.poll() for child in children]  # before the count, so that the last one is complete
        progress.show(*tally.count())
        for shard, code in enumerate(codes):
            if code:
                fail(directory, shard, code)
        if all(code == 0 for code in codes):
            return
        if time.monotonic() > deadline:
            done = f"{tally.count()[0]} {progress.unit} are done and kept: run it again to go on"
            raise TimeoutError(f"{directory.root}: timeout_minutes are over; {done}")
        time.sleep(POLL_SECONDS)


def fail(directory: AttackDir, shard: int, code: int) -> NoReturn:
    log = directory.shard_log(shard)
    lines = log.read_text(errors="replace").rstrip().splitlines()
    if code == 2 and lines:
        raise InputError(log, "a shard that can run", lines[-1])
    last = "\n".join(f"  {line}" for line in lines[-LOG_LINES:])
    how = f"ended with exit code {code}"
    if name := killed_by(code):
        stacks = fatal_file(directory.logs, shard)
        how = f"died of {name}" + (f" (stacks in {stacks})" if cause_in(stacks) else "")
    raise RuntimeError(f"shard {shard} {how}; the last lines of {log}:\n{last}")


def end(children: list[subprocess.Popen[bytes]]) -> None:
    """End what still runs, gently first."""
    for child in children:
        if child.poll() is None:
            child.terminate()
    for child in children:
        try:
            child.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def child_main(run_shard: Callable[[Path, int, int], None], words: Sequence[str]) -> int:
    """Run a shard as a child; return the exit code: 2 for wrong input, with its line."""
    try:
        with extras_named():
            run_shard(Path(words[0]), int(words[1]), int(words[2]))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
