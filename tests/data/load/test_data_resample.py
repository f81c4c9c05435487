"""Pillow's resizing in jitted code and in both backends, against Pillow itself."""

import io
import math

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kapdist.data.beton.layout import open_beton, stored_bytes
from kapdist.data.load.resample import INTERPOLATIONS, compiled_resample

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
RESIZED = {"training": False, "crop": "random-resized", "resolution": 40, "crop_ratio": 0.9}


def resampled(image: np.ndarray, side: int, ratio: float, interpolation: str) -> np.ndarray:
    out = np.empty((side, side, 3), np.uint8)
    source = image.reshape(len(image), -1)
    source.flags.writeable = False
    compiled_resample()(source, INTERPOLATIONS[interpolation], ratio, out)
    return out


def by_pillow(image: np.ndarray, side: int, shorter: int, interpolation: str) -> np.ndarray:
    """torchvision's Resize(shorter) and CenterCrop(side), written from its source."""
    height, width = image.shape[:2]
    if width <= height:
        new_height, new_width = int(shorter * height / width), shorter
    else:
        new_height, new_width = shorter, int(shorter * width / height)
    resized = in_today_s_order(Image.fromarray(image), new_width, new_height, FILTERS[interpolation])
    top, left = round((new_height - side) / 2.0), round((new_width - side) / 2.0)
    return np.asarray(resized.crop((left, top, left + side, top + side)))


def in_today_s_order(image: Image.Image, width: int, height: int, kind: Image.Resampling) -> Image.Image:
    """Resize; where Pillow 13 goes by columns first, older ones are asked for one axis at a time."""
    columns_first = image.height - height > max(0, 2 * (image.width - width))
    if columns_first and int(PIL.__version__.split(".")[0]) < 13:
        image = image.resize((image.width, height), kind)
    return image.resize((width, height), kind)


@settings(max_examples=150)
@given(st.data())
def test_pixels_are_pillow_s_to_the_last_bit(data) -> None:
    """Of any size and share, smaller and larger, wide and tall; black and white noise is the hardest."""
    height, width, side = (
        data.draw(st.integers(1, 120)),
        data.draw(st.integers(1, 120)),
        data.draw(st.integers(1, 48)),
    )
    interpolation, shorter = data.draw(st.sampled_from(sorted(FILTERS))), side + data.draw(st.integers(0, 40))
    generator = np.random.default_rng(height * width)
    image = generator.integers(0, 2, (height, width, 3), np.uint8) * 255
    if data.draw(st.booleans()):
        image = generator.integers(0, 256, (height, width, 3), np.uint8)
    found = resampled(image, side, side / shorter, interpolation)
    assert np.array_equal(found, by_pillow(image, side, shorter, interpolation))


@pytest.mark.parametrize("interpolation", sorted(FILTERS))
@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (256, 256), (150, 200), (600, 251)])
def test_it_is_the_published_evaluation(height: int, width: int, interpolation: str) -> None:
    """Resize(256), CenterCrop(224); and timm's share of 0.95, rounded down."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    for ratio, shorter in ((224 / 256, 256), (0.95, math.floor(224 / 0.95))):
        found = resampled(image, 224, ratio, interpolation)
        assert np.array_equal(found, by_pillow(image, 224, shorter, interpolation))


def test_a_share_that_is_a_quotient_gives_its_side_back() -> None:
    """40 / (40 / 53) is less than 53 in floats."""
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    assert math.floor(40 / (40 / 53)) == 52
    assert np.array_equal(resampled(image, 40, 40 / 53, "bicubic"), by_pillow(image, 40, 53, "bicubic"))


@pytest.mark.parametrize("interpolation", sorted(FILTERS))
def test_both_backends_resize_stored_pixels_as_pillow_does(
    raw_photographs, make_loader, read_all, interpolation: str
) -> None:
    info = raw_photographs
    everything, expected = np.array_split(np.arange(info.num_images), 3), []
    for index in range(info.num_images):
        start, size = int(info.layout.offsets[index]), int(info.layout.sizes[index])
        shape = int(info.layout.heights[index]), int(info.layout.widths[index]), 3
        image = stored_bytes(info.path)[start : start + size].reshape(shape)
        expected.append(by_pillow(image, 40, 44, interpolation))
    for backend in ("ffcv", "torch"):
        loader = make_loader(info, backend=backend, interpolation=interpolation, **RESIZED)
        assert np.array_equal(read_all(loader, everything), np.stack(expected))


def test_both_backends_show_jpegs_as_pillow_does(photographs, make_loader, read_all) -> None:
    """To the last bit too: decoded by Pillow, not by the fast transform that the loader takes else."""
    info, expected = photographs, []
    everything = np.array_split(np.arange(info.num_images), 3)
    for index in range(info.num_images):
        start, size = int(info.layout.offsets[index]), int(info.layout.sizes[index])
        image = Image.open(io.BytesIO(stored_bytes(info.path)[start : start + size].tobytes())).convert("RGB")
        expected.append(by_pillow(np.asarray(image), 40, 44, "bicubic"))
    for backend in ("ffcv", "torch"):
        loader = make_loader(info, backend=backend, interpolation="bicubic", **RESIZED)
        assert np.array_equal(read_all(loader, everything), np.stack(expected))


def test_training_resizes_by_area(raw_photographs, make_loader, read_all) -> None:
    everything = [np.arange(raw_photographs.num_images)]
    options = {"crop": "random-resized", "resolution": 40}
    area, bicubic = (
        [
            read_all(make_loader(raw_photographs, training=training, interpolation=one, **options), everything)
            for training in (True, False)
        ]
        for one in ("area", "bicubic")
    )
    assert np.array_equal(area[0], bicubic[0])
    assert not np.array_equal(area[1], bicubic[1])


@pytest.mark.parametrize("backend", ["ffcv", "torch"])
def test_damage_names_the_image(backend: str, copied, make_loader) -> None:
    content = bytearray(copied.read_bytes())
    content[int(open_beton(copied).layout.offsets[42]) + 5] ^= 1
    copied.write_bytes(content)
    loader = make_loader(open_beton(copied), backend=backend, interpolation="bilinear", **RESIZED)
    with pytest.raises(Exception, match="image 42 as it was written, found other bytes"):
        list(loader.batches([np.arange(30, 50)]))
