"""`attack corruptions`: plan, all cells in processes of this machine, summary."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from kapdist.attack.local import end, ended_by_sigterm, start_child, watch
from kapdist.attack.plan import config_of
from kapdist.config import AttackConfig
from kapdist.corruptions.plan import plan_corruptions
from kapdist.corruptions.shard import run_cells
from kapdist.corruptions.summary import read_reference, write_summary
from kapdist.progress import Progress
from kapdist.records.corruptions import CorruptionPlan, CorruptionSummary, read_cell
from kapdist.run.files import check_outputs
from kapdist.run.lock import locked
from kapdist.run.paths import CorruptionsDir, RunDir


def run_corruptions(run: Path, config: AttackConfig) -> CorruptionSummary:
    """Predict a run's images, or with model.factory any model's, under corruptions; what is done is kept.

    Args:
        run: a run directory; with model.factory any directory, made if need be.

    Raises:
        InputError: wrong input, or a directory of another plan.
        RuntimeError: a process failed; its last lines are in the message.
        TimeoutError: config.timeout_minutes went by. What is done is kept.
    """
    config_of(run, config)  # a mistyped run is refused before a lock makes its directory
    directory = RunDir(run).corrupted(config.name)
    with locked(directory.lock), ended_by_sigterm():
        check_outputs(directory.plan, directory.cell("clean"), directory.summary, directory.table)
        plan = plan_corruptions(run, config, directory)
        reference = read_reference(config.corruptions.reference, config.name, plan)
        for note in plan.notes:
            print(f"note: {note}", file=sys.stderr, flush=True)
        run_all_cells(directory, plan, config)
        return write_summary(directory, plan, reference)


def run_all_cells(directory: CorruptionsDir, plan: CorruptionPlan, config: AttackConfig) -> None:
    """Do what is left, here or in several processes; whatever ends this ends them."""
    tally = Tally(directory, plan)
    with Progress(f"{plan.subject.run}/{plan.subject.name}", plan.num_passes, unit="images") as progress:
        before = tally.count()[0]
        progress.show(before)
        if config.num_shards == 1:
            run_cells(directory, 0, 1, Teller(directory, progress, before, config.timeout_minutes).tell)
        else:
            run_processes(directory, plan, config, progress, tally)


def run_processes(
    directory: CorruptionsDir, plan: CorruptionPlan, config: AttackConfig, progress: Progress, tally: Tally
) -> None:
    num_shards = min(config.num_shards, len(plan.cells))
    deadline = time.monotonic() + config.timeout_minutes * 60
    children: list[subprocess.Popen[bytes]] = []
    try:
        for shard in range(num_shards):
            command = shard_command(directory, shard, num_shards)
            children.append(start_child(directory, shard, command, plan.subject))
        watch(directory, children, progress, deadline, tally.count)
    finally:
        end(children)


def shard_command(directory: CorruptionsDir, shard: int, num_shards: int) -> list[str]:
    return [sys.executable, "-m", "kapdist.corruptions", str(directory.root), str(shard), str(num_shards)]


class Teller:
    """Shows what is done in this process, and ends it when its time is over."""

    def __init__(self, directory: CorruptionsDir, progress: Progress, before: int, minutes: float) -> None:
        self.directory, self.progress, self.before = directory, progress, before
        self.deadline = time.monotonic() + minutes * 60

    def tell(self, done: int, note: str) -> None:
        self.progress.show(self.before + done, note)
        if time.monotonic() > self.deadline:
            raise TimeoutError(f"{self.directory.root}: timeout_minutes are over; finished cells are kept")


class Tally:
    """Images in finished cells; every file is read once."""

    def __init__(self, directory: CorruptionsDir, plan: CorruptionPlan) -> None:
        self.directory, self.plan = directory, plan
        self.open = list(plan.cells)

    def count(self) -> tuple[int, str]:
        self.open = [cell for cell in self.open if read_cell(self.directory, self.plan, cell) is None]
        done = len(self.plan.cells) - len(self.open)
        return done * self.plan.subject.num_images, f"{done} of {len(self.plan.cells)} cells"
