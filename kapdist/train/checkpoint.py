"""Checkpoints: written aside by all ranks in the background, sealed by a manifest and one rename.

Saving stops the training for the copy to host memory alone. Damaged checkpoints are passed over on load.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import math
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kapdist.engine import Ranks
from kapdist.errors import InputError
from kapdist.models.weights import first_not_finite
from kapdist.run.files import NO_ROOM, file_sha256, sync, write_atomic, write_json
from kapdist.run.paths import RunDir

log = logging.getLogger(__name__)

State = dict[str, Any]
POLL_SECONDS = 0.02
LAST_SECONDS = 10.0  # for the files of other ranks, after an error of this one
LOOKS = 10  # for a checkpoint that is not pruned meanwhile
MANIFEST = "manifest.json"
REFUSED = "rank-{}.refused"
FAILED = "rank-{}.failed"


class Saver:
    """Writes one checkpoint at a time behind the training; the next save waits for it, its errors surface there.

    A full disk is no error: it is logged, the last whole checkpoint stays, and the next save tries again. A state
    that is not finite is one, on all ranks, and no checkpoint is replaced or pruned for it.

    Args:
        attempt: its number, so that nothing of an earlier attempt is ever part of a checkpoint.
        timeout_seconds: longest that rank 0 waits for the files of the others.
        order: of the epochs' images, which a run that is continued keeps.
    """

    def __init__(
        self, run: RunDir, ranks: Ranks, attempt: int, keep: int, timeout_seconds: float, order: str = "random"
    ) -> None:
        self.run, self.ranks, self.attempt, self.keep = run, ranks, attempt, keep
        self.timeout_seconds, self.order = timeout_seconds, order
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None
        self.failed_at = math.inf
        self.sealed_step = -1
        self.passed_over: list[Path] = []
        """Damaged checkpoints of steps that are taken again; the next whole one stands in for them."""

    def save(self, step: int, shared: State, own: State) -> None:
        """Copy the state of a step to host memory and begin to write it: `shared` by rank 0, `own` by each."""
        self.wait()
        copies = on_host(shared | {"step": step}) if self.ranks.first else None, on_host(own)
        self.thread = threading.Thread(target=self.write, args=(step, *copies), name="kapdist-save")
        self.thread.start()

    def wait(self) -> None:
        """Wait for the checkpoint that is being written; raise what went wrong; all ranks call this together.

        Raises:
            FloatingPointError: the state is not finite.
            LockedError: another attempt has begun since.
            RuntimeError: another rank could not save.
        """
        if self.thread is not None:
            self.thread.join()
        self.thread = None
        error, self.error = self.error, None
        if self.ranks.any(error is not None):
            said = self.ranks.gather(None if error is None else str(error))
            rank = next(rank for rank, words in enumerate(said) if words is not None)
            raise error or RuntimeError(f"rank {rank} could not save: {said[rank]}")

    @contextlib.contextmanager
    def hurried_by_errors(self) -> Iterator[None]:
        """After an error in the block wait no longer than a moment for files of ranks that may be gone.

        A process ends with its last thread: it would stay, and keep its job's next start, until the time limit.
        """
        try:
            yield
        except BaseException:
            self.failed_at = time.monotonic()
            raise

    def write(self, step: int, shared: State | None, own: State) -> None:
        try:
            self.write_files(step, shared, own)
        except OSError as error:
            if error.errno not in NO_ROOM:
                self.error = error
            log.warning("no checkpoint of step %d: %s; the last one stays", step, error)
        except BaseException as error:
            self.error = error

    def write_files(self, step: int, shared: State | None, own: State) -> None:
        final = self.run.checkpoint(step)
        aside = final.with_name(f".{final.name}.attempt-{self.attempt}.tmp")
        aside.mkdir(parents=True, exist_ok=True)
        try:
            self.refuse_worse(aside, step, {"rank": own} if shared is None else {"shared": shared, "rank": own})
            write_payload(aside / f"rank-{self.ranks.rank}.pt", own)
            if shared is not None:
                write_payload(aside / "shared.pt", shared)
                self.wait_for_others(aside)
                self.run.check_last(self.attempt)
                facts = {"step": step, "world_size": self.ranks.world_size, "order": self.order}
                seal(aside, final, facts, replace=final in self.passed_over)
                write_atomic(self.run.latest, final.name + "\n")
                self.sealed_step = step
                self.drop_passed_over(final)
                prune(self.run, self.keep)
        except BaseException as error:
            if self.ranks.first:
                shutil.rmtree(aside, ignore_errors=True)  # room for the next one
            elif isinstance(error, FileNotFoundError):
                if self.run.checkpoint(step).exists():
                    return  # rank 0 saw this rank's file and sealed it all before this rank had looked back
                raise OSError(errno.ENOSPC, "rank 0 has given this checkpoint up") from error
            else:
                with contextlib.suppress(OSError):  # an empty file needs no room; without it rank 0 waits in vain
                    (aside / FAILED.format(self.ranks.rank)).touch()
            raise

    def drop_passed_over(self, final: Path) -> None:
        """Remove the damaged checkpoints that a start had passed over: counted as kept, they cost whole ones."""
        for path in self.passed_over:
            if path != final:
                shutil.rmtree(path, ignore_errors=True)
        self.passed_over = []

    def refuse_worse(self, aside: Path, step: int, state: State) -> None:
        """Refuse a state with a value that is not finite; a word in place of the file tells rank 0, which waits."""
        if found := first_not_finite(state):
            if not self.ranks.first:
                with contextlib.suppress(FileNotFoundError):  # rank 0 has met it too, and removed the place
                    write_atomic(aside / REFUSED.format(self.ranks.rank), found)
            raise diverged(self.run, f"{found} is not finite after step {step}: no checkpoint was made of it")

    def wait_for_others(self, aside: Path) -> None:
        """Wait until every rank's file is there; a file appears whole or not at all."""
        expected = [aside / f"rank-{rank}.pt" for rank in range(self.ranks.world_size)]
        deadline = time.monotonic() + self.timeout_seconds
        while missing := [path.name for path in expected if not path.exists()]:
            if refused := sorted(aside.glob(REFUSED.format("*"))):
                raise diverged(self.run, f"{refused[0].name}: {refused[0].read_text()} is not finite")
            if failed := sorted(aside.glob(FAILED.format("*"))):
                raise OSError(errno.ENOSPC, f"{failed[0].stem} could not be written")
            deadline = min(deadline, self.failed_at + LAST_SECONDS)
            if time.monotonic() > deadline:
                raise OSError(errno.ENOSPC, f"{', '.join(missing)} did not come in time")
            time.sleep(POLL_SECONDS)


def on_host(value: Any) -> Any:
    """Return a copy of nested containers with every tensor in host memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: on_host(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(on_host(item) for item in value)
    return value


def write_payload(path: Path, state: State) -> None:
    """Write through memory: on a full disk torch's own writer raises no OSError that could be told apart."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def diverged(run: RunDir, found: str) -> FloatingPointError:
    """Return the end of a run with numbers that are not finite; the message says what is left and what to do."""
    kept = sealed(run)
    mend = "a lower optim.lr, or optim.clip_grad_norm"
    if not kept:
        return FloatingPointError(
            f"{found}; there is no checkpoint yet, so that the run may begin anew with {mend}"
        )
    rest = f"the newest checkpoint is finite and stays: {kept[0]}. The same config comes to the same end; give "
    rest += f"another name= and {mend}, and to go on from there (if it is not on its way already) "
    rest += f"model.weights={kept[0] / 'shared.pt'}"
    return FloatingPointError(f"{found}; {rest}")


def seal(aside: Path, final: Path, facts: State, replace: bool = False) -> None:
    """Write the manifest and give the directory its name.

    A whole checkpoint of the same step, which this attempt began at, has the same state and stays: no moment is
    without it. One that is damaged, or that the start passed over (`replace`), is replaced.
    """
    if final.exists() and not replace and next(damages(final), None) is None:
        shutil.rmtree(aside)
        return
    files = {p.name: {"bytes": p.stat().st_size, "sha256": file_sha256(p)} for p in sorted(aside.glob("*.pt"))}
    write_json(aside / MANIFEST, {"format": 1, **facts, "files": files})
    if final.exists():
        shutil.rmtree(final)
    aside.rename(final)
    sync(final.parent)


def prune(run: RunDir, keep: int) -> None:
    for path in sealed(run)[keep:]:
        shutil.rmtree(path, ignore_errors=True)


def newer_than(run: RunDir, path: Path) -> list[Path]:
    """Return the checkpoints of later steps than this one's."""
    paths = sealed(run)
    return paths[: paths.index(path)]


def sealed(run: RunDir) -> list[Path]:
    """Return the checkpoint directories, newest first."""
    return list(run.saved().values())


def newest(run: RunDir) -> Path | None:
    """Return the newest checkpoint that is whole, None when there is none at all.

    A training that is at work may prune the one that is looked at; then there is a newer one.

    Raises:
        InputError: there are checkpoints and every one is damaged; nothing is deleted.
    """
    for _ in range(LOOKS):
        paths = sealed(run)
        for path in paths:
            damage = next(damages(path), None)
            if damage is None:
                return path
            if path.exists():
                log.warning("passing over checkpoint %s: %s", path, damage)
        if all(path.exists() for path in paths):
            break
    if paths:
        raise InputError(run.checkpoints, "one whole checkpoint", f"{len(paths)} damaged (see the log)")
    return None


def order_begun(run: RunDir) -> str | None:
    """Return the order of images that the newest checkpoint was trained in; None where no checkpoint says it."""
    for path in sealed(run):
        with contextlib.suppress(OSError, ValueError):
            return read_manifest(path).get("order")
    return None


def read_manifest(path: Path) -> State:
    """Return the manifest of a checkpoint.

    Raises:
        OSError, ValueError: there is none, or it is damaged.
    """
    manifest = json.loads((path / MANIFEST).read_bytes())
    try:
        whole = {"shared.pt", "rank-0.pt"} <= manifest["files"].keys() and isinstance(manifest["world_size"], int)
        whole = whole and all({"bytes", "sha256"} <= file.keys() for file in manifest["files"].values())
    except (AttributeError, KeyError, TypeError):
        whole = False
    if not whole:
        raise ValueError("not the manifest of a checkpoint")
    return manifest


def damages(path: Path) -> Iterator[str]:
    """Say what is wrong with a checkpoint, cheapest checks first."""
    try:
        files = read_manifest(path)["files"]
    except (OSError, ValueError) as error:
        yield f"{MANIFEST}: {error}"
        return
    for name, expected in files.items():
        try:
            size = (path / name).stat().st_size
            if size != expected["bytes"]:
                yield f"{name}: expected {expected['bytes']} bytes, found {size}"
            elif file_sha256(path / name) != expected["sha256"]:
                yield f"{name}: its sha256 is not the manifest's"
        except OSError as error:
            yield f"{name}: {error.strerror}"


def load(path: Path, ranks: Ranks) -> tuple[State, State | None]:
    """Return (shared state, this rank's own state); the latter is None when the number of ranks changed."""
    shared = torch.load(path / "shared.pt", map_location="cpu", weights_only=True)
    if read_manifest(path)["world_size"] != ranks.world_size:
        return shared, None
    return shared, torch.load(path / f"rank-{ranks.rank}.pt", map_location="cpu", weights_only=True)
