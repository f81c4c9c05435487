"""DeepSpeed's stages against DDP: the same curve, the same state, exact resume; and what is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from held import held
from processes import end_ranks, start_ranks
from results import numbers
from safetensors.torch import load_file

from kapdist.config import EngineConfig
from kapdist.engine import contained, join
from kapdist.engine.zero import LossScale
from kapdist.errors import RESUME, InputError
from kapdist.run.paths import RunDir

PROGRAM = Path(__file__).parent / "deepspeed_program.py"
DEEPSPEED = ["engine.name=deepspeed", "optim.clip_grad_norm=1.0"]


@pytest.mark.slow
def test_every_stage_is_ddp_to_rounding_and_continues_exactly(run_ranks, tmp_path: Path) -> None:
    """Curves in three precisions, states, overflow, buffers; on two ranks, then on one with their files."""
    for world_size in (2, 1):
        ends = run_ranks([str(PROGRAM), str(tmp_path)], world_size, timeout=240)
        assert [end.code for end in ends] == [0] * world_size, "\n".join(end.output for end in ends)
        assert not any(end.output for end in ends), "no engine says a word"


@pytest.mark.slow
def test_a_run_that_was_stopped_continues_bit_by_bit(tiny_config: Path, run_ranks: Callable) -> None:
    folder = tiny_config.parent
    words = ["train", "tiny.yaml", *DEEPSPEED, "engine.zero_stage=2", "train.log_every_steps=1"]
    whole, stopped = RunDir(folder / "runs" / "whole"), RunDir(folder / "runs" / "stopped")
    assert all(end.code == 0 for end in run_ranks(["-m", "kapdist.cli", *words, "name=whole"], 2))

    processes = start_ranks([*held(folder, 1), *words, "name=stopped"], 2, folder)
    deadline = time.monotonic() + 240
    while not (stopped.metrics.exists() and stopped.metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(processes[1].pid, signal.SIGTERM)
    ends = end_ranks(processes, 240)
    assert [end.code for end in ends] == [RESUME, RESUME], ends

    ends = end_ranks(start_ranks(["-m", "kapdist.cli", *words, "name=stopped"], 2, folder), 240)
    assert [end.code for end in ends] == [0, 0], ends
    assert "continuing from" in ends[0].output
    first, second = load_file(whole.weights), load_file(stopped.weights)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert numbers(whole) == numbers(stopped)


def test_the_loss_scale_is_that_of_torch() -> None:
    """The same skips and steps as torch's GradScaler, whose weight is updated by a real optimizer."""
    theirs = torch.amp.GradScaler("cpu", growth_interval=3)
    ours = LossScale(torch.device("cpu"))
    ours.values = theirs.state_dict()
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    for overflow in (False, False, True, False, False, False, False, True, True, False):
        weight.grad = torch.full_like(weight, float("inf") if overflow else 1.0)
        theirs.scale(torch.ones(1))
        theirs.step(optimizer)
        theirs.update()
        ours.update(overflow)
        assert ours.values == theirs.state_dict()
        assert ours.scale == theirs.get_scale()


@pytest.mark.parametrize(("found", "said"), [(None, "found none"), ("0.19.7", "found 0.19.7")])
def test_another_deepspeed_is_refused(monkeypatch: pytest.MonkeyPatch, found: str | None, said: str) -> None:
    monkeypatch.setattr(contained, "package_version", lambda name: found)
    with pytest.raises(InputError, match=f"expected the package deepspeed {contained.VERSION} .*{said}"):
        contained.load_deepspeed(torch.device("cpu"))


def test_zero_goes_with_deepspeed(tiny_config: Path, kapdist: Callable) -> None:
    end = kapdist("train", "tiny.yaml", "engine.name=ddp", "engine.zero_stage=2")
    assert end.code == 2
    assert "expected zero_stage above 0 with name deepspeed only" in end.output
    assert kapdist("train", "tiny.yaml", "engine.name=deepspeed", "engine.zero_stage=3").code == 2


def test_ddp_does_not_import_deepspeed() -> None:
    program = "import sys, kapdist.engine; sys.exit('deepspeed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=240).returncode == 0


def test_one_process_meets_nobody_and_leaves_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for _ in range(2):
        with join(EngineConfig(name="deepspeed", device="cpu", threads=1)) as ranks:
            assert torch.distributed.get_world_size() == ranks.world_size == 1
        assert not torch.distributed.is_initialized()
