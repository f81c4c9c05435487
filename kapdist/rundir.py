"""Every path of a run, and the only ways to write them: aside, fsync, rename."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kapdist.config import MAY_CHANGE, Config, flatten
from kapdist.configfile import dump_config, load_config
from kapdist.errors import InputError


class RunDir:
    """The directory of one training run and of the attacks on it."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.config = self.root / "config.yaml"
        self.plan = self.root / "plan.json"
        self.environment = self.root / "environment.json"
        self.metrics = self.root / "metrics.jsonl"
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

    def claim(self, config: Config) -> None:
        """Make the directory this config's own, or check that it is.

        Raises:
            InputError: the directory belongs to a config that differs in what a run learns.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        if self.config.exists():
            mine, theirs = flatten(config), flatten(load_config(Config, self.config))
            for key in mine:
                if mine[key] != theirs[key] and key not in MAY_CHANGE:
                    expected = f"{key} = {theirs[key]!r} as this run began (or another name=)"
                    raise InputError(self.root, expected, repr(mine[key]))
        write_atomic(self.config, dump_config(config))

    def load_config(self) -> Config:
        """Return the config of the run in this directory."""
        if not self.config.exists():
            raise InputError(self.root, "a run directory", "no config.yaml" if self.root.exists() else "nothing")
        return load_config(Config, self.config)


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


class UnwritableError(InputError, OSError):
    """An output that cannot be written, which is the user's to mend; the system's own `errno` tells why."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(path, "a file that can be written", error.strerror or str(error))
        self.errno = error.errno


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same directory; on success fsync it and rename it to `path`.

    Raises:
        UnwritableError: there is no room, no permission, or no such place.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        sync(aside)
        os.replace(aside, path)
        sync(path.parent)
    except UnwritableError:
        raise
    except OSError as error:
        raise UnwritableError(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole file so that a reader sees the old content or the new, never a part."""
    with written_aside(path) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=2) + "\n")


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


def fingerprint(value: Any) -> str:
    """Return the sha256 of a JSON value in canonical form, hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file that names its holder; works between the nodes of a shared file system.

    A lock whose holder is gone (its process on this host ended, or it was an earlier start of the same Slurm
    job) is taken over. Raises InputError when somebody holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex
    mine = path.with_name(f".{path.name}.{token[:8]}.tmp")
    mine.write_text(json.dumps(holder() | {"token": token}))
    try:
        acquire(path, mine)
    finally:
        mine.unlink(missing_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            if json.loads(path.read_text()).get("token") == token:
                path.unlink()


def acquire(path: Path, mine: Path) -> None:
    """Link `mine` to `path`, which only one process can do; remove what a dead holder left."""
    for _ in range(10):
        try:
            return os.link(mine, path)
        except FileExistsError:
            drop_if_stale(path)
    raise InputError(path, "a free lock", "a lock that others keep taking")


def drop_if_stale(path: Path) -> None:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return
    except ValueError:
        found = {}
    if found and alive(found):
        who = f"process {found['pid']} on {found['host']} since {found['since']}"
        job = f" (Slurm job {found['job']})" if found.get("job") else ""
        raise InputError(path, f"nobody else at work here (remove {path.name} if that process is gone)", who + job)
    # Renaming can be done by one process only, so two of them never drop each other's fresh lock.
    grave = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.stale")
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, grave)
        grave.unlink()


def holder() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": process_start(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID"),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def alive(found: dict[str, Any]) -> bool:
    if found["job"] and found["job"] == os.environ.get("SLURM_JOB_ID"):
        return False  # a requeue: Slurm ended the earlier start before this one
    if found["host"] != socket.gethostname():
        return True  # cannot be seen from here
    return process_start(found["pid"]) == found["started"] is not None


def process_start(pid: int) -> str | None:
    """Start time of a process in the kernel's ticks, which tells a reused process id; None if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
