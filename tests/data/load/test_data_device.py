"""The way of a batch to the device."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kapdist.config import DataConfig
from kapdist.data.load.device import Memory, Mover
from kapdist.data.load.loader import Loader
from kapdist.data.load.on_device import footprints


def pixels(count: int = 5) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8))


@pytest.mark.parametrize("channels_last", [True, False])
def test_bytes_become_floats_in_the_memory_format_asked_for(channels_last: bool) -> None:
    stored, labels = pixels(), torch.arange(5)
    mover = Mover(torch.device("cpu"), channels_last)
    sent = mover.send(stored, labels)
    images, same = mover.receive(sent)
    assert torch.equal(images, stored.permute(0, 3, 1, 2).float() / 255)
    assert images.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert same is labels
    assert (mover.ahead, sent.arrived) == (0, None)  # nothing travels, so nothing is waited for
    kept = images.clone()
    stored.zero_()
    assert torch.equal(images, kept)  # the ring may be written again


class Divisions(TorchDispatchMode):
    """By what is divided: on a GPU a number's reciprocal is multiplied by, which rounds twice."""

    def __init__(self) -> None:
        super().__init__()
        self.by: list[object] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.div, torch.ops.aten.div_):
            self.by.append(args[1])
        return func(*args, **(kwargs or {}))


def test_what_is_done_on_a_gpu_divides_floats_by_tensors_alone() -> None:
    stored = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 16, 16, 3)
    with Divisions() as divisions:
        images = Mover(torch.device("cpu"), True).on_device(stored)
        footprints(torch.zeros(2), torch.full((2,), 49), torch.full((2,), 60), 49, 49)
    assert torch.equal(images, stored.permute(0, 3, 1, 2).float() / 255)
    assert len(divisions.by) >= 3
    assert all(isinstance(value, torch.Tensor) for value in divisions.by)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_every_byte_is_the_same_float_on_a_gpu() -> None:
    stored = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 16, 16, 3)
    here, there = Mover(torch.device("cpu"), True), Mover(torch.device("cuda", 0), True)
    assert torch.equal(there.on_device(stored.cuda()).cpu(), here.floats(stored))


def test_a_loader_that_sends_ahead_gives_every_batch_in_order(fashion, make_loader) -> None:
    """As on a GPU, where the next batch travels while this one is computed on."""
    batches = np.array_split(np.arange(300), 11)
    expected = list(make_loader(fashion).batches(batches))
    for ahead in (1, 2, 20):
        loader = make_loader(fashion, batches_ahead=25)
        loader.mover.ahead = ahead
        for first, second in zip(expected, loader.batches(batches), strict=True):
            assert torch.equal(first.images, second.images)
            assert torch.equal(first.labels, second.labels)
            assert np.array_equal(first.indices, second.indices)


def test_memory_is_used_again_only_when_nobody_holds_it() -> None:
    memory = Memory()
    first, second = memory.take(100), memory.take(100)
    third = memory.take(100)  # more than are kept
    assert len({one.data_ptr() for one in (first, second, third)}) == 3
    place, part = first.data_ptr(), first[10:20].view(2, 5).numpy()
    del first
    assert memory.take(100).data_ptr() != place  # the array holds it
    del part
    assert memory.take(50).data_ptr() == place
    weight = torch.ones(50, requires_grad=True)
    loss = (memory.take(50) * weight).sum()
    held = memory.take(50)
    assert held.data_ptr() != place  # the backward pass needs it
    loss.backward()
    del loss, second
    assert len(memory.take(1000)) == 1000


def test_a_loop_takes_no_new_memory_for_every_batch(fashion, make_loader) -> None:
    places = {batch.images.data_ptr() for batch in make_loader(fashion).batches(np.array_split(np.arange(300), 30))}
    assert len(places) <= Memory.KEPT + 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("backend", ["ffcv", "torch"])
def test_a_gpu_gets_the_pixels_that_a_cpu_gets(fashion, make_loader, backend: str) -> None:
    batches = np.array_split(np.arange(300), 11)
    config = DataConfig(train=fashion.path, validation=fashion.path, backend=backend, flip=True)
    device = torch.device("cuda", 0)
    loader = Loader(fashion, config, training=True, seed=0, max_batch_size=64, device=device, num_workers=1)
    for batch, expected in zip(
        loader.batches(batches), make_loader(fashion, flip=True).batches(batches), strict=True
    ):
        torch.randn(2000, 2000, device=device).square_()  # work that the copy of the next batch runs beside
        assert torch.equal(batch.images.cpu(), expected.images)
        assert torch.equal(batch.labels.cpu(), expected.labels)
