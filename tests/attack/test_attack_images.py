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


def test_an_attack_without_images_is_refused() -> None:
    with pytest.raises(InputError, match=r"data: expected a beton with the images \(data=FILE.beton\)"):
        describe_images(ImagesConfig(), None)
