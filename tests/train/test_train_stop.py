"""Signals, stalls, full disks and other numbers of ranks: real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from processes import end_ranks, kill_ranks, start_ranks
from results import numbers
from safetensors.torch import load_file

from kapdist.engine import Ranks
from kapdist.errors import RESUME
from kapdist.rundir import RunDir
from kapdist.train import checkpoint
from kapdist.train.stop import Stop

WORDS = ["-m", "kapdist.cli", "train", "tiny.yaml"]


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
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
        processes = start_ranks([*WORDS, "name=asked"], 2, folder)
        wait_for(lambda step=step: asked.metrics.exists() and f'"step": {step}' in asked.metrics.read_text())
        os.kill(processes[1].pid, number)
        ends = end_ranks(processes, 60)
        assert [end.code for end in ends] == [RESUME, RESUME], ends
        assert "stopped at step" in ends[0].output
        assert asked.latest.exists()
        assert not asked.failed.exists()
        assert not asked.lock.exists()

    ends = end_ranks(start_ranks([*WORDS, "name=asked"], 2, folder), 90)
    assert [end.code for end in ends] == [0, 0], ends
    assert same_bits(whole, asked)
    assert numbers(whole) == numbers(asked)


def test_a_signal_in_an_evaluation_leaves_the_evaluation_to_the_next_attempt(tiny_config: Path, run_ranks) -> None:
    folder = tiny_config.parent
    words = [*WORDS, "train.eval_batch_size=1", "train.log_every_steps=1", "train.epochs=1"]
    assert run_ranks([*words, "name=whole"])[0].code == 0
    whole, asked = RunDir(folder / "runs" / "whole"), RunDir(folder / "runs" / "asked")

    processes = start_ranks([*words, "name=asked"], 1, folder)
    wait_for(lambda: asked.metrics.exists() and '"step": 7' in asked.metrics.read_text())
    processes[0].send_signal(signal.SIGTERM)
    ends = end_ranks(processes, 60)
    assert ends[0].code == RESUME, ends
    assert [line["kind"] for line in numbers(asked)].count("evaluate") == 0

    assert end_ranks(start_ranks([*words, "name=asked"], 1, folder), 90)[0].code == 0
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


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_a_rank_that_stops_is_named_and_the_run_continues(tiny_config: Path, how: signal.Signals) -> None:
    folder = tiny_config.parent
    run = RunDir(folder / "runs" / "tiny")
    words = [*WORDS, "train.epochs=400", "train.stall_minutes=0.1", "train.checkpoint_every_steps=5"]
    processes = start_ranks(words, 2, folder)
    wait_for(run.latest.exists)
    os.kill(processes[1].pid, how)
    started = time.monotonic()
    assert processes[0].wait(60) == 1
    assert time.monotonic() - started < 40
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
    words = ["-m", "kapdist.cli", "train", "tiny.yaml", "train.epochs=1", "train.log_every_steps=1"]
    for world_size, step in ((1, 2), (2, 4)):
        processes = start_ranks(words, world_size, folder)
        wait_for(lambda step=step: run.metrics.exists() and f'"step": {step}' in run.metrics.read_text())
        processes[0].send_signal(signal.SIGTERM)
        end_ranks(processes, 60)
    ends = end_ranks(start_ranks(words, 1, folder), 60)
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


def test_a_full_disk_does_not_end_the_training(small_disk: Path, tiny_config: Path) -> None:
    run = RunDir(small_disk / "runs" / "tiny")
    words = [*WORDS, f"runs_dir={small_disk / 'runs'}", "train.epochs=40", "train.checkpoint_every_steps=3"]
    words += ["train.evaluate_every_epochs=40", "train.keep_checkpoints=1", "model.width=0.125"]
    processes = start_ranks(words, 1, tiny_config.parent)
    wait_for(run.latest.exists)
    hog = small_disk / "hog"
    subprocess.run(["dd", "if=/dev/zero", f"of={hog}", "bs=64k"], capture_output=True)  # until there is no room
    log = run.rank_log(1, 0)
    wait_for(lambda: "no checkpoint of step" in log.read_text(errors="replace") or processes[0].poll() is not None)
    assert processes[0].poll() is None, end_ranks(processes, 1)
    kept = checkpoint.newest(run)
    assert kept is not None
    hog.unlink()
    wait_for(lambda: (checkpoint.newest(run) or kept) != kept or processes[0].poll() is not None)
    assert end_ranks(processes, 90)[0].code == 0
    assert "continuing from" not in log.read_text(errors="replace")


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
