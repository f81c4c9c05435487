"""The status of a run and its attacks, as one value that can be printed as JSON."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kapdist.errors import InputError
from kapdist.run.paths import AttackDir, RunDir
from launch.jobs import remembered, time_in
from launch.status.attack import Attack, read_attack
from launch.status.slurm import ask_slurm
from launch.status.training import Training, Verdict, read_training, scan

MOVES = {"RUNNING", "PENDING", "UNKNOWN"}
LOW_DISK_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Status:
    """The status of a directory: a run with its attacks, or one attack."""

    directory: str
    slurm_answers: bool
    """Whether squeue answered, or did not need to be asked."""
    training: Training | None
    attacks: list[Attack]
    disk_free_bytes: int
    now: float
    """When this was read, by the clock of the directory's file system; seconds since the epoch."""

    @property
    def verdict(self) -> Verdict:
        """The training's, or that of the only attack."""
        if self.training:
            return self.training.verdict
        return self.attacks[0].verdict if len(self.attacks) == 1 else Verdict("", f"{len(self.attacks)} attacks")

    @property
    def ended(self) -> bool:
        """Nothing more will happen by itself."""
        states = {attack.verdict.state for attack in self.attacks}
        return not MOVES & (states | ({self.training.verdict.state} if self.training else set()))

    @property
    def disk_low(self) -> bool:
        return self.disk_free_bytes < LOW_DISK_BYTES

    def describe(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        derived = {"verdict": asdict(self.verdict), "ended": self.ended, "disk_low": self.disk_low}
        return {"directory": self.directory} | derived | asdict(self)


def read_status(root: Path) -> Status:
    """Read the status of a directory; Slurm is asked once for all of its jobs.

    Raises:
        InputError: it is neither a run directory nor an attack directory.
    """
    run, attacks = what_is(root)
    own = remembered(run.slurm) if run else []
    theirs = [remembered(directory.slurm) for directory in attacks]
    answers = ask_slurm([*own, *(line for lines in theirs for line in lines)])
    return Status(
        directory=str(root),
        slurm_answers=answers.queue is not None,
        training=read_training(run, own, answers) if run else None,
        attacks=[read_attack(directory, lines, answers) for directory, lines in zip(attacks, theirs, strict=True)],
        disk_free_bytes=shutil.disk_usage(root).free,
        now=time_in(root),
    )


def what_is(root: Path) -> tuple[RunDir | None, list[AttackDir]]:
    """Tell a run from an attack; a directory of attacks on a model from outside has no run."""
    if not root.is_dir():
        raise InputError(root, "a run directory", "a file" if root.exists() else "nothing")
    run = RunDir(root)
    inside = root.resolve().parent.name == "attacks" and not run.attempts.exists()
    if inside or "chunk_size" in run.recorded():
        return None, [AttackDir(root)]
    attacks = [run.attack(entry.name) for entry in scan(run.attacks) if entry.is_dir()]
    attacks.sort(key=lambda directory: directory.root.name)
    if run.config.exists():
        return run, attacks
    if attacks:
        return None, attacks
    raise InputError(root, "a run directory or an attack directory", "no config.yaml and no attacks")
