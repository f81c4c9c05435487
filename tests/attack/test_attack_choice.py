"""Which images are attacked: by chance, from the first on, by a list of ids or files, or RobustBench's."""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import kapdist.attack.choice as choice_of
from kapdist.attack.choice import choose_images, read_list
from kapdist.attack.images import describe_images
from kapdist.attack.plan import plan_attack
from kapdist.config import AttackConfig, SanityConfig
from kapdist.config.images import ImagesConfig
from kapdist.data.beton.manifest import manifest_path, packed, read_manifest
from kapdist.data.beton.write import write
from kapdist.errors import InputError
from kapdist.records.attack_plan import ROBUSTBENCH_LIST_SHA256
from kapdist.rng import permutation
from kapdist.run.files import fingerprint
from kapdist.run.paths import RunDir
from kapdist.sanity.run import plan_of

NAMES = [f"n0{label}/val_{number:02d}.png" for label in range(3) for number in range(label, 12, 3)]
"""The beton's images by their ids: four in each of three classes."""


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("named")
    for number, name in enumerate(NAMES):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(path)
    write(str(folder / "images"), folder / "val.beton", num_workers=1)
    return folder / "val.beton"


@pytest.fixture
def chosen(beton: Path, tmp_path: Path) -> Callable[..., tuple[int, ...]]:
    """The images of a list of these lines, or of another choice."""

    def chosen(*lines: object, images: str = "", beton: Path = beton, **fields: object) -> tuple[int, ...]:
        if lines:
            (tmp_path / "list.txt").write_text("\n".join(map(str, lines)))
        images = images or f"list:{tmp_path / 'list.txt'}"
        config = AttackConfig.model_validate({"name": "aa", "images": images} | fields)
        return choose_images(config, describe_images(ImagesConfig(beton=beton), None)).images

    return chosen


def test_first_and_random_take_the_first_of_their_order(chosen: Callable) -> None:
    assert chosen(images="first", num_images=5) == (0, 1, 2, 3, 4)
    by_seed = tuple(sorted(permutation(12, 7, "attack images")[:5].tolist()))
    assert chosen(images="random", num_images=5, seed=7) == by_seed != (0, 1, 2, 3, 4)
    assert chosen(images="random") == chosen(images="first") == tuple(range(12))
    with pytest.raises(InputError, match=r"num_images: expected at least 13 images, found 12 in .*val.beton"):
        chosen(images="first", num_images=13)


def test_a_list_names_images_by_id_or_file(chosen: Callable) -> None:
    """In full, with other folders in front, or without; of a part the list's first are taken."""
    assert chosen(7, "", 3, "0011") == (3, 7, 11)
    for line in ("n01/val_04.png", "imagenet/val/n01/val_04.png", "val_04.png"):
        assert chosen(line) == (5,)
    assert chosen("val_11.png", 3, "n00/val_00.png", num_images=2) == (3, 11)
    assert chosen("val_11.png", 3, "n00/val_00.png", num_images=0) == (0, 3, 11)
    with pytest.raises(InputError, match=r"num_images: expected at least 3 images, found 2 in list:.*list\.txt"):
        chosen(1, 2, num_images=3)


REFUSED = [
    ((12, 3), r"all of its 2 images in .*val\.beton, found 1 missing, the first 12$"),
    (
        ("n02/val_04.png", "val_99.png", 1),
        r"all of its 3 images in .*, found 2 missing, the first n02/val_04\.png$",
    ),
    (("9" * 5000,), r"all of its 1 images in .*, found 1 missing, the first 9999"),
    ((4, 5, 4), r"each image once, found 4 more than once \(1 such images\)$"),
    ((5, "val_04.png"), r"each image once, found 5 more than once \(1 such images\)$"),
    (("", " "), r"an image's id or file name in each line, found no line in .*list\.txt$"),
]


@pytest.mark.parametrize(("lines", "expected"), REFUSED)
def test_a_list_that_does_not_fit_is_refused(chosen: Callable, lines: tuple, expected: str) -> None:
    with pytest.raises(InputError, match=rf"^images=list:.*: expected {expected}"):
        chosen(*lines)


def test_files_that_are_no_lists_are_refused(chosen: Callable, tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\n")
    for path, found in (("none.txt", "No such file or directory"), ("", "Is a directory"), ("bytes", "no text")):
        with pytest.raises(InputError, match=rf"a file with an image's id or file name in each line .*{found}$"):
            chosen(images=f"list:{tmp_path / path}")
    for images in ("list:", "some", "robustbench:"):
        with pytest.raises(ValueError, match="random, first, list:FILE, robustbench or robustbench:FILE"):
            chosen(images=images)


def test_a_name_that_two_images_have_is_no_choice(chosen: Callable, tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / "twins" / label).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "twins" / label / "0.png")
    twins = tmp_path / "twins.beton"
    write(str(tmp_path / "twins"), twins, num_workers=1)
    assert chosen("b/0.png", beton=twins) == (1,)
    assert chosen("c/0.png", 0, beton=twins, images="first") == (0, 1)
    with pytest.raises(InputError, match=r"names of one image each in .*twins\.beton, found 2 called 0\.png$"):
        chosen("0.png", beton=twins)
    with pytest.raises(InputError, match=r"found 1 missing, the first c/0\.png$"):
        chosen("c/0.png", beton=twins)


def test_a_beton_without_names_says_why(chosen: Callable, beton: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.beton"
    old.write_bytes(beton.read_bytes())
    manifest = json.loads(manifest_path(beton).read_text())
    assert manifest.pop("names") is not None
    manifest_path(old).write_text(json.dumps(manifest | {"format_version": 1}))
    assert chosen(3, beton=old) == (3,)
    with pytest.raises(InputError, match=r"file names \(write it again, or list ids\), found a beton of before"):
        chosen("val_04.png", beton=old)
    manifest_path(old).write_text(json.dumps(manifest | {"names": None}))
    with pytest.raises(InputError, match=r"file names \(or list ids\), found none, as .*images has none$"):
        chosen("val_04.png", beton=old)


def test_a_manifest_keeps_the_names_of_the_images_that_were_written(tmp_path: Path, beton: Path) -> None:
    assert read_manifest(beton).file_names(beton) == NAMES
    (beton.parent / "images" / "n01" / "broken.png").write_bytes(b"no image")
    summary = write(str(beton.parent / "images"), tmp_path / "some.beton", num_workers=1, skip_unreadable=True)
    (beton.parent / "images" / "n01" / "broken.png").unlink()
    assert "names" not in summary
    assert read_manifest(tmp_path / "some.beton").file_names(tmp_path) == NAMES


class Robustbench:
    """A package of that name with a list of its own, and what the code under test takes for its sha256."""

    def __init__(self, folder: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.file = folder / "robustbench" / choice_of.ROBUSTBENCH_FILE
        self.file.parent.mkdir(parents=True)
        (folder / "robustbench" / "__init__.py").write_text("raise RuntimeError('imported')")
        self.file.write_text("\n".join(lines))
        monkeypatch.syspath_prepend(folder)
        monkeypatch.delitem(sys.modules, "robustbench", raising=False)
        self.sha256 = hashlib.sha256(self.file.read_bytes()).hexdigest()
        monkeypatch.setattr(choice_of, "ROBUSTBENCH_LIST_SHA256", self.sha256)


def test_robustbench_s_list_is_that_of_the_installed_package(
    chosen: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is not imported. A beton that lacks some of its images says how many."""
    package = Robustbench(tmp_path, ["n02/val_05.png", "n00/val_03.png"], monkeypatch)
    assert chosen(images="robustbench") == chosen(images=f"robustbench:{package.file}") == (1, 9)
    assert chosen(images="robustbench", num_images=1) == (9,)
    listed = read_list("robustbench")
    assert (listed.lines, listed.sha256) == (("n02/val_05.png", "n00/val_03.png"), package.sha256)
    package.file.write_text("n02/val_05.png\n")
    with pytest.raises(
        InputError, match=rf"sha256 {package.sha256[:12]}\), found .* with sha256 (?!{package.sha256[:12]})"
    ):
        chosen(images="robustbench")
    package.file.write_text("\n".join([*(f"n00/val_{number:02d}.png" for number in range(12))]))
    monkeypatch.setattr(choice_of, "ROBUSTBENCH_LIST_SHA256", hashlib.sha256(package.file.read_bytes()).hexdigest())
    with pytest.raises(
        InputError, match=r"all of its 12 images in .*, found 8 missing, the first n00/val_01\.png$"
    ):
        chosen(images="robustbench")


def test_without_the_package_its_file_is_asked_for(chosen: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice_of.importlib.util, "find_spec", lambda name: None)
    expected = r"\(pip install --no-deps robustbench, or images=robustbench:FILE\), found it is not installed$"
    with pytest.raises(InputError, match=expected):
        chosen(images="robustbench")


@pytest.mark.parametrize(
    "spelled",
    [
        lambda wnid, stem: f"{stem}.JPEG",  # the validation tar's
        lambda wnid, stem: f"val/{wnid}/{stem}.JPEG",
        lambda wnid, stem: f"{stem}_{wnid}.JPEG",  # the hub's
    ],
)
def test_imagenet_s_files_are_found_however_they_are_called(
    spelled: Callable, chosen: Callable, tmp_path: Path, beton: Path
) -> None:
    """RobustBench's lines are wnid/name.JPEG."""
    files = [(f"n0{label}", f"ILSVRC2012_val_{number:08d}") for label in range(3) for number in range(label, 12, 3)]
    copy = tmp_path / "imagenet.beton"
    copy.write_bytes(beton.read_bytes())
    manifest = json.loads(manifest_path(beton).read_text())
    manifest["names"] = packed([spelled(*file) for file in files])
    manifest_path(copy).write_text(json.dumps(manifest))
    lines = [f"{wnid}/{stem}.JPEG" for wnid, stem in (files[9], files[2], files[5])]
    assert chosen(*lines, beton=copy) == (2, 5, 9)
    with pytest.raises(InputError, match="found 1 missing, the first n00/ILSVRC2012_val_00000099"):
        chosen("n00/ILSVRC2012_val_00000099.JPEG", beton=copy)


def test_the_plan_has_the_list_and_its_sha256(world, tmp_path: Path) -> None:
    """Which images they are is part of what decides; who named them is not."""
    (tmp_path / "ids.txt").write_text("7\n3\n11\n2\n")
    by_list = plan_attack(world.run, world.config(images="list:ids.txt"))
    assert (by_list.images, by_list.num_images, by_list.chosen) == ((2, 3, 7, 11), 4, "list:ids.txt")
    assert by_list.list_sha256 == hashlib.sha256(b"7\n3\n11\n2\n").hexdigest()
    assert by_list.images_sha256 == fingerprint([2, 3, 7, 11])
    (tmp_path / "sorted.txt").write_text("2\n3\n7\n11\n")
    again = plan_attack(world.run, world.config(images="list:sorted.txt"))
    assert again.fingerprint == by_list.fingerprint
    assert again.list_sha256 != by_list.list_sha256
    with pytest.raises(InputError, match=r"num_images = 4 as this attack was planned"):
        plan_attack(world.run, world.config(images="first", num_images=5))


def test_a_sanity_report_takes_the_first_of_a_list(world, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("7\n3\n11\n2\n")
    config, attack = world.config(images="list:ids.txt", num_images=None), RunDir(world.run).attack("aa")
    image_set = world.describe_images(config.data, None)
    assert plan_of(world.run, config, attack, image_set).images == (2, 3, 7, 11)
    two = config.model_copy(update={"sanity": SanityConfig(num_images=2)})
    assert plan_of(world.run, two, attack, image_set).images == (3, 7)
    with pytest.raises(InputError, match=r"num_images: expected at least 5 images, found 4 in list:ids\.txt"):
        plan_of(world.run, config.model_copy(update={"sanity": SanityConfig(num_images=5)}), attack, image_set)


def test_the_published_list_is_known_by_its_sha256(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert choice_of.ROBUSTBENCH_LIST_SHA256 == ROBUSTBENCH_LIST_SHA256
    (tmp_path / "other.txt").write_text("n09468604/ILSVRC2012_val_00015253.JPEG\n")
    with pytest.raises(InputError, match=r"RobustBench's list of ImageNet images \(sha256 d4121626d077\)"):
        read_list(f"robustbench:{tmp_path / 'other.txt'}")
