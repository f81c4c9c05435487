"""The images under attack are the beton's own, by id, whatever the run's config does in training."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kapdist.attack.images import describe_images, read_chunks, shape_of
from kapdist.config import Config
from kapdist.config.images import ImagesConfig
from kapdist.data.beton.layout import open_beton
from kapdist.data.beton.write import write
from kapdist.errors import InputError
from kapdist.models.zoo import Stated
from kapdist.records.attack_plan import AttackPlan


def make_beton(folder: Path, height: int = 8) -> tuple[Path, np.ndarray]:
    """Twelve images in three classes, and their pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, height, 8, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        path = folder / "images" / f"class{number // 4}" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    write(str(folder / "images"), folder / "images.beton")
    return folder / "images.beton", pixels


def test_a_chunk_holds_the_images_of_its_ids(tmp_path: Path, make_plan: Callable[..., AttackPlan]) -> None:
    beton, pixels = make_beton(tmp_path)
    described = describe_images(ImagesConfig(beton=beton), None)
    assert (described.num_images, described.num_classes, described.data.resolution) == (12, 3, 8)
    ids = (1, 2, 5, 7, 11)
    data = described.data.model_dump()
    plan = make_plan("Linf", 0.1, ("fab-t",), num_classes=3, data=data, images=ids, chunk_size=2)
    chunks = list(read_chunks(plan, [2, 0]))
    assert [len(images) for images, _ in chunks] == [1, 2]
    images, labels = chunks[1]
    assert images.dtype == torch.float32
    assert images.is_contiguous()
    expected = torch.from_numpy(pixels[[1, 2]]).permute(0, 3, 1, 2) / 255
    assert torch.equal(images, expected)
    assert labels.tolist() == [0, 0]
    assert chunks[0][1].tolist() == [2]

    another = plan.model_copy(update={"data": described.data.model_copy(update={"fingerprint": "0" * 64})})
    with pytest.raises(InputError, match=r"expected the beton that was planned with \(fingerprint 0{12}\)"):
        next(read_chunks(another, [0]))


def test_the_runs_config_says_how_images_come_to_size(tmp_path: Path) -> None:
    beton, _ = make_beton(tmp_path, height=10)
    with pytest.raises(InputError, match=r"expected square images of one size, .* found images of 10 x 8"):
        describe_images(ImagesConfig(beton=beton), None)
    data = {"train": beton, "validation": beton, "resolution": 16, "crop": "random-resized", "crop_ratio": 0.5}
    config = Config.model_validate({"name": "run", "data": data})
    described = describe_images(ImagesConfig(), config).data
    assert (described.resolution, described.crop, described.crop_ratio) == (16, "random-resized", 0.5)


@pytest.mark.parametrize("side", [7, 2049])
def test_images_of_a_size_that_no_config_can_name_are_refused(tmp_path: Path, side: int) -> None:
    info = dataclasses.replace(open_beton(make_beton(tmp_path)[0]), height=side, width=side)
    with pytest.raises(InputError, match=f"of 8 to 2,048 pixels a side.* found images of {side} x {side}$"):
        shape_of(ImagesConfig(), None, None, info)


OF_RUN = {"resolution": 16, "crop": "random-resized", "crop_ratio": 0.5, "interpolation": "bilinear"}
OF_MODEL = Stated(24, 0.875, "bicubic", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
SQUARES = (8, "none", 1.0, "area")
SHAPES = [
    # What is written, what says the rest, and the resolution, crop, share and interpolation of it.
    ({}, "beton", SQUARES),
    ({"resolution": 8}, "beton", SQUARES),
    ({"crop": "none"}, "beton", SQUARES),
    ({"resolution": 12}, "beton", (12, "random-resized", 1.0, "area")),
    ({"crop_ratio": 0.5, "interpolation": "bicubic"}, "beton", (8, "random-resized", 0.5, "bicubic")),
    ({}, "model", (24, "random-resized", 0.875, "bicubic")),
    ({"resolution": 32, "interpolation": "area"}, "model", (32, "random-resized", 0.875, "area")),
    ({"resolution": 8, "crop": "none"}, "model", (8, "none", 0.875, "area")),
    ({}, "run", (16, "random-resized", 0.5, "bilinear")),
    ({"crop_ratio": 0.75}, "run", (16, "random-resized", 0.75, "bilinear")),
]


@pytest.mark.parametrize(("written", "else_by", "expected"), SHAPES)
def test_what_is_written_goes_before_the_run_the_model_and_the_beton(
    tmp_path: Path, written: dict, else_by: str, expected: tuple
) -> None:
    beton, _ = make_beton(tmp_path)
    config = Config.model_validate({"name": "run", "data": {"train": beton, "validation": beton} | OF_RUN})
    wanted = ImagesConfig(beton=beton, **written)
    stated = OF_MODEL if else_by in ("run", "model") else None  # of both the run's config counts
    found = describe_images(wanted, config if else_by == "run" else None, None, stated).data
    assert (found.resolution, found.crop, found.crop_ratio, found.interpolation) == expected


@pytest.mark.parametrize("written", [{}, {"resolution": 16}, {"crop": "center", "crop_ratio": 0.875}])
def test_what_nobody_says_is_asked_for_in_one_line(tmp_path: Path, written: dict) -> None:
    beton, _ = make_beton(tmp_path, height=10)
    expected = (
        r"images\.beton: expected square images .*\(such as data\.resolution=224 data\.crop=center "
        r"data\.crop_ratio=0\.875 data\.interpolation=bilinear\), found images of 10 x 8$"
    )
    with pytest.raises(InputError, match=expected):
        describe_images(ImagesConfig(beton=beton, **written), None)
    whole = ImagesConfig(beton=beton, resolution=16, crop="center", crop_ratio=0.875)
    assert describe_images(whole, None).data.shape == (16, "random-resized", 0.875, "area")


def test_images_as_they_are_have_to_fit(tmp_path: Path) -> None:
    beton, _ = make_beton(tmp_path)
    with pytest.raises(InputError, match=r"expected 12 x 12 images .*crop=none, found images of 8 x 8$"):
        describe_images(ImagesConfig(beton=beton, resolution=12, crop="none"), None)
    for written in ({"crop_ratio": 0.5}, {"interpolation": "bicubic"}):
        with pytest.raises(ValueError, match="crop_ratio and interpolation with crop center only"):
            ImagesConfig(crop="none", **written)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_chunks_are_resized_as_planned(
    tmp_path: Path, make_plan: Callable[..., AttackPlan], interpolation: str
) -> None:
    beton, pixels = make_beton(tmp_path)
    wanted = ImagesConfig(beton=beton, resolution=12, crop_ratio=0.8, interpolation=interpolation)
    data = describe_images(wanted, None).data
    plan = make_plan("Linf", 0.1, num_classes=3, data=data.model_dump(), images=(0, 5), chunk_size=2)
    ((images, _),) = read_chunks(plan, [0])
    kind = Image.Resampling[interpolation.upper()]
    resized = [Image.fromarray(pixels[index]).resize((15, 15), kind).crop((2, 2, 14, 14)) for index in (0, 5)]
    expected = torch.from_numpy(np.stack([np.asarray(image) for image in resized])).permute(0, 3, 1, 2) / 255
    assert torch.equal(images, expected)

    area = plan.model_copy(update={"data": plan.data.model_copy(update={"interpolation": "area"})})
    assert plan.identity()["data"]["interpolation"] == interpolation
    assert "interpolation" not in area.identity()["data"]  # a plan of before is the same plan


def test_an_attack_without_images_is_refused() -> None:
    with pytest.raises(InputError, match=r"data: expected a beton with the images \(data=FILE.beton\)"):
        describe_images(ImagesConfig(), None)
