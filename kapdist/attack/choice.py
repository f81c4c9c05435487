"""Which images of a beton are attacked: by chance, from the first on, or by a list of ids or files."""

from __future__ import annotations

import hashlib
import importlib.util
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kapdist.config import AttackConfig
from kapdist.data.beton.manifest import read_manifest
from kapdist.errors import InputError
from kapdist.records.attack_plan import ROBUSTBENCH_LIST_SHA256
from kapdist.rng import permutation

if TYPE_CHECKING:
    from kapdist.attack.images import ImageSet

MOST_DIGITS = 18  # of an id
ROBUSTBENCH = "robustbench"
ROBUSTBENCH_FILE = "helper_files/imagenet_test_image_ids.txt"


@dataclass(frozen=True)
class Choice:
    """The images, and which list says so."""

    images: tuple[int, ...]
    """Their ids, ascending."""
    chosen: str
    """As the user wrote it."""
    list_sha256: str | None


@dataclass(frozen=True)
class ImageList:
    """A file of a line for each image: its id, or its file's name."""

    name: str
    """As the user wrote it."""
    lines: tuple[str, ...]
    sha256: str


def choose_images(config: AttackConfig, image_set: ImageSet) -> Choice:
    """Choose the images to attack: of an order by chance, of the beton or of a list the first.

    Raises:
        InputError: there are fewer than asked for, or the list has one that the beton lacks.
    """
    listed = read_list(config.list_name) if config.list_name else None
    order = ids_in_order(config, image_set, listed)
    asked = config.num_asked(len(order))
    if asked is not None and asked > len(order):
        found = f"{len(order)} in {listed.name if listed else image_set.data.path}"
        raise InputError("num_images", f"at least {asked} images", found)
    return Choice(tuple(sorted(order[:asked])), config.images, listed.sha256 if listed else None)


def ids_in_order(config: AttackConfig, image_set: ImageSet, listed: ImageList | None) -> list[int]:
    if listed:
        return ids_of(listed, image_set.data.path, image_set.num_images)
    if config.images == "first":
        return list(range(image_set.num_images))
    order: list[int] = permutation(image_set.num_images, config.seed, "attack images").tolist()
    return order


def num_available(config: AttackConfig, num_images: int | None) -> int | None:
    """Return how many images there are to choose from, of those of a beton; None where nothing says it."""
    return len(read_list(config.list_name).lines) if config.list_name else num_images


def read_list(name: str) -> ImageList:
    """Read a list by what the user calls it: list:FILE, robustbench or robustbench:FILE.

    Raises:
        InputError: there is no such file, it has no lines or one twice, or it is not RobustBench's.
    """
    kind, _, path = name.partition(":")
    place = f"images={name}"
    file = Path(path) if path else installed_list(place)
    try:
        content = file.read_bytes()
        lines = tuple(line.strip() for line in content.decode().splitlines() if line.strip())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no text"
        raise InputError(place, f"a file with an image's id or file name in each line ({file})", reason) from None
    sha256 = hashlib.sha256(content).hexdigest()
    if kind == ROBUSTBENCH and sha256 != ROBUSTBENCH_LIST_SHA256:
        expected = f"RobustBench's list of ImageNet images (sha256 {ROBUSTBENCH_LIST_SHA256[:12]})"
        raise InputError(place, expected, f"{file} with sha256 {sha256[:12]}")
    if not lines:
        raise InputError(place, "an image's id or file name in each line", f"no line in {file}")
    refuse_twice(place, lines)
    return ImageList(name, lines, sha256)


def installed_list(place: str) -> Path:
    """Return where the installed package has its list; the package, which needs much else, is not imported."""
    spec = importlib.util.find_spec(ROBUSTBENCH)
    if spec is None or not spec.submodule_search_locations:
        expected = f"the package with its list (pip install --no-deps {ROBUSTBENCH}, or {place}:FILE)"
        raise InputError(place, expected, "it is not installed")
    return Path(next(iter(spec.submodule_search_locations))) / ROBUSTBENCH_FILE


def refuse_twice(place: str, lines: Iterable[object]) -> None:
    twice = [line for line, count in Counter(lines).items() if count > 1]
    if twice:
        raise InputError(place, "each image once", f"{twice[0]} more than once ({len(twice)} such images)")


def ids_of(listed: ImageList, beton: Path, num_images: int) -> list[int]:
    """Return the ids in a beton of the images that a list names, in its order.

    Raises:
        InputError: the beton lacks some, or keeps no file names; names how many and the first.
    """
    place = f"images={listed.name}"
    named = Names(beton) if any(not is_id(line) for line in listed.lines) else None
    ids: list[int] = []
    missing = []
    for line in listed.lines:
        found = id_of(line, num_images) if named is None or is_id(line) else named.find(line, place)
        missing += [line] if found is None else []
        ids += [] if found is None else [found]
    if missing:
        few = f"{len(missing):,} missing, the first {missing[0]}"
        raise InputError(place, f"all of its {len(listed.lines):,} images in {beton}", few)
    refuse_twice(place, ids)
    return ids


def is_id(line: str) -> bool:
    return line.isascii() and line.isdigit()


def id_of(line: str, num_images: int) -> int | None:
    return int(line) if len(line) <= MOST_DIGITS and int(line) < num_images else None


class Names:
    """The file names that a beton keeps, to be found by."""

    def __init__(self, beton: Path) -> None:
        self.beton = beton
        self.names = read_manifest(beton).file_names(beton)
        self.called: defaultdict[str, list[int]] = defaultdict(list)
        for image, name in enumerate(self.names):
            self.called[name.rpartition("/")[2]].append(image)

    def find(self, line: str, place: str) -> int | None:
        """Return the image that a line names: in full, or as far as both the line and the beton say its folders.

        Raises:
            InputError: several are called so.
        """
        found = [image for image in self.called[last(line)] if same_end(self.names[image], line)]
        found = found or self.called[as_on_the_hub(line)]
        exact = [image for image in found if self.names[image] == line]
        if len(found) > 1 and len(exact) != 1:
            raise InputError(place, f"names of one image each in {self.beton}", f"{len(found)} called {line}")
        found = exact or found
        return found[0] if found else None


def last(name: str) -> str:
    return name.rpartition("/")[2]


def same_end(one: str, other: str) -> bool:
    """Return whether the shorter of two paths is the end of the longer one, in whole folders."""
    shorter, longer = sorted((one.split("/"), other.split("/")), key=len)
    return longer[-len(shorter) :] == shorter


def as_on_the_hub(line: str) -> str:
    """Return folder/name.JPEG as name_folder.JPEG: what ImageNet's files are called on the Hugging Face hub."""
    folder, _, name = line.rpartition("/")
    stem, dot, ending = name.rpartition(".")
    return f"{stem}_{last(folder)}{dot}{ending}" if folder else ""


__all__ = ["Choice", "ImageList", "choose_images", "num_available", "read_list"]
