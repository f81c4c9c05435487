"""What one rank of a queued job does: the same as `kapdist train` or `kapdist attack shard`, from a pickle.

submitit pickles these by name and calls them on every rank. Results are never asked of it: DONE, FAILED and the
chunks on disk are the truth.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kapdist.errors import RESUME, InputError, StoppedError


@dataclass(frozen=True)
class TrainRank:
    """One rank of the training whose run directory this is, as its config.yaml says."""

    root: Path

    def __call__(self) -> None:
        run_as_command(self.train)

    def train(self) -> None:
        from kapdist.rundir import RunDir
        from kapdist.train.loop import train

        train(RunDir(self.root).load_config())


@dataclass(frozen=True)
class PlanAttack:
    """The plan of an attack, made on a node: it needs the model."""

    run: Path
    config: Path

    def __call__(self) -> None:
        run_as_command(self.plan)

    def plan(self) -> None:
        from kapdist.attack import plan_attack
        from kapdist.config import AttackConfig
        from kapdist.configfile import load_config

        plan_attack(self.run, load_config(AttackConfig, self.config))


@dataclass(frozen=True)
class AttackShard:
    """One shard of a planned attack; its finished chunks are skipped."""

    directory: Path
    shard: int
    num_shards: int

    def __call__(self) -> None:
        run_as_command(self.attack)

    def attack(self) -> None:
        from kapdist.attack import run_shard

        run_shard(self.directory, self.shard, self.num_shards)


@dataclass(frozen=True)
class Aggregate:
    """The sum of an attack's shards, or another round of those that are missing."""

    run: Path
    directory: Path
    retry: int

    def __call__(self) -> None:
        run_as_command(self.aggregate)

    def aggregate(self) -> None:
        from kapdist.rundir import AttackDir, RunDir
        from launch.aggregate import aggregate

        aggregate(RunDir(self.run), AttackDir(self.directory), self.retry)


def run_as_command(work: Callable[[], None]) -> None:
    """Call `work` with the signals and exit codes of the command line.

    submitit has a handler of its own on USR2, which would requeue the job behind our back.
    """
    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGCONT):
        signal.signal(number, signal.SIG_DFL)
    try:
        work()
    except StoppedError as stopped:
        print(f"kapdist: {stopped}", file=sys.stderr)
        sys.exit(RESUME)
    except InputError as error:
        print(f"kapdist: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    TrainRank(Path(sys.argv[1]))()
