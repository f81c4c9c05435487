"""The tools that print figures run; nothing here looks at how fast."""

from __future__ import annotations

import copy
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from compiler import needs_compiler
from processes import WarmProcess, end_ranks, warm_program
from torch import nn

from kapdist.models.ensemble import Ensemble

ROOT = Path(__file__).parents[2]
STAMPS = Path("/usr/share/tuxpaint/stamps")


def tool(*words: str, limit: int = 400) -> str:
    """Run a tool as `python tools/NAME.py WORDS` does, torch already imported; return all that it printed."""
    words = (str(ROOT / words[0]), *words[1:])
    done = end_ranks([WarmProcess(words, ROOT, dict(os.environ))], limit)[0]
    assert done.code == 0, done.output
    return done.output


def test_bench_step_prints_ratios() -> None:
    tiny = "--network", "narrow-resnet18", "--steps", "1", "--batch-size", "2", "--pixels", "32"
    printed = tool("tools/bench_step.py", *tiny)
    for variant in ("plain", "kap", "noise", "kap-noise", "norm-first", "norm-first-noise"):
        assert re.search(rf"^{variant}\s+[\d.]+\s+[\d.]+\s+[\d.]+", printed, flags=re.MULTILINE), printed
    assert "command:" in printed
    assert "machine:" in printed


def test_bench_ensemble_prints_ratios_of_forms_that_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = tool(
        "tools/bench_ensemble.py", "--steps", "1", "--batch-size", "2", "--pixels", "8", "--members", "2"
    )
    for form in ("singles", "ensemble", "stacked"):
        assert re.search(rf"^{form}\s+[\d.]+\s+[\d.]+\s+[\d.]+", printed, flags=re.MULTILINE), printed
    monkeypatch.syspath_prepend(ROOT / "tools")
    from bench_ensemble import Stacked

    members = [
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4)) for _ in range(3)
    ]
    loop = Ensemble(members).double()
    stacked, x = Stacked(copy.deepcopy(loop)), torch.rand(4, 3, 3, 3, dtype=torch.double)
    torch.testing.assert_close(stacked(x), loop(x))
    torch.testing.assert_close(stacked.ensemble.state_dict(), loop.state_dict())


def test_the_rate_of_a_standard_attack_is_its_passes_in_the_time_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, of passes of 1 s, and 3 s with their way back: FAB has 918 of the first and 900 of the others."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    from bench_passes import as_standard

    alone = 3 * 1010 + (900 * 3 + 918) + 5001
    assert as_standard({"apgd-ce": 1, "fab-t": 1, "square": 1}, 1, 3) == pytest.approx(1)
    took = 3 * 1010 + (900 * 3 + 918) / 0.5 + 5001 / 2
    assert as_standard({"apgd-ce": 1, "fab-t": 0.5, "square": 2}, 1, 3) == pytest.approx(alone / took)


def test_bench_loop_prints_a_ratio() -> None:
    printed = tool("tools/bench_loop.py", "--rounds", "1", "--batch-size", "4", "--width", "0.125")
    assert re.search(r"^ratio [\d.]+ \(median of 1 paired rounds", printed, flags=re.MULTILINE), printed


def test_bench_trainer_trains_from_memory_and_from_files() -> None:
    tiny = "--device", "cpu", "--rounds", "1", "--steps", "1", "--images", "4", "--width", "0.125"
    printed = tool("tools/bench_trainer.py", *tiny, "--batch-size", "2", "--pixels", "32")
    for who in ("bare", "trainer", "trainer, files"):
        assert re.search(rf"^{who} +[\d.]+ images/s", printed, flags=re.MULTILINE), printed
    assert re.search(r"^ratio [\d.]+ \([\d.]+ to [\d.]+; 1 rounds\)   trainer / bare$", printed, flags=re.MULTILINE)


def test_bench_topography_prints_seconds_of_each_part() -> None:
    tiny = (
        "--images",
        "4",
        "--pixels",
        "32",
        "--network",
        "resnet10",
        "--permutations",
        "9",
        "--noisy-images",
        "2",
    )
    printed = tool("tools/bench_topography.py", *tiny, "--draws", "2")
    assert re.search(r"^total +[\d.]+ s +[\d.]+ s of CPU", printed, flags=re.MULTILINE), printed
    assert "12 layers and their nulls" in printed
    assert "machine:" in printed


def test_bench_certify_prints_a_ratio() -> None:
    printed = tool("tools/bench_certify.py", "--rounds", "1", "--draws", "20", "--parts", "rate")
    assert re.search(r"^ratio [\d.]+ \(median of 1 paired rounds", printed, flags=re.MULTILINE), printed
    assert "draws/s" in printed


def test_bench_launch_prints_seconds() -> None:
    printed = tool("tools/bench_launch.py", "--rounds", "1")
    assert re.search(r"launch/status.py of 1,000 shards, 10,000 chunks: \d+\.\d\d s", printed)
    assert re.search(r"launch/train.py --dry-run: \d+\.\d\d s", printed)


def test_bench_loader_prints_ratios_and_skips_what_is_absent(tmp_path: Path) -> None:
    if not STAMPS.is_dir():
        pytest.skip("Debian's package tuxpaint-stamps-default is not installed")
    tiny = ("--rounds", "1", "--images", "40", "--batch-size", "16", "--workers", "1")
    printed = tool("tools/bench_loader.py", *tiny)
    ratios = re.findall(r"^ratio [\d.]+ \(median of 1 paired rounds", printed, flags=re.MULTILINE)
    # Ours, and kept in memory, to stock FFCV; ours with and without it, to stock and ImageFolder; two augmentations
    # of each; four of the stores.
    assert len(ratios) == 2 + 4 * 2 + 2 * 2 + 4, printed
    assert "command:" in printed
    assert "machine:" in printed
    absent = f"[*bench_stamps(Path('x.beton'), Path({str(tmp_path / 'absent')!r}), 40, 1, 16, 1)]"
    program = f"import sys; sys.path.insert(0, 'tools'); from bench_loader import *; print({absent})"
    words = warm_program(tmp_path, program)
    without = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert "photographs: skipped" in without.stdout, without.stderr


@pytest.mark.slow
def test_bench_data_prints_caches_memory_stall_and_pixels() -> None:
    if not STAMPS.is_dir():
        pytest.skip("Debian's package tuxpaint-stamps-default is not installed")
    tiny = ("--rounds", "1", "--images", "24", "--batch-size", "4", "--workers", "1", "--resolution", "64")
    printed = tool(
        "tools/bench_data.py", *tiny, "--steps", "1", "--network", "resnet10", "--loaders", "kapdist, full"
    )
    assert re.search(r"^reduced - full +mean [\d.]+", printed, flags=re.MULTILINE), printed
    assert re.search(
        r"^with data: ratio [\d.]+ \(median of 1 paired rounds of 1 steps", printed, flags=re.MULTILINE
    )
    assert re.search(
        r"^kapdist, full +cold +\d+, warm +\d+ images/s, ratio [\d.]+; +\d+ MiB", printed, re.MULTILINE
    )


@pytest.mark.slow
def test_runs_that_are_killed_end_bitwise_equal() -> None:
    """One kill of two ranks; train/test_train_resume.py and slurm/test_slurm_training.py have more."""
    printed = tool("tools/kill_test.py", "--kills", "1", "--ranks", "2", "--seed", "5")
    assert "1 of 1 runs ended bitwise equal" in printed or "2 of 2 runs ended bitwise equal" in printed


@pytest.mark.slow
@needs_compiler
def test_gpu_check_runs_without_a_gpu_and_says_so() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU: tools/gpu_check.py is run on it by hand")
    assert "CPU ONLY" in tool("tools/gpu_check.py")


@pytest.mark.slow
def test_no_flipped_bit_changes_a_number_unseen() -> None:
    printed = tool("tools/flip_test.py", "--flips", "12", "--seed", "1", limit=900)
    assert re.search(r"^12 flips: \d+ caught", printed, flags=re.MULTILINE), printed
    assert "UNSEEN" not in printed
    assert "not named" not in printed
