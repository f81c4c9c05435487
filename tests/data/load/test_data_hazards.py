"""FFCV's hazards, each provoked: what it would do is in its test's name, what we owe the user is asserted."""

import gc
import importlib.util
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numba import types
from processes import warm_program

from kapdist import jit
from kapdist.data.beton.check import check
from kapdist.data.beton.checksum import checksums
from kapdist.data.beton.layout import open_beton, stored_bytes
from kapdist.data.beton.write import write_beton
from kapdist.data.beton.writer import WriterError
from kapdist.data.load.decode import Decoder
from kapdist.data.load.ffcv import nothing_compiled
from kapdist.data.load.loader import Loader
from kapdist.data.load.order import epoch_order
from kapdist.engine import Ranks
from kapdist.environment import usable_cpus
from kapdist.errors import InputError
from kapdist.jit import HERE, JITTED, cache_directory, cached

BATCHES = np.array_split(np.arange(300), 30)


def python(code: str, timeout: float = 240, **environment: str) -> str:
    """Run code in a process of its own, with a time limit; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def loading_threads() -> int:
    return sum(thread.name.startswith("kapdist-load") for thread in threading.enumerate())


def ended_soon() -> bool:
    """Return whether the loading threads end, as those of a loader that is gone do."""
    deadline = time.monotonic() + 60
    while loading_threads() and time.monotonic() < deadline:
        gc.collect()  # an error's traceback may hold a loader
        time.sleep(0.01)
    return loading_threads() == 0


class OddError(Exception):
    """An error that nobody expects."""


def recompiled(loader: Loader):
    with nothing_compiled():
        loader.backend.pipeline.generate_code()
    return loader.backend.pipeline.code


def break_decoder(monkeypatch: pytest.MonkeyPatch, loader: Loader, at: int, what) -> None:
    """Let decoding call `what` when it comes to image `at`."""
    (node,) = loader.backend.pipeline.graph.root_nodes
    decode = Decoder.decode

    def broken(self, batch_indices, out, metadata, storage_state):
        if at in batch_indices:
            what()
        return decode(self, batch_indices, out, metadata, storage_state)

    monkeypatch.setattr(node.decoder, "decode", broken.__get__(node.decoder))
    loader.backend.pipeline.code = recompiled(loader)


def test_an_error_in_the_loading_thread_does_not_leave_the_caller_waiting(
    fashion, make_loader, monkeypatch
) -> None:
    assert ended_soon()  # those of loaders before
    error = OddError("provoked")

    def fail() -> None:
        raise error

    loader = make_loader(fashion)
    break_decoder(monkeypatch, loader, 25, fail)
    batches = loader.batches(BATCHES)
    assert [next(batches).indices[0] for _ in range(2)] == [0, 10]
    begin = time.monotonic()
    with pytest.raises(OddError) as caught:
        next(batches)
    assert caught.value is error
    assert time.monotonic() - begin < 60  # and not the 300 s of a batch that never comes
    assert len(loader.backend.rings.idle) == loading_threads()  # it is not at work any more
    error.__traceback__ = None  # the decoder that was broken holds the error, whose frames hold the loader


def test_an_error_in_a_decoding_worker_reaches_the_caller(fashion, make_loader, monkeypatch) -> None:
    error = OddError("in a worker")

    def part(*_: object) -> int:
        raise error

    monkeypatch.setattr("kapdist.data.load.decode.compiled_decode", lambda: part)
    with pytest.raises(OddError) as caught:
        next(make_loader(fashion).batches(BATCHES))
    assert caught.value is error


def test_a_thread_that_hangs_is_given_up(fashion, make_loader, monkeypatch) -> None:
    release = threading.Event()
    loader = make_loader(fashion, timeout_seconds=1.5)
    break_decoder(monkeypatch, loader, 15, release.wait)
    batches = loader.batches(BATCHES)
    next(batches)
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match=r"batch 1 of this pass over .*fashion\.beton did not come within"):
        next(batches)
    assert time.monotonic() - begin < 60  # and not the 300 s of a batch that never comes
    del batches, loader
    release.set()  # it comes back after everybody has gone, and ends
    assert ended_soon()


def damaged_jpeg(photographs, tmp_path: Path, index: int) -> Path:
    path = tmp_path / "damaged.beton"
    content = bytearray(photographs.path.read_bytes())
    start, size = int(photographs.layout.offsets[index]), int(photographs.layout.sizes[index])
    content[start : start + size] = bytes(size)
    path.write_bytes(content)
    manifest = photographs.path.with_name(photographs.path.name + ".json")
    path.with_name("damaged.beton.json").write_bytes(manifest.read_bytes())
    return path


@pytest.mark.parametrize("checksums_agree", [False, True])
def test_a_corrupt_jpeg_does_not_show_the_image_before_it(
    photographs, make_loader, tmp_path: Path, checksums_agree: bool
) -> None:
    path = damaged_jpeg(photographs, tmp_path, 7)
    info = open_beton(path)
    if checksums_agree:  # as if it had been written so: the decoder's return code is all that is left
        info.checksums[:] = checksums(stored_bytes(path), info.layout.offsets, info.layout.sizes)
    loader = make_loader(info, training=False, crop="random-resized")
    assert len(list(loader.batches([np.arange(7)]))) == 1
    with pytest.raises(InputError, match=r"damaged\.beton: expected image 7 as it was written, found other bytes"):
        list(loader.batches([np.arange(5, 9)]))
    with pytest.raises(InputError, match=r"1 damaged: image 7$"):
        check(path)


def test_a_flipped_bit_is_found_when_the_image_is_read(copied: Path, fashion, make_loader) -> None:
    content = bytearray(copied.read_bytes())
    content[int(fashion.layout.offsets[42]) + 5] ^= 1
    copied.write_bytes(content)
    batches = make_loader(open_beton(copied)).batches(BATCHES)
    with pytest.raises(InputError, match="image 42 as it was written"):
        list(batches)


def test_a_file_that_shrank_after_it_was_opened_does_not_kill_the_process(copied: Path, make_loader) -> None:
    loader = make_loader(open_beton(copied))
    copied.write_bytes(copied.read_bytes()[: 1 << 16])
    with pytest.raises(InputError, match="found other bytes"):
        next(loader.batches(BATCHES))


KILLED = """
import os, signal, sys
from pathlib import Path
from kapdist.data.beton.write import write_beton
from kapdist.data.sources import fashion_mnist
def kill(done, total):
    if done:
        os.kill(os.getpid(), signal.SIGKILL)
write_beton(fashion_mnist("test"), Path(sys.argv[1]), num_workers=1, progress=kill)
"""


def test_a_killed_writer_leaves_nothing_that_could_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    killed = subprocess.run([*warm_program(tmp_path, KILLED), str(path)], timeout=240, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert not path.exists()
    (tmp_path / "x.beton.writing" / "beton").rename(path)
    with pytest.raises(InputError, match="found a half-written one"):
        open_beton(path)


def test_a_dead_writer_worker_does_not_leave_the_parent_waiting(array_source, tmp_path: Path) -> None:
    source = array_source(bad={33: lambda: os.kill(os.getpid(), signal.SIGKILL)})
    with pytest.raises(WriterError, match=r"worker died at array-33 \(image 33\): exit code -9"):
        write_beton(source, tmp_path / "x.beton", num_workers=2)
    assert {path.name for path in tmp_path.iterdir()} <= {"x.beton.writing"}


def test_an_error_in_a_writer_worker_names_the_image(array_source, tmp_path: Path) -> None:
    def fail() -> None:
        raise OddError("provoked")

    with pytest.raises(WriterError, match=r"at array-3 \(image 3\): .*OddError: provoked"):
        write_beton(array_source(bad={3: fail}), tmp_path / "x.beton", num_workers=2)
    assert {path.name for path in tmp_path.iterdir()} <= {"x.beton.writing"}


def test_a_writer_worker_that_hangs_is_given_up(array_source, tmp_path: Path, monkeypatch) -> None:
    hangs = multiprocessing.get_context("fork").Event()

    class Clock:
        """Stands still until the worker hangs: whatever it takes until then, on a busy machine, is no hanging."""

        sleep = staticmethod(time.sleep)

        def monotonic(self) -> float:
            return time.monotonic() if hangs.is_set() else 0.0

    def hang() -> None:
        hangs.set()
        time.sleep(600)

    monkeypatch.setattr("kapdist.data.beton.writer.time", Clock())
    begin = time.monotonic()
    with pytest.raises(WriterError, match=r"no writer worker moved for 0\.5 s: .*at array-3 \(image 3\)"):
        write_beton(array_source(bad={3: hang}), tmp_path / "x.beton", num_workers=1, timeout_seconds=0.5)
    assert time.monotonic() - begin < 60


def test_batches_outlive_the_ring_of_buffers(fashion, pixels, make_loader) -> None:
    loader = make_loader(fashion, training=False, batches_ahead=1)
    kept = list(loader.batches(BATCHES))
    for batch in kept:
        assert torch.equal(batch.images, torch.from_numpy(pixels[batch.indices]).permute(0, 3, 1, 2) / 255)
    assert len({batch.images.data_ptr() for batch in kept}) == len(kept)


def leave_by_break(batches) -> None:
    for _ in batches:
        break
    batches.close()


def leave_by_error(batches) -> None:
    def step() -> None:
        for _ in batches:
            raise OddError

    with pytest.raises(OddError):
        step()
    batches.close()


def leave_by_forgetting(batches) -> None:
    next(batches)


def leave_at_the_end(batches) -> None:
    for _ in batches:
        pass


def leave_before_the_start(batches) -> None:
    pass


@pytest.mark.parametrize(
    "leave", [leave_by_break, leave_by_error, leave_by_forgetting, leave_at_the_end, leave_before_the_start]
)
def test_leaving_an_epoch_leaves_no_thread_but_the_loader_s_one(fashion, make_loader, leave) -> None:
    assert ended_soon()  # those of loaders before
    loader = make_loader(fashion)
    for _ in range(3):
        leave(loader.batches(BATCHES))
        assert loading_threads() <= 1
        assert len(loader.backend.rings.idle) == loading_threads()  # it is not at work any more
    del loader
    assert ended_soon()


def test_a_loader_takes_its_decoding_threads_with_it(fashion, make_loader) -> None:
    before = threading.active_count()
    for _ in range(5):
        next(make_loader(fashion).batches(BATCHES))
    deadline = time.monotonic() + 60
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_more_workers_than_cpus_are_refused_with_one_line(fashion, make_loader) -> None:
    many = usable_cpus() + 1
    with pytest.raises(InputError, match=rf"data\.workers: expected 1 to {many - 1} .* found {many}"):
        make_loader(fashion, num_workers=many)


def test_cpus_are_those_of_this_process_shared_among_the_ranks(monkeypatch) -> None:
    assert usable_cpus() == len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(3, 10)))
    assert [usable_cpus(ranks) for ranks in (1, 2, 3, 100)] == [7, 3, 2, 1]


def test_on_a_gpu_decoding_leaves_a_cpu_to_the_thread_that_launches_kernels(monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for device, local, decoders in (("cuda", 1, 7), ("cuda", 2, 3), ("cuda", 8, 1), ("cpu", 2, 4)):
        assert Ranks(local_world_size=local, device=torch.device(device)).decoders == decoders


THREADS = """
import torch, numba.typed
torch.set_num_threads(3)
typed = numba.typed.Dict
from pathlib import Path
from kapdist.config import DataConfig
from kapdist.data.beton.layout import open_beton
from kapdist.data.load.loader import Loader
info = open_beton(Path({path!r}))
config = DataConfig(train=info.path, validation=info.path)
loader = Loader(info, config, training=True, seed=0, max_batch_size=8, device="cpu", num_workers=1)
next(loader.batches([range(8)]))
mine = torch.get_num_threads(), numba.uint8[::1].mutable
from kapdist.data.load.ffcv import FFCVLoader
FFCVLoader(str(info.path), batch_size=8, num_workers=1, pipelines={{"image": None, "label": None}})
again = Loader(info, config, training=True, seed=0, max_batch_size=8, device="cpu", num_workers=1)
next(again.batches([range(8)]))
next(loader.batches([range(8)]))
assert numba.typed.Dict is typed
print(*mine)
"""


def test_ffcv_changes_no_threads_and_no_types_and_a_stock_loader_does_no_harm(fashion) -> None:
    assert python(THREADS.format(path=str(fashion.path))) == "3 True"


def test_any_order_of_any_batches_is_taken(fashion, make_loader) -> None:
    order = epoch_order(300, 1, 1)
    asked = [order[:1], order[1:60], order[60:124], order[124:131], order[131:190], order[190:254], order[254:]]
    found = [batch.indices for batch in make_loader(fashion).batches(asked)]
    assert all(np.array_equal(a, b) for a, b in zip(asked, found, strict=True))


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_no_image_is_dropped_or_repeated(fashion, make_loader, batch_size: int) -> None:
    asked = [np.arange(start, min(start + batch_size, 300)) for start in range(0, 300, batch_size)]
    seen = np.concatenate([batch.indices for batch in make_loader(fashion, training=False).batches(asked)])
    assert np.array_equal(seen, np.arange(300))


COMPILED = """
from kapdist.data.beton.checksum import compiled_checksum
compiled_checksum()
"""


def test_a_damaged_cache_of_compiled_code_is_passed_over(tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    python(COMPILED, **environment)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".nbi", ".nbc"}
    for path in files:
        path.write_bytes(path.read_bytes()[:50])
    python(COMPILED, **environment)


def test_threads_that_compile_at_once_keep_apart(monkeypatch, tmp_path: Path) -> None:
    """numba has one place for the folder: one thread's code went to another's, and the last one's stayed."""
    usual, seen = jit.config.CACHE_DIR, []

    def njit(*_: object, **named: object):
        def compiled(function):
            before = jit.config.CACHE_DIR
            time.sleep(0.3)
            seen.append((before, jit.config.CACHE_DIR))

        return compiled

    monkeypatch.setattr(jit, "numba", SimpleNamespace(njit=njit))
    folders = [tmp_path / name for name in "abc"]
    threads = [threading.Thread(target=cached, args=(len, None, folder)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(seen) == [(str(folder), str(folder)) for folder in folders]
    assert usual == jit.config.CACHE_DIR


def test_a_cache_that_cannot_be_written_is_done_without(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache_directory() is None


def test_the_cache_is_of_all_that_is_compiled() -> None:
    """Else what an older source was compiled to would be found under the name of a newer one's."""
    jitted = re.compile(r"^from (numba import .*njit|numba.extending|kapdist.jit import compiled)", re.MULTILINE)
    found = {
        str(path.relative_to(HERE).with_suffix(""))
        for path in HERE.rglob("*.py")
        if jitted.search(path.read_text())
    }
    assert found <= set(JITTED)


def test_compiled_code_is_found_from_every_copy_of_its_source(tmp_path: Path) -> None:
    """Every job runs a snapshot of its own; what was compiled for one is there for the next."""
    cache = tmp_path / "cache"
    for copy in ("one", "two"):
        source = tmp_path / copy / "data" / "module.py"
        source.parent.mkdir(parents=True)
        source.write_text("def double(number):\n    return 2 * number\n")
        spec = importlib.util.spec_from_file_location(f"module_{copy}", source)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert cached(module.double, types.int64(types.int64), cache)(21) == 42
    assert len(list(cache.rglob("*.nbc"))) == 1
