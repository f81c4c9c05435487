"""The only ways to write a file: aside, fsync, rename; and what a file is known by."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from kapdist.errors import InputError

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


NOT_WRITABLE = frozenset(
    {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}
)


@contextlib.contextmanager
def written_aside(path: Path, put: Callable[[Path, Path], None] = os.replace) -> Iterator[Path]:
    """Give a temporary path in the same directory; on success fsync it and rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield aside
        sync(aside)
        put(aside, path)
        sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole file so that a reader sees the old content or the new, never a part."""
    with written_aside(path) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


def write_first(path: Path, content: str) -> None:
    """Write a whole file unless there is one: of several that write at once the first is believed."""
    with contextlib.suppress(FileExistsError), written_aside(path, os.link) as aside:
        aside.write_bytes(content.encode(errors="backslashreplace"))  # a traceback has names of files, as they are


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


def mapping_in(path: Path) -> dict[str, Any]:
    """Return the mapping that a file of JSON holds; nothing where there is no such file, or a damaged one."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


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


def append_line(path: Path, value: Any) -> None:
    """Add a line to a file of JSON lines, on one of its own whatever was cut off before it; it is on the disk then.

    Raises:
        OSError: as `append_whole`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        before = "" if file.read(1) in (b"", b"\n") else "\n"
        append_whole(file, f"{before}{to_json(value)}\n".encode())
        os.fsync(file.fileno())
    sync(path.parent)


def lines_in(path: Path) -> list[dict[str, Any]]:
    """Return the mappings of a file of JSON lines, none where there is none; what was cut off is passed over."""
    found = []
    for line in text_in(path).splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [one for one in found if isinstance(one, dict)]


def text_in(path: Path) -> str:
    """Return what a file says, "" where there is none: asked before, it might be gone by now."""
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def first_line_in(path: Path) -> str:
    """Return how a file begins, "" where there is none."""
    return text_in(path).partition("\n")[0]


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


def check_outputs(
    *paths: Path, keep_folders: bool = True, refused: frozenset[int] = NOT_WRITABLE | NO_ROOM
) -> None:
    """Say before any data are read that a file that the work is for could not be written after it.

    Args:
        keep_folders: those made for it stay, as where others may be about to write there.
        refused: as of `output`; a folder that cannot be made, as in /proc, always is.

    Raises:
        InputError: names the place.
    """
    for path in paths:
        with output(path, refused | {errno.ENOENT}):
            made = [] if keep_folders else [folder for folder in path.parents if not folder.exists()]
            try:
                check_writable(path)
            finally:
                for folder in made:
                    with contextlib.suppress(OSError):
                        folder.rmdir()


def last_number(folder: Path, before: str = "") -> int:
    """Return the largest n of all names `before`n in a folder, 0 where there is none; others may be gone."""
    words = [path.name[len(before) :] for path in folder.glob("*") if path.name.startswith(before)]
    return max((int(word) for word in words if word.isdecimal()), default=0)


def time_in(folder: Path) -> float:
    """Return the time by the clock that stamps the files of a folder, seconds since the epoch; none is left there.

    Ages are differences of one clock: the server of a shared file system may be minutes away from this host. Where
    nothing can be written, the time is this host's.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


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
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
