"""Where a pass's bytes come from: the map of the file, or pages of it; and resolutions that change by epoch."""

import errno
import os
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import numpy as np
import pytest
import torch

from kapdist.config import DataConfig
from kapdist.data.beton.layout import open_beton
from kapdist.data.beton.write import write_beton
from kapdist.data.load.loader import Loader
from kapdist.data.load.order import quasi_random_order
from kapdist.data.load.storage import READERS, MappedFile, PagedFile, StoredFile
from kapdist.errors import InputError, TransientError
from kapdist.plan.training import OPEN_PAGES, Ramp, Room, choose_storage

GIB = 2**30


@pytest.fixture(scope="module")
def paged(array_source, tmp_path_factory):
    """1,200 raw images of 64 x 64: 14 MB, several pages of the writer."""
    path = tmp_path_factory.mktemp("paged") / "paged.beton"
    source = array_source(count=1200, side=64)
    source.largest_bytes = 64 * 64 * 3  # the writer's smallest pages
    write_beton(source, path, num_workers=1)
    info = open_beton(path)
    assert info.layout.offsets.max() // info.layout.page_bytes > 4
    return info


@pytest.fixture(scope="module")
def batches() -> list[np.ndarray]:
    return np.array_split(quasi_random_order(1200, 0, 1, 20), 40)


def test_the_process_cache_gives_the_same_images(paged, batches, make_loader) -> None:
    config = {"resolution": 64, "flip": True, "translate": 3, "order": "quasi-random", "page_images": 20}
    mapped, cached = (make_loader(paged, cache=cache, **config) for cache in ("page", "process"))
    for first, second in zip(mapped.batches(batches, epoch=1), cached.batches(batches, epoch=1), strict=True):
        assert torch.equal(first.images, second.images)
        assert np.array_equal(first.indices, second.indices)


def test_the_process_cache_holds_the_open_pages_alone(paged) -> None:
    in_order = np.array_split(np.arange(1200), 40)
    stored, held = paged.path.stat().st_size, PagedFile(StoredFile(paged.layout), in_order)
    try:
        assert len(held.data) < stored / 2
        mapped = MappedFile(StoredFile(paged.layout))
        for number, batch in enumerate(in_order):
            held.start_batch(number)
            for image, start in zip(batch, held.starts(batch), strict=True):
                size, offset = int(paged.layout.sizes[image]), int(mapped.starts(image))
                assert np.array_equal(held.data[start : start + size], mapped.data[offset : offset + size])
    finally:
        held.close()


def test_leaving_a_pass_over_the_process_cache_ends_its_readers(paged, batches, make_loader) -> None:
    before = threading.active_count()
    loader = make_loader(paged, resolution=64, order="quasi-random", cache="process")
    running = loader.batches(batches)
    next(running)
    running.close()
    deadline = time.monotonic() + 60
    stay = 2  # the loader's thread and its one decoding thread
    while threading.active_count() > before + stay and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before + stay


def test_a_page_s_reader_keeps_the_file_open(paged) -> None:
    """However late it comes to it: the number of a closed file may be another file's, or nobody's."""
    in_order = np.array_split(np.arange(1200), 40)
    held = PagedFile(StoredFile(paged.layout), in_order)
    descriptor = held.file.descriptor
    wanted = paged.path.read_bytes()
    held.start_batch(0)
    held.close()
    first, begins = paged.layout.page_bytes, held.slots[1] * held.page_bytes
    assert bytes(held.data[begins : begins + 1000]) == wanted[first : first + 1000]
    assert is_open(descriptor, paged.path)
    del held
    deadline = time.monotonic() + 60
    while is_open(descriptor, paged.path) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_open(descriptor, paged.path)


def is_open(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def test_a_page_that_cannot_be_read_is_said_and_not_waited_for(paged, batches, make_loader, monkeypatch) -> None:
    """FFCV's readers look at no result, and what a dead one was to read is waited for without an end."""

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    loader = make_loader(paged, resolution=64, order="quasi-random", cache="process")
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(TransientError, match=r"paged.beton: Input/output error at byte \d+"):
        list(loader.batches(batches))
    monkeypatch.undo()
    assert len(list(loader.batches(batches))) == len(batches)


def test_a_page_is_read_whole_where_a_file_system_gives_it_in_parts(paged, monkeypatch) -> None:
    in_order, read = np.array_split(np.arange(1200), 40), os.preadv
    mapped = MappedFile(StoredFile(paged.layout))
    monkeypatch.setattr(os, "preadv", lambda file, parts, at: read(file, [parts[0][: 1 << 16]], at))
    held = PagedFile(StoredFile(paged.layout), in_order)
    try:
        held.start_batch(0)
        for image, start in zip(in_order[0], held.starts(in_order[0]), strict=True):
            size, offset = int(paged.layout.sizes[image]), int(mapped.starts(image))
            assert np.array_equal(held.data[start : start + size], mapped.data[offset : offset + size])
    finally:
        held.close()


def test_closing_lets_go_of_what_waits_to_be_read_and_of_who_waits(paged) -> None:
    held, may_read, began = PagedFile(StoredFile(paged.layout), [np.arange(1200)]), threading.Event(), Queue()
    read = held.read

    def slow(page: int) -> None:
        began.put(page)
        may_read.wait(60)
        read(page)

    held.read = slow
    with ThreadPoolExecutor() as pool:
        waits = pool.submit(held.start_batch, 0)
        reading = {began.get(timeout=60) for _ in range(READERS)}
        held.close()
        may_read.set()
        with pytest.raises(CancelledError):
            waits.result(timeout=60)
    assert len(held.asked) > len(reading)
    assert began.empty()


def test_nobody_waits_for_a_page_that_was_asked_for_after_the_end(paged) -> None:
    """As a thread may that was given up and comes back; it would hang for ever, and keep the loader."""
    held = PagedFile(StoredFile(paged.layout), [np.arange(1200)])
    held.close()
    with ThreadPoolExecutor() as pool:
        waits = pool.submit(held.start_batch, 0)
        try:
            with pytest.raises(CancelledError):
                waits.result(timeout=60)
        finally:
            held.cancel()


def test_damage_in_a_page_is_found(paged, make_loader) -> None:
    paged.checksums[700] ^= np.uint64(1)
    try:
        loader = make_loader(paged, resolution=64, order="quasi-random", cache="process")
        with pytest.raises(Exception, match="image 700 as it was written"):
            list(loader.batches([np.arange(690, 710)]))
    finally:
        paged.checksums[700] ^= np.uint64(1)


def data(**keys) -> DataConfig:
    return DataConfig(train="a.beton", validation="b.beton", **keys)


AUTO = {"order": "auto", "cache": "auto"}


@pytest.mark.parametrize(
    ("keys", "room", "order", "cache"),
    [
        (AUTO, Room(10 * GIB, 64 * GIB), "random", "page"),
        (AUTO, Room(400 * GIB, 64 * GIB, 1), "quasi-random", "process"),
        (AUTO, Room(400 * GIB, 64 * GIB, 8), "quasi-random", "page"),  # 8 x 10 GiB of open pages
        (AUTO, Room(400 * GIB, 64 * GIB, 1, process_cache=False), "quasi-random", "page"),
        (AUTO, Room(400 * GIB, 640 * GIB, order="quasi-random"), "quasi-random", "page"),  # as the run began
        (AUTO, Room(400 * GIB, 64 * GIB, order="random"), "random", "page"),
        ({**AUTO, "order": "random"}, Room(400 * GIB, 64 * GIB), "random", "page"),
        ({**AUTO, "cache": "process"}, Room(10 * GIB, 64 * GIB), "quasi-random", "process"),
        ({}, Room(400 * GIB, 64 * GIB), "random", "page"),
        (AUTO, None, "random", "page"),
    ],
)
def test_sizes_decide_what_is_auto(keys, room, order: str, cache: str) -> None:
    found = choose_storage(data(**keys), 1_281_167, room)
    assert (found.order, found.cache) == (order, cache)
    if room and "auto" in keys.values():
        assert (
            f"beton of {room.beton_bytes / GIB:.1f} GiB, {room.memory_bytes / GIB:.1f} GiB of memory"
            in found.reason
        )


def test_open_pages_are_what_the_reason_counts() -> None:
    found = choose_storage(data(**AUTO), 1_000_000, Room(1000 * GIB, 100 * GIB))
    assert f"{2 * OPEN_PAGES * 2048 * 1000 / 1_000_000:.1f} GiB of open pages in 1 rank(s)" in found.reason


def test_the_ramp_is_ffcv_imagenet_s() -> None:
    """Its formula: np.interp between the two epochs, rounded to multiples of 32."""
    ramp = Ramp(128, 224, 3, 11)
    for epoch in range(16):
        interpolated = np.interp([epoch], [3, 11], [128, 224])
        assert ramp.resolution(epoch) == int(np.round(interpolated[0] / 32)) * 32
    assert [Ramp(160, 160).resolution(epoch) for epoch in (0, 1, 90)] == [160] * 3
    assert [Ramp(160, 192, 2, 2).resolution(epoch) for epoch in (0, 1, 2)] == [160, 160, 192]


def test_a_loader_gives_the_resolution_that_it_is_asked_for(photographs, make_loader, read_all) -> None:
    """One loader for all resolutions gives the pixels of a loader for each."""
    config = {"crop": "random-resized", "seed": 4, "flip": True, "translate": 1}
    ramped = make_loader(photographs, resolution=64, min_resolution=32, max_resolution=96, end_ramp=2, **config)
    order = [np.arange(20), np.arange(20, 36)]
    for epoch, side in ((0, 32), (1, 64), (2, 96), (0, 64)):
        alone = make_loader(photographs, resolution=side, **config).batches(order, epoch=epoch)
        for first, second in zip(ramped.batches(order, epoch=epoch, resolution=side), alone, strict=True):
            assert first.images.shape == (len(first.indices), 3, side, side)
            assert torch.equal(first.images, second.images)
    with pytest.raises(ValueError, match="resolution 128 in a loader of at most 96"):
        next(ramped.batches(order, resolution=128))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"min_resolution": 160}, "min_resolution and max_resolution together"),
        ({"min_resolution": 160, "max_resolution": 192, "crop": "none"}, "crop random-resized only"),
        ({"min_resolution": 150, "max_resolution": 192}, "both multiples of 32"),
        ({"min_resolution": 192, "max_resolution": 160}, "min_resolution at most max_resolution"),
        ({"min_resolution": 160, "max_resolution": 192, "start_ramp": 3}, "start_ramp at most end_ramp"),
        ({"cache": "process"}, "cache process with order quasi-random only"),
    ],
)
def test_what_cannot_be_is_refused(keys, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        data(**{"crop": "random-resized"} | keys)


def test_a_rank_s_tables_take_34_bytes_per_image(paged, make_loader) -> None:
    """All that grows with the data; FFCV's own tables, 48 bytes per image, are let go of."""
    backend = make_loader(paged, resolution=64).backend
    backend.file.look()
    (node,) = backend.pipeline.graph.root_nodes
    layout, reader = paged.layout, backend.pipeline.reader
    tables = layout.labels, layout.offsets, layout.sizes, layout.heights, layout.widths, layout.modes
    tables += paged.checksums, backend.file.verified
    assert sum(table.nbytes for table in tables) == 34 * paged.num_images
    assert (len(reader.metadata), reader.alloc_table, len(node.decoder.metadata)) == (0, None, 0)
    assert all(table.base is None or table.base.nbytes == table.nbytes for table in tables)


BACKENDS = [
    {"backend": "ffcv"},
    {"backend": "torch"},
    {"backend": "ffcv", "cache": "process", "order": "quasi-random"},
]
IN_ORDER = np.array_split(np.arange(300), 5)


def images_of(loader: Loader) -> torch.Tensor:
    return torch.cat([batch.images.clone() for batch in loader.batches(IN_ORDER)])


def another(beton: Path) -> bytes:
    """Return the file with the first two images in one another's places: as long, its tables the same."""
    layout, content = open_beton(beton).layout, bytearray(beton.read_bytes())
    first, second = (
        slice(int(start), int(start + size))
        for start, size in zip(layout.offsets[:2], layout.sizes[:2], strict=True)
    )
    content[first], content[second] = content[second], content[first]
    return bytes(content)


@pytest.mark.parametrize("reader", BACKENDS)
@pytest.mark.parametrize("removed", [True, False])
def test_another_file_in_a_beton_s_place_changes_nothing_for_who_reads_it(
    copied: Path, make_loader, reader: dict[str, str], removed: bool
) -> None:
    loader = make_loader(open_beton(copied), training=False, **reader)
    before, other = images_of(loader), another(copied)
    copied.unlink()
    if not removed:
        copied.write_bytes(other)
    assert torch.equal(images_of(loader), before)


@pytest.mark.parametrize("reader", BACKENDS)
def test_what_was_verified_is_verified_anew_where_somebody_writes_into_the_file(
    copied: Path, make_loader, reader: dict[str, str]
) -> None:
    loader = make_loader(open_beton(copied), training=False, **reader)
    images_of(loader)
    copied.write_bytes(another(copied))
    with pytest.raises(InputError, match="image 0 as it was written"):
        images_of(loader)


def test_a_beton_that_is_gone_before_a_loader_is_made_is_one_line(copied: Path, make_loader) -> None:
    info = open_beton(copied)
    copied.unlink()
    with pytest.raises(InputError, match=r"expected a beton .* found no file"):
        make_loader(info, backend="torch")
