"""A lock file that names its holder; works between the nodes of a shared file system.

Who the holder is decides how one learns that it is gone: a process that can be seen from here by its number and
start time, one on another machine or in another container by the job that it belongs to, which Slurm is asked for.
Nothing else is taken for a proof, so a lock whose holder cannot be asked for is held.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from kapdist.errors import InputError, LockedError
from kapdist.run import slurm
from kapdist.run.files import NO_ROOM

POLL_SECONDS = 0.05
PASSES = NO_ROOM | {errno.EIO, errno.ESTALE, errno.ETIMEDOUT}  # of a full disk, of a server that was away


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock, by all that tells it from others."""

    host: str
    pid: int
    started: str | None
    """In the kernel's ticks, which tells a reused process id."""
    since: str
    boot: str | None = None
    namespace: str | None = None
    """Of process ids: in another one, a container's, the same id is another process."""
    user: int | None = None
    job: str | None = None
    """Slurm's, of processes that Slurm started; a shell of salloc on a login node outlives its job."""
    restart: int = 0
    step: str | None = None
    cluster: str | None = None
    token: str = ""

    def __str__(self) -> str:
        job = f" (Slurm job {self.job})" if self.job else ""
        return f"process {self.pid} on {self.host} since {self.since}{job}"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file; one whose holder is gone is taken over.

    Raises:
        LockedError: somebody holds it, or may.
        InputError: nothing can be written there.
        OSError: nothing can be for now, as where a disk is full; another start may be luckier.
    """
    token = uuid.uuid4().hex
    mine = path.with_name(f".{path.name}.{token[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mine.write_text(json.dumps(asdict(this_process(token))))
        acquire(path, mine)
    except OSError as error:
        if error.errno in PASSES:
            raise
        raise InputError(path.parent, "a place that can be written", error.strerror or str(error)) from None
    finally:
        with contextlib.suppress(OSError):
            mine.unlink()
    try:
        yield
    finally:
        found = holder_of(path)
        if found and found.token == token:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked_in_turn(path: Path, wait_seconds: float) -> Iterator[None]:
    """Hold a lock that is never held for long, waiting a while for others to be through with it.

    Raises:
        LockedError: they are not.
    """
    deadline = time.monotonic() + wait_seconds
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(path))
                break
            except LockedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_SECONDS)
        yield


def check_free(path: Path) -> None:
    """Refuse a lock that somebody holds, and leave one that is free, or whose holder is gone, as it is.

    Raises:
        LockedError: somebody holds it, or may.
    """
    found = holder_of(path)
    if found is None:
        return
    lives = is_alive(found)
    if lives is not False:
        unsaid = "; nothing here says whether it lives" if lives is None else ""
        expected = f"nobody else at work here (remove {path.name} if that process is gone)"
        raise LockedError(path, expected, f"{found}{unsaid}")


def other_at_work(path: Path) -> Holder | None:
    """Return who holds a lock, or may, outside of this start of this Slurm job; None if nobody does.

    A later start of the job is another: this one may end on a node that Slurm had lost.
    """
    found, mine = holder_of(path), this_process()
    if found is None or (found.job and found.job == mine.job and found.restart <= mine.restart):
        return None
    return None if is_alive(found) is False else found


def clear(path: Path) -> None:
    """Remove a lock whose holder is gone: whoever was refused may have been where Slurm cannot be asked."""
    found = holder_of(path)
    if found is not None and is_alive(found) is False:
        with contextlib.suppress(LockedError), locked(path):
            pass


def acquire(path: Path, mine: Path) -> None:
    """Link `mine` to `path`, which only one process can do, or put it in the place of what a dead holder left."""
    for _ in range(10):
        try:
            return os.link(mine, path)
        except FileExistsError:
            left = content(path)
            if left == content(mine):  # a server whose answer was lost is asked again (NFS; see man 2 open, O_EXCL)
                return None
            check_free(path)
            if left is not None and inherit(path, left, mine):
                return None
    raise LockedError(path, "a free lock", "a lock that others keep taking")


def inherit(path: Path, left: bytes, mine: Path) -> bool:
    """Put `mine` in the place of what a dead holder left; return False if that is gone by now.

    No call removes a file on condition that it is still the dead holder's and not the next one's. So the right to
    it is a lock itself, named after what was left: one process at a time has it, and inherits it if need be.
    """
    heir = path.with_name(f".{path.name}.{hashlib.sha256(left).hexdigest()[:8]}.heir")
    acquire(heir, mine)
    if content(path) == left:
        os.replace(heir, path)
        return True
    heir.unlink()
    return False


def content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def holder_of(path: Path) -> Holder | None:
    """Return who a lock names; None where there is none, or it is damaged."""
    try:
        found = json.loads(content(path) or b"")
        return Holder(**{field.name: found[field.name] for field in fields(Holder) if field.name in found})
    except (ValueError, TypeError):
        return None


def this_process(token: str = "") -> Holder:
    pid, job = os.getpid(), of_slurm(os.environ)
    return Holder(
        host=socket.gethostname(),
        pid=pid,
        started=process_start(pid),
        since=time.strftime("%Y-%m-%d %H:%M:%S"),
        boot=first_line(Path("/proc/sys/kernel/random/boot_id")),
        namespace=pid_namespace(),
        user=os.getuid(),
        job=job.get("SLURM_JOB_ID"),
        restart=int(job.get("SLURM_RESTART_COUNT", 0)),
        step=job.get("SLURM_STEP_ID"),
        cluster=job.get("SLURM_CLUSTER_NAME"),
        token=token,
    )


def of_slurm(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Return the variables of the job that Slurm started this process for; none outside of one."""
    return environ if "SLURMD_NODENAME" in environ else {}


def is_alive(found: Holder) -> bool | None:
    """Return whether a holder lives; None where nothing says so."""
    here = lives_here(found)
    if here is not None or not found.job:
        return here
    mine = this_process()
    if found.job == mine.job and found.cluster == mine.cluster:
        if found.restart < mine.restart:
            return False  # Slurm ended that start before this one
        if found.step == mine.step:
            return True
    if found.cluster is None or found.cluster != slurm.cluster_name():
        return None
    return slurm.start_lives(found.job, found.restart, found.step, own=found.user == mine.user)


def lives_here(found: Holder) -> bool | None:
    """Return whether a holder lives as far as this machine can see; None of another machine or container."""
    mine = this_process()
    if found.host != mine.host and (found.boot is None or found.boot != mine.boot):
        return None
    if found.namespace is not None and found.namespace != mine.namespace:
        return None
    started = process_start(found.pid)
    return exists(found.pid) if started is None else started == found.started


def exists(pid: int) -> bool:
    """Return whether there is a process that /proc does not show: it may hide those of others, or not be there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process_start(os.getpid()) is None


def process_start(pid: int) -> str | None:
    """Start time of a process in the kernel's ticks; None if it has ended, waited for by its parent or not."""
    try:
        state, *words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return words[18] if state not in "ZX" else None


def pid_namespace() -> str | None:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def first_line(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
