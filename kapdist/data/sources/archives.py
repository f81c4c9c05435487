"""Files in a folder, a zip or a tar, read by name in any order without unpacking."""

from __future__ import annotations

import copy
import functools
import io
import os
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kapdist.data.sources.image import UnreadableImageError
from kapdist.errors import InputError

BLOCK = 512  # bytes; a tar's unit


class Files(ABC):
    """Named files somewhere; `place` is what a message calls where they are."""

    place: Path
    prefix = ""
    """Folder inside of the archive that names are relative to, with its slash."""

    @abstractmethod
    def all_names(self) -> Iterator[str]:
        """Yield the names of the regular files, from the archive's root."""

    @abstractmethod
    def read_whole(self, name: str) -> bytes:
        """Return a file by its name from the archive's root; raise OSError or KeyError."""

    def names(self) -> list[str]:
        """Return the names of the files below the prefix, sorted."""
        begin = len(self.prefix)
        return sorted(name[begin:] for name in self.all_names() if name.startswith(self.prefix))

    def read(self, name: str) -> bytes:
        """Return a file's bytes.

        Raises:
            UnreadableImageError: they cannot be read.
        """
        try:
            return self.read_whole(self.prefix + name)
        except (OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise UnreadableImageError(f"{type(error).__name__}: {error}") from error

    def text(self, name: str) -> str:
        """Return a small file that must be there.

        Raises:
            InputError: it is not, or is no text.
        """
        return self.needed(name).decode(errors="replace")

    def needed(self, name: str) -> bytes:
        try:
            return self.read(name)
        except UnreadableImageError as error:
            raise InputError(self.place, f"a file {name}", str(error)) from error

    def label(self, name: str) -> str:
        """Return what a message calls a file."""
        return f"{self.place.name}!{self.prefix}{name}"


class FolderFiles(Files):
    """A folder; links are followed."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def all_names(self) -> Iterator[str]:
        for folder, _, names in os.walk(self.place, followlinks=True):
            for name in names:
                yield str(Path(folder, name).relative_to(self.place))

    def read_whole(self, name: str) -> bytes:
        path = self.place / name
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise OSError("no regular file")
        return path.read_bytes()

    def label(self, name: str) -> str:
        return name


class ZipFiles(Files):
    """A zip, opened by every process for itself: its position in the file must not be shared by forks."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.opened: tuple[int, zipfile.ZipFile] | None = None
        try:
            self.file()
        except (zipfile.BadZipFile, OSError, NotImplementedError, UnicodeDecodeError) as error:
            raise InputError(place, "a whole zip", str(error)) from error

    def file(self) -> zipfile.ZipFile:
        if self.opened is None or self.opened[0] != os.getpid():
            self.opened = os.getpid(), zipfile.ZipFile(self.place)
        return self.opened[1]

    def all_names(self) -> Iterator[str]:
        return (info.filename for info in self.file().infolist() if not info.is_dir())

    def read_whole(self, name: str) -> bytes:
        return self.file().read(name)  # RuntimeError of one that is encrypted or compressed in a newer way


class TarFiles(Files):
    """An uncompressed tar: where its files begin is noted once, and then any process reads any of them."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.descriptor = open_for_reading(place)
        whole = Window(self.descriptor, 0, os.fstat(self.descriptor).st_size)
        self.where = tar_index(whole, str(place))

    def all_names(self) -> Iterator[str]:
        return iter(self.where)

    def read_whole(self, name: str) -> bytes:
        return read_exactly(self.descriptor, *self.where[name])


class GzipTarFiles(Files):
    """A compressed tar, unpacked into memory: for those that are small."""

    def __init__(self, place: Path) -> None:
        self.place = place
        try:
            with tarfile.open(place, "r:gz") as archive:
                self.contents = {
                    member.name.removeprefix("./"): extracted(archive, member)
                    for member in archive
                    if member.isreg()
                }
        except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
            raise InputError(place, "a whole .tar.gz", str(error)) from error

    def all_names(self) -> Iterator[str]:
        return iter(self.contents)

    def read_whole(self, name: str) -> bytes:
        return self.contents[name]


def extracted(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None, "a regular file has content"
    return file.read()


class Window(io.RawIOBase):
    """A part of a file as a file, read at its own position: several may share one descriptor."""

    def __init__(self, descriptor: int, start: int, size: int) -> None:
        self.descriptor, self.start, self.size, self.at = descriptor, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self.size - self.at))
        content = os.pread(self.descriptor, count, self.start + self.at)
        buffer[: len(content)] = content
        self.at += len(content)
        return len(content)


def tar_index(window: Window, place: str) -> dict[str, tuple[int, int]]:
    """Return {name: (offset in the descriptor's file, bytes)} of the regular files of an uncompressed tar.

    Raises:
        InputError: no tar, cut off, or two files of one name.
    """
    where: dict[str, tuple[int, int]] = {}
    end = 0
    try:
        with tarfile.open(fileobj=window, mode="r:") as archive:
            for member in archive:
                end = archive.offset
                if not member.isreg():
                    continue
                name = member.name.removeprefix("./")
                if name in where:
                    raise InputError(place, "files with different names", f"more than one {name}")
                where[name] = (window.start + member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        raise InputError(place, "a whole tar", f"{error} (after {len(where)} files)") from error
    # tarfile takes a cut for the end; only the empty block that ends every tar tells.
    window.seek(end)
    if window.read(BLOCK) != bytes(BLOCK):
        raise InputError(place, "a whole tar", f"one that is cut off or damaged after {len(where)} files")
    return where


def open_for_reading(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise InputError(path, "a file that can be read", str(error.strerror)) from error


def read_exactly(descriptor: int, offset: int, size: int) -> bytes:
    """Return bytes of a file; raise EOFError where it ends before."""
    content = os.pread(descriptor, size, offset)
    while len(content) < size:
        more = os.pread(descriptor, size - len(content), offset + len(content))
        if not more:
            raise EOFError(f"the file ends {size - len(content)} bytes too early")
        content += more
    return content


def is_archive(path: Path) -> bool:
    return path.name.endswith((".zip", ".tar", ".tar.gz", ".tgz"))


@functools.lru_cache(maxsize=1)
def open_archive(path: Path, changed_ns: int) -> Files:
    """Return the files of a .zip, .tar, .tar.gz or .tgz; the last one is kept, for it is asked for several times.

    Raises:
        InputError: a damaged one.
    """
    if path.name.endswith((".tar.gz", ".tgz")):
        return GzipTarFiles(path)
    return ZipFiles(path) if path.suffix == ".zip" else TarFiles(path)


def locate(path: Path, marker: str) -> Files | None:
    """Return the files of the folder that has a file `marker`: the path, or one folder further down."""
    if path.is_dir():
        folders = [path, *sorted(entry for entry in path.iterdir() if entry.is_dir())]
        found = [folder for folder in folders if (folder / marker).is_file()]
        return FolderFiles(found[0]) if found else None
    if not is_archive(path):
        return None
    files = copy.copy(open_archive(path, path.stat().st_mtime_ns))
    depth = marker.count("/") + 1
    for name in sorted(files.all_names(), key=lambda name: name.count("/")):
        if name == marker or (name.endswith(f"/{marker}") and name.count("/") == depth):
            files.prefix = name.removesuffix(marker)
            return files
    return None
