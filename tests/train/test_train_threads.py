"""Trainings on several threads and odd batches: what died on CPUs with AVX-512 while every test had one thread."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kapdist.run.paths import RunDir

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("threads", [2, 3, 4])
def test_a_training_on_threads_ends_well(tiny_config: Path, kapdist, threads: int) -> None:
    """Eight input channels, channels_last, strided shortcuts; the batches of 130 images have 43 and 44."""
    words = ["train.batch_size=44", "train.accumulation_steps=1", f"engine.threads={threads}"]
    end = kapdist("train", tiny_config, *words)
    assert end.code == 0, end.output
    assert RunDir(tiny_config.parent / "runs" / "tiny").done.exists()


@pytest.mark.slow
def test_the_convolutions_of_our_models_stay_within_their_memory(monkeypatch, capsys) -> None:
    """The tool draws the cases here; the child that computes them, under a checking malloc, starts cold."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    import fuzz_convolutions

    monkeypatch.setattr(sys, "argv", ["fuzz_convolutions.py", "--cases", "60"])
    code, printed = fuzz_convolutions.main(), capsys.readouterr().out
    assert code == 0, printed
    assert "60 cases" in printed
    if "no AVX-512" in printed:
        pytest.skip(
            "it passed, which proves nothing here: this CPU has no AVX-512, whose kernel wrote out of bounds"
        )
