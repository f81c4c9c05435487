"""Every path of a run, and the only ways to write them: aside, fsync, rename."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from kapdist.config import MAY_CHANGE, MAY_MOVE, Config, flatten
from kapdist.config.file import dump_config, load_config
from kapdist.errors import InputError

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
NOT_WRITABLE = frozenset(
    {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}
)


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
        self.attempts = self.root / "attempts"
        self.evaluations = self.root / "evaluations"
        self.attacks = self.root / "attacks"
        self.worst_case = self.attacks / "worst_case.json"
        self.corruptions = self.root / "corruptions"
        self.code = self.root / "code"
        self.slurm = self.root / "slurm"
        self.done = self.root / "DONE"
        self.failed = self.root / "FAILED"
        self.lock = self.root / "LOCK"
        self.launcher = self.slurm / "LOCK"  # whoever starts the ranks here, without Slurm

    @property
    def name(self) -> str:
        return self.root.resolve().name

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:09d}"

    def evaluation(self, name: str) -> Path:
        return self.evaluations / f"{name}.json"

    def attack(self, name: str) -> AttackDir:
        return AttackDir(self.attacks / name)

    def corrupted(self, name: str) -> CorruptionsDir:
        return CorruptionsDir(self.corruptions / name)

    def rank_log(self, attempt: int, rank: int) -> Path:
        return self.attempts / str(attempt) / f"rank-{rank}.log"

    def last_attempt(self) -> int:
        """Number of the newest attempt; 0 before the first."""
        return max((int(path.name) for path in self.attempts.glob("*") if path.name.isdigit()), default=0)

    @property
    def begun(self) -> bool:
        """Whether there is anything that another config would spoil: a checkpoint, or what a run ends with."""
        return self.done.exists() or self.weights.exists() or any(self.checkpoints.glob("step-*"))

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
        if not self.config.exists():
            return
        mine, theirs = flatten(config), flatten(load_config(Config, self.config))
        # Whoever opens a beton that moved compares its images; without their fingerprint nobody could.
        may_change = {*MAY_CHANGE, *(key for key, images in MAY_MOVE.items() if images in self.recorded())}
        for key in mine:
            if mine[key] != theirs[key] and key not in may_change:
                expected = f"{key} = {theirs[key]!r} as this run began (or another name=)"
                raise InputError(self.root, expected, repr(mine[key]))

    def recorded(self) -> dict[str, Any]:
        """Return what plan.json says of this run; nothing where there is none, or a damaged one."""
        try:
            found = json.loads(self.plan.read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def claim(self, config: Config) -> None:
        """Make the directory this config's own, if it may be.

        Raises:
            InputError: as `check`.
        """
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
        return load_config(Config, as_ended(self.config))

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


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same directory; on success fsync it and rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield aside
        sync(aside)
        os.replace(aside, path)
        sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole file so that a reader sees the old content or the new, never a part."""
    with written_aside(path) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, to_json(value, indent=2) + "\n")


def to_json(value: Any, indent: int | None = None) -> str:
    """Return JSON, which knows no NaN and no Infinity: a number that is not finite becomes null."""
    return json.dumps(finite_or_null(value), indent=indent, allow_nan=False)


def finite_or_null(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite_or_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(item) for item in value]
    return value


def append_whole(file: IO[bytes], content: bytes) -> None:
    """Append to an unbuffered file all of the content or nothing of it.

    Raises:
        OSError: there is no room for it; the file is as it was.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        if file.write(content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(file.fileno(), size)
        raise


@contextlib.contextmanager
def output(place: Path, refused: frozenset[int] = NOT_WRITABLE | NO_ROOM) -> Iterator[None]:
    """Take an output that cannot be written for the wrong input that it is.

    Args:
        refused: the numbers of such errors; what another start may mend does not belong to them.

    Raises:
        InputError: in place of such an OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in refused:
            raise
        raise InputError(error.filename or place, "a place that can be written", os.strerror(error.errno)) from None


def check_writable(path: Path) -> None:
    """Find out before the work what `write_atomic` would say after it.

    Raises:
        InputError: a folder, a pipe or a device has the name.
        OSError: the folder takes no file, or none of a name as long as that of the temporary file.
    """
    if path.exists() and not path.is_file():
        found = "a folder" if path.is_dir() else "neither a file nor a folder"
        raise InputError(path, "a file that can be written, or none yet", found)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp") as file:
        file.write(bytes(1))


def sync(path: Path) -> None:
    """Flush a file or a directory entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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
    done = RunDir(path.parent).done
    if not done.exists():
        return None
    try:
        recorded: str | None = json.loads(done.read_bytes()).get("sha256", {}).get(path.name)
    except (ValueError, AttributeError):
        raise InputError(done, "the JSON that a run ends with", "something else") from None
    return recorded


def fingerprint(value: Any) -> str:
    """Return the sha256 of a JSON value in canonical form, hexadecimal."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
