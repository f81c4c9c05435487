"""Staging: a beton is copied to a disk of the node once, and whoever wants it there uses that copy.

The copy's name has the sha256 of its bytes, so there is one for all ranks, jobs and places that a beton was moved
to, and none is ever another beton's. It gets the name when it is whole and verified; before that it is a file that
only the holder of a lock writes, and that nobody reads.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kapdist.data.beton.layout import open_with_manifest
from kapdist.data.beton.manifest import Manifest, manifest_path
from kapdist.errors import InputError, LockedError
from kapdist.run.files import NO_ROOM, sync, write_atomic
from kapdist.run.lock import locked

log = logging.getLogger(__name__)

BLOCK = 1 << 24  # bytes
SPARE = 1 << 26  # bytes of a disk that a copy leaves free
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 120.0  # for a copy that somebody else makes and that does not grow
DIGITS = 16  # of the sha256


class EndedError(Exception):
    """Nobody wants the copy any more."""


class Staging(threading.Thread):
    """Copies betons to a folder, in a thread, so that whoever waits can say that it lives and be asked to stop.

    Args:
        wanted: betons; one that cannot be copied is read where it is, and a line of the log says why.
        folder: on a disk of this node; variables of the environment in it are filled in.

    Raises:
        InputError: no such variable, or no folder that can be made and written.
    """

    def __init__(self, wanted: list[Path], folder: Path) -> None:
        super().__init__(daemon=True, name="kapdist-stage")
        self.wanted, self.folder = wanted, expanded(folder)
        self.places: dict[Path, Path] = {}
        self.ending, self.turns = threading.Event(), 0
        self.error: BaseException | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"data.stage = {folder}", "a folder that can be made", str(error)) from None
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise InputError(f"data.stage = {folder}", "a folder that can be written", "one that cannot")

    def run(self) -> None:
        try:
            for path in self.wanted:
                self.places[path] = staged(path, self.folder, self.ended)
        except EndedError:
            return
        except BaseException as error:
            self.error = error

    def ended(self) -> bool:
        """Tell whether nobody wants the copies any more; asked at every turn, so that `turns` tells progress."""
        self.turns += 1
        return self.ending.is_set()

    def result(self) -> list[Path]:
        """Return where each beton is to be read, once the thread has ended; raises what it met."""
        if self.error is not None:
            raise self.error
        return [self.places[path] for path in self.wanted]


def expanded(folder: Path) -> Path:
    """Return a folder with the environment's variables filled in, such as $SLURM_TMPDIR."""
    path = os.path.expandvars(folder)
    if "$" in path:
        raise InputError(f"data.stage = {folder}", "variables that the environment has", path)
    return Path(path)


def staged(path: Path, folder: Path, ended: Callable[[], bool] = lambda: False) -> Path:
    """Return the copy of a beton in a folder, made now if it is not there; the beton itself where there is no room.

    Raises:
        InputError: the beton, or its manifest, is not what it should be.
        EndedError: ended() was true in the midst.
    """
    _, manifest = open_with_manifest(path)
    copy = folder / f"{path.stem}-{manifest.sha256[:DIGITS]}{path.suffix}"
    waited = Patience(partial_of(copy))
    while not usable(copy, manifest):
        try:
            with alone(copy):
                if not usable(copy, manifest):  # or somebody made it until now
                    make(path, copy, manifest, ended)
        except LockedError as held:
            if waited.over():
                log.warning("data.stage: %s; %s is read where it is", held, path)
                return path
            if ended():
                raise EndedError from None
            time.sleep(POLL_SECONDS)
        except OSError as error:
            what = "no room for" if error.errno in NO_ROOM else "no copy of"
            log.warning("data.stage: %s %s in %s (%s); it is read where it is", what, path, folder, error)
            return path
    log.info("data.stage: %s is read from %s", path, copy)
    return copy


@contextlib.contextmanager
def alone(copy: Path) -> Iterator[None]:
    """Hold the lock of a copy.

    Raises:
        LockedError: somebody else does.
        OSError: it cannot be had, as where another user's job was killed and only that user may remove its lock.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(copy.with_name(f"{copy.name}.lock")))
        except LockedError:
            raise
        except InputError as error:
            raise PermissionError(errno.EACCES, f"its lock cannot be had: {error}") from None
        yield


class Patience:
    """How long one waits for a file that somebody else writes: as long as it grows."""

    def __init__(self, path: Path) -> None:
        self.path, self.size, self.since = path, -1, time.monotonic()

    def over(self) -> bool:
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:  # not begun, or done just now
            size = -1
        if size != self.size:
            self.size, self.since = size, time.monotonic()
        return time.monotonic() - self.since > PATIENCE_SECONDS


def partial_of(copy: Path) -> Path:
    return copy.with_name(f"{copy.name}.partial")


def usable(copy: Path, manifest: Manifest) -> bool:
    """Tell whether a copy is there; it was verified when it got its name, and each image is when it is read."""
    try:
        info, found = open_with_manifest(copy)
    except (InputError, OSError):
        return False
    return (info.fingerprint, found.sha256) == (manifest.fingerprint, manifest.sha256)


def make(path: Path, copy: Path, manifest: Manifest, ended: Callable[[], bool]) -> None:
    """Copy a beton, verify it, and give it its name; the manifest first, as it alone is nothing.

    Raises:
        OSError: among others, no room.
        InputError: the bytes are not those that the manifest says.
    """
    partial = partial_of(copy)
    # Of a process that was killed, and what cannot be used: another user's is known before anything is copied.
    for left in (partial, copy, manifest_path(copy)):
        left.unlink(missing_ok=True)
    if shutil.disk_usage(copy.parent).free < manifest.size_bytes + SPARE:
        raise OSError(errno.ENOSPC, f"{manifest.size_bytes / 2**30:.1f} GiB are more than is free")
    try:
        sha256 = copied(path, partial, ended)
        if sha256 != manifest.sha256:
            raise InputError(path, f"sha256 {manifest.sha256} (its manifest)", sha256)
        write_atomic(manifest_path(copy), manifest_path(path).read_bytes())
        os.replace(partial, copy)
        sync(copy.parent)
    finally:
        partial.unlink(missing_ok=True)


def copied(path: Path, to: Path, ended: Callable[[], bool]) -> str:
    """Copy a file to the disk and return the sha256 of what was read."""
    digest = hashlib.sha256()
    with path.open("rb") as source, to.open("wb") as target:
        while block := source.read(BLOCK):
            if ended():
                raise EndedError
            digest.update(block)
            target.write(block)
        target.flush()
        os.fsync(target.fileno())
    return digest.hexdigest()
