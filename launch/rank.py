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
from types import FrameType

from kapdist.errors import InputError, LockedError, StoppedError, TransientError
from kapdist.run.ends import ASK, heard
from launch.restarts import HELD


@dataclass(frozen=True)
class TrainRank:
    """One rank of the training whose run directory this is, as its config.yaml says."""

    root: Path

    def __call__(self) -> None:
        run_as_command(self.train)

    def train(self) -> None:
        from kapdist.run.paths import RunDir
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
        from kapdist.attack.plan import plan_attack
        from kapdist.config import AttackConfig
        from kapdist.config.file import load_config
        from kapdist.run.paths import RunDir
        from launch.planned import remember_plan

        config = load_config(AttackConfig, self.config)
        plan_attack(self.run, config)
        remember_plan(RunDir(self.run).attack(config.name), self.config)


@dataclass(frozen=True)
class AttackShard:
    """One shard of a planned attack; its finished chunks are skipped."""

    directory: Path
    shard: int
    num_shards: int

    def __call__(self) -> None:
        run_as_command(self.attack)

    def attack(self) -> None:
        from kapdist.attack.shard import run_shard

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
        from kapdist.run.paths import AttackDir, RunDir
        from launch.aggregate import aggregate

        aggregate(RunDir(self.run), AttackDir(self.directory), self.retry)


def run_as_command(work: Callable[[], None]) -> None:
    """Call `work` with the signals and exit codes of the command line, but for one: whoever was told to stop leaves
    with 0, since srun ends the other ranks of a step at the first that does not, in the middle of their saving.

    One can be told to stop from the first moment on, before a training listens for itself. submitit's own handler,
    which would requeue the job behind our back, goes.
    """
    for number in heard(*ASK):
        signal.signal(number, leave)
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
    try:
        work()
    except StoppedError as stopped:
        print(f"kapdist: {stopped}", file=sys.stderr)
        sys.exit(0)  # there is no DONE: the last word of the batch script will see to it
    except LockedError as error:
        print(f"kapdist: {error}", file=sys.stderr)
        sys.exit(HELD)
    except InputError as error:
        print(f"kapdist: {error}", file=sys.stderr)
        sys.exit(2)
    except TransientError as error:
        print(f"kapdist: {error}", file=sys.stderr)
        sys.exit(1)


def leave(number: int, frame: FrameType | None) -> None:
    raise StoppedError(f"stopped by {signal.Signals(number).name}; may be continued")


if __name__ == "__main__":
    TrainRank(Path(sys.argv[1]))()
