"""Images kept on the device: the loader's bytes, whatever is done to them, from memory and by torch."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kapdist.config import DataConfig
from kapdist.data.beton.layout import BetonInfo, open_beton
from kapdist.data.load import on_device, resident, resize
from kapdist.data.load.augment import SECOND, epoch_key, mix
from kapdist.data.load.loader import Epoch, Loader
from kapdist.data.load.order import epoch_order
from kapdist.data.load.pixels import Recipe
from kapdist.data.load.resident import Resident, check_room, in_memory
from kapdist.data.load.task import Asked, Task
from kapdist.errors import InputError

CPU, GIB = torch.device("cpu"), 2**30
CROPS = {"crop": "random-resized", "resolution": 40, "flip": True}
ALL = {"flip": True, "translate": 3, "cutout": 9, "erasing": 0.5}
STRONG = {"rand_augment": 3, "rand_augment_magnitude": 20}
RAMP = {"min_resolution": 32, "max_resolution": 64, "end_ramp": 1.0}


def decoded_task(loader: Loader, training: bool = True) -> Task:
    """Return a loader's task with its images in memory."""
    from kapdist.data.load.loader import make_recipe

    recipe = make_recipe(loader.info, loader.config, training=training)
    task = Task(loader.info, loader.config, recipe, loader.largest, loader.max_batch_size, 1, CPU, "page")
    return in_memory(task, training=training)


def by_torch(loader: Loader, training: bool = True) -> Resident:
    """Return what a GPU would make of a loader's images, on the CPU."""
    task = decoded_task(loader, training)
    return Resident(task.info, task.recipe, loader.max_batch_size, CPU)


@pytest.mark.parametrize(
    ("beton", "data", "side"),
    [
        ("fashion", {"flip": True, "translate": 2}, 32),
        ("fashion", ALL, 32),
        ("fashion", {**ALL, **STRONG}, 32),
        ("raw_photographs", CROPS, 40),
        ("photographs", {**CROPS, **ALL}, 40),
        ("photographs", {**CROPS, **RAMP}, 64),
        ("photographs", {**CROPS, **ALL, **STRONG, **RAMP}, 64),
    ],
)
@pytest.mark.parametrize("backend", ["ffcv", "torch"])
def test_kept_on_the_device_the_pixels_are_the_loader_s(
    request, make_loader, beton: str, data, side: int, backend: str
) -> None:
    info = request.getfixturevalue(beton)
    batches = np.array_split(epoch_order(info.num_images, 0, 3), 5)
    loaded = make_loader(info, seed=5, backend=backend, **data)
    kept = make_loader(info, seed=5, backend=backend, on_device=True, **data)
    there = by_torch(loaded).batches([Asked(batches, epoch_key(5, 3), side)])
    passes = (loader.batches(batches, epoch=3, resolution=side) for loader in (loaded, kept))
    for first, second, (pixels, labels, ids) in zip(*passes, there, strict=True):
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.images, loaded.mover.on_device(pixels))
        assert torch.equal(first.labels, second.labels)
        assert torch.equal(first.labels, labels)
        assert np.array_equal(first.indices, second.indices)
        assert np.array_equal(first.indices, ids)


RECIPES = st.fixed_dictionaries(
    {
        "flip": st.booleans(),
        "translate": st.integers(0, 5) | st.just(64),
        "cutout": st.integers(0, 20),
        "erasing": st.sampled_from([0.0, 0.5, 1.0]),
        "rand_augment": st.integers(0, 4),
        "rand_augment_magnitude": st.integers(0, 30),
    }
)


@settings(max_examples=15)
@given(st.sampled_from(["none", "random-resized"]), st.integers(8, 50), RECIPES)
def test_whatever_the_recipe_the_pixels_are_the_loader_s(
    fashion, raw_photographs, make_loader, crop: str, side: int, recipe
) -> None:
    info, data = (
        (fashion, recipe) if crop == "none" else (raw_photographs, recipe | {"crop": crop, "resolution": side})
    )
    loaded, batches = make_loader(info, seed=side, backend="torch", **data), [np.arange(20), np.arange(20, 33)]
    there = by_torch(loaded).batches([Asked(batches, epoch_key(side, 1), loaded.largest)])
    for first, (pixels, _, _) in zip(loaded.batches(batches, epoch=1), there, strict=True):
        assert torch.equal(first.images, loaded.mover.on_device(pixels))


@pytest.mark.parametrize("data", [CROPS, {**CROPS, **ALL, **STRONG}])
def test_no_value_on_the_device_is_waited_for(raw_photographs, make_loader, data) -> None:
    """On a device that has no values, whatever would ask for one fails."""
    task, nowhere = decoded_task(make_loader(raw_photographs, **data)), torch.device("meta")
    asked = [Asked([np.arange(30), np.arange(6)], 1, 40)]
    here, there = (Resident(task.info, task.recipe, task.max_batch_size, place) for place in (CPU, nowhere))
    for (pixels, labels, _), (expected, _, _) in zip(there.batches(asked), here.batches(asked), strict=True):
        assert pixels.device == labels.device == nowhere
        assert pixels.shape == expected.shape
        for wait in (pixels.sum().item, pixels.nonzero, lambda pixels=pixels: pixels[pixels > 3]):
            with pytest.raises((RuntimeError, NotImplementedError)):
                wait()


@pytest.mark.parametrize("interpolation", ["area", "bicubic"])
def test_evaluation_sees_the_same_images(photographs, make_loader, interpolation: str) -> None:
    data = {"crop": "random-resized", "resolution": 40, "interpolation": interpolation, "flip": True}
    batches = [np.arange(20), np.array([7, 7]), np.arange(20, 36)]
    loaded, kept = (make_loader(photographs, training=False, on_device=on, **data) for on in (False, True))
    there = by_torch(loaded, training=False).batches([Asked(batches, 1, 40)])
    for first, second, (pixels, _, _) in zip(loaded.batches(batches), kept.batches(batches), there, strict=True):
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.images, loaded.mover.on_device(pixels))


def test_they_do_not_depend_on_batches_or_on_where_an_epoch_is_begun(fashion, make_loader) -> None:
    """So ranks and resumed runs see the same images."""
    there = by_torch(make_loader(fashion, seed=5, **ALL))
    order, key = epoch_order(300, 0, 1), epoch_key(5, 1)
    whole = torch.cat([pixels for pixels, _, _ in there.batches([Asked(np.array_split(order, 5), key, 32)])])
    for parts in (np.array_split(order[117:], 70), np.array_split(order[117:], 3)):
        found = torch.cat([pixels for pixels, _, _ in there.batches([Asked(parts, key, 32)])])
        assert torch.equal(found, whole[117:])
    with pytest.raises(IndexError, match="in a beton of 300 images"):
        list(there.batches([Asked([np.array([300])], key, 32)]))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 300), st.integers(1, 400), st.integers(1, 130))
def test_footprints_are_those_of_the_jitted_code(start: int, extent: int, side: int) -> None:
    taps = int(extent / side) + 3
    first, weights = np.empty(side, np.int64), np.empty((side, taps), np.float32)
    resize.footprints(float(start), float(extent), start + extent, first, weights)
    found = on_device.footprints(*(torch.tensor([n]) for n in (start, extent, start + extent)), side, extent)
    width = found[1].shape[2]
    assert np.array_equal(found[0][0].numpy(), first)
    assert np.array_equal(found[1][0].numpy(), weights[:, :width])
    assert not weights[:, width:].any()


@given(st.integers(0, 2**64 - 1))
def test_bits_are_mixed_as_unsigned_ones(value: int) -> None:
    number = np.uint64(value)
    assert on_device.mix(torch.tensor([on_device.signed(number)])).item() == on_device.signed(mix(number))
    assert on_device.signed(SECOND) < 0


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"decode": "reduced"}, "on_device with decode full only"),
        ({"cache": "process", "order": "quasi-random"}, "on_device with cache page or auto only"),
    ],
)
def test_what_the_device_cannot_do_is_refused(fashion, make_loader, keys, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        make_loader(fashion, on_device=True, **keys)


def test_images_without_room_are_refused_in_one_line(fashion, make_loader, monkeypatch) -> None:
    monkeypatch.setattr(resident, "memory_bytes", lambda: 300 * 32 * 32 * 3)
    for training in (True, False):
        with pytest.raises(InputError, match=r"^data\.on_device: expected images of at most .* found 0\.0 GiB"):
            make_loader(fashion, training=training, on_device=True)


@pytest.mark.parametrize(
    ("place", "free", "node", "ranks", "limit"),
    [
        ("cpu", 0, 100, 1, 50),
        ("cpu", 0, 100, 4, 12),  # each has its own
        ("cuda", 80, 1000, 4, 40),
        ("cuda", 80, 100, 4, 25),  # all of them decode to the node's memory at once, and send it from there
    ],
)
def test_ranks_of_a_node_share_its_memory(fashion, monkeypatch, place, free, node, ranks, limit) -> None:
    monkeypatch.setattr(resident, "memory_bytes", lambda: node * GIB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * GIB, 80 * GIB))
    config = DataConfig(train=fashion.path, validation=fashion.path)
    task = Task(fashion, config, Recipe(), 32, 8, 1, torch.device(place), "page", ranks)
    check_room(limit * GIB, task)
    with pytest.raises(InputError, match=rf"^data\.on_device: expected images of at most {limit}\.\d GiB"):
        check_room((limit + 1) * GIB, task)


def test_what_is_on_the_device_is_not_kept_on_the_host_too(fashion, make_loader) -> None:
    task = decoded_task(make_loader(fashion))
    content = weakref.ref(task.info.layout.content)
    there = Resident(task.info, task.recipe, 64, CPU)
    del task
    gc.collect()
    assert content() is None
    assert len(there.pixels) == 300 * 32 * 32


@pytest.mark.parametrize("training", [True, False])
def test_damage_is_named(copied: Path, fashion: BetonInfo, make_loader: Callable[..., Loader], training) -> None:
    content = bytearray(copied.read_bytes())
    content[int(fashion.layout.offsets[42]) + 5] ^= 1
    copied.write_bytes(content)
    with pytest.raises(InputError, match="image 42 as it was written"):
        make_loader(open_beton(copied), training=training, on_device=True)


def test_a_stream_goes_from_epoch_to_epoch(photographs, make_loader) -> None:
    data = {**CROPS, **RAMP}
    epochs = [Epoch([np.arange(9), np.arange(9, 20)], number, side) for number, side in ((0, 32), (1, 64), (2, 32))]
    loaded, kept = make_loader(photographs, **data), make_loader(photographs, on_device=True, **data)
    alone = [b for e in epochs for b in loaded.batches(e.index_batches, epoch=e.number, resolution=e.resolution)]
    for first, second, third in zip(alone, loaded.stream(epochs), kept.stream(iter(epochs)), strict=True):
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.images, third.images)
