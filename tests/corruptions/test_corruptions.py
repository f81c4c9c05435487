"""Every corruption against an answer that is known: a closed form, a plain loop, Pillow, the authors' formulas."""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from corruptions.reference_corruptions import Legacy, as_of_2021

from kapdist.config.fields import CORRUPTIONS
from kapdist.corruptions.blur import scatter
from kapdist.corruptions.corrupt import FUNCTIONS, corrupt
from kapdist.corruptions.filters import REFLECT, gaussian, magnified, motion, sampled
from kapdist.corruptions.frost import COLOURS, FrostSource, drawn
from kapdist.corruptions.levels import KINDS, LEVELS, NUM_SEVERITIES, SIDES, level_of, nearest_side
from kapdist.corruptions.noise import random_gaussian, random_uniform
from kapdist.corruptions.pixels import to_bytes, to_values
from kapdist.corruptions.plasma import plasma
from kapdist.corruptions.weather import fog
from kapdist.errors import InputError

SIZES = [(32, 32), (33, 47), (64, 64), (224, 224), (8, 11)]
SEVERITIES = range(1, NUM_SEVERITIES + 1)
# What the published constants make farther from the clean image at each step, pixel by pixel. Glass blur, elastic
# transform, frost, fog and snow trade one constant against another; motion blur does so at 32 pixels.
MONOTONE = {
    32: set(KINDS) - {"glass_blur", "elastic_transform", "frost", "snow", "motion_blur"},
    64: set(KINDS) - {"glass_blur", "elastic_transform", "frost"},
    224: set(KINDS) - {"glass_blur", "elastic_transform", "frost", "fog", "snow"},
}
WITHOUT_CHANCE = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}


def scene(height: int, width: int, seed: int = 0) -> np.ndarray:
    """An image with structure at every scale and of every brightness, as photographs have it."""
    random = np.random.default_rng(seed)
    channels = [plasma(height, width, 1.6, random) for _ in range(3)]
    return to_bytes(np.stack(channels, axis=2))


def distance(image: np.ndarray, kind: str, severity: int, image_id: int) -> float:
    found = corrupt(image, kind, severity, seed=0, image_id=image_id)
    return float(np.abs(to_values(found) - to_values(image)).mean())


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_kind_keeps_size_and_type_and_changes_the_image(size: tuple[int, int]) -> None:
    image = scene(*size)
    for kind in KINDS:
        found = corrupt(image, kind, 5, seed=0, image_id=3)
        assert (found.shape, found.dtype) == (image.shape, np.uint8)
        assert np.abs(found.astype(int) - image).mean() > 0.3, kind


@pytest.mark.parametrize("side", SIDES)
def test_severity_grows(side: int) -> None:
    images = [scene(side, side, seed) for seed in range(3 if side == 224 else 12)]
    for kind in KINDS:
        found = [
            np.mean([distance(image, kind, severity, i) for i, image in enumerate(images)])
            for severity in SEVERITIES
        ]
        if kind in MONOTONE[side]:
            assert found == sorted(found), (kind, found)
        if kind not in {"elastic_transform"}:  # its published constants shift the whole image most at first
            assert found[-1] > found[0], (kind, found)


def test_the_tables_are_whole_and_chosen_by_the_shorter_side() -> None:
    assert KINDS == CORRUPTIONS
    assert all(
        set(sides) == set(SIDES) and all(len(row) == 5 for row in sides.values()) for sides in LEVELS.values()
    )
    assert [nearest_side(side, 2 * side) for side in (8, 32, 45, 46, 64, 119, 120, 224, 1000)] == (
        [32, 32, 32, 64, 64, 64, 224, 224, 224]
    )
    assert level_of("gaussian_noise", 5, 32, 32) == 0.1
    assert level_of("elastic_transform", 1, 224, 224) == (488, pytest.approx(170.8), pytest.approx(24.4))


def test_a_corruption_is_a_function_of_seed_kind_severity_and_image_id() -> None:
    image = scene(32, 32)
    for kind in KINDS:
        first = corrupt(image, kind, 3, seed=1, image_id=7)
        np.random.seed(5)  # whatever happens in between
        corrupt(image, "snow", 2, seed=9, image_id=1)
        assert np.array_equal(corrupt(image, kind, 3, seed=1, image_id=7), first)
        others = [corrupt(image, kind, 3, seed=2, image_id=7), corrupt(image, kind, 3, seed=1, image_id=8)]
        assert all(np.array_equal(other, first) == (kind in WITHOUT_CHANCE) for other in others), kind


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)]
)
def test_what_is_no_image_of_8_bits_rgb_is_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected an image"):
        corrupt(image, "fog", 1, seed=0, image_id=0)


# Noise


def test_gaussian_noise_has_its_standard_deviation() -> None:
    grey = np.full((224, 224, 3), 128, np.uint8)
    for severity, std in ((1, 0.08), (2, 0.12)):  # far from 0 and 1, where nothing is clipped
        noise = to_values(corrupt(grey, "gaussian_noise", severity, seed=0, image_id=0)) - 127.5 / 255
        assert noise.std() == pytest.approx(std, rel=0.01)
        assert abs(noise.mean()) < 0.001


def test_shot_noise_is_that_of_counted_photons() -> None:
    grey = np.full((224, 224, 3), 51, np.uint8)
    noisy = to_values(corrupt(grey, "shot_noise", 1, seed=0, image_id=0))
    assert noisy.mean() == pytest.approx(0.2, rel=0.02)
    assert noisy.var() == pytest.approx(0.2 / 60, rel=0.02)
    assert len(np.unique(noisy)) < 60  # whole photons


def test_impulse_noise_hits_its_share_of_values_half_of_them_white() -> None:
    grey = np.full((224, 224, 3), 99, np.uint8)
    found = corrupt(grey, "impulse_noise", 5, seed=0, image_id=0)
    assert (found == 255).mean() == pytest.approx(0.27 / 2, rel=0.05)
    assert (found == 0).mean() == pytest.approx(0.27 / 2, rel=0.05)
    assert set(np.unique(found)) == {0, 99, 255}


def test_random_noise_has_the_norm_it_is_asked_for() -> None:
    grey, random = np.full((32, 32, 3), 0.5), np.random.default_rng(0)
    linf = random_uniform(grey, "Linf", 0.1, random) - grey
    assert 0.099 < np.abs(linf).max() <= 0.1
    assert linf.std() == pytest.approx(0.1 / math.sqrt(3), rel=0.05)
    assert np.linalg.norm(random_uniform(grey, "L2", 0.5, random) - grey) == pytest.approx(0.5)
    assert np.abs(random_uniform(grey, "L1", 12, random) - grey).sum() == pytest.approx(12)
    assert random_gaussian(grey, 0.1, random).std() == pytest.approx(0.1, rel=0.05)
    white = random_uniform(np.ones((8, 8, 3)), "L2", 3, random)
    assert white.max() == 1
    assert np.linalg.norm(white - 1) < 3


# Blur


@pytest.mark.parametrize("kind", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform"])
def test_blur_and_shifts_leave_a_constant_alone(kind: str) -> None:
    for side, value in ((32, 200), (224, 37)):
        flat = np.full((side, side, 3), value, np.uint8)
        for severity in SEVERITIES:
            found = corrupt(flat, kind, severity, seed=0, image_id=0).astype(int)
            assert np.abs(found - value).max() <= (2 if kind == "glass_blur" else 1)  # it drops fractions twice


def dense_gaussian(values: np.ndarray, std: float, mode: str, truncate: float) -> np.ndarray:
    radius = int(truncate * std + 0.5)
    side = np.arange(-radius, radius + 1)
    kernel = np.exp(-(side[:, None] ** 2 + side[None] ** 2) / (2 * std**2))
    padded = np.pad(values, radius, mode=mode)
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape)
    return (windows * kernel).sum((2, 3)) / kernel.sum()


@pytest.mark.parametrize(("border", "mode"), [((), "edge"), ((REFLECT,), "symmetric")])
@pytest.mark.parametrize("std", [0.4, 2.0, 9.0])
def test_the_gaussian_filter_is_the_sum_over_its_window(std: float, border: tuple[int, ...], mode: str) -> None:
    values = np.random.default_rng(0).random((13, 9))  # smaller than the largest window
    assert np.allclose(gaussian(values, std, *border, truncate=3.0), dense_gaussian(values, std, mode, 3.0))


def test_glass_takes_pixels_in_the_order_of_the_loop() -> None:
    for distance_, size in ((1, (9, 12)), (2, (17, 17)), (4, (30, 21))):
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        rows = range(size[0] - distance_, distance_, -1)
        columns = range(size[1] - distance_, distance_, -1)
        shifts = np.random.default_rng(1).integers(-distance_, distance_, (len(rows), len(columns), 2))
        looped = image.copy()
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                across, down = shifts[i, j]
                looped[row, column] = looped[row + down, column + across]
        assert np.array_equal(scatter(image, distance_, np.random.default_rng(1)), looped)


def test_motion_smears_a_point_to_one_side() -> None:
    point = np.zeros((9, 15))
    point[4, 12] = 1
    weights = np.exp(-(np.arange(7) ** 2) / 8)
    expected = np.zeros_like(point)
    expected[4, 6:13] = (weights / weights.sum())[::-1]
    assert np.allclose(motion(point, 3, 2.0, 0.0), expected)
    assert np.allclose(motion(point.T, 3, 2.0, 90.0), expected.T)
    slanted = motion(point, 3, 2.0, 45.0)
    assert [slanted[4 - step, 12 - step] > 0 for step in range(5)] == [True] * 5


def test_magnifying_is_linear_between_the_pixels_of_the_middle() -> None:
    values = np.random.default_rng(0).random((10, 10, 1))
    assert np.array_equal(magnified(values, 1.0), values)
    middle = values[2:7, 2:7, 0]  # ceil(10 / 2) pixels
    places = np.linspace(0, 4, 10)
    rows = np.stack([np.interp(places, range(5), middle[:, column]) for column in range(5)], axis=1)
    expected = np.stack([np.interp(places, range(5), row) for row in rows])
    assert np.allclose(magnified(values, 2.0)[..., 0], expected)


def test_sampling_is_linear_inside_and_mirrored_outside() -> None:
    rows, columns = np.meshgrid(np.arange(6.0), np.arange(8.0), indexing="ij")
    plane = (2 * rows + 3 * columns)[..., None]
    assert np.allclose(
        sampled(plane, rows * 0.9 + 0.2, columns * 0.8 + 0.1)[..., 0],
        2 * (rows * 0.9 + 0.2) + 3 * (columns * 0.8 + 0.1),
    )
    assert np.array_equal(sampled(plane, rows - 6, columns + 8), plane[::-1, ::-1])


# Weather


def test_brightness_is_added_to_the_value_of_hsv() -> None:
    image = scene(32, 32)
    image[0, :3] = [[0, 0, 0], [255, 255, 255], [255, 0, 0]]
    for severity, added in ((2, 0.1), (5, 0.3)):
        found = corrupt(image, "brightness", severity, seed=0, image_id=0)
        for before, after in zip(image.reshape(-1, 3), found.reshape(-1, 3), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*(before / 255))
            expected = np.array(colorsys.hsv_to_rgb(hue, saturation, min(value + added, 1))) * 255
            assert np.array_equal(after, np.floor(expected + 1e-4)), before


def looped_plasma(side: int, decay: float, random: np.random.Generator) -> np.ndarray:
    """Diamond-square point by point, its random numbers in the order in which whole arrays take them."""
    field, amplitude, step = np.zeros((side, side)), 100.0, side
    while step >= 2:
        half, count = step // 2, side // step
        draws = [amplitude * random.uniform(-amplitude, amplitude, (count, count)) for _ in range(3)]
        grid = [(row, column) for row in range(count) for column in range(count)]
        for row, column in grid:
            y, x = row * step, column * step
            four = field[y, x] + field[(y + step) % side, x] + field[y, (x + step) % side]
            field[y + half, x + half] = (four + field[(y + step) % side, (x + step) % side]) / 4 + draws[0][
                row, column
            ]
        for (down, across), draw in zip(((0, half), (half, 0)), draws[1:], strict=True):
            for row, column in grid:
                y, x = row * step + down, column * step + across
                around = field[(y - half) % side, x] + field[(y + half) % side, x]
                around += field[y, (x - half) % side] + field[y, (x + half) % side]
                field[y, x] = around / 4 + draw[row, column]
        step, amplitude = half, amplitude / decay
    return (field - field.min()) / (field.max() - field.min())


def test_fog_is_a_cloud_by_diamond_square_over_the_image() -> None:
    image = scene(12, 16)
    cloud = looped_plasma(16, 1.75, np.random.default_rng(4))[:12]
    values, brightest = image / 255, image.max() / 255
    expected = np.floor((values + 1.5 * cloud[..., None]) * brightest / (brightest + 1.5) * 255 + 1e-4)
    assert np.array_equal(fog(image, (1.5, 1.75), np.random.default_rng(4)), expected)
    assert not fog(np.zeros_like(image), (1.5, 1.75), np.random.default_rng(4)).any()


def test_snow_only_whitens() -> None:
    image = scene(64, 48)
    for severity in SEVERITIES:
        assert (corrupt(image, "snow", severity, seed=0, image_id=0).astype(int) >= image.astype(int) - 1).all()


def test_frost_lays_a_photograph_over_the_image(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (700, 300), (90, 130, 200)).save(tmp_path / "frost1.png")
    source = FrostSource.of(tmp_path)
    for height, width, own, other in ((32, 32, 0.9, 0.4), (64, 64, 0.8, 0.45), (400, 500, 0.7, 0.7)):
        image = scene(height, width)
        found = corrupt(image, "frost", 3, seed=0, image_id=0, frost_source=source)
        expected = np.clip(own * image + other * np.array([90, 130, 200]), 0, 255)
        assert np.abs(found - np.floor(expected)).max() <= 1
    assert len(source.name) == 64
    with pytest.raises(InputError, match="photographs of frost"):
        FrostSource.of(tmp_path / "empty")


def test_drawn_frost_has_the_colours_and_the_contrast_of_photographs() -> None:
    for index, (colour, std) in enumerate(COLOURS):
        picture = drawn(index)
        assert np.abs(picture.mean((0, 1)) - colour).max() < 3
        assert picture.mean(2).std() == pytest.approx(std, rel=0.1)
    assert not np.array_equal(drawn(1), drawn(2))


# Digital


def test_contrast_keeps_the_mean_and_scales_the_rest() -> None:
    image = scene(32, 32)
    found = corrupt(image, "contrast", 5, seed=0, image_id=0).astype(float)
    mean = image.mean((0, 1))
    assert np.abs(found - (mean + 0.15 * (image - mean))).max() <= 1
    assert np.abs(found.mean((0, 1)) - mean).max() <= 1


def test_jpeg_is_that_of_pillow() -> None:
    image = scene(33, 47)
    for severity, quality in enumerate((80, 65, 58, 50, 40), start=1):
        file = io.BytesIO()
        PIL.Image.fromarray(image).save(file, "JPEG", quality=quality)
        assert np.array_equal(
            corrupt(image, "jpeg_compression", severity, seed=0, image_id=0), PIL.Image.open(file)
        )


def test_pixelate_is_a_mean_over_boxes() -> None:
    image = scene(64, 128)
    boxes = image.reshape(32, 2, 64, 2, 3).mean((1, 3))
    found = corrupt(image, "pixelate", 5, seed=0, image_id=0).astype(float)
    assert np.abs(found - boxes.repeat(2, axis=0).repeat(2, axis=1)).max() <= 1


def test_elastic_without_smoothness_and_displacement_is_affine() -> None:
    """At severity 1 of small images the field is zero: straight lines stay straight."""
    rows, columns = np.meshgrid(np.arange(64), np.arange(64), indexing="ij")
    ramp = np.repeat((rows + columns)[..., None], 3, axis=2).astype(np.uint8)
    found = corrupt(ramp, "elastic_transform", 1, seed=0, image_id=0).astype(float)[16:48, 16:48, 0]
    design = np.stack([rows[16:48, 16:48].ravel(), columns[16:48, 16:48].ravel(), np.ones(32 * 32)], axis=1)
    _, residual, *_ = np.linalg.lstsq(design, found.ravel(), rcond=None)
    assert math.sqrt(residual[0] / found.size) < 0.5
    assert np.abs(found - ramp[16:48, 16:48, 0]).max() > 1


# The package imagecorruptions, where it is installed: the authors' formulas on the same random numbers.

SAME = dict.fromkeys(KINDS, 1) | {"glass_blur": 2}
# It draws impulses from a generator of its own, crops snow and scales frost otherwise, has another elastic
# transform, and enlarges pixels by the nearest.
DIFFERS = {"impulse_noise", "snow", "frost", "elastic_transform", "pixelate"}


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Callable[..., np.ndarray]:
    return as_of_2021(monkeypatch)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in DIFFERS])
def test_as_the_package_imagecorruptions(kind: str, reference: Callable[..., np.ndarray]) -> None:
    image = scene(96, 96)
    for severity in SEVERITIES:
        found = FUNCTIONS[kind](image, LEVELS[kind][224][severity - 1], Legacy(severity))
        expected = reference(kind, image, severity, seed=severity)
        assert np.abs(found.astype(int) - expected).max() <= SAME[kind]
