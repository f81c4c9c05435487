"""A folder cut in two: every image on one side, the same one whatever else is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from kapdist.data.beton.write import write
from kapdist.data.sources import make_source
from kapdist.data.sources.base import FileSource
from kapdist.errors import InputError


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Twenty images of cats, ten of dogs, five of owls, each of its own colour."""
    for name, number in {"cat": 20, "dog": 10, "owl": 5}.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(number):
            Image.new("RGB", (9, 9), (10 * index, number, 0)).save(tmp_path / "photos" / name / f"{index}.png")
    return tmp_path / "photos"


def sides(folder: Path, share: float = 0.2) -> tuple[FileSource, FileSource]:
    train, val = (make_source(str(folder), split, held_out=share) for split in ("train", "val"))
    assert isinstance(train, FileSource)
    assert isinstance(val, FileSource)
    return train, val


def names(source: FileSource) -> list[str]:
    found = source.file_names()
    assert found is not None
    return found


def test_every_image_is_on_one_side_and_every_class_on_both(photographs: Path) -> None:
    whole = make_source(str(photographs))
    train, val = sides(photographs)
    assert sorted(names(train) + names(val)) == sorted(names(whole))  # type: ignore[arg-type]
    assert not set(names(train)) & set(names(val))
    assert train.class_names == val.class_names == whole.class_names
    for source, counts in ((train, [16, 8, 4]), (val, [4, 2, 1])):
        assert [list(source.labels).count(label) for label in range(3)] == counts
        for index, name in enumerate(names(source)):
            pixels, label = source.item(index)
            assert (name.partition("/")[0], f"{pixels[0, 0, 0] // 10}.png") == (
                source.class_names[label],
                Path(name).name,
            )


def test_a_side_follows_from_the_names_alone(photographs: Path, tmp_path: Path) -> None:
    before = names(sides(photographs)[1])
    assert [name for name in before if name.startswith("dog")] != ["dog/0.png", "dog/1.png"]  # not the first ones
    moved = photographs.rename(tmp_path / "elsewhere")
    assert names(sides(moved)[1]) == before
    for path in (moved / "cat").iterdir():
        path.unlink()
    (moved / "cat").rmdir()
    assert names(sides(moved)[1]) == [name for name in before if not name.startswith("cat")]


def test_both_sides_become_betons(photographs: Path, tmp_path: Path) -> None:
    found = [
        write(str(photographs), tmp_path / f"{side}.beton", split=side, held_out=0.2) for side in ("train", "val")
    ]
    assert [one["num_images"] for one in found] == [28, 7]
    assert found[0]["source"] == f"{photographs} (train, 0.2 held out)"


@pytest.mark.parametrize(
    ("share", "split", "said"),
    [
        (0.2, "test", "split: expected train or val with --held-out, found test"),
        (1.0, "val", "expected a share of each class between 0 and 1, such as 0.2, found 1"),
        (0.0, "val", "between 0 and 1"),
        (0.94, "val", "expected images for both sides of every class, 0.94 of them held out, found 5 of owl"),
    ],
)
def test_what_cannot_be_cut_is_one_line(photographs: Path, share: float, split: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make_source(str(photographs), split, held_out=share)


def test_what_has_splits_of_its_own_is_not_cut() -> None:
    with pytest.raises(InputError, match="held out: expected class folders, which have no splits of their own"):
        make_source("fashion-mnist", "train", held_out=0.2)
