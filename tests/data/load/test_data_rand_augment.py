"""RandAugment and random erasing: Pillow's operations, torchvision's levels and boxes, draws of an image."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from kapdist.config import Config
from kapdist.config.file import load_config
from kapdist.data.load import augment
from kapdist.data.load.erase import compiled_erase
from kapdist.data.load.operations import OPERATIONS
from kapdist.data.load.order import epoch_order
from kapdist.data.load.rand_augment import compiled_rand_augment
from kapdist.environment import usable_cpus
from kapdist.errors import InputError

BATCHES = np.array_split(np.arange(300), 7)
EPOCH = 4
KEY = augment.epoch_key(5, EPOCH)
STRONG = {"rand_augment": 3, "rand_augment_magnitude": 20}
OTHERS = {"flip": True, "translate": 3, "cutout": 9, "erasing": 0.5}


def affine(image: Image.Image, *coefficients: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.NEAREST)


def with_pillow(pixels: np.ndarray, name: str, magnitude: int, negative: bool) -> np.ndarray:
    """Apply an operation as torchvision's RandAugment does to a Pillow image (31 bins, nearest, black)."""
    image, share = Image.fromarray(pixels), magnitude / 30
    sign = -1 if negative else 1
    slope, factor = sign * 0.3 * share, 1 + sign * 0.9 * share
    pixels_moved = sign * int(150.0 / 331.0 * image.width * share)
    done = {
        "identity": lambda: image,
        "shear-x": lambda: affine(image, 1, slope, 0, 0, 1, 0),
        "shear-y": lambda: affine(image, 1, 0, 0, slope, 1, 0),
        "translate-x": lambda: affine(image, 1, 0, -pixels_moved, 0, 1, 0),
        "translate-y": lambda: affine(image, 1, 0, 0, 0, 1, -pixels_moved),
        "rotate": lambda: image.rotate(sign * 30 * share, Image.Resampling.NEAREST),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "color": lambda: ImageEnhance.Color(image).enhance(factor),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(factor),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(factor),
        "posterize": lambda: ImageOps.posterize(image, 8 - round(4 * share)),
        "solarize": lambda: ImageOps.solarize(image, 255 - 8.5 * magnitude),
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
    }
    return np.asarray(done[name]())


def pictures(count: int, side: int) -> np.ndarray:
    """Make (count, side, side, 3) uint8: noise, ramps of colour, few levels, a narrow range, one colour alone."""
    random = np.random.default_rng(side)
    ramp = np.stack([random.uniform(0, 255, 3) * at for at in np.linspace(0, 1, side * side)])
    kinds = (
        lambda: random.integers(0, 256, (side, side, 3)),
        lambda: ramp.reshape(side, side, 3) + random.integers(0, 9, (side, side, 3)),
        lambda: random.choice([0, 40, 255], (side, side, 3), p=[0.7, 0.2, 0.1]),
        lambda: random.integers(90, 130, (side, side, 3)),
        lambda: np.broadcast_to(random.integers(0, 256, 3), (side, side, 3)),
    )
    return np.stack([kinds[index % 5]().clip(0, 255).astype(np.uint8) for index in range(count)])


def referenced(image: np.ndarray, index: int, turns: int, magnitude: int, key: int = KEY) -> np.ndarray:
    for turn in range(turns):
        number, negative = augment.operation(key, index, turn)
        image = with_pillow(image, OPERATIONS[number], magnitude, negative)
    return image


@pytest.mark.parametrize("side", [8, 32, 45, 331])
def test_every_operation_gives_pillow_s_bytes(side: int) -> None:
    count, magnitudes = (80, range(31)) if side < 100 else (100, (7, 30))
    images, met = pictures(count, side), set()
    for magnitude in magnitudes:
        found, ids = images.copy(), np.arange(count) + count * magnitude
        compiled_rand_augment()(ids, found, KEY, 1, magnitude)
        for position, (index, image) in enumerate(zip(ids, images, strict=True)):
            number, negative = augment.operation(KEY, index, 0)
            expected = with_pillow(image, OPERATIONS[number], magnitude, negative)
            assert np.array_equal(found[position], expected), (OPERATIONS[number], magnitude, negative, index)
            met.add((OPERATIONS[number], negative, position % 5))
    # Every operation, either sign, on every kind of picture; the larger side has too few images for all.
    assert len(met) == len(OPERATIONS) * 2 * 5 or side > 100
    assert {name for name, *_ in met} == set(OPERATIONS)


def test_operations_follow_one_another() -> None:
    images = pictures(100, 32)
    found = images.copy()
    compiled_rand_augment()(np.arange(100), found, KEY, 4, 13)
    for index, image in enumerate(images):
        assert np.array_equal(found[index], referenced(image, index, 4, 13))


def test_levels_are_torchvision_s() -> None:
    transforms = pytest.importorskip("torchvision.transforms", reason="torchvision is not installed")
    space = transforms.RandAugment()._augmentation_space(31, (32, 32))
    apply = transforms.autoaugment._apply_op
    nearest = transforms.InterpolationMode.NEAREST
    image = Image.fromarray(pictures(1, 32)[0])
    for name, (magnitudes, signed) in space.items():
        ours = name.replace("X", "-x").replace("Y", "-y").lower()
        for magnitude in (0, 9, 30):
            value = float(magnitudes[magnitude]) if magnitudes.ndim else 0.0
            for negative in (False, True) if signed else (False,):
                expected = apply(image, name, -value if negative else value, nearest, None)
                assert np.array_equal(with_pillow(np.asarray(image), ours, magnitude, negative), expected), name


def test_every_operation_and_sign_is_equally_likely_in_each_turn() -> None:
    for turn in (0, 1, 15):
        draws = [augment.operation(KEY, image, turn) for image in range(28_000)]
        counts = np.bincount([2 * number + negative for number, negative in draws], minlength=28)
        assert len(counts) == 28
        assert ((counts - 1000) ** 2 / 1000).sum() < 74  # 27 degrees of freedom, once in 300,000


def test_operations_of_turns_are_independent() -> None:
    pairs = np.zeros((14, 14))
    for image in range(19_600):
        pairs[augment.operation(KEY, image, 0)[0], augment.operation(KEY, image, 1)[0]] += 1
    assert ((pairs - 100) ** 2 / 100).sum() < 300  # 195 degrees of freedom, once in a million


def test_no_two_purposes_share_a_counter() -> None:
    used = [
        {augment.FLIP},
        {augment.SHIFT, augment.SHIFT + 1},
        {augment.CUTOUT, augment.CUTOUT + 1},
        set(range(augment.CROP, augment.CROP + 4 * augment.TRIES)),
        set(range(augment.ERASE, augment.ERASE + 2 + 4 * augment.TRIES)),
        set(range(augment.OPERATION, augment.OPERATION + 2 * 16)),
    ]
    assert not any(first & second for first, second in itertools.combinations(used, 2))


@given(st.integers(8, 2048), st.integers(0, 100_000))
def test_erased_rectangles_lie_inside_and_leave_something(side: int, image: int) -> None:
    top, bottom, left, right = augment.erased(KEY, image, side, 1.0)
    assert 0 <= top <= bottom <= side
    assert 0 <= left <= right <= side
    assert bottom - top < side
    assert right - left < side


def torchvision_boxes(random: np.random.Generator, count: int, side: int) -> np.ndarray:
    """(count, 2): heights and widths of RandomErasing.get_params at its defaults, written again."""
    boxes = np.zeros((count, 2))
    for index in range(count):
        for _ in range(10):
            area = side * side * random.uniform(0.02, 0.33)
            ratio = math.exp(random.uniform(math.log(0.3), math.log(3.3)))
            box = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if max(box) < side:
                boxes[index] = box
                break
    return boxes


@pytest.mark.parametrize("side", [16, 224])
def test_erased_rectangles_are_torchvision_s(side: int) -> None:
    found = np.array([augment.erased(KEY, image, side, 1.0) for image in range(20_000)], float)
    boxes = found[:, [1, 3]] - found[:, [0, 2]]
    expected = torchvision_boxes(np.random.default_rng(0), 20_000, side)
    quantiles = np.linspace(0.05, 0.95, 19)
    for axis in (0, 1):
        mine, theirs = (np.quantile(each[:, axis] / side, quantiles) for each in (boxes, expected))
        assert abs(mine - theirs).max() <= 1 / side if side < 100 else abs(mine - theirs).max() < 0.01
    assert abs(boxes.prod(1).mean() - expected.prod(1).mean()) < 0.01 * side**2
    free = side - boxes  # where it may begin: uniform, so half of that on average
    assert abs(((found[:, [0, 2]] + 0.5) / (free + 1)).mean(0) - 0.5).max() < 0.01


def test_as_many_images_are_erased_as_the_probability_says() -> None:
    for probability in (0.0, 0.25, 1.0):
        empty = sum(augment.erased(KEY, image, 64, probability) == (0, 0, 0, 0) for image in range(10_000))
        assert abs(1 - empty / 10_000 - probability) < 5 * math.sqrt(0.25 * 0.75 / 10_000)


def test_erased_pixels_are_uniform_noise_of_their_own() -> None:
    images = np.zeros((400, 64, 64, 3), np.uint8)
    compiled_erase()(np.arange(400), images, KEY, 0, 1.0)
    inside = []
    for index, image in enumerate(images):
        top, bottom, left, right = augment.erased(KEY, index, 64, 1.0)
        inside.append(image[top:bottom, left:right].reshape(-1, 3).copy())
        image[top:bottom, left:right] = 0
    assert not images.any()  # nothing else was touched
    noise = np.concatenate(inside).astype(float)
    counts = np.bincount(noise.astype(int).ravel(), minlength=256)
    mean = noise.size / 256
    assert ((counts - mean) ** 2 / mean).sum() < 255 + 5 * math.sqrt(2 * 255)
    beside = np.corrcoef(np.hstack([noise[:-1], noise[1:]]).T) - np.eye(6)
    assert abs(beside).max() < 5 / math.sqrt(len(noise))
    first = np.stack([part[:8, 0] for part in inside])
    assert len(np.unique(first, axis=0)) == 400


def flipped_and_moved(image: np.ndarray, index: int, pad: int) -> np.ndarray:
    down, right = augment.shift(KEY, index, pad)
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    moved = padded[pad - down :, pad - right :][: len(image), : len(image)]
    return moved[:, ::-1] if augment.flipped(KEY, index) else moved


def test_the_order_is_flip_translate_operations_cut_out_erasing(fashion, pixels, make_loader, read_all) -> None:
    found = read_all(make_loader(fashion, seed=5, **STRONG, **OTHERS), BATCHES, epoch=EPOCH)
    erased = 0
    for index, image in enumerate(pixels):
        expected = referenced(flipped_and_moved(image, index, 3), index, 3, 20).copy()
        y0, y1, x0, x1 = augment.hole(KEY, index, 32, 9)
        expected[y0:y1, x0:x1] = 0
        y0, y1, x0, x1 = augment.erased(KEY, index, 32, 0.5)
        noise = found[index, y0:y1, x0:x1]
        erased += noise.size > 0
        assert noise.size < 30 or len(np.unique(noise)) > 10
        expected[y0:y1, x0:x1] = noise
        assert np.array_equal(found[index], expected)
    assert 100 < erased < 200


def test_without_the_keys_nothing_changes_and_evaluation_never_does(fashion, pixels, make_loader, read_all) -> None:
    plain = read_all(make_loader(fashion, seed=5, flip=True, cutout=9), BATCHES, epoch=EPOCH)
    off = {"rand_augment": 0, "rand_augment_magnitude": 30, "erasing": 0.0}
    assert np.array_equal(read_all(make_loader(fashion, seed=5, flip=True, cutout=9, **off), BATCHES, EPOCH), plain)
    evaluation = make_loader(fashion, training=False, seed=5, **STRONG, **OTHERS)
    assert np.array_equal(read_all(evaluation, BATCHES, epoch=EPOCH), pixels)


def test_pixels_do_not_depend_on_batches_order_or_threads(fashion, make_loader, read_all) -> None:
    loader = make_loader(fashion, seed=5, **STRONG, **OTHERS)
    expected = read_all(loader, BATCHES, epoch=1)
    order = epoch_order(300, 0, 1)
    assert np.array_equal(read_all(loader, np.array_split(order, 60), epoch=1), expected)
    assert not np.array_equal(read_all(loader, BATCHES, epoch=2), expected)
    if usable_cpus() > 1:
        other = make_loader(fashion, seed=5, num_workers=2, max_batch_size=300, **STRONG, **OTHERS)
        assert np.array_equal(read_all(other, [order], epoch=1), expected)


@pytest.mark.parametrize("backend", ["ffcv", "torch"])
def test_a_resumed_epoch_gives_the_rest_of_it(fashion, make_loader, backend: str) -> None:
    order = np.array_split(epoch_order(300, 5, 3), 10)
    loader = make_loader(fashion, seed=5, backend=backend, **STRONG, **OTHERS)
    whole, rest = list(loader.batches(order, epoch=3)), list(loader.batches(order[6:], epoch=3))
    assert all(torch.equal(a.images, b.images) for a, b in zip(whole[6:], rest, strict=True))


def test_backends_give_the_same_pixels(fashion, raw_photographs, make_loader, read_all) -> None:
    crops = {"crop": "random-resized", "resolution": 40}
    for info, config in ((fashion, {}), (raw_photographs, crops)):
        order = np.array_split(epoch_order(info.num_images, 0, 1), 6)
        first, second = (
            read_all(make_loader(info, seed=3, backend=backend, **config, **STRONG, **OTHERS), order, epoch=1)
            for backend in ("ffcv", "torch")
        )
        assert np.array_equal(first, second)


def test_operations_come_after_the_crop_at_each_resolution_of_a_ramp(photographs, make_loader) -> None:
    ramp = {"crop": "random-resized", "min_resolution": 32, "max_resolution": 64, "resolution": 64}
    plain, varied = (make_loader(photographs, seed=5, **ramp, **more) for more in ({}, STRONG))
    for side in (32, 64):
        (before,) = plain.batches([np.arange(30)], epoch=EPOCH, resolution=side)
        (after,) = varied.batches([np.arange(30)], epoch=EPOCH, resolution=side)
        images, found = (
            (batch.images * 255).round().byte().permute(0, 2, 3, 1).numpy() for batch in (before, after)
        )
        for index, image in enumerate(images):
            assert np.array_equal(found[index], referenced(image, index, 3, 20))


@pytest.mark.parametrize(
    "key", ["rand_augment=-1", "rand_augment=17", "rand_augment_magnitude=31", "erasing=1.1", "erasing=nan"]
)
def test_what_cannot_be_is_refused_in_a_line(key: str) -> None:
    with pytest.raises(InputError, match=rf"^override 'data\.{key}': expected [^\n]*, found [^\n]*$"):
        load_config(Config, None, ["name=x", "data.train=a", "data.validation=b", f"data.{key}"])
