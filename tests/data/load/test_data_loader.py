"""What the loader yields, against references in NumPy and OpenCV."""

import cv2
import numpy as np
import pytest
import torch

from kapdist.data.beton.layout import RAW, open_beton, stored_bytes
from kapdist.data.load import augment
from kapdist.data.load.loader import Loader
from kapdist.data.load.order import epoch_order
from kapdist.environment import usable_cpus
from kapdist.errors import InputError

BATCHES = np.array_split(np.arange(300), 7)
AUGMENTED = {"flip": True, "translate": 3}


@pytest.fixture(scope="module")
def augmented(fashion, make_loader) -> Loader:
    return make_loader(fashion, seed=5, **AUGMENTED)


def reference(image: np.ndarray, key: int, index: int, pad: int) -> np.ndarray:
    """Translate, then mirror, with NumPy."""
    down, right = augment.shift(key, index, pad)
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    moved = padded[pad - down :, pad - right :][: image.shape[0], : image.shape[1]]
    return moved[:, ::-1] if augment.flipped(key, index) else moved


def test_evaluation_gives_the_stored_images(fashion, pixels, make_loader, read_all) -> None:
    loader = make_loader(fashion, training=False, **AUGMENTED)
    assert np.array_equal(read_all(loader, BATCHES), pixels)


def test_batches_are_what_was_asked_for(fashion, pixels, make_loader) -> None:
    asked = [np.array([5, 3, 299]), np.array([0]), np.array([], np.int64), np.array([7, 7])]
    batches = list(make_loader(fashion, training=False).batches(asked))
    assert [batch.indices.tolist() for batch in batches] == [ids.tolist() for ids in asked]
    for batch in batches:
        expected = torch.from_numpy(pixels[batch.indices]).permute(0, 3, 1, 2).float() / 255
        assert torch.equal(batch.images, expected)
        assert batch.images.dtype == torch.float32
        assert batch.labels.tolist() == fashion.labels[batch.indices].tolist()
        assert batch.labels.dtype == torch.int64


@pytest.mark.parametrize("channels_last", [True, False])
def test_memory_format(fashion, make_loader, channels_last: bool) -> None:
    (batch,) = make_loader(fashion, channels_last=channels_last).batches([np.arange(4)])
    assert batch.images.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert batch.images.is_contiguous() != channels_last


@pytest.mark.parametrize("pad", [3, 33, 64])
def test_flip_and_translation_equal_the_reference(fashion, pixels, make_loader, read_all, pad: int) -> None:
    """Also where an image moves out of its frame: what was in the buffer before would show else."""
    key = augment.epoch_key(5, 4)
    expected = np.stack([reference(image, key, index, pad) for index, image in enumerate(pixels)])
    loader = make_loader(fashion, seed=5, flip=True, translate=pad)
    assert np.array_equal(read_all(loader, BATCHES, epoch=4), expected)


def without_hole(image: np.ndarray, key: int, index: int, cutout: int) -> np.ndarray:
    """Blacken the square around the pixel that two draws name, pixel by pixel."""
    side = len(image)
    centre = [int(augment.uniform(key, index, augment.CUTOUT + axis) * side) for axis in (0, 1)]
    rows, columns = (np.arange(side) - middle + cutout // 2 for middle in centre)
    black = ((rows >= 0) & (rows < cutout))[:, None] & ((columns >= 0) & (columns < cutout))
    return np.where(black[..., None], 0, image)


@pytest.mark.parametrize("cutout", [1, 8, 13, 64])
@pytest.mark.parametrize("others", [{}, AUGMENTED])
def test_cut_out_equals_the_reference(fashion, pixels, make_loader, read_all, cutout, others) -> None:
    key = augment.epoch_key(5, 4)
    found = read_all(make_loader(fashion, seed=5, cutout=cutout, **others), BATCHES, epoch=4)
    for index, image in enumerate(pixels):
        whole = reference(image, key, index, 3) if others else image
        assert np.array_equal(found[index], without_hole(whole, key, index, cutout))


def test_a_cut_out_of_nothing_changes_nothing(fashion, augmented, make_loader, read_all) -> None:
    found = read_all(make_loader(fashion, seed=5, cutout=0, **AUGMENTED), BATCHES, epoch=4)
    assert np.array_equal(found, read_all(augmented, BATCHES, epoch=4))


def test_evaluation_cuts_nothing_out(fashion, pixels, make_loader, read_all) -> None:
    assert np.array_equal(read_all(make_loader(fashion, training=False, cutout=16), BATCHES), pixels)


def test_cut_out_does_not_depend_on_batches_order_or_threads(fashion, make_loader, read_all) -> None:
    loader = make_loader(fashion, seed=5, cutout=9, **AUGMENTED)
    expected = read_all(loader, BATCHES, epoch=1)
    order = epoch_order(300, 0, 1)
    assert np.array_equal(read_all(loader, np.array_split(order, 60), epoch=1), expected)
    if usable_cpus() > 1:
        other = make_loader(fashion, seed=5, num_workers=2, max_batch_size=300, cutout=9, **AUGMENTED)
        assert np.array_equal(read_all(other, [order], epoch=1), expected)


def test_random_crops_are_cut_out_after_resizing(photographs, make_loader, read_all) -> None:
    plain = {"seed": 2, "crop": "random-resized", "resolution": 48}
    batch = [np.arange(photographs.num_images)]
    cropped = read_all(make_loader(photographs, **plain), batch)
    found = read_all(make_loader(photographs, **plain, cutout=16), batch)
    key = augment.epoch_key(2, 0)
    expected = np.stack([without_hole(image, key, index, 16) for index, image in enumerate(cropped)])
    assert np.array_equal(found, expected)


def test_pixels_do_not_depend_on_batches_order_or_threads(fashion, augmented, make_loader, read_all) -> None:
    expected = read_all(augmented, BATCHES, epoch=1)
    order = epoch_order(300, 0, 1)
    assert np.array_equal(read_all(augmented, np.array_split(order, 60), epoch=1), expected)
    assert np.array_equal(
        read_all(augmented, [order[:1], order[1:64], *np.array_split(order[64:], 9)], 1), expected
    )
    if usable_cpus() > 1:
        other = make_loader(fashion, seed=5, num_workers=2, max_batch_size=300, batches_ahead=1, **AUGMENTED)
        assert np.array_equal(read_all(other, [order], epoch=1), expected)


def test_pixels_depend_on_seed_and_epoch(fashion, augmented, make_loader, read_all) -> None:
    expected = read_all(augmented, BATCHES, epoch=1)
    assert not np.array_equal(read_all(augmented, BATCHES, epoch=2), expected)
    assert not np.array_equal(read_all(make_loader(fashion, seed=6, **AUGMENTED), BATCHES, epoch=1), expected)


def test_two_epochs_open_at_once_keep_their_own_draws(augmented, read_all) -> None:
    first, second = augmented.batches(BATCHES, epoch=1), augmented.batches(BATCHES, epoch=2)
    mixed = [(next(first), next(second)) for _ in BATCHES]
    for epoch, batches in ((1, [a for a, _ in mixed]), (2, [b for _, b in mixed])):
        for batch, alone in zip(batches, augmented.batches(BATCHES, epoch=epoch), strict=True):
            assert torch.equal(batch.images, alone.images)


def test_a_resumed_epoch_gives_the_rest_of_it(augmented) -> None:
    order = np.array_split(epoch_order(300, 5, 3), 10)
    whole = list(augmented.batches(order, epoch=3))
    rest = list(augmented.batches(order[6:], epoch=3))
    for expected, found in zip(whole[6:], rest, strict=True):
        assert torch.equal(expected.images, found.images)
        assert np.array_equal(expected.indices, found.indices)


def decoded(info, index: int) -> np.ndarray:
    layout = info.layout
    start, size = layout.offsets[index], layout.sizes[index]
    if layout.modes[index] == RAW:
        shape = layout.heights[index], layout.widths[index], 3
        return stored_bytes(info.path)[start : start + size].reshape(shape)
    return cv2.imdecode(stored_bytes(info.path)[start : start + size], cv2.IMREAD_COLOR_RGB)


def resized(image: np.ndarray, window: tuple[int, int, int, int], side: int) -> np.ndarray:
    top, left, height, width = window
    return cv2.resize(image[top : top + height, left : left + width], (side, side), interpolation=cv2.INTER_AREA)


# libjpeg-turbo's fast DCT is a few levels away from OpenCV's exact one; two builds of OpenCV round apart by one.
@pytest.mark.parametrize(("encoding", "levels"), [("raw", 1), ("jpeg", 12)])
@pytest.mark.parametrize("training", [True, False])
def test_crops_equal_opencv_area_resizing(request, make_loader, read_all, training, encoding, levels) -> None:
    photographs = request.getfixturevalue("photographs" if encoding == "jpeg" else "raw_photographs")
    loader = make_loader(
        photographs, training=training, seed=2, crop="random-resized", resolution=48, crop_ratio=0.75
    )
    found = read_all(loader, [np.arange(photographs.num_images)], epoch=1)
    key = augment.epoch_key(2, 1)
    for index, image in enumerate(found):
        original = decoded(photographs, index)
        if training:
            window = augment.random_window(key, index, *original.shape[:2])
        else:
            window = augment.centre_window(*original.shape[:2], 0.75)
        difference = np.abs(image.astype(int) - resized(original, window, 48))
        assert np.percentile(difference, 99.5) <= levels
        assert difference.mean() < 2


def test_random_crops_are_mirrored_and_moved_too(photographs, make_loader, read_all) -> None:
    plain = {"seed": 2, "crop": "random-resized", "resolution": 48}
    batch = [np.arange(photographs.num_images)]
    cropped = read_all(make_loader(photographs, **plain), batch)
    found = read_all(make_loader(photographs, **plain, flip=True, translate=4), batch)
    key = augment.epoch_key(2, 0)
    expected = np.stack([reference(image, key, index, 4) for index, image in enumerate(cropped)])
    assert np.array_equal(found, expected)


def test_images_of_another_size_need_a_crop(fashion, photographs, make_loader) -> None:
    with pytest.raises(InputError, match=r"expected 48 x 48 images .* found images of 32 x 32$"):
        make_loader(fashion, resolution=48)
    with pytest.raises(InputError, match="found images of different sizes"):
        make_loader(photographs, training=False)


def test_asking_for_the_impossible_is_refused(fashion, make_loader) -> None:
    loader = make_loader(fashion, max_batch_size=8)
    with pytest.raises(IndexError, match="image ids 0 to 300 in a beton of 300"):
        list(loader.batches([np.array([0, 300])]))
    with pytest.raises(IndexError, match="image ids -1"):
        list(loader.batches([np.array([-1])]))
    with pytest.raises(ValueError, match="9 images in a loader of max_batch_size 8"):
        list(loader.batches([np.arange(9)]))


def test_reopening_gives_the_same_beton(fashion) -> None:
    again = open_beton(fashion.path)
    assert (again.fingerprint, again.class_names, again.height) == (fashion.fingerprint, fashion.class_names, 32)
