"""The rings of decoded batches: as large as a part of a batch, and kept from pass to pass."""

from __future__ import annotations

import gc
import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue

import numpy as np
import pytest
import torch

from kapdist.config import Config
from kapdist.data.load import passes
from kapdist.data.load.loader import Epoch
from kapdist.data.load.passes import get_awake
from kapdist.data.load.ring import Ring, Rings
from kapdist.data.load.workers import Part
from kapdist.plan.training import make_plan

BATCHES = np.array_split(np.arange(300), 11)


@pytest.mark.parametrize("backend", ["ffcv", "torch"])
def test_passes_one_after_the_other_share_a_ring(fashion, make_loader, backend: str) -> None:
    loader = make_loader(fashion, backend=backend)
    made: list[Ring] = []
    make = loader.backend.rings.make
    loader.backend.rings.make = lambda: made.append(make()) or made[-1]
    expected = [batch.images.clone() for batch in loader.batches(BATCHES)]
    for _ in range(3):
        next(batches := loader.batches(BATCHES))
        batches.close()  # left early: all of its slots come back
        for found, images in zip(loader.batches(BATCHES), expected, strict=True):
            assert torch.equal(found.images, images)
    assert len(made) == 1
    first, second = loader.batches(BATCHES), loader.batches(BATCHES)
    next(first), next(second)
    assert len(made) == 2
    first.close(), second.close()


@pytest.mark.parametrize("backend", ["ffcv", "torch"])
def test_the_next_epoch_is_begun_before_this_one_s_last_batch_is_given_back(
    fashion, make_loader, backend: str
) -> None:
    """Whatever is done meanwhile, an evaluation say: the ring fills with the next epoch's batches."""
    gc.collect()  # loaders of other tests, whose threads end with them
    before = set(threading.enumerate())
    loader, begun = make_loader(fashion, backend=backend, flip=True), threading.Event()

    def epochs():
        yield Epoch(BATCHES, 0)
        begun.set()
        yield Epoch(BATCHES, 1)

    stream = loader.stream(epochs())
    found = [next(stream).images for _ in range(len(BATCHES) - 1)]
    assert begun.wait(240)  # the last batch of the first epoch has not been asked for
    list(make_loader(fashion, training=False).batches(BATCHES))
    threads = [each for each in set(threading.enumerate()) - before if each.name.startswith("kapdist-load")]
    found += [batch.images for batch in stream]
    assert len(threads) <= 2  # the evaluation's may be about to end
    alone = [batch.images for epoch in (0, 1) for batch in loader.batches(BATCHES, epoch=epoch)]
    assert len(found) == len(alone)
    assert all(map(torch.equal, found, alone))


def test_one_thread_of_a_loader_decodes_pass_after_pass(fashion, make_loader) -> None:
    loader, threads = make_loader(fashion), set()
    for _ in range(3):
        list(loader.batches(BATCHES))
        threads |= {ring.thread.ident for ring in loader.backend.rings.idle}
    assert len(threads) == 1


def test_a_collection_amid_the_taking_of_a_ring_gives_another_back() -> None:
    """It closes the pass of an iterator that was forgotten, in the very thread that takes one."""
    rings, second = Rings(lambda: Ring(None, 1)), Ring(None, 1)

    class Collected(list):
        def pop(self) -> Ring:
            taken, self.pop = list.pop(self), partial(list.pop, self)
            rings.give_back(second)
            return taken

    rings.idle = Collected([Ring(None, 1)])
    taken: list[Ring] = []
    thread = threading.Thread(target=lambda: taken.append(rings.take()), daemon=True)
    thread.start()
    thread.join(60)
    assert len(taken) == 1
    assert rings.idle == [second]
    rings.close()
    rings.give_back(taken[0])
    assert rings.idle == []
    assert (second.work.get(timeout=60), taken[0].work.get(timeout=60)) == (None, None)


@pytest.mark.parametrize("backend", ["ffcv", "torch"])
def test_a_collection_in_a_decoding_thread_waits_for_no_pass(
    fashion, make_loader, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """Closed by the thread that it waits for, a pass would only end when its time is up."""
    monkeypatch.setattr(passes, "CLOSE_SECONDS", 3600.0)
    loader, closed, before = make_loader(fashion, backend=backend), threading.Event(), set(passes.OPEN)
    run = loader.backend.workers.run

    def collected(part: Part, length: int) -> None:
        def collect(worker: int, where: slice) -> None:
            for forgotten in set(passes.OPEN) - before:
                forgotten.close()
            closed.set()
            part(worker, where)

        run(collect, length)

    monkeypatch.setattr(loader.backend.workers, "run", collected)
    batches = loader.backend.start([loader.ask(Epoch(BATCHES))])
    assert closed.wait(60)
    assert batches.ended.wait(60)


def test_a_slot_waits_for_the_device_once() -> None:
    waited: list[str] = []

    class Event:
        def synchronize(self) -> None:
            waited.append("yes")

    ring = Ring(None, 2)
    ring.events[1] = Event()
    for slot in (0, 1, 1):
        ring.wait(slot)
    assert waited == ["yes"]


def test_without_ffcv_nothing_is_forked_and_its_threads_decode(fashion, make_loader) -> None:
    loader = make_loader(fashion, backend="torch")
    batches = loader.batches(BATCHES)
    next(batches)
    assert multiprocessing.active_children() == []
    names = [thread.name for thread in threading.enumerate()]
    assert any(name.startswith("kapdist-decode") for name in names)
    batches.close()


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (2, 3), (3, 8)])
def test_the_largest_part_is_that_of_a_rank_and_of_an_accumulation(world_size: int, accumulation: int) -> None:
    values = {"name": "x", "data": {"train": "a", "validation": "b"}}
    train = {"batch_size": 100, "accumulation_steps": accumulation}
    plan = make_plan(Config.model_validate(values | {"train": train}), 1030, world_size)
    largest = 0
    for step in range(plan.steps_per_epoch):
        for rank in range(world_size):
            share = len(plan.rank_batch(step, rank))
            largest = max(largest, -(-share // accumulation))
    assert plan.largest_part == largest


LEFT = """
import os, sys
from pathlib import Path
import numpy as np
import torch
from kapdist.config import DataConfig
from kapdist.data.beton.layout import open_beton
from kapdist.data.load import passes
from kapdist.data.load.loader import Loader

passes.CLOSE_SECONDS = 3600.0
how, beton, backend = sys.argv[1:]
info = open_beton(Path(beton))
config = DataConfig(train=info.path, validation=info.path, resolution=32, backend=backend)
loader = Loader(info, config, training=False, seed=0, max_batch_size=5, device=torch.device("cpu"), num_workers=1)
batches = loader.batches(np.array_split(np.arange(60), 12))
next(batches)
sys.held = batches  # until the last moment

def diverge():
    mine = loader.batches([np.arange(5)] * 40)
    next(mine)
    raise FloatingPointError("the loss is nan")

if how == "raised":
    diverge()
if how == "forked" and (child := os.fork()):
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("backend", ["ffcv", "torch"])
@pytest.mark.parametrize(("how", "code"), [("left", 0), ("raised", 1), ("forked", 0)])
def test_a_process_that_leaves_batches_open_ends_at_once(
    how: str, code: int, backend: str, small_betons: tuple[Path, Path], tmp_path: Path, run_ranks
) -> None:
    """A traceback holds them until the interpreter has ended, when the thread that fills them never runs again."""
    (tmp_path / "left.py").write_text(LEFT)
    (end,) = run_ranks(["left.py", how, str(small_betons[1]), backend], timeout=240)
    assert end.code == code, end.output
    assert ("FloatingPointError: the loss is nan" in end.output) == (how == "raised")


SUSPENDED = """
import sys, threading
from queue import SimpleQueue
from kapdist.data.load.passes import get_awake

def decode():
    decoded.put(sys.stdin.readline().strip())

decoded = SimpleQueue()
threading.Thread(target=decode).start()
print("waits", flush=True)
print(get_awake(decoded, 6), flush=True)
"""


def test_a_process_that_was_suspended_still_has_time_for_its_batch() -> None:
    """SIGSTOP and SIGCONT, as Slurm suspends a job for another, for longer than data.timeout_seconds."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", SUSPENDED], text=True, **pipes)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(7)
        process.send_signal(signal.SIGCONT)
        time.sleep(0.5)  # it goes on, and the time of one part of its limit is over
        assert process.communicate("a batch\n", timeout=240)[0] == "a batch\n"
    finally:
        process.kill()


def test_a_batch_that_does_not_come_is_waited_for_once() -> None:
    started = time.monotonic()
    with pytest.raises(Empty):
        get_awake(SimpleQueue(), 0.3)
    assert 0.3 <= time.monotonic() - started < 30
