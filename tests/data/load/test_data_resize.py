"""Area resizing and decoding at a reduced scale, against float64 references, OpenCV and Pillow."""

import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kapdist.data.beton.layout import stored_bytes
from kapdist.data.load import augment
from kapdist.data.load.pixels import FULL, eighths, scaled
from kapdist.data.load.resize import area_resize

SIDE = 48
CROPS = {"seed": 2, "crop": "random-resized", "resolution": SIDE}


def resized(image: np.ndarray, window: tuple[float, float, float, float], side: int, mirror: bool = False):
    out = np.empty((side, side, 3), np.uint8)
    area_resize(image.reshape(len(image), -1), *map(float, window), mirror, out)
    return out


def overlaps(start: float, extent: float, cells: int, parts: int) -> np.ndarray:
    """Return (parts, cells): the share of each part of an interval that lies in each cell."""
    edges = start + extent * np.arange(parts + 1) / parts
    cell = np.arange(cells)
    lengths = np.minimum(edges[1:, None], cell + 1) - np.maximum(edges[:-1, None], cell)
    lengths = lengths.clip(0)
    return lengths / lengths.sum(1, keepdims=True)


def reference(image: np.ndarray, window: tuple[float, float, float, float], side: int) -> np.ndarray:
    """The mean over each pixel's footprint, (side, side, 3) float64."""
    rows = overlaps(window[0], window[2], image.shape[0], side)
    columns = overlaps(window[1], window[3], image.shape[1], side)
    return np.stack([rows @ image[..., channel].astype(np.float64) @ columns.T for channel in range(3)], axis=2)


@settings(max_examples=30)
@given(st.data())
def test_every_pixel_is_the_mean_of_its_footprint(data) -> None:
    height, width, side = (data.draw(st.integers(1, most)) for most in (70, 70, 40))
    h, w = data.draw(st.floats(0.5, height)), data.draw(st.floats(0.5, width))
    top, left = data.draw(st.floats(0, height - h)), data.draw(st.floats(0, width - w))
    image = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)
    window = top, left, h, w
    found = resized(image, window, side)
    assert np.abs(found - reference(image, window, side)).max() <= 0.51
    assert np.array_equal(resized(image, window, side, mirror=True), found[:, ::-1])


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("side", [1, 2, 3, 40])
@pytest.mark.parametrize("width", [20.0, 75.5, 100.0, 200.0])  # two, three and more columns under a pixel
def test_the_images_beside_one_in_a_batch_are_left_alone(side: int, width: float, mirror: bool) -> None:
    """Pixels are put four bytes at a time."""
    image = np.random.default_rng(0).integers(0, 256, (90, 200, 3), np.uint8)
    batch = np.full((3, side, side, 3), 77, np.uint8)
    area_resize(image.reshape(90, -1), 3.5, 0.0, 80.0, width, mirror, batch[1])
    assert (batch[0] == 77).all()
    assert (batch[2] == 77).all()
    expected = reference(image, (3.5, 0.0, 80.0, width), side)
    assert np.abs(batch[1] - (expected[:, ::-1] if mirror else expected)).max() <= 0.51


@pytest.mark.parametrize(("height", "width"), [(333, 250), (160, 160), (167, 320), (500, 161)])
def test_shrinking_is_opencv_s_area_interpolation(height: int, width: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    expected = cv2.resize(image, (160, 160), interpolation=cv2.INTER_AREA)
    assert np.abs(resized(image, (0, 0, height, width), 160).astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("window", "scale"), [((160, 160), 8), ((319, 400), 8), ((320, 320), 4), ((640, 641), 2)])
def test_the_scale_leaves_as_many_pixels_as_are_asked_for(window: tuple[int, int], scale: int) -> None:
    assert eighths(*window, 160) == scale
    assert eighths(window[1], window[0], 160) == scale


def drafted(info, index: int, scale: int) -> np.ndarray:
    """An image of a beton as Pillow decodes it at scale / 8."""
    start, size = int(info.layout.offsets[index]), int(info.layout.sizes[index])
    image = Image.open(io.BytesIO(stored_bytes(info.path)[start : start + size].tobytes()))
    image.draft("RGB", (image.width * scale // FULL, image.height * scale // FULL))
    return np.asarray(image)


def test_scaled_sizes_are_those_of_pillow_s_decoder(photographs) -> None:
    shapes = zip(photographs.layout.heights.tolist(), photographs.layout.widths.tolist(), strict=True)
    for index, (height, width) in enumerate(shapes):
        for scale in (1, 2, 4, FULL):
            assert drafted(photographs, index, scale).shape[:2] == (scaled(height, scale), scaled(width, scale))


def windows(info, epoch: int) -> list[tuple[int, int, int, int]]:
    key = augment.epoch_key(2, epoch)
    shapes = zip(info.layout.heights.tolist(), info.layout.widths.tolist(), strict=True)
    return [augment.random_window(key, index, *shape) for index, shape in enumerate(shapes)]


def test_reduced_decoding_is_pillow_s_draft_of_the_same_window(photographs, make_loader, read_all) -> None:
    """The same crops at the scale that Pillow's draft mode decodes, and full decoding where there is none."""
    everything = [np.arange(photographs.num_images)]
    reduced = read_all(make_loader(photographs, decode="reduced", **CROPS), everything, epoch=1)
    scales = []
    for index, window in enumerate(windows(photographs, 1)):
        scale = eighths(window[2], window[3], SIDE)
        part = tuple(edge * scale / FULL for edge in window)
        difference = np.abs(reduced[index] - reference(drafted(photographs, index, scale), part, SIDE))
        scales.append(scale)
        # libjpeg-turbo's fast DCT is a few levels from Pillow's exact one at full scale.
        assert np.percentile(difference, 99) <= 8
        assert difference.mean() < 1.5
    assert {4, 8} <= set(scales)


def test_reduced_and_full_differ_by_little_and_only_where_the_scale_does(
    photographs, make_loader, read_all
) -> None:
    everything = [np.arange(photographs.num_images)]
    full, reduced = (
        read_all(make_loader(photographs, decode=decode, **CROPS), everything, epoch=1).astype(int)
        for decode in ("full", "reduced")
    )
    differences = []
    for index, window in enumerate(windows(photographs, 1)):
        if eighths(window[2], window[3], SIDE) == FULL:
            assert np.array_equal(full[index], reduced[index])
        else:
            differences.append(np.abs(full[index] - reduced[index]).mean())
    assert len(differences) > 3
    assert 0 < np.mean(differences) < 2
    assert max(differences) < 5


def test_evaluation_decodes_in_full(photographs, make_loader, read_all) -> None:
    everything = [np.arange(photographs.num_images)]
    full, reduced = (
        read_all(make_loader(photographs, training=False, decode=decode, **CROPS), everything)
        for decode in ("full", "reduced")
    )
    assert np.array_equal(full, reduced)
