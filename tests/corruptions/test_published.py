"""Published sets, small ones in exactly their layouts: their cells, labels and classes, beside our corruptions."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from formats import cifar_c, corruption_folders, photographs, pixels, small_jpeg
from PIL import Image
from polars.testing import assert_frame_equal

import kapdist.attack.images as images_of
from kapdist.attack.images import ImageSet
from kapdist.config import AttackConfig, DataConfig
from kapdist.config.fields import CORRUPTIONS, PublishedName
from kapdist.corruptions.alexnet import ALEXNET_ERRORS
from kapdist.corruptions.published import Chunks, open_planned
from kapdist.corruptions.run import run_corruptions
from kapdist.corruptions.shard import run_shard
from kapdist.corruptions.summary import csv_text
from kapdist.data.beton.layout import open_beton
from kapdist.data.beton.write import write_beton
from kapdist.data.load.loader import Loader
from kapdist.data.load.still import still
from kapdist.data.sources import class_folder
from kapdist.data.sources.imagenet import wordnet_ids
from kapdist.data.sources.imagenet_variants import ImageNetA, ImageNetR
from kapdist.data.sources.published_sets import PUBLISHED, open_published, recognised
from kapdist.errors import InputError
from kapdist.models.factory import call_factory
from kapdist.records.attack_plan import PlannedData
from kapdist.records.corruptions import CorruptionSummary, read_cell, read_corruption_summary, read_plan
from kapdist.records.sealed import read_json, write_json
from kapdist.report import write_report
from kapdist.run.paths import CorruptionsDir, RunDir

WNIDS = tuple(wordnet_ids()[number] for number in (0, 5, 9))

FACTORY = """
import torch
from torch import nn

def build(classes={classes}, seed={seed}):
    torch.manual_seed(seed)
    layers = nn.Linear(48, classes), nn.Tanh(), nn.Linear(classes, classes)
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), *layers)
"""


@dataclass
class Shown:
    """A world whose images are of another side and whose model has other classes."""

    world: Any
    names: tuple[str, ...]

    @property
    def model(self) -> torch.nn.Module:
        return call_factory("any.py:build").eval()

    def config(self, published: Path | None, **fields: object) -> AttackConfig:
        asked = {"kinds": [], "noise_stds": [], "uniform_noise": False} | fields.pop("corruptions", {})
        if published:
            asked["published"] = published
        values = {"name": "c", "version": "standard", "attacks": (), "num_classes": None, "corruptions": asked}
        return self.world.config(**{"model": {"factory": "any.py:build"}} | values | fields)

    def run(self, published: Path | None, run: str = "run", **fields: object) -> CorruptionSummary:
        return run_corruptions(self.world.folder / run, self.config(published, **fields))

    def directory(self, run: str = "run") -> CorruptionsDir:
        return RunDir(self.world.folder / run).corrupted("c")


@pytest.fixture
def shown(world, monkeypatch: pytest.MonkeyPatch):
    def make(
        names: tuple[str, ...], side: int = 8, crop: str = "none", seed: int = 1, interpolation: str = "area"
    ) -> Shown:
        def describe(path: object, config: object, *classes: object) -> ImageSet:
            shape = {"resolution": side, "crop": crop, "crop_ratio": 0.875, "interpolation": interpolation}
            data = PlannedData(path=Path("b"), fingerprint="f", **shape)
            return ImageSet(data, len(world.images), names)

        monkeypatch.setattr(images_of, "describe_images", describe)
        world.images = torch.rand(22, 3, side, side, generator=torch.Generator().manual_seed(side))
        world.labels = world.labels % len(names)
        (world.folder / "any.py").write_text(FACTORY.format(classes=len(names), seed=seed))
        return Shown(world, names)

    return make


def as_tensor(images: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


# Layouts.


def test_the_names_of_the_config_are_those_that_can_be_read() -> None:
    assert set(PublishedName.__args__) == set(PUBLISHED)
    for name, kind in PUBLISHED.items():
        assert kind.name == name


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda root: corruption_folders(root, WNIDS, 224, ("fog", "snow"), 1, 1), "imagenet-c"),
        (lambda root: corruption_folders(root, WNIDS, 64, ("saturate", "snow"), 1, 1), "tiny-imagenet-c"),
        (lambda root: corruption_folders(root, WNIDS, 224, ("fog_3d",), 1, 1), "imagenet-3dcc"),
        (lambda root: cifar_c(root, 10, ("fog",)), "cifar-10-c"),
        (lambda root: cifar_c(root, 100, ("fog",)), "cifar-100-c"),
        (lambda root: photographs(root, ImageNetA.wnids()), "imagenet-a"),
        (lambda root: photographs(root, ImageNetR.wnids()), "imagenet-r"),
    ],
    ids=lambda value: None if callable(value) else str(value),
)
def test_a_set_is_known_by_its_layout(tmp_path: Path, make: Any, expected: str) -> None:
    assert recognised(make(tmp_path / "set")) == expected


def test_the_two_subsets_are_of_ilsvrc_and_have_200_classes_each() -> None:
    for kind in (ImageNetA, ImageNetR):
        assert len(set(kind.wnids())) == 200
        assert list(kind.wnids()) == sorted(kind.wnids())
        assert set(kind.wnids()) <= set(wordnet_ids())


def test_folders_of_numbers_are_ids_by_their_number_and_not_by_their_text(tmp_path: Path) -> None:
    root = photographs(tmp_path / "v2", tuple(map(str, range(1000))))
    assert recognised(root) == "imagenet-v2"
    found = open_published(root, "imagenet-v2")
    for index in (0, 1, 2, 500):
        folder = found.image_name("", 0, index).split("/")[0]
        assert found.class_names[found.labels[index]] == wordnet_ids()[int(folder)]


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda root: (root / "fog" / "3").rename(root / "fog" / "three"), "expected fog/3/, as ImageNet-C has it"),
        (lambda root: (root / "fog").rename(root / "mist"), "the layout of imagenet-c, tiny-imagenet-c"),
        (lambda root: spoilt(root / "fog/1" / WNIDS[0]), "224 pixels (ImageNet-C) or 64 (Tiny ImageNet-C)"),
        (lambda root: next((root / "fog/5" / WNIDS[1]).iterdir()).unlink(), "every image of ImageNet-C in every"),
        (lambda root: next((root / "fog/4" / WNIDS[1]).iterdir()).write_bytes(b"no"), "an image of ImageNet-C"),
        (lambda root: (root / "fog/1/n00000000").mkdir(), "none in n00000000"),
    ],
    ids=lambda value: None if callable(value) else str(value),
)
def test_what_does_not_match_is_one_line(shown, tmp_path: Path, spoil: Any, expected: str) -> None:
    root = corruption_folders(tmp_path / "set", WNIDS, 224, ("fog",), 1)
    spoil(root)
    with pytest.raises(InputError) as caught:
        shown(WNIDS).run(root, num_images=0)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def spoilt(folder: Path) -> None:
    next(folder.iterdir()).write_bytes(small_jpeg(1, 30))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda root: np.save(root / "fog.npy", np.zeros((60, 32, 32), np.uint8)), "(5 x images, 32, 32, 3) uint8"),
        (
            lambda root: np.save(root / "fog.npy", np.zeros((61, 32, 32, 3), np.uint8)),
            "(5 x images, 32, 32, 3) uint8",
        ),
        (lambda root: np.save(root / "snow.npy", np.zeros((55, 32, 32, 3), np.uint8)), "55 images, as snow"),
        (lambda root: np.save(root / "labels.npy", np.arange(59) % 10), "60 integers"),
        (lambda root: np.save(root / "labels.npy", np.arange(60) % 7), "the same labels for all five"),
        (lambda root: (root / "fog.npy").write_bytes((root / "fog.npy").read_bytes()[:5000]), "a whole .npy"),
        (lambda root: np.save(root / "fog.npy", np.array([{}] * 60), allow_pickle=True), "without pickled objects"),
    ],
    ids=lambda value: None if callable(value) else str(value),
)
def test_arrays_that_do_not_match_are_one_line(tmp_path: Path, spoil: Any, expected: str) -> None:
    root = cifar_c(tmp_path / "set", 10, ("fog", "snow"))
    spoil(root)
    with pytest.raises(InputError) as caught:
        open_published(root)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_class_folders_than_a_subset_s_are_refused(tmp_path: Path) -> None:
    root = photographs(tmp_path / "a", ImageNetA.wnids()[1:])
    with pytest.raises(InputError, match="the layout of imagenet-c"):
        open_published(root)
    with pytest.raises(InputError, match=r"the 200 class folders of ImageNet-A, found no n01498041 \(1 such"):
        open_published(root, "imagenet-a")
    (root / "n01498041").mkdir()
    (root / "n01498041" / "1.jpg").write_bytes(small_jpeg(1, 20))
    (root / "n01440764").mkdir()
    (root / "n01440764" / "1.jpg").write_bytes(small_jpeg(1, 20))
    with pytest.raises(InputError, match="found also n01440764"):
        open_published(root, "imagenet-a")
    for wnid in wordnet_ids():
        (tmp_path / "val" / wnid).mkdir(parents=True)
    with pytest.raises(InputError, match=r"a layout that one set alone has \(corruptions.published_set names it\)"):
        open_published(tmp_path / "val")
    with pytest.raises(InputError, match="in every class folder, found none in n01440764, n01443537"):
        open_published(tmp_path / "val", "imagenet-v2")


# Numbers.


def test_the_cells_of_arrays_are_those_of_a_plain_loop(shown, tmp_path: Path) -> None:
    root = cifar_c(tmp_path / "set", 10, ("fog", "snow", "saturate"))
    here = shown(tuple("abcdefghij"), side=32)
    summary = here.run(root, num_images=9, chunk_size=4, seed=3)
    found = summary.published
    assert [kind.kind for kind in found.kinds] == ["snow", "fog"]  # saturate is in no mean
    ids = list(read_plan(here.directory()).published.images)
    assert len(ids) == 9
    assert ids != list(range(9))
    labels, model = torch.from_numpy(np.load(root / "labels.npy")[ids]), here.model
    right = []
    for kind in found.kinds:
        images = np.load(root / f"{kind.kind}.npy")
        for cell in kind.severities:
            part = images[12 * (cell.severity - 1) :][ids]
            right.append(int((model(as_tensor(list(part))).argmax(1) == labels).sum()))
            assert cell.num_correct == right[-1]
    assert found.mean_corruption_accuracy.value == pytest.approx(np.mean(right) / 9)
    assert summary.mean_corruption_accuracy is None  # ours, of which there are none
    assert any("labels of CIFAR-10-C are numbers" in note for note in summary.notes)
    assert any("has 12 images of each kind and severity, not the 10000" in note for note in summary.notes)
    rows = pl.read_csv(here.directory().table)
    assert set(rows["source"]) == {"ours", "cifar-10-c"}
    records = pl.read_parquet(here.directory().records, glob=False)
    assert records.group_by("source").len().sort("source").rows() == [("cifar-10-c", 90), ("ours", 9)]


def test_images_of_folders_are_decoded_as_they_are_and_labels_go_by_name(shown, tmp_path: Path) -> None:
    root = corruption_folders(tmp_path / "set", WNIDS, 64, ("fog", "spatter"), 2)
    names = (WNIDS[2], "another", WNIDS[0], WNIDS[1])
    here = shown(names, side=64)
    asked = {"published_kinds": ["fog", "spatter"], "severities": [2, 5]}
    found = here.run(root, num_images=0, corruptions=asked).published
    assert ([kind.kind for kind in found.kinds], [kind.kind for kind in found.extra]) == (["fog"], ["spatter"])
    for kind in (*found.kinds, *found.extra):
        for cell in kind.severities:
            files = sorted((root / kind.kind / str(cell.severity)).glob("*/*.JPEG"))
            labels = torch.tensor([names.index(file.parent.name) for file in files])
            images = as_tensor([pixels(file.read_bytes()) for file in files])
            assert cell.num_correct == int((here.model(images).argmax(1) == labels).sum())
    assert found.mean_corruption_accuracy.value == pytest.approx(found.kinds[0].mean_accuracy.value)


def test_a_model_of_another_size_sees_them_whole(shown, tmp_path: Path) -> None:
    root = corruption_folders(tmp_path / "set", WNIDS, 224, ("flash",), 1, 1)
    here = shown(WNIDS)
    summary = here.run(root, num_images=0, corruptions={"severities": [1]})
    files = sorted((root / "flash" / "1").glob("*/*.JPEG"))
    images = as_tensor([np.asarray(Image.open(file).resize((8, 8), Image.Resampling.BOX)) for file in files])
    right = int((here.model(images).argmax(1) == torch.arange(3)).sum())
    assert summary.published.kinds[0].severities[0].num_correct == right
    assert any("are resized to the model's 8, not cropped" in note for note in summary.notes)
    assert any("without near_focus, far_focus" in note for note in summary.notes)


@pytest.mark.parametrize("rule", ["by-name", "by-index"])
def test_the_subset_of_classes_masks_all_other_logits(shown, tmp_path: Path, rule: str) -> None:
    root = photographs(tmp_path / "a", ImageNetA.wnids())
    names = wordnet_ids() if rule == "by-index" else wordnet_ids()[::-1]
    here = shown(tuple(f"name of {name}" for name in names) if rule == "by-index" else names, crop="random-resized")
    summary = here.run(root, num_images=20, seed=2, corruptions={"published_classes": rule})
    plan = read_plan(here.directory())
    kept = [names.index(wnid) for wnid in ImageNetA.wnids()]
    ids = list(plan.published.images)
    files = [next((root / ImageNetA.wnids()[index]).iterdir()) for index in ids]
    images = as_tensor([still(pixels(file.read_bytes()), 8, "random-resized", 0.875) for file in files])
    logits = here.model(images)
    mask = torch.full_like(logits, -torch.inf)
    mask[:, kept] = 0
    expected = (logits + mask).argmax(1)
    table = read_cell(here.directory(), plan, plan.cells_of("imagenet-a")[0])
    assert table["prediction"].to_list() == expected.tolist()
    assert table["label"].to_list() == [kept[index] for index in ids]
    assert expected.tolist() != logits.argmax(1).tolist()  # the mask matters
    assert summary.published.num_masked_to == 200
    assert summary.published.mean_corruption_accuracy is None
    assert any("all classes but the 200 of ImageNet-A are masked" in note for note in summary.notes)


def noisy_photographs(root: Path) -> Path:
    """ImageNet-R's folders, with photographs in which every filter leaves its trace."""
    photographs(root, ImageNetR.wnids())
    random = np.random.default_rng(0)
    for number, file in enumerate(sorted(root.glob("*/*.jpg"))):
        shape = 24 + number % 7, 24 + number % 5, 3
        Image.fromarray(random.integers(0, 256, shape, np.uint8)).save(file, quality=95)
    return root


def shown_by_the_loader(root: Path, beton: Path, side: int, interpolation: str) -> np.ndarray:
    write_beton(class_folder(root), beton, num_workers=1)
    crop = {"resolution": side, "crop": "random-resized", "crop_ratio": 0.875, "interpolation": interpolation}
    config = DataConfig(train=beton, validation=beton, backend="torch", **crop)
    options = {"training": False, "seed": 0, "max_batch_size": 200, "num_workers": 1, "channels_last": False}
    loader = Loader(open_beton(beton), config, device=torch.device("cpu"), **options)
    (batch,) = loader.batches([np.arange(200)])
    return batch.images.numpy()


@pytest.mark.parametrize("interpolation", ["area", "bilinear", "bicubic"])
def test_photographs_are_shown_as_the_loader_shows_them(shown, tmp_path: Path, interpolation: str) -> None:
    root = noisy_photographs(tmp_path / "r")
    here = shown(ImageNetR.wnids(), side=16, crop="random-resized", interpolation=interpolation)
    summary = here.run(root, num_images=0)
    plan = read_plan(here.directory())
    (cell,) = plan.cells_of("imagenet-r")
    with ThreadPoolExecutor(1) as pool:
        images = torch.cat([images for images, _ in Chunks(open_planned(plan, [cell]), plan, cell, pool)])
    expected = shown_by_the_loader(root, tmp_path / "r.beton", 16, interpolation)
    assert np.array_equal(images.numpy(), expected)
    right = int((here.model(torch.from_numpy(expected)).argmax(1) == torch.arange(200)).sum())
    assert summary.published.kinds[0].severities[0].num_correct == right
    said = {"resolution": 16, "crop": "random-resized", "crop_ratio": 0.875, "interpolation": interpolation}
    assert summary.published.shape.model_dump() == summary.shape.model_dump() == said
    assert any(f"to 16 pixels ({interpolation})" in note for note in summary.notes)


@pytest.mark.parametrize(
    ("interpolation", "kind"), [("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)]
)
def test_what_is_shown_whole_is_resized_by_pillow_s_filter_too(
    shown, tmp_path: Path, interpolation: str, kind: Image.Resampling
) -> None:
    root = cifar_c(tmp_path / "set", 10, ("fog",))
    here = shown(tuple("abcdefghij"), side=24, crop="random-resized", interpolation=interpolation)
    here.run(root, num_images=0, corruptions={"severities": [2]})
    plan = read_plan(here.directory())
    (cell,) = plan.cells_of("cifar-10-c")
    with ThreadPoolExecutor(1) as pool:
        images = torch.cat([images for images, _ in Chunks(open_planned(plan, [cell]), plan, cell, pool)])
    arrays = np.load(root / "fog.npy")[12:24]
    expected = as_tensor([np.asarray(Image.fromarray(array).resize((24, 24), kind)) for array in arrays])
    assert torch.equal(images, expected)


def test_plans_that_resized_by_area_keep_their_fingerprint_and_go_on_so(shown, tmp_path: Path) -> None:
    """Of older versions all did, whatever the run's evaluations take: their cells are not mixed with others."""
    here = shown(tuple("abcdefghij"), side=24, crop="random-resized", interpolation="bicubic")
    root = cifar_c(tmp_path / "set", 10, ("fog",))
    here.run(root, num_images=0)
    plan = read_plan(here.directory())
    values = plan.model_dump(mode="json")
    assert values["published"].pop("interpolation") == "bicubic"
    older = type(plan).model_validate(values)
    assert older.published.interpolation == "area"
    assert "interpolation" not in older.identity()["published"]
    assert older.fingerprint != plan.fingerprint
    same = shown(tuple("abcdefghij"), side=32, crop="random-resized", interpolation="bicubic")
    same.run(root, "same", num_images=0)
    assert "interpolation" not in read_plan(same.directory("same")).identity()["published"]  # nothing is resized


def test_photographs_are_cropped_as_evaluations_crop(tmp_path: Path) -> None:
    rows = np.linspace(0, 255, 40).astype(np.uint8)
    image = np.repeat(np.repeat(rows[:, None, None], 64, 1), 3, 2)
    assert np.array_equal(still(image[:, :40], 40, "none", 1.0), image[:, :40])
    middle = image[4:36, 16:48]  # 0.8 of 40 rows, as many columns
    assert np.array_equal(still(image, 32, "random-resized", 0.8), middle)


def test_chunks_shards_and_resume_do_not_change_a_prediction(shown, tmp_path: Path) -> None:
    root = cifar_c(tmp_path / "set", 10, ("fog", "snow"))
    here = shown(tuple("abcdefghij"), side=32)
    own = {"kinds": ["contrast"], "severities": [1, 3]}
    here.run(root, num_images=0, corruptions=own)
    whole = pl.read_parquet(here.directory().records, glob=False).drop("plan")
    here.run(root, "other", num_images=0, chunk_size=5, corruptions=own)
    parts = here.directory("other")
    assert_frame_equal(pl.read_parquet(parts.records, glob=False).drop("plan"), whole)
    contents = {path.name: path.read_bytes() for path in parts.cells.glob("*")}
    for path in sorted(parts.cells.glob("*"))[::2]:
        path.write_bytes(path.read_bytes()[:-30])
    for shard in (1, 0, 2):
        run_shard(parts.root, shard, 3)
    again = {path.name: pl.read_parquet(path).drop("seconds") for path in parts.cells.glob("*")}
    assert set(again) == set(contents) == {f"{cell.name}.parquet" for cell in read_plan(parts).cells}
    assert_frame_equal(
        pl.concat(again[name].select("image", "prediction") for name in sorted(again)).sort("image"),
        whole.select("image", "prediction").sort("image"),
        check_row_order=False,
    )


def test_files_that_changed_since_they_were_planned_are_refused(shown, tmp_path: Path) -> None:
    root = corruption_folders(tmp_path / "set", WNIDS, 64, ("fog",), 1)
    here = shown(WNIDS, side=64)
    here.run(root, num_images=0)
    here.directory().cell("tiny-imagenet-c-fog-2").unlink()
    file = next((root / "fog" / "2" / WNIDS[0]).iterdir())
    file.write_bytes(file.read_bytes() + b"!")
    with pytest.raises(InputError, match=r"the files of fog 2 that were planned with, found others"):
        run_shard(here.directory().root, 0, 1)
    with pytest.raises(InputError, match=r"published.fingerprint = .* as this was planned"):
        here.run(root, num_images=0)


def test_an_image_too_many_in_one_folder_moves_no_other(shown, tmp_path: Path) -> None:
    """Images have the numbers of the first cell's folder, whichever cells a process does."""
    root = corruption_folders(tmp_path / "set", WNIDS, 64, ("snow", "fog"), 1)
    (root / "fog" / "3" / WNIDS[0] / "A.JPEG").write_bytes(small_jpeg(3, 64))
    here = shown(WNIDS, side=64)
    one = {"severities": [2, 3]}
    whole = here.run(root, num_images=0, corruptions=one)
    here.directory().cell("tiny-imagenet-c-fog-3").unlink()
    run_shard(here.directory().root, 0, 1)
    again = here.run(root, num_images=0, corruptions=one)
    pairs = (
        [(cell.num_correct, cell.contents) for cell in run.published.kinds[1].severities] for run in (whole, again)
    )
    assert next(pairs) == next(pairs)


def test_classes_that_the_model_has_not_are_refused(shown, tmp_path: Path) -> None:
    root = corruption_folders(tmp_path / "set", WNIDS, 224, ("fog",), 1, 1)
    one = {"severities": [1]}
    with pytest.raises(InputError, match=rf"'{WNIDS[2]}' \(1 such classes\)"):
        shown(WNIDS[:2]).run(root, num_images=0, corruptions=one)
    with pytest.raises(InputError, match="a model of the 1000 classes of ImageNet-C"):
        shown(("a", "b", "c")).run(root, num_images=0, corruptions=one | {"published_classes": "by-index"})
    with pytest.raises(InputError, match="a model of the 10 classes of CIFAR-10-C"):
        shown(("a", "b", "c")).run(cifar_c(tmp_path / "c", 10, ("fog",)), num_images=0)
    with pytest.raises(InputError, match="at least 4 images, found 3"):
        shown(WNIDS).run(root, num_images=4, corruptions=one)
    with pytest.raises(InputError, match="a run that says how it crops"):
        shown(wordnet_ids()).run(photographs(tmp_path / "r", ImageNetR.wnids()), num_images=0)
    with pytest.raises(InputError, match="nowhere: expected the folder of a published set"):
        shown(WNIDS).run(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"corruptions of ImageNet-C \(gaussian_noise.*found haze"):
        shown(WNIDS).run(root, corruptions=one | {"published_kinds": ["haze"]})


# References.


def test_errors_relative_to_a_reference_are_of_its_own_cells_of_the_same_files(shown, tmp_path: Path) -> None:
    root = cifar_c(tmp_path / "set", 10, ("fog", "snow"))
    own = {"kinds": ["contrast"], "severities": [1, 5]}
    there = shown(tuple("abcdefghij"), side=32, seed=5)
    other = there.run(root, "other", num_images=0, corruptions=own)
    here = shown(tuple("abcdefghij"), side=32)
    asked = own | {"reference": here.world.folder / "other"}
    summary = here.run(root, num_images=0, corruptions=asked)
    ratios = []
    for mine, theirs in zip(summary.published.kinds, other.published.kinds, strict=True):
        wrong = [sum(12 - cell.num_correct for cell in kind.severities) for kind in (mine, theirs)]
        ratios.append(wrong[0] / wrong[1])
        assert mine.corruption_error == pytest.approx(ratios[-1])
    assert summary.published.mean_corruption_error == pytest.approx(np.mean(ratios))
    assert summary.mean_corruption_error == summary.kinds[0].corruption_error  # of contrast, which is ours
    assert summary.published.mean_corruption_error_alexnet is None
    there.run(None, "bare", num_images=0, corruptions=own)
    with pytest.raises(InputError, match=r"the same published set \(CIFAR-10-C\), found none"):
        here.run(root, "third", num_images=0, corruptions=own | {"reference": here.world.folder / "bare"})
    array = np.load(root / "fog.npy")
    np.save(root / "fog.npy", 255 - array)  # the same names and sizes
    with pytest.raises(InputError, match="the images of fog 1 that this run was shown"):
        here.run(root, "fourth", num_images=0, corruptions=asked)


@pytest.mark.parametrize(
    ("there", "differs"),
    [
        ({"side": 16}, "24 pixels, crop_ratio 0.875, bilinear), found 16 pixels, crop_ratio 0.875, bilinear"),
        (
            {"crop": "none", "interpolation": "area"},
            "24 pixels, crop_ratio 0.875, bilinear), found 24 pixels, no crop",
        ),
        (
            {"interpolation": "area"},
            "24 pixels, crop_ratio 0.875, bilinear), found 24 pixels, crop_ratio 0.875, area",
        ),
        ({}, None),
    ],
    ids=str,
)
def test_a_reference_that_was_shown_other_pixels_is_refused(
    shown, tmp_path: Path, there: dict, differs: str | None
) -> None:
    here = {"side": 24, "crop": "random-resized", "interpolation": "bilinear"}
    own, names = {"kinds": ["contrast"], "severities": [1]}, tuple("abcdefghij")
    shown(names, **here | there).run(None, "other", num_images=0, corruptions=own)
    world = shown(names, **here)
    asked = own | {"reference": world.world.folder / "other"}
    if differs is None:
        assert world.run(None, num_images=0, corruptions=asked).mean_corruption_error == 1
        return
    with pytest.raises(InputError, match=re.escape(f"the same shape of images ({differs}")):
        world.run(None, num_images=0, corruptions=asked)
    summary = world.directory("other").summary
    values = read_json(summary)
    del values["shape"]
    write_json(summary, values)  # an older one does not say
    assert world.run(None, num_images=0, corruptions=asked).mean_corruption_error is not None


def test_a_published_set_is_compared_by_how_its_own_images_are_shown(shown, tmp_path: Path) -> None:
    """Corrupted images of the model's side are shown as they lie there, however the run crops photographs."""
    root, names = cifar_c(tmp_path / "set", 10, ("fog",)), tuple("abcdefghij")
    for run, side, interpolation in (("a", 32, "area"), ("b", 24, "area"), ("c", 24, "bicubic")):
        shown(names, side, "random-resized", interpolation=interpolation).run(root, run, num_images=0)
    here = shown(names, 32, "random-resized", interpolation="bicubic")
    folder = here.world.folder
    same = here.run(root, num_images=0, corruptions={"reference": folder / "a"})
    assert same.published.mean_corruption_error == 1
    with pytest.raises(
        InputError, match=r"published images \(32 pixels, no crop\), found 24 pixels, no crop, area"
    ):
        here.run(root, "second", num_images=0, corruptions={"reference": folder / "b"})
    smaller = shown(names, 24, "random-resized")
    with pytest.raises(InputError, match=r"\(24 pixels, no crop, area\), found 24 pixels, no crop, bicubic"):
        smaller.run(root, "third", num_images=0, corruptions={"reference": folder / "c"})


def test_the_mce_of_papers_is_relative_to_alexnet(shown, tmp_path: Path) -> None:
    root = corruption_folders(tmp_path / "set", WNIDS, 224, CORRUPTIONS, 1)
    here = shown(WNIDS)
    found = here.run(root, num_images=0).published
    errors = [1 - np.mean([cell.accuracy.value for cell in kind.severities]) for kind in found.kinds]
    ratios = [error / ALEXNET_ERRORS[kind.kind] for error, kind in zip(errors, found.kinds, strict=True)]
    assert found.mean_corruption_error_alexnet == pytest.approx(np.mean(ratios))
    fewer = here.run(root, "fewer", num_images=0, corruptions={"severities": [1, 2]}).published
    assert fewer.mean_corruption_error_alexnet is None


# What does not change.


def test_a_run_without_a_published_set_is_what_it_was(shown, tmp_path: Path) -> None:
    here = shown(WNIDS)
    summary = here.run(None, num_images=5, corruptions={"kinds": ["contrast"]})
    plan = read_plan(here.directory())
    written = str(plan.identity())
    assert not any(word in written for word in ("published", "source", "files"))
    assert summary.published is None
    values = summary.describe()
    del values["published"]
    assert CorruptionSummary.model_validate(values).published is None
    assert "ours" in csv_text(summary)


def test_the_page_and_the_terminal_say_whose_images_they_are(
    shown, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from kapdist.corruptions.view import print_summary

    root = cifar_c(tmp_path / "set", 10, ("fog", "saturate"))
    here = shown(tuple("abcdefghij"), side=32)
    asked = {"kinds": ["contrast"], "published_kinds": ["fog", "saturate"], "severities": [1, 2]}
    summary = here.run(root, num_images=0, corruptions=asked)
    page = write_report([here.world.folder / "run"], tmp_path / "page").read_text()
    assert "Ours, made from the images under attack" in page
    assert "CIFAR-10-C as published, 12 images a cell" in page
    assert "In no mean of it: saturate." in page
    print_summary(summary)
    said = capsys.readouterr().out
    assert "CIFAR-10-C as published: 12 images" in said
    assert "mean over kinds of CIFAR-10-C" in said
    assert read_corruption_summary(here.directory().summary) == summary
