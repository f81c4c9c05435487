"""`attack run`: plan, all shards in processes of this machine, merge."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

import polars as pl

from kapdist.attack.devices import own_gpu
from kapdist.attack.merge import merge_chunks
from kapdist.attack.plan import attack_dir_of, write_new_plan
from kapdist.config import AttackConfig
from kapdist.errors import InputError
from kapdist.progress import Progress
from kapdist.records.attack_plan import AttackPlan
from kapdist.records.sealed import DamagedError, read_table
from kapdist.records.summary import Summary
from kapdist.run.ends import cause_in, fatal_file, heard, killed_by
from kapdist.run.files import check_outputs
from kapdist.run.lock import locked
from kapdist.run.paths import AttackDir, RunDir

POLL_SECONDS = 0.2
GRACE_SECONDS = 10.0
LOG_LINES = 15


def run_attack(run: Path, config: AttackConfig) -> Summary:
    """Attack a run's model, or with model.factory any other one; what was done before is not done again.

    Args:
        run: a run directory; with model.factory any directory, made if need be.

    Raises:
        InputError: as plan_attack, run_shard and merge.
        RuntimeError: a shard failed; its last lines are in the message.
        TimeoutError: config.timeout_minutes went by. What is done is kept.
    """
    attack = attack_dir_of(run, config)
    with locked(attack.lock), ended_by_sigterm():
        check_outputs(attack.plan, attack.summary, attack.records, RunDir(run).worst_case)
        plan = write_new_plan(run, config, attack)
        for note in plan.notes:
            print(f"note: {note}", file=sys.stderr, flush=True)
        run_shards(attack, plan, config)
        return merge_chunks(attack, plan)


def run_shards(attack: AttackDir, plan: AttackPlan, config: AttackConfig) -> None:
    """Run all shards and wait for them; whatever ends this ends them."""
    num_shards = min(config.num_shards, plan.num_chunks)
    deadline = time.monotonic() + config.timeout_minutes * 60
    children: list[subprocess.Popen[bytes]] = []
    try:
        for shard in range(num_shards):
            children.append(start_shard(attack, shard, num_shards, plan))
        with Progress(f"{plan.run}/{plan.name}", plan.num_chunks) as progress:
            watch(attack, children, progress, deadline, Tally(attack).count)
    finally:
        end(children)


def shard_command(attack: AttackDir, shard: int, num_shards: int) -> list[str]:
    return [sys.executable, "-m", "kapdist.attack", str(attack.root), str(shard), str(num_shards)]


def start_shard(attack: AttackDir, shard: int, num_shards: int, plan: AttackPlan) -> subprocess.Popen[bytes]:
    return start_child(attack, shard, shard_command(attack, shard, num_shards), plan)


def start_child(attack: AttackDir, shard: int, command: list[str], plan: AttackPlan) -> subprocess.Popen[bytes]:
    """Start a process with the plan's threads and, where the plan is for GPUs, one of this machine's."""
    attack.logs.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(plan.threads)} | own_gpu(plan.device, shard)
    with attack.shard_log(shard).open("wb") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)


def watch(
    attack: AttackDir,
    children: list[subprocess.Popen[bytes]],
    progress: Progress,
    deadline: float,
    count: Callable[[], tuple[int, str]],
) -> None:
    """Wait for the children; raise as soon as one fails or the time is up.

    Args:
        count: says how much is done, and what else there is to say.
    """
    while True:
        codes = [child.poll() for child in children]  # before the count, so that the last one is complete
        progress.show(*count())
        for shard, code in enumerate(codes):
            if code:
                fail(attack, shard, code)
        if all(code == 0 for code in codes):
            return
        if time.monotonic() > deadline:
            done = f"{count()[0]} {progress.unit} are done and kept: run it again to go on"
            raise TimeoutError(f"{attack.root}: timeout_minutes are over; {done}")
        time.sleep(POLL_SECONDS)


class Tally:
    """Chunks done and images robust so far; every file is read once."""

    def __init__(self, attack: AttackDir) -> None:
        self.attack = attack
        self.seen: set[str] = set()
        self.images = self.robust = 0

    def count(self) -> tuple[int, str]:
        for file in sorted(self.attack.chunks.glob("chunk-*.parquet")):
            if file.name not in self.seen:
                self.add(file)
        return len(self.seen), f"{self.robust}/{self.images} robust so far"

    def add(self, file: Path) -> None:
        try:
            table = read_table(file, ["label", "clean_prediction", "broken_by"])
        except DamagedError:  # one from before: its shard does it again
            return
        self.seen.add(file.name)
        self.images += len(table)
        left = pl.col("broken_by").is_null() & (pl.col("label") == pl.col("clean_prediction"))
        self.robust += table.filter(left).height


def fail(attack: AttackDir, shard: int, code: int) -> NoReturn:
    log = attack.shard_log(shard)
    lines = log.read_text(errors="replace").rstrip().splitlines()
    if code == 2 and lines:
        raise InputError(log, "a shard that can run", lines[-1])
    last = "\n".join(f"  {line}" for line in lines[-LOG_LINES:])
    how = f"ended with exit code {code}"
    if name := killed_by(code):
        stacks = fatal_file(attack.logs, shard)
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


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that the shards and the lock go too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, leave) for number in heard(signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
