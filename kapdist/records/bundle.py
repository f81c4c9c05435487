"""One attack in one file, for whoever wants to check it: a zip or a tar under a seal, and a list of what is in it.

The members are the attack's own files, byte for byte. Nothing is unpacked by a name that the file gives, nothing in
it is pickled, and no code in it is run. The seal tells damage, as everywhere here; it is no signature.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from kapdist.errors import InputError, first_line
from kapdist.records.record import Count, Exact, Record, invalid
from kapdist.records.sealed import BLANK, SEAL, DamagedError, damaged
from kapdist.run.files import to_json, written_aside
from kapdist.statistics.intervals import Proportion

MANIFEST, README = "manifest.json", "README.txt"
WEIGHTS, NETWORK = "weights/weights.safetensors", "factory/network.py"
NAMES = re.compile(
    r"README\.txt|manifest\.json|plan\.json|summary\.json|records\.parquet|config\.yaml"
    r"|chunks/chunk-[0-9]{6,9}\.parquet|adversarial/(chunk|clean)-[0-9]{6,9}\.npy"
    r"|weights/weights\.safetensors|factory/network\.py"
)
SUFFIXES = (".zip", ".tar")
BUNDLE = "a bundle (kapdist export ATTACK --format bundle)"
MADE = (1980, 1, 1, 0, 0, 0)  # of every member: equal attacks give equal bytes
BLOCK = 1 << 20
LEVEL = 2  # of deflate: 6 takes four times as long for images a sixth smaller
Add = Callable[[str, bytes], None]
Read = Callable[[str, int], bytes]


class Member(Exact):
    """A file in a bundle."""

    name: str
    sha256: str
    num_bytes: Count


class Manifest(Exact):
    """manifest.json: what a bundle claims to hold."""

    format: Literal[1] = 1
    kapdist: str | None
    run: str
    attack: str
    plan_fingerprint: str
    weights_sha256: str
    weights: str | None
    """The member with the weights; None: they are not in the bundle."""
    factory: str | None
    """What made the network, as the author wrote it: never run from a bundle."""
    factory_sha256: str | None
    factory_file: str | None
    """The member with its source, to be read."""
    python: str
    packages: dict[str, str | None]
    """Versions where the bundle was written; those of the attack are in plan.json."""
    members: tuple[Member, ...]


class Verified(Record):
    """What holds of an attack when its images are predicted again."""

    bundle: str
    run: str
    attack: str
    norm: str
    eps: float
    noise: str
    num_draws: int = Field(ge=1)
    """Fresh draws that were averaged for a prediction; 1: the model is deterministic."""
    num_files: int
    num_images: int
    num_clean_correct_claimed: Count
    num_clean_correct: Count
    clean_differs: tuple[int, ...]
    """Images whose clean prediction is another one than was recorded."""
    num_breaks: Count
    num_hold: Count
    outside: tuple[int, ...]
    """Images whose break does not hold, as the adversarial image is outside of the ball or of [0, 1]."""
    not_fooled: tuple[int, ...]
    """... as the model is right on the adversarial image."""
    clean_wrong: tuple[int, ...]
    """... as the model is wrong on the clean image already, which counts as not robust all the same."""
    num_robust_claimed: Count
    num_robust_at_most: Count
    """Images that are right and for which no break holds; nobody can verify that they are robust."""
    robust_accuracy_claimed: Proportion
    robust_accuracy_at_most: Proportion
    confirmed: bool
    """Both accuracies are what was claimed."""
    notes: tuple[str, ...]

    @property
    def do_not_hold(self) -> tuple[int, ...]:
        return tuple(sorted({*self.outside, *self.not_fooled, *self.clean_wrong}))


def write_bundle(path: Path, files: Iterable[tuple[str, bytes]], manifest: Manifest) -> Manifest:
    """Write a bundle from its files, whole or not at all; returns the manifest with its members.

    Raises:
        InputError: the name ends in neither .zip nor .tar.
    """
    if path.suffix not in SUFFIXES:
        raise InputError("--out", "a file NAME.zip (compressed) or NAME.tar", str(path))
    members: list[Member] = []
    with written_aside(path) as aside:
        with zip_writer(aside) if path.suffix == ".zip" else tar_writer(aside) as add:
            for name, content in files:
                assert NAMES.fullmatch(name), name
                members.append(Member(name=name, sha256=sha256_of(content), num_bytes=len(content)))
                add(name, content)
            manifest = manifest.model_copy(update={"members": tuple(members)})
            add(MANIFEST, (to_json(manifest.describe(), indent=2) + "\n").encode())
        seal(aside)
    return manifest


@contextlib.contextmanager
def zip_writer(path: Path) -> Iterator[Add]:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:

        def add(name: str, content: bytes) -> None:
            info = zipfile.ZipInfo(name, MADE)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(info, content, compresslevel=LEVEL)

        yield add
        archive.comment = BLANK.encode()


@contextlib.contextmanager
def tar_writer(path: Path) -> Iterator[Add]:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:

        def add(name: str, content: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))

        yield add
    with path.open("ab") as file:
        file.write(BLANK.encode())  # behind the end, where no reader of tars looks


def seal(path: Path) -> None:
    """Fill in the blank seal that a file ends with."""
    digits = digest_but_seal(path)
    with path.open("r+b") as file:
        file.seek(-len(digits), io.SEEK_END)
        file.write(digits.encode())


def digest_but_seal(path: Path) -> str:
    """Return the sha256 of a file with zeros for its last 64 bytes, hexadecimal."""
    digest, left = hashlib.sha256(), path.stat().st_size - 64
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(BLOCK, left))):
            digest.update(block)
            left -= len(block)
    digest.update(b"0" * 64)
    return digest.hexdigest()


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def is_whole(path: Path) -> bool:
    """Tell whether a file ends with a seal that fits it; without one nothing speaks for it."""
    size = path.stat().st_size
    if size < len(BLANK):
        return False
    with path.open("rb") as file:
        file.seek(size - len(BLANK))
        end = file.read()
    return end == f"{SEAL}{digest_but_seal(path)}".encode()


class Bundle:
    """A bundle, read by its members' names; every checksum has been checked.

    Raises:
        InputError: it is none, it is damaged (names the file in it where that can be told), or it holds a file of
            a name or kind that no bundle has.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():  # a pipe would be waited for
            raise InputError(path, BUNDLE, "no regular file" if path.exists() else "no such file")
        with reading(path, f"{BUNDLE}, whole"):
            whole = is_whole(path)
            self.sizes, self.content = zip_contents(path) if is_zip(path) else tar_contents(path)
        if MANIFEST not in self.sizes:
            raise damaged(path, f"no {MANIFEST} in it")
        self.manifest = self.read_manifest()
        for member in self.manifest.members:
            content = self.read(member.name)
            if (len(content), sha256_of(content)) != (member.num_bytes, member.sha256):
                raise damaged(self.place(member.name), "bytes that its checksum does not fit")
        if not whole:
            raise damaged(path, "bytes between the files in it that its checksum does not fit")

    def read_manifest(self) -> Manifest:
        content = self.read(MANIFEST)
        with reading(self.place(MANIFEST)):
            values = json.loads(content)
        try:
            manifest = Manifest.model_validate(values)
        except ValidationError as error:
            raise invalid(self.place(MANIFEST), error) from None
        if sorted([MANIFEST, *(member.name for member in manifest.members)]) != sorted(self.sizes):
            raise InputError(self.place(MANIFEST), "a list of the files that are there, each once", "another list")
        return manifest

    def place(self, name: str) -> Path:
        """Return what a message calls a member."""
        return Path(f"{self.path}!{name}")

    def names(self) -> list[str]:
        return [member.name for member in self.manifest.members]

    def read(self, name: str) -> bytes:
        """Return a member's bytes, never more than it says that there are."""
        with reading(self.place(name)):
            return self.content(name, self.sizes[name])


@contextlib.contextmanager
def reading(place: Path, expected: str = "a whole file") -> Iterator[None]:
    """Take for damage whatever damaged bytes lead a reader of archives to.

    Raises:
        InputError: in place of any error.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except OSError as error:
        raise InputError(place, "a file that can be read", error.strerror or first_line(error)) from None
    except Exception as error:
        raise DamagedError(place, expected, first_line(error)) from None


def is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def zip_contents(path: Path) -> tuple[dict[str, int], Read]:
    """Return the sizes of a zip's members, and what reads one."""
    archive = zipfile.ZipFile(path)
    sizes = checked_names(path, [(info.filename, info.file_size) for info in archive.infolist()])

    def read(name: str, size: int) -> bytes:
        with archive.open(name) as file:
            return file.read(size)

    return sizes, read


def tar_contents(path: Path) -> tuple[dict[str, int], Read]:
    """Return the sizes of a tar's members, and what reads one; links and devices are refused."""
    with tarfile.open(path, "r:") as archive:
        members = archive.getmembers()
    for member in members:
        if not member.isreg():
            raise InputError(path, "regular files alone", f"{member.name!r}, which is none")
        if member.size > path.stat().st_size:
            raise damaged(path, f"{member.name!r} of {member.size} bytes")
    sizes = checked_names(path, [(member.name, member.size) for member in members])
    begins = {member.name: member.offset_data for member in members}

    def read(name: str, size: int) -> bytes:
        with path.open("rb") as file:
            file.seek(begins[name])
            return file.read(size)

    return sizes, read


def checked_names(path: Path, members: list[tuple[str, int]]) -> dict[str, int]:
    """Return {name: bytes}; raise InputError for a name that no bundle has, as one that leads out of a folder."""
    sizes = dict(members)
    if strange := [name for name in sizes if not NAMES.fullmatch(name)]:
        raise InputError(path, "the files of a bundle alone", repr(strange[0]))
    if len(sizes) != len(members):
        raise InputError(path, "every file once", "a name twice")
    return sizes
