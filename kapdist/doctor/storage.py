"""The file system of a folder: its kind and room, and what kapdist asks of it, tried on a small file."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kapdist.doctor.finding import Finding, Status, judged, ok, wrong
from kapdist.errors import LockedError
from kapdist.run.files import write_atomic
from kapdist.run.lock import locked

GIB = 2**30
FULL_BYTES, LOW_BYTES = 2 * GIB, 20 * GIB
LOW_INODES = 10_000
SLOW_SECONDS = 0.1  # for an fsync: metrics, heartbeats and chunks have many
SKEW_SECONDS, WRONG_SECONDS = 2.0, 3600.0
IN_MEMORY = {"tmpfs": "memory", "ramfs": "memory", "overlay": "a container's own layer"}
SHARED = (
    "nfs",
    "nfs4",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "cifs",
    "afs",
    "panfs",
    "wekafs",
    "fuse.glusterfs",
    "9p",
)


class Mount(NamedTuple):
    """A mounted file system."""

    point: str
    kind: str
    source: str


def storage(folder: Path | None = None) -> Iterator[Finding]:
    """Look at the file system of a folder, by default the current one, and try it."""
    folder = folder or Path.cwd()
    mount = mount_of(str(folder), Path("/proc/self/mountinfo").read_text())
    yield kind_told(folder, mount)
    yield room_told(os.statvfs(folder))
    try:
        with tempfile.TemporaryDirectory(prefix=".kapdist-doctor-", dir=folder) as name:
            yield from tried(Path(name))
    except OSError as error:
        yield wrong("files", f"{folder}: {error.strerror}", "run kapdist where you may write, with runs_dir there")


def mount_of(folder: str, mountinfo: str) -> Mount | None:
    """Return the file system of a folder by the lines of /proc/self/mountinfo (proc(5)); the last of two counts."""
    found = None
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        words, (kind, source) = before.split(), after.split()[:2]
        point = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), words[4])
        inside = folder == point or folder.startswith(point.rstrip("/") + "/")
        if inside and (found is None or len(point) >= len(found.point)):
            found = Mount(point, kind, source)
    return found


def kind_told(folder: Path, mount: Mount | None) -> Finding:
    if mount is None:
        return ok("file system", f"{folder}, of no known mount")
    shared = ", shared" if mount.kind in SHARED else ""
    gone = f"it is {IN_MEMORY.get(mount.kind)}: runs are gone with it"
    found = f"{folder} on {mount.kind}{shared} ({mount.source} at {mount.point})"
    return judged("file system", found, (mount.kind in IN_MEMORY, "note", gone))


def room_told(room: os.statvfs_result) -> Finding:
    free, inodes = room.f_bavail * room.f_frsize, room.f_favail if room.f_files else None
    status: Status = "wrong" if free < FULL_BYTES else "note"
    few = inodes is not None and inodes < LOW_INODES
    return judged(
        "room",
        f"{free / GIB:,.1f} GiB free" + ("" if inodes is None else f", {inodes:,} files"),
        (
            free < LOW_BYTES,
            status,
            "checkpoints and betons take gigabytes: make room (kapdist forecast says how much)",
        ),
        (few, "wrong" if inodes == 0 else "note", "an attack writes a file for each chunk: remove files"),
    )


def tried(folder: Path) -> Iterator[Finding]:
    """Write, flush, rename, link and lock small files as runs do, and compare the clocks."""
    file, began = folder / "file", time.time()
    write_atomic(file, "old")
    seconds, stamped = time.time() - began, file.stat().st_mtime
    write_atomic(file, "new")
    slow = f"an fsync takes {seconds:.2f} s: raise train.log_every_steps, or train on a faster file system"
    yield judged(
        "files",
        "written, flushed and renamed over one another",
        (file.read_text() != "new", "wrong", "a renamed file has the old content: runs would lose what they save"),
        (seconds > SLOW_SECONDS, "note", slow),
    )
    yield lock_told(folder)
    yield clock_told(stamped - (began + seconds / 2), seconds)


def lock_told(folder: Path) -> Finding:
    """Take a run's own lock, which is a hard link, and see that nobody else gets it."""
    remedy = "two jobs could train in one directory, or none: keep runs on another file system"
    try:
        with locked(folder / "LOCK"):
            try:
                with locked(folder / "LOCK"):
                    return wrong("locks", "taken twice at once", remedy)
            except LockedError:
                pass
    except (OSError, ValueError) as error:
        return wrong("locks", f"hard links do not work here: {error}", remedy)
    return ok("locks", "taken and given back, refused meanwhile (hard links)")


def clock_told(skew: float, uncertain: float) -> Finding:
    """Judge by how many seconds the file system's clock is ahead of this machine's."""
    late = abs(skew) > SKEW_SECONDS + uncertain
    status: Status = "wrong" if abs(skew) > WRONG_SECONDS else "note"
    remedy = "start NTP (chrony): kapdist goes by the file system's clock, logs and Slurm do not"
    found = f"{time.strftime('%Y-%m-%d %H:%M:%S %Z')}; the file system's is "
    found += f"{abs(skew):.1f} s {'ahead' if skew > 0 else 'behind'}" if late else "the same"
    return judged("clock", found, (late, status, remedy))
