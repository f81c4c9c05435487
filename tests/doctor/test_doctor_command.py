"""The command on this machine: within its time, one line for each thing, an exit code that tells."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from kapdist.cli import app
from kapdist.doctor import computing, layers
from kapdist.doctor.examinations import EXAMINATIONS

COMMAND = [sys.executable, "-m", "kapdist.cli", "doctor", "--seconds", "60"]  # of a machine that others use too
CPU_SECONDS = 3.0


def test_nothing_is_wrong_here_and_it_takes_a_moment(tmp_path: Path) -> None:
    """Time on the CPU, of all processes together: others do not lengthen that as they do the time by the clock."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([*COMMAND, "--json"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < CPU_SECONDS
    said = json.loads(done.stdout)
    names = {finding["name"] for finding in said["findings"]}
    assert {"Python", "torch", "GPUs", "FFCV", "Slurm", "locks", "clock", "CPUs", "memory", "/dev/shm"} <= names
    assert len(names) >= len(EXAMINATIONS)
    wrong = [finding for finding in said["findings"] if finding["status"] == "wrong"]
    assert len(wrong) == said["wrong"]
    assert done.returncode == bool(wrong)
    assert {finding["name"] for finding in wrong} <= {"room"}, wrong
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seconds", ["0", "nan", "inf"])
def test_a_time_that_is_none_is_wrong_input(seconds: str) -> None:
    assert CliRunner().invoke(app, ["doctor", "--seconds", seconds]).exit_code == 2


def test_devices_compute_what_they_should() -> None:
    """Twos under a 3 x 3 kernel of threes over three channels are 162; a wrong one is seen."""

    assert computing.computes("cpu").status == "ok"
    convolve = torch.nn.functional.conv2d
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "conv2d", lambda *words: convolve(*words) + 1e-4)
        assert computing.computes("cpu").status == "wrong"
    assert computing.computes("meta").status == "wrong"  # which has shapes and no numbers


def test_layers_are_compared_with_those_of_the_cpu() -> None:
    """By a device that computes as the CPU does, one whose draws are others, and one that has no numbers."""

    from kapdist.kap import seed_noise

    assert layers.layers("cpu").status == "ok"
    own, seeds = seed_noise, iter([1, 1, 1, 2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kapdist.kap.seed_noise", lambda model, _: own(model, next(seeds)))
        assert layers.layers("cpu").status == "wrong"  # of the second network alone
    told = layers.layers("meta")
    assert told.status == "wrong"
    assert "KAPDIST_TRITON=0" in told.remedy
    one = torch.tensor([1.0, 2.0])
    assert layers.distance(one, one + 0.02) == pytest.approx(0.01)


def broken(how: str) -> Callable[..., list[torch.Tensor]]:
    own = layers.step

    def step(device: str, norm_first: bool) -> list[torch.Tensor]:
        found = own("cpu", norm_first)
        if device == "cpu":
            return found
        if how == "does not compile":
            raise OSError("")  # as of a compiler that is not there; Triton's own are no RuntimeError either
        return [*found[:-1], found[-1] * torch.nan]  # the statistics of one layer, at the very end

    return step


@pytest.mark.parametrize("how", ["is no number", "does not compile"])
def test_a_gpu_whose_layers_are_broken_is_wrong(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "step", broken(how))
    told = layers.layers("cuda")
    assert (told.status, told.remedy) == ("wrong", layers.WITHOUT)


@pytest.mark.gpu
def test_layers_on_a_gpu_are_those_of_the_cpu() -> None:

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    assert layers.layers("cuda").status == "ok"


def test_a_controller_that_hangs_is_wrong_and_hangs_nothing(tmp_path: Path) -> None:
    for name in ("sbatch", "srun", "squeue", "scontrol", "scancel"):
        (tmp_path / name).write_text("#!/bin/sh\nexec sleep 600\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    words = [*COMMAND[:-1], "8"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "wrong Slurm" in done.stdout
    assert "no answer within 8 s" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
