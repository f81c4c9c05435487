"""Betons of YCbCr planes: their colours are JPEG's, their crops the loader's, and FFCV refuses them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kapdist.data.beton.check import check
from kapdist.data.beton.layout import YCBCR, BetonInfo, open_beton, planes_bytes, stored_bytes
from kapdist.data.beton.write import write_beton
from kapdist.data.load.ffcv import FFCVLoader
from kapdist.data.load.loader import Loader
from kapdist.data.load.ycbcr import planes, rgb, rgb_window
from kapdist.data.sources import class_folder
from kapdist.errors import InputError

CROPS = {"seed": 3, "crop": "random-resized", "resolution": 40, "flip": True, "translate": 2, "cutout": 5}
JFIF = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


@pytest.fixture(scope="module")
def ycbcr(tmp_path_factory, stamps: Path) -> BetonInfo:
    """The stamps as planes, at most 200 pixels a side."""
    path = tmp_path_factory.mktemp("ycbcr") / "stamps.beton"
    write_beton(class_folder(stamps), path, max_side=200, store="ycbcr", num_workers=2)
    return open_beton(path)


def random_image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), np.uint8)


def frozen(values: np.ndarray) -> np.ndarray:
    values.flags.writeable = False
    return values


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 19), st.integers(1, 19))
def test_planes_are_jfif_s_to_rounding(height: int, width: int) -> None:
    image = random_image(height, width)
    found = planes(image).astype(float)
    assert len(found) == planes_bytes(height, width)
    exact = image @ JFIF.T + [0, 128, 128]
    assert np.abs(found[: height * width].reshape(height, width) - exact[..., 0]).max() <= 0.51
    half = -(-height // 2), -(-width // 2)
    for number, plane in enumerate(found[height * width :].reshape(2, *half), 1):
        for y, x in np.ndindex(half):
            mean = exact[2 * y : 2 * y + 2, 2 * x : 2 * x + 2, number].mean()
            assert abs(plane[y, x] - np.clip(mean, 0, 255)) <= 0.51


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 19), st.integers(1, 19))
def test_pixels_are_jfif_s_to_rounding_and_a_window_is_a_part_of_them(data, height: int, width: int) -> None:
    stored = frozen(
        np.random.default_rng(height * 100 + width).integers(0, 256, planes_bytes(height, width), np.uint8)
    )
    luma = stored[: height * width].reshape(height, width).astype(float)
    chroma = stored[height * width :].reshape(2, -(-height // 2), -(-width // 2)).astype(float) - 128
    blue, red = chroma.repeat(2, 1).repeat(2, 2)[:, :height, :width]
    exact = np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], 2)
    found = rgb(stored, height, width)
    assert np.abs(found.reshape(height, width, 3) - exact.clip(0, 255)).max() <= 0.51
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    rows, columns = data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
    out = np.zeros((height, 3 * width), np.uint8)
    rgb_window.py_func(stored, height, width, (top, left, rows, columns), out)
    here = slice(top, top + rows), slice(3 * left, 3 * (left + columns))
    assert np.array_equal(out[here], found[here])


def test_greys_stay_as_they_are() -> None:
    grey = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, 2)
    assert np.array_equal(rgb(frozen(planes(grey)), 16, 16).reshape(16, 16, 3), grey)


def test_it_takes_half_of_raw_s_bytes_and_is_checked(ycbcr, raw_photographs) -> None:
    summary = check(ycbcr.path)
    assert summary["encoding"] == "ycbcr 4:2:0"
    assert summary["stored"]["ycbcr"] == ycbcr.num_images
    assert summary["stored"]["raw"] == 0
    assert set(ycbcr.layout.modes) == {YCBCR}
    raw = raw_photographs.layout.sizes.sum()
    assert summary["stored"]["image_bytes"] == pytest.approx(raw / 2, rel=0.02)


@pytest.mark.parametrize("training", [True, False])
def test_both_backends_make_the_same_of_it_and_of_raw_nearly(
    ycbcr, raw_photographs, photographs, make_loader, read_all, training: bool
) -> None:
    """The boxes are the same: on drawings, mean differences of a level or two, less than JPEG's."""
    order = [np.arange(ycbcr.num_images)]

    def pixels(info: BetonInfo, backend: str = "torch") -> np.ndarray:
        loader: Loader = make_loader(info, backend=backend, training=training, **CROPS)
        return read_all(loader, order, epoch=1).astype(int)

    found, raw, jpeg = pixels(ycbcr), pixels(raw_photographs), pixels(photographs)
    assert np.array_equal(found, pixels(ycbcr, "ffcv"))
    assert np.abs(found - raw).mean() < min(1.5, np.abs(jpeg - raw).mean())
    assert np.abs(found - jpeg).mean() < 2.5


def test_pillow_s_resizing_takes_it(ycbcr, raw_photographs, make_loader, read_all) -> None:
    data = {"crop": "random-resized", "resolution": 40, "interpolation": "bicubic", "training": False}
    first, second = (
        read_all(make_loader(info, **data), [np.arange(info.num_images)]).astype(int)
        for info in (ycbcr, raw_photographs)
    )
    assert 0 < np.abs(first - second).mean() < 1.5


def test_ffcv_refuses_it_in_one_line(ycbcr) -> None:
    with pytest.raises(ValueError, match=r"^Must specify a custom_field entry for custom field image$"):
        FFCVLoader(str(ycbcr.path), batch_size=8, num_workers=1)


def test_damage_in_it_is_found(ycbcr, make_loader, tmp_path: Path) -> None:
    path = tmp_path / "damaged.beton"
    content = bytearray(ycbcr.path.read_bytes())
    content[int(ycbcr.layout.offsets[7]) + 50] ^= 1
    path.write_bytes(content)
    path.with_name("damaged.beton.json").write_bytes(Path(f"{ycbcr.path}.json").read_bytes())
    info = open_beton(path)
    for backend in ("ffcv", "torch"):
        with pytest.raises(InputError, match="image 7 as it was written"):
            list(make_loader(info, backend=backend, **CROPS).batches([np.arange(20)]))
    with pytest.raises(InputError, match=r"1 damaged: image 7$"):
        check(path)


def test_the_stored_bytes_are_the_planes(array_source, tmp_path: Path) -> None:
    source = array_source(count=5, side=15)
    write_beton(source, tmp_path / "x.beton", store="ycbcr", num_workers=1)
    info = open_beton(tmp_path / "x.beton")
    data = stored_bytes(info.path)
    for image, begin, size in zip(source.images, info.layout.offsets, info.layout.sizes, strict=True):
        assert np.array_equal(data[begin : begin + size], planes(image))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"store": "ycbcr", "jpeg_quality": 90}, "--store ycbcr: expected no --jpeg-quality, which is of JPEG"),
        ({"store": "raw", "jpeg_quality": 90}, "--store raw: expected no --jpeg-quality, which is of JPEG"),
        ({"store": "ycbcr", "jpeg_share": 0.5}, "--store ycbcr: expected no --jpeg-share"),
        ({"store": "ycbcr", "raw_up_to_bytes": 9}, "--store ycbcr: expected no --raw-up-to-bytes"),
        ({"store": "webp"}, "--store: expected raw, jpeg, ycbcr, found webp"),
    ],
)
def test_what_does_not_go_together_is_refused(array_source, tmp_path: Path, options, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        write_beton(array_source(), tmp_path / "x.beton", **options)
    assert list(tmp_path.iterdir()) == []


def test_store_says_what_the_older_options_say(array_source, tmp_path: Path) -> None:
    for name, options, older in (
        ("raw", {"store": "raw"}, {}),
        ("jpeg", {"store": "jpeg"}, {"jpeg_quality": 90}),
        ("quality", {"store": "jpeg", "jpeg_quality": 50}, {"jpeg_quality": 50}),
    ):
        both = [tmp_path / f"{name}-{number}.beton" for number in range(2)]
        for path, said in zip(both, (options, older), strict=True):
            write_beton(array_source(count=4), path, num_workers=1, **said)
        assert both[0].read_bytes() == both[1].read_bytes()
