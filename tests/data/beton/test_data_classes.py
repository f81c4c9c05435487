"""Betons whose classes are not the run's are refused, or mapped by name, wherever the two meet."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import Finished

from kapdist.attack.images import check_other_run, describe_images, read_chunks
from kapdist.config import Config
from kapdist.config.images import ImagesConfig
from kapdist.data.beton.classes import ClassList, classes_of, with_classes
from kapdist.data.beton.layout import open_beton
from kapdist.data.beton.manifest import manifest_path
from kapdist.data.beton.write import write
from kapdist.errors import InputError
from kapdist.records.attack_plan import AttackPlan
from kapdist.run.files import write_json
from kapdist.run.paths import RunDir
from kapdist.train.job import check_images, described_images, open_data

SIDE = 8


@pytest.fixture(scope="module")
def betons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A beton for each list of class names, such as "a,b,c": two images of each class, in that order."""
    folder = tmp_path_factory.mktemp("classes")
    generator = np.random.default_rng(0)
    made = {}
    for names in ("a,b,c", "a,c", "b,c,d", "a,b,c,d"):
        for name in names.split(","):
            place = folder / names / name
            place.mkdir(parents=True)
            for number in range(2):
                pixels = generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
        made[names] = folder / f"{names.replace(',', '')}.beton"
        write(str(folder / names), made[names], num_workers=1)
    return made


def config_of(train: Path, validation: Path, classes: str = "exact") -> Config:
    data = {"train": train, "validation": validation, "resolution": SIDE, "classes": classes}
    return Config.model_validate({"name": "run", "data": data, "model": {"num_classes": 4}})


DIFFERENCES = [
    ("a,c", "class 1 to be 'b'", "found 'c' (2 classes, not 3)"),
    ("b,c,d", "class 0 to be 'a'", "found 'b'"),
    ("a,b,c,d", "class 3 to be none", "found 'd' (4 classes, not 3)"),
]


@pytest.mark.parametrize(("names", "expected", "found"), DIFFERENCES)
def test_other_classes_are_refused_by_training_and_attacks(
    betons: dict[str, Path], tmp_path: Path, names: str, expected: str, found: str
) -> None:
    train, other = betons["a,b,c"], betons[names]
    config = config_of(train, other)
    for refused in (lambda: open_data(config), lambda: describe_images(ImagesConfig(), config, tmp_path)):
        with pytest.raises(InputError) as error:
            refused()
        assert f"{other}: expected {expected}, as of {train}" in str(error.value)
        assert str(error.value).endswith(found)
        assert ("by-name" in str(error.value)) == (names == "a,c")


def test_a_part_of_the_classes_is_mapped_by_name(
    betons: dict[str, Path], tmp_path: Path, make_attack_plan: Callable[..., AttackPlan]
) -> None:
    train, part = betons["a,b,c"], betons["a,c"]
    config = config_of(train, part, "by-name")
    validation = open_data(config)[1]
    assert validation.class_names == ("a", "b", "c")
    assert validation.labels.tolist() == [0, 0, 2, 2]
    with pytest.raises(InputError, match=r"expected no class but those of .* found 'd' \(1 such classes\)"):
        open_data(config_of(train, betons["b,c,d"], "by-name"))

    described = describe_images(ImagesConfig(beton=part, classes="by-name"), config_of(train, train), tmp_path)
    assert (described.num_classes, described.data.classes) == (3, ("a", "b", "c"))
    plan = make_attack_plan(described.data)
    assert [labels.tolist() for _, labels in read_chunks(plan, [0, 1])] == [[0, 0], [2, 2]]
    exact = plan.model_copy(update={"data": described.data.model_copy(update={"classes": None})})
    assert "classes" not in exact.identity()["data"]  # a plan of before is the same plan
    assert exact.identity() != plan.identity()


def test_a_run_that_is_attacked_in_place_of_another_has_its_classes(
    betons: dict[str, Path], tmp_path: Path
) -> None:
    """Whichever beton the attack takes: the other run's own betons agree with it, and say nothing."""
    attacked = describe_images(ImagesConfig(), config_of(betons["a,b,c"], betons["a,b,c"]), tmp_path)
    for names in ("b,c,d", "a,c"):
        other = config_of(betons[names], betons[names])
        with pytest.raises(
            InputError, match=r"transfer_from=x: expected class \d to be .*abc\.beton, found '[bc]'"
        ):
            check_other_run("transfer_from=x", tmp_path / "other", other, attacked)
    for names in ("a,b,c", "a,b,c,d"):  # the labels mean the same to them
        check_other_run("", tmp_path / "other", config_of(betons[names], betons[names]), attacked)


@pytest.fixture
def make_attack_plan() -> Callable[..., AttackPlan]:
    from kapdist.attack.stock import resolve
    from kapdist.records.attack_plan import PlannedData, PlannedModel

    def make(data: PlannedData) -> AttackPlan:
        attacks, settings, _ = resolve("custom", ("apgd-ce",), "Linf", 0.1, 3)
        model = PlannedModel(
            factory=None,
            factory_sha256=None,
            architecture=None,
            weights=None,
            weights_sha256="",
            num_classes=3,
            folded=False,
        )
        return AttackPlan(
            name="aa",
            run="run",
            model=model,
            data=data,
            norm="Linf",
            eps=0.1,
            version="custom",
            attacks=attacks,
            settings=settings,
            noise="off",
            seed=0,
            chunk_size=2,
            threads=1,
            device="cpu",
            keep_adversarial=False,
            packages={},
            num_images=4,
            images_sha256="",
            notes=(),
            images=(0, 1, 2, 3),
        )

    return make


def test_a_run_says_its_classes_when_its_betons_are_gone(betons: dict[str, Path], tmp_path: Path) -> None:
    run, gone = RunDir(tmp_path), tmp_path / "gone.beton"
    assert classes_of(run, config_of(gone, gone)) is None
    assert classes_of(run, config_of(gone, betons["a,c"])) == ClassList(("a", "c"), str(betons["a,c"]))
    data, validation = open_data(config_of(betons["a,b,c"], betons["a,b,c"]))
    write_json(run.plan, described_images(data, validation))
    known = classes_of(run, config_of(gone, gone))
    assert known == ClassList(("a", "b", "c"), str(tmp_path))
    with pytest.raises(InputError, match=f"class 0 to be 'a', as of {tmp_path}, found 'b'"):
        with_classes(open_beton(betons["b,c,d"]), known, "exact")


def test_a_run_goes_on_with_its_images_wherever_they_lie(betons: dict[str, Path], tmp_path: Path) -> None:
    run, own = RunDir(tmp_path / "run"), betons["a,b,c"]
    begun = config_of(own, own)
    run.claim(begun)
    run.checkpoint(1).mkdir(parents=True)
    moved = tmp_path / "moved.beton"
    shutil.copy(own, moved)
    shutil.copy(manifest_path(own), manifest_path(moved))
    for config in (config_of(moved, own), config_of(own, moved)):
        with pytest.raises(InputError, match=r"data\.\w+ = .* as this run began"):
            run.check(config)  # nothing says which images it began with
    data, validation = open_data(begun)
    write_json(run.plan, described_images(data, validation))
    there = config_of(moved, moved)
    run.check(there)
    check_images(run, *open_data(there))
    for place, key in enumerate(("data.train", "data.validation")):
        opened = [data, validation]
        opened[place] = replace(open_beton(betons["a,c"]), class_names=data.class_names)
        expected = f"{key} = {betons['a,c']}: expected the images that this run began with"
        with pytest.raises(InputError) as error:
            check_images(run, *opened)
        assert str(error.value).startswith(expected)


def test_a_moved_run_goes_on_and_another_beton_changes_nothing(
    tiny_config: Path, small_betons: tuple[Path, Path], kapdist: Callable[..., Finished], tmp_path: Path
) -> None:
    """From the command line: training, the same betons elsewhere, others."""
    words = ["train", tiny_config, "train.epochs=1", "train.checkpoint_every_steps=3"]
    assert kapdist(*words).code == 0
    run = RunDir(tmp_path / "runs" / "tiny")
    run.done.unlink()
    for beton in small_betons:
        shutil.copy(beton, tmp_path / beton.name)
        shutil.copy(manifest_path(beton), tmp_path)
    here = [f"data.train={tmp_path / 'train.beton'}", f"data.validation={tmp_path / 'test.beton'}"]
    end = kapdist(*words, *here)
    assert end.code == 0, end.output
    assert "continuing from" in end.output
    before = run.config.read_bytes()
    assert str(tmp_path / "train.beton").encode() in before
    run.done.unlink()
    end = kapdist(*words, here[0], f"data.validation={tmp_path / 'train.beton'}")
    assert (end.code, run.config.read_bytes()) == (2, before)
    assert "expected the images that this run began with" in end.output
