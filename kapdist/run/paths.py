"""Every path of a run, of its attacks and of what else is asked of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kapdist.errors import InputError, LockedError
from kapdist.run.files import file_sha256, last_number, mapping_in, write_atomic

if TYPE_CHECKING:  # imported where it is used: a look at many runs needs no config
    from kapdist.config import Config

DONE = "DONE"
FACTORY = "factory_sha256"  # what plan.json calls the sha256 of the file with a network by other people


class RunDir:
    """The directory of one training run and of the attacks on it."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.config = self.root / "config.yaml"
        self.plan = self.root / "plan.json"
        self.environment = self.root / "environment.json"
        self.metrics = self.root / "metrics.jsonl"
        self.damaged_metrics = self.root / "metrics.damaged.jsonl"
        self.tensorboard = self.root / "tensorboard"
        self.checkpoints = self.root / "checkpoints"
        self.latest = self.checkpoints / "LATEST"
        self.weights = self.root / "model.safetensors"
        self.best_weights = self.root / "best.safetensors"
        self.tracking = self.root / "tracking"
        self.attempts = self.root / "attempts"
        self.evaluations = self.root / "evaluations"
        self.attacks = self.root / "attacks"
        self.worst_case = self.attacks / "worst_case.json"
        self.corruptions = self.root / "corruptions"
        self.certificates = self.root / "certificates"
        self.topographies = self.root / "topography"
        self.profiles = self.root / "profile"
        self.code = self.root / "code"
        self.slurm = self.root / "slurm"
        self.done = self.root / DONE
        self.failed = self.root / "FAILED"
        self.lock = self.root / "LOCK"
        self.launcher = self.slurm / "LOCK"  # whoever starts the ranks here, without Slurm
        self.asked = self.slurm / "asked"  # a study's job has asked all that it had to ask of this model, or
        self.not_asked = self.slurm / "failed" / "model"  # has given it up

    @property
    def name(self) -> str:
        return self.root.resolve().name

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:09d}"

    def profile(self, step: int) -> Path:
        return self.profiles / f"step-{step:09d}.json.gz"

    def tracked(self, name: str) -> Path:
        return self.tracking / f"{name}.json"

    def evaluation(self, name: str) -> Path:
        return self.evaluations / f"{name}.json"

    def attack(self, name: str) -> AttackDir:
        return AttackDir(self.attacks / name)

    def corrupted(self, name: str) -> CorruptionsDir:
        return CorruptionsDir(self.corruptions / name)

    def certified(self, name: str) -> CertificateDir:
        return CertificateDir(self.certificates / name)

    def topography(self, name: str) -> TopographyDir:
        return TopographyDir(self.topographies / name)

    def rank_log(self, attempt: int, rank: int) -> Path:
        return self.attempts / str(attempt) / f"rank-{rank}.log"

    def last_attempt(self) -> int:
        """Number of the newest attempt; 0 before the first."""
        return last_number(self.attempts)

    def check_last(self, attempt: int) -> None:
        """Refuse to write on for an attempt behind which another has begun.

        Slurm starts a job elsewhere when it has lost a node, where the ranks may run on out of its sight.

        Raises:
            LockedError: another attempt has begun since.
        """
        if (newest := self.last_attempt()) > attempt:
            raise LockedError(self.root, f"attempt {attempt} to be the last", f"attempt {newest}, begun since")

    def newest_step(self) -> int:
        """Step of the newest checkpoint by its name; 0 before the first."""
        return last_number(self.checkpoints, "step-")

    def set_aside(self, path: Path, attempt: int) -> Path | None:
        """Move a file, if it is there, to the folder of an attempt, which may have left none; return its place."""
        if not path.exists():
            return None
        folder = self.attempts / str(attempt)
        folder.mkdir(parents=True, exist_ok=True)
        return path.rename(folder / path.name)

    def saved(self) -> dict[int, Path]:
        """Return {step: checkpoint}, the newest first; a copy that somebody keeps beside them is none."""
        steps = {path: path.name.removeprefix("step-") for path in self.checkpoints.glob("step-*")}
        return dict(sorted(((int(step), path) for path, step in steps.items() if step.isdecimal()), reverse=True))

    @property
    def begun(self) -> bool:
        """Whether there is anything that another config would spoil: a checkpoint, or what a run ends with."""
        return self.done.exists() or self.weights.exists() or bool(self.saved())

    def check(self, config: Config) -> None:
        """Refuse a config that differs in what a run learns from the one that this run began with.

        A run that has nothing to lose may begin anew with any, so that a mistake does not take a name for good.

        Raises:
            InputError: names the first key that differs; or the run's config.yaml is damaged.
        """
        if self.begun:
            self.check_same(config)

    def check_same(self, config: Config) -> None:
        """Raise InputError for the first key in which what a config learns differs from this directory's."""
        from kapdist.config import KEPT, MAY_CHANGE, MAY_MOVE, flatten

        if not self.config.exists():
            return
        mine, theirs = flatten(config), flatten(self.read_config())
        # Whoever opens a beton that moved compares its images; without their fingerprint nobody could.
        may_change = {*MAY_CHANGE, *(key for key, images in MAY_MOVE.items() if images in self.recorded())}
        may_change |= {key for key, name in KEPT.items() if mine[key] is None and name in self.recorded()}
        if mine["kap.pool_size"] == theirs["kap.pool_size"] == 1:
            may_change |= {"kap.layout", "kap.norm_first"}  # of an average that there is not
        for key in mine:
            if mine[key] != theirs[key] and key not in may_change:
                expected = f"{key} = {theirs[key]!r} as this run began (or another name=)"
                raise InputError(self.root, expected, repr(mine[key]))

    def recorded(self) -> dict[str, Any]:
        """Return what plan.json says of this run; nothing where there is none, or a damaged one."""
        return mapping_in(self.plan)

    def claim(self, config: Config) -> None:
        """Make the directory this config's own, if it may be.

        Raises:
            InputError: as `check`.
        """
        from kapdist.config.file import dump_config

        self.check(config)
        content = dump_config(config).encode()
        if not (self.config.exists() and self.config.read_bytes() == content):
            write_atomic(self.config, content)

    def drop_leftovers(self) -> None:
        """Remove what killed writers left aside, of files that only the holder of the lock writes."""
        own = self.plan, self.environment, self.metrics, self.weights, self.best_weights, self.done, self.latest
        aside = [path for name in own for path in name.parent.glob(f".{name.name}.*.tmp")]
        for path in [*aside, *self.checkpoints.glob(".step-*.tmp"), *self.attempts.glob("*/.*.tmp")]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def load_config(self) -> Config:
        """Return the config of the run in this directory."""
        if not self.config.exists():
            raise InputError(self.root, "a run directory", "no config.yaml" if self.root.exists() else "nothing")
        as_ended(self.config)
        return self.read_config()

    def read_config(self) -> Config:
        """Return what config.yaml says, if it means today what it meant when it was written.

        Raises:
            InputError: as `load_config` and `check_noise_form`.
        """
        from kapdist.config import Config
        from kapdist.config.file import load_config, read_yaml
        from kapdist.config.noise_form import check_noise_form

        check_noise_form(self.config, read_yaml(self.config).get("kap"))
        return load_config(Config, self.config)

    @property
    def results(self) -> tuple[Path, ...]:
        """What a run ends with, and what is told of it: files whose bytes DONE knows."""
        told = self.config, self.plan, self.environment, self.metrics
        return (self.weights, self.best_weights, *told)


class AttackDir:
    """The directory of one attack: the plan, a file per chunk, the summary."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.plan = self.root / "plan.json"
        self.chunks = self.root / "chunks"
        self.adversarial = self.root / "adversarial"
        self.logs = self.root / "logs"
        self.records = self.root / "records.parquet"
        self.summary = self.root / "summary.json"
        self.sanity = self.root / "sanity.json"
        self.lock = self.root / "LOCK"
        self.code = self.root / "code"
        self.slurm = self.root / "slurm"
        self.failed = self.root / "FAILED"

    def chunk(self, index: int) -> Path:
        return self.chunks / f"chunk-{index:06d}.parquet"

    def adversarial_images(self, index: int) -> Path:
        return self.adversarial / f"chunk-{index:06d}.npy"

    def clean_images(self, index: int) -> Path:
        return self.adversarial / f"clean-{index:06d}.npy"

    def shard_log(self, shard: int) -> Path:
        return self.logs / f"shard-{shard}.log"


class TopographyDir:
    """The directory of one look at a run's kernels: the record, and its plots as PNG."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.record = self.root / "topography.json"
        self.lock = self.root / "LOCK"

    def plot(self, name: str) -> Path:
        return self.root / f"{name}.png"


class StudyDir:
    """The directory of a study: what it began with, its runs, its page."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.name = self.root.name
        self.config = self.root / "config.yaml"
        self.base = self.root / "base.yaml"
        self.frozen = self.root / "study.json"
        self.configs = self.root / "configs"
        self.runs = self.root / "runs"
        self.logs = self.root / "logs"
        self.elsewhere = self.root / "elsewhere"  # what another machine began and this one begins anew
        self.report = self.root / "report"
        self.page = self.report / "index.html"
        self.results = self.report / "results.json"
        self.lock = self.root / "LOCK"
        self.code = self.root / "code"
        self.slurm = self.root / "slurm"
        self.finished = self.slurm / "finished"
        self.failed = self.root / "FAILED"

    def run(self, name: str) -> RunDir:
        return RunDir(self.runs / name)

    def attack_config(self, name: str) -> Path:
        return self.configs / "attacks" / f"{name}.yaml"


class SeedsDir:
    """The directory of the jobs that train several seeds of one config; the runs lie beside it."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.name = self.root.name
        self.code = self.root / "code"
        self.slurm = self.root / "slurm"


def labels(roots: Sequence[Path]) -> list[str]:
    """Name each run by its directory, with as many parents as tell all of them apart."""
    parts = [root.resolve().parts for root in roots]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(words[-length:]) for words in parts]
        if len(set(names)) == len(names):
            break
    return names


class CorruptionsDir(AttackDir):
    """The directory of one run under corruptions: the plan, a file per kind and severity, the summary."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.cells = self.root / "cells"
        self.table = self.root / "summary.csv"

    def cell(self, name: str) -> Path:
        return self.cells / f"{name}.parquet"


class CertificateDir(AttackDir):
    """The directory of one certification: the plan, a file per unit of work under chunks/, records and summary."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.table = self.root / "summary.csv"


def as_ended(path: Path) -> Path:
    """Return the path of a file of a run, to be read: nobody has changed it since the run was done.

    Raises:
        InputError: as `weights_sha256`.
    """
    if path.exists():
        weights_sha256(path)
    return path


def weights_sha256(path: Path) -> str:
    """Return the sha256 of a file of weights, hexadecimal: the one function for whoever reads weights of a run.

    Raises:
        InputError: the run ended with other bytes under this name, as DONE beside them says.
    """
    found, expected = file_sha256(path), recorded_sha256(path)
    if expected not in (None, found):
        raise InputError(path, f"the file that this run ended with (sha256 {expected} in DONE)", f"sha256 {found}")
    return found


def recorded_sha256(path: Path) -> str | None:
    """Return what DONE says of a file beside it; None where there is no DONE or it does not speak of it."""
    done = path.with_name(DONE)
    if not done.exists():
        return None
    try:
        recorded: str | None = json.loads(done.read_bytes()).get("sha256", {}).get(path.name)
    except (ValueError, AttributeError):
        raise InputError(done, "the JSON that a run ends with", "something else") from None
    return recorded
