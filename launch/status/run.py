"""Where a run and its attacks stand, as one value that can be printed as JSON."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kapdist.errors import InputError
from kapdist.run.paths import AttackDir, RunDir
from launch import clock
from launch.jobs import remembered
from launch.status.attack import Attack, attack
from launch.status.slurm import ask_slurm
from launch.status.training import Training, Verdict, read_json, scan, training

MOVES = {"RUNNING", "PENDING", "UNKNOWN"}
LOW_DISK_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Standing:
    """Where a directory stands: a run with its attacks, or one attack."""

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


def standing(root: Path) -> Standing:
    """Read where a directory stands; Slurm is asked once for all of its jobs.

    Raises:
        InputError: it is neither a run directory nor an attack directory.
    """
    run, attacks = what_is(root)
    own = remembered(run.slurm) if run else []
    theirs = [remembered(directory.slurm) for directory in attacks]
    told = ask_slurm([*own, *(line for lines in theirs for line in lines)])
    return Standing(
        directory=str(root),
        slurm_answers=told.queue is not None,
        training=training(run, own, told) if run else None,
        attacks=[attack(directory, lines, told) for directory, lines in zip(attacks, theirs, strict=True)],
        disk_free_bytes=shutil.disk_usage(root).free,
        now=clock.now(root),
    )


def what_is(root: Path) -> tuple[RunDir | None, list[AttackDir]]:
    """Tell a run from an attack; a directory of attacks on a model from outside has no run."""
    if not root.is_dir():
        raise InputError(root, "a run directory", "a file" if root.exists() else "nothing")
    run = RunDir(root)
    inside = root.resolve().parent.name == "attacks" and not run.attempts.exists()
    if inside or "chunk_size" in read_json(run.plan):
        return None, [AttackDir(root)]
    attacks = [run.attack(entry.name) for entry in scan(run.attacks) if entry.is_dir()]
    attacks.sort(key=lambda directory: directory.root.name)
    if run.config.exists():
        return run, attacks
    if attacks:
        return None, attacks
    raise InputError(root, "a run directory or an attack directory", "no config.yaml and no attacks")
