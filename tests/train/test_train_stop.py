"""Signals, stalls, full disks and other numbers of ranks: real processes, real signals."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from held import held
from processes import end_ranks, kill_ranks, read_output, start_ranks
from results import numbers
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kapdist.engine import Ranks
from kapdist.errors import RESUME, InputError, StoppedError
from kapdist.run import files
from kapdist.run.files import file_sha256
from kapdist.run.paths import RunDir
from kapdist.train import checkpoint
from kapdist.train.best import BestWeights
from kapdist.train.later import Later
from kapdist.train.stop import Stop

TRAIN = ["train", "tiny.yaml"]
WORDS = ["-m", "kapdist.cli", *TRAIN]


def wait_for(condition: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def same_bits(one: RunDir, other: RunDir) -> bool:
    first, second = load_file(one.weights), load_file(other.weights)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_signals_to_one_rank_save_all_and_the_run_continues_bit_by_bit(tiny_config: Path, run_ranks) -> None:
    """Stopped in its first epoch and again in its second; the tests below send SIGTERM."""
    folder = tiny_config.parent
    assert all(end.code == 0 for end in run_ranks([*WORDS, "name=whole"], 2))
    whole, asked = RunDir(folder / "runs" / "whole"), RunDir(folder / "runs" / "asked")

    for number, step in ((signal.SIGUSR2, 3), (signal.SIGINT, 9)):
        processes = start_ranks([*held(folder, step), *TRAIN, "name=asked"], 2, folder)
        wait_for(lambda step=step: asked.metrics.exists() and f'"step": {step}' in asked.metrics.read_text())
        os.kill(processes[1].pid, number)
        ends = end_ranks(processes, 240)
        assert [end.code for end in ends] == [RESUME, RESUME], ends
        assert "stopped at step" in ends[0].output
        assert asked.latest.exists()
        assert not asked.failed.exists()
        assert not asked.lock.exists()

    ends = end_ranks(start_ranks([*WORDS, "name=asked"], 2, folder), 240)
    assert [end.code for end in ends] == [0, 0], ends
    assert same_bits(whole, asked)
    assert numbers(whole) == numbers(asked)


def test_a_signal_in_an_evaluation_leaves_the_evaluation_to_the_next_attempt(tiny_config: Path, run_ranks) -> None:
    folder = tiny_config.parent
    words = [*TRAIN, "train.eval_batch_size=1", "train.log_every_steps=1", "train.epochs=1"]
    assert run_ranks(["-m", "kapdist.cli", *words, "name=whole"])[0].code == 0
    whole, asked = RunDir(folder / "runs" / "whole"), RunDir(folder / "runs" / "asked")

    processes = start_ranks([*held(folder, batch=35), *words, "name=asked"], 1, folder)
    wait_for(lambda: asked.metrics.exists() and '"step": 7' in asked.metrics.read_text())
    processes[0].send_signal(signal.SIGTERM)
    ends = end_ranks(processes, 240)
    assert ends[0].code == RESUME, ends
    assert [line["kind"] for line in numbers(asked)].count("evaluate") == 0

    assert run_ranks(["-m", "kapdist.cli", *words, "name=asked"])[0].code == 0
    assert numbers(whole) == numbers(asked)


def test_one_interrupt_asks_and_a_second_leaves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with Stop(Ranks()) as asked:
        assert not asked.agreed()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # torchrun's echo of the same Ctrl-C
        assert asked.agreed()
        monkeypatch.setattr("kapdist.train.stop.SAME_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_closed_terminal_asks_unless_it_was_to_be_ignored() -> None:
    with Stop(Ranks()) as asked:
        os.kill(os.getpid(), signal.SIGHUP)
        assert asked.agreed()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with Stop(Ranks()) as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not asked.agreed()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_training_whose_terminal_is_closed_saves(tiny_config: Path) -> None:
    run = RunDir(tiny_config.parent / "runs" / "tiny")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *WORDS, "train.epochs=400", "train.log_every_steps=1"],
        cwd=tiny_config.parent,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    os.set_blocking(ours, False)

    def has_begun() -> bool:
        with contextlib.suppress(BlockingIOError):
            os.read(ours, 1 << 16)  # who writes to a terminal waits for its reader
        return run.metrics.exists() and '"step": 3' in run.metrics.read_text()

    try:
        wait_for(lambda: has_begun() or process.poll() is not None)
        os.close(ours)  # the kernel sends SIGHUP, and every write to the terminal fails from now on
        assert process.wait(240) == RESUME, run.rank_log(1, 0).read_text()
    finally:
        process.kill()
    assert run.latest.exists()
    assert not run.failed.exists()


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_a_rank_that_stops_is_named_and_the_run_continues(tiny_config: Path, how: signal.Signals) -> None:
    folder = tiny_config.parent
    run = RunDir(folder / "runs" / "tiny")
    words = [*WORDS, "train.epochs=400", "train.stall_minutes=0.2", "train.checkpoint_every_steps=5"]
    processes = start_ranks(words, 2, folder)
    wait_for(run.latest.exists)
    os.kill(processes[1].pid, how)
    started = time.monotonic()
    assert processes[0].wait(120) == 1
    assert time.monotonic() - started < 100  # and not engine.timeout_minutes
    kill_ranks(processes)
    assert "rank 1" in run.failed.read_text()
    if how == signal.SIGSTOP:
        assert "take_steps" in (run.attempts / "1" / "stacks-0.txt").read_text()
    step = int(run.latest.read_text().strip().removeprefix("step-"))

    again = start_ranks(words, 2, folder)
    wait_for(lambda: run.latest.exists() and int(run.latest.read_text().strip().removeprefix("step-")) > step)
    kill_ranks(again)
    assert "continuing from" in run.rank_log(2, 0).read_text()


def test_another_number_of_ranks_sees_every_image_once(tiny_config: Path) -> None:
    """1 -> 2 -> 1 ranks within one epoch: stopped twice, continued by others."""
    folder = tiny_config.parent
    run = RunDir(folder / "runs" / "tiny")
    words = [*TRAIN, "train.epochs=1", "train.log_every_steps=1"]
    for world_size, step in ((1, 2), (2, 4)):
        processes = start_ranks([*held(folder, step), *words], world_size, folder)
        wait_for(lambda step=step: run.metrics.exists() and f'"step": {step}' in run.metrics.read_text())
        processes[-1].send_signal(signal.SIGTERM)
        assert [end.code for end in end_ranks(processes, 240)] == [RESUME] * world_size
    ends = end_ranks(start_ranks(["-m", "kapdist.cli", *words], 1, folder), 240)
    assert ends[0].code == 0, ends
    steps = [line["step"] for line in numbers(run) if line["kind"] == "train"]
    assert steps == list(range(1, 8))


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 8 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("no tmpfs can be mounted here: GPU boxes and containers without the right to mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_keeps_the_last_checkpoint_and_goes_on(small_disk: Path, caplog) -> None:
    run = RunDir(small_disk / "run")
    saver = checkpoint.Saver(run, Ranks(), attempt=1, keep=2, timeout_seconds=10)
    state = {"weights": torch.zeros(300_000)}
    saver.save(1, state, {})
    saver.wait()
    hog = small_disk / "hog"
    with hog.open("wb") as file:
        file.write(bytes(6_000_000))
    saver.save(2, state, {})
    saver.wait()
    assert "no checkpoint of step 2" in caplog.text
    assert checkpoint.newest(run) == run.checkpoint(1)
    hog.unlink()
    saver.save(3, state, {})
    saver.wait()
    assert checkpoint.newest(run) == run.checkpoint(3)


def test_a_checkpoint_that_is_pruned_while_it_is_looked_at_is_not_damaged(tmp_path: Path, monkeypatch) -> None:
    """As a training with train.keep_checkpoints=1 does to whoever reads beside it."""
    run = RunDir(tmp_path / "run")
    saver = checkpoint.Saver(run, Ranks(), attempt=1, keep=1, timeout_seconds=10)
    saver.save(1, {"weights": torch.zeros(3)}, {})
    saver.wait()
    later = iter([2])

    def hashed(path: Path) -> str:
        for step in later:
            saver.save(step, {"weights": torch.ones(3)}, {})
            saver.wait()
        return file_sha256(path)

    monkeypatch.setattr(checkpoint, "file_sha256", hashed)
    assert checkpoint.newest(run) == run.checkpoint(2)
    (run.checkpoint(2) / "shared.pt").unlink()
    with pytest.raises(InputError, match="one whole checkpoint, found 1 damaged"):
        checkpoint.newest(run)


def test_a_full_disk_does_not_end_the_training(small_disk: Path, tiny_config: Path) -> None:
    run = RunDir(small_disk / "runs" / "tiny")
    words = [*WORDS, f"runs_dir={small_disk / 'runs'}", "train.epochs=20", "train.checkpoint_every_steps=3"]
    words += ["train.evaluate_every_epochs=2", "train.keep_checkpoints=1", "model.width=0.125"]
    processes = start_ranks(words, 1, tiny_config.parent)
    wait_for(run.latest.exists)
    hog = small_disk / "hog"
    subprocess.run(["dd", "if=/dev/zero", f"of={hog}", "bs=64k"], capture_output=True)  # until there is no room
    log = run.rank_log(1, 0)
    wait_for(lambda: "no checkpoint of step" in log.read_text(errors="replace") or processes[0].poll() is not None)
    assert processes[0].poll() is None, end_ranks(processes, 1)
    kept = checkpoint.newest(run)
    assert kept is not None
    # The next evaluation finds the disk full too.
    words_of = lambda: read_output(processes[0])  # noqa: E731
    wait_for(lambda: "metrics.jsonl: " in words_of() and "TensorBoard: " in words_of())
    hog.unlink()
    wait_for(lambda: (checkpoint.newest(run) or kept) != kept or processes[0].poll() is not None)
    assert end_ranks(processes, 240)[0].code == 0
    assert "continuing from" not in log.read_text(errors="replace")
    assert_whole(run, 140)


def test_a_disk_that_is_full_at_the_end_loses_no_checkpoint(small_disk: Path, tiny_config: Path) -> None:
    run = RunDir(small_disk / "runs" / "tiny")
    words = [*WORDS, f"runs_dir={small_disk / 'runs'}", "train.epochs=8", "train.checkpoint_every_steps=5"]
    processes = start_ranks(words, 1, tiny_config.parent)
    wait_for(run.latest.exists)
    hog = small_disk / "hog"
    subprocess.run(["dd", "if=/dev/zero", f"of={hog}", "bs=4k"], capture_output=True)
    ends = end_ranks(processes, 240)
    assert ends[0].code == 1, ends
    assert "No space left on device" in ends[0].output.splitlines()[-1]
    assert not run.done.exists()
    assert checkpoint.newest(run) is not None
    hog.unlink()
    ends = end_ranks(start_ranks(words, 1, tiny_config.parent), 240)
    assert ends[0].code == 0, ends
    assert "continuing from" in ends[0].output
    assert run.done.exists()


def assert_whole(run: RunDir, total_steps: int) -> None:
    """Nothing that a full disk did not take is missing in the end."""
    trained = [*range(3, total_steps, 3), total_steps]
    assert [line["step"] for line in numbers(run) if line["kind"] == "train"] == trained
    evaluated = [line for line in numbers(run) if line["kind"] == "evaluate"]
    assert [line["step"] for line in evaluated] == list(range(14, total_steps + 1, 14))
    events = EventAccumulator(str(run.tensorboard)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == trained
    recorded = json.loads(run.done.read_text())["sha256"]
    assert recorded == {path.name: file_sha256(path) for path in run.results if path.exists()}
    assert set(recorded) >= {run.weights.name, run.best_weights.name, run.config.name, run.metrics.name}


def test_what_finds_no_room_is_written_later_and_in_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    written, full = [], [False]

    def write(thing: int) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(thing)

    later = Later("numbers", write)
    later.add(1)
    full[0] = True
    later.add(2)
    later.add(3)
    assert caplog.text.count("No space left") == 1  # said once
    with pytest.raises(OSError, match="No space"):
        later.finish()
    assert written == [1]
    full[0] = False
    later.add(4)
    assert written == [1, 2, 3, 4]
    assert "written again" in caplog.text


def test_best_weights_that_found_no_room_are_in_the_checkpoints(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.best_weights.mkdir()  # nothing can take its place
    (run.best_weights / "file").touch()
    best = BestWeights(run)
    best.write(b"worse")
    best.write(b"best")
    state = best.state()
    assert state is not None
    (run.best_weights / "file").unlink()
    run.best_weights.rmdir()
    again = BestWeights(run)
    again.load_state(state)
    assert run.best_weights.read_bytes() == b"best"
    assert again.state() is None


def test_a_stop_without_room_does_not_say_that_it_saved() -> None:
    stop = Stop(Ranks())
    for saved, words in (
        (5, "; saved, and"),
        (3, "no room to save it, step 3 was saved last"),
        (-1, "no step was"),
    ):
        with pytest.raises(StoppedError, match=words):
            stop.leave(5, saved)


@pytest.mark.parametrize("error", [OSError(errno.EDQUOT, "Disk quota exceeded"), OSError(errno.EIO, "of the disk")])
def test_rank_0_waits_for_no_file_that_another_rank_could_not_write(tmp_path: Path, monkeypatch, error) -> None:
    """The next save would wait for it up to engine.timeout_minutes, in which the watchdog ends the run."""
    run = RunDir(tmp_path)
    savers = [checkpoint.Saver(run, Ranks(rank, 3), attempt=1, keep=2, timeout_seconds=60) for rank in range(3)]
    write_payload, full = checkpoint.write_payload, [True]

    def write(path: Path, state: checkpoint.State) -> None:
        if path.name == "rank-2.pt" and full[0]:
            raise error
        write_payload(path, state)

    def save(step: int) -> None:
        works = [
            threading.Thread(target=saver.write, args=(step, {"step": step} if saver.ranks.first else None, {}))
            for saver in savers
        ]
        for work in works:
            work.start()
        for work in works:
            work.join()

    monkeypatch.setattr(checkpoint, "write_payload", write)
    started = time.monotonic()
    save(1)
    assert time.monotonic() - started < 30
    assert [saver.error for saver in savers] == [None, None, error if error.errno == errno.EIO else None]
    assert checkpoint.newest(run) is None
    full[0] = False
    save(2)
    assert checkpoint.newest(run) == run.checkpoint(2)


ALONE = """
import sys
from pathlib import Path
from threading import Thread
from kapdist.engine import Ranks
from kapdist.run.paths import RunDir
from kapdist.train import checkpoint

checkpoint.LAST_SECONDS = 0.5
saver = checkpoint.Saver(RunDir(Path(sys.argv[1])), Ranks(0, 2), attempt=1, keep=2, timeout_seconds=600)
Thread(target=saver.write, args=(1, {"step": 1}, {})).start()
with saver.hurried_by_errors():
    raise RuntimeError("rank 1 is gone")
"""


def test_a_rank_that_fails_does_not_stay_for_the_file_of_one_that_is_gone(tmp_path: Path) -> None:
    """Its process would end when its saving thread does, a quarter of an hour later."""
    done = subprocess.run([sys.executable, "-c", ALONE, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "RuntimeError: rank 1 is gone" in done.stderr
    assert "no checkpoint of step 1: [Errno 28] rank-1.pt did not come in time" in done.stderr


def test_a_rank_whose_checkpoint_rank_0_gave_up_meanwhile_goes_on(tmp_path: Path, monkeypatch, caplog) -> None:
    run = RunDir(tmp_path)
    saver = checkpoint.Saver(run, Ranks(1, 2), attempt=1, keep=2, timeout_seconds=10)

    def write(path: Path, state: checkpoint.State) -> None:
        shutil.rmtree(path.parent)  # as rank 0 does of a full disk
        path.parent.joinpath("file").read_bytes()

    monkeypatch.setattr(checkpoint, "write_payload", write)
    saver.write(1, None, {})
    assert saver.error is None
    assert "rank 0 has given this checkpoint up" in caplog.text


def test_a_checkpoint_that_is_sealed_before_a_rank_has_flushed_its_folder_is_whole(
    tmp_path: Path, monkeypatch, caplog
) -> None:
    """Rank 0 needs the file alone; rank 1 said that there was none, as the folder has another name by then."""
    run = RunDir(tmp_path / "run")
    first, second = (checkpoint.Saver(run, Ranks(n, 2), attempt=1, keep=2, timeout_seconds=60) for n in range(2))
    sync, sealed = files.sync, run.checkpoint(1)
    sealing = threading.Thread(target=first.write, args=(1, {"step": 1}, {}))

    def late(path: Path) -> None:
        if threading.current_thread() is not sealing and path.is_dir():
            sealing.join(60)
            assert sealed.exists()
        sync(path)

    monkeypatch.setattr(files, "sync", late)
    sealing.start()
    second.write(1, None, {})
    assert (first.error, second.error) == (None, None)
    assert caplog.text == ""
    assert checkpoint.newest(run) == sealed
    with pytest.raises(FileNotFoundError):
        sync(sealed.with_name(f".{sealed.name}.attempt-1.tmp"))


def test_other_errors_of_saving_surface_at_the_next_save(tmp_path: Path) -> None:
    saver = checkpoint.Saver(RunDir(tmp_path), Ranks(), attempt=1, keep=2, timeout_seconds=10)
    saver.save(1, {"not a tensor": lambda: None}, {})
    with pytest.raises((AttributeError, TypeError, RuntimeError)):
        saver.save(2, {}, {})
    saver.save(3, {}, {})
    saver.wait()


def test_the_state_may_change_while_it_is_written(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    saver = checkpoint.Saver(run, Ranks(), attempt=1, keep=2, timeout_seconds=10)
    weights = torch.zeros(1_000_000)
    saver.save(1, {"weights": weights}, {})
    weights.fill_(1)
    saver.wait()
    assert not checkpoint.load(run.checkpoint(1), Ranks())[0]["weights"].any()
