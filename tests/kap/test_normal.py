"""The numbers of noise: known answers, statistics, and one function by whatever way they are computed."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from kapdist.kap import draw
from kapdist.kap.draw import add_draw, add_draws
from kapdist.kap.normal import BLOCK, normal, philox

CPU = torch.device("cpu")
KEY, DRAW = 0x1234567890ABCDEF, 2**33 + 7
# Random123's known answers (kat_vectors, philox4x32 7), with the last counter word 0 as a draw has it.
ZERO = [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]


def drawn(numel: int, key: int = KEY, count: int = DRAW, dtype: torch.dtype = torch.float32) -> Tensor:
    out, stream = torch.empty(numel, dtype=dtype), torch.tensor([key, count, 0])
    add_draw(None, out, 1.0, stream)
    assert stream.tolist() == [key, count + 1, 0]
    return out


def philox_in_numbers(counter: int, count: int, key: int) -> list[int]:
    """Written from the paper's figure, in Python's integers."""
    word, keys = [counter, count & 0xFFFFFFFF, count >> 32, 0], [key & 0xFFFFFFFF, key >> 32]
    for _ in range(7):
        high, low = divmod(word[0] * 0xD2511F53, 2**32)
        top, bottom = divmod(word[2] * 0xCD9E8D57, 2**32)
        word = [top ^ word[1] ^ keys[0], bottom, high ^ word[3] ^ keys[1], low]
        keys = [(keys[0] + 0x9E3779B9) % 2**32, (keys[1] + 0xBB67AE85) % 2**32]
    return word


def test_words_are_philox() -> None:
    assert [int(word) for word in philox(torch.zeros(1, dtype=torch.long), 0, 0)] == ZERO
    counters = torch.tensor([0, 5, 2**32 - 1])
    words = torch.stack(philox(counters, DRAW, KEY), dim=1)
    assert words.tolist() == [philox_in_numbers(int(counter), DRAW, KEY) for counter in counters]


def test_numbers_are_box_and_mullers_of_the_words() -> None:
    found = normal(3 * BLOCK, KEY, DRAW, CPU).double()
    for place in (0, 127, 128, 1023, 1024 + 700, 3071):
        block, run, lane = place // 1024, place % 1024 // 128, place % 128
        word = philox_in_numbers(block * 128 + lane, DRAW, KEY)[run // 2]
        radius = np.sqrt(-2 * np.log(((word >> 12) + 0.5) / 2**20))
        angle = 2 * np.pi * ((word % 4096 + 0.5) / 4096 - 1 / 8)
        expected = radius * (np.sin(angle) if run % 2 else np.cos(angle))
        assert abs(float(found[place]) - expected) < 2e-6


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_compiled_loops_give_the_same_numbers(
    dtype: torch.dtype, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever pieces: more blocks than a thread's least share, and more than are drawn at once."""
    monkeypatch.setattr(draw, "_LEAST_FOR_A_THREAD", 2 * BLOCK)
    monkeypatch.setattr(draw, "_AT_ONCE", BLOCK)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for numel in (0, 1, 1000, 9 * BLOCK + 13):
        expected = normal(numel, KEY, DRAW, CPU).to(dtype)
        torch.testing.assert_close(
            drawn(numel, dtype=dtype), expected, rtol=1e-6 if dtype.itemsize > 2 else 1e-2, atol=3e-6
        )
    assert draw._of_numba() is not None


def test_without_numba_they_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = drawn(5000)
    monkeypatch.setattr(draw, "_of_numba", lambda: None)
    torch.testing.assert_close(drawn(5000), expected, rtol=1e-6, atol=3e-6)


def test_noise_is_scaled_and_added() -> None:
    z = torch.linspace(-3, 3, 3000)
    out = torch.empty_like(z)
    add_draw(z, out, 0.5, torch.tensor([KEY, DRAW, 0]))
    torch.testing.assert_close(out, z + 0.5 * drawn(3000))
    add_draw(z, z, 0.5, torch.tensor([KEY, DRAW, 0]))
    assert torch.equal(z, out)


@pytest.mark.parametrize("loops", ["numba", "torch"])
def test_rows_have_draws_of_their_own(loops: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever rows stand beside them, and with counts beyond 32 bits."""
    if loops == "torch":
        monkeypatch.setattr(draw, "_of_numba", lambda: None)
    draws, given = torch.tensor([DRAW, 0, 2**31]), torch.randn(3, BLOCK + 13)
    found, alone = given.clone(), given[1:2].clone()
    add_draws(found, 0.5, KEY, draws)
    add_draws(alone, 0.5, KEY, draws[1:2])
    expected = torch.stack([normal(BLOCK + 13, KEY, count, CPU) for count in draws.tolist()])
    torch.testing.assert_close(found, given + 0.5 * expected, rtol=1e-6, atol=3e-6)
    assert torch.equal(alone, found[1:2])


def test_statistics() -> None:
    """Five standard errors of moments and correlations; Kolmogorov and Smirnov against scipy's normal."""
    n = 2**21
    z = drawn(n).double()
    assert abs(z.mean()) < 5 / n**0.5
    assert abs(z.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs(z.pow(3).mean()) < 5 * (15 / n) ** 0.5
    assert abs(z.pow(4).mean() - 3) < 5 * (96 / n) ** 0.5
    assert 4.5 < z.abs().max() < 5.5
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-4
    for lag in (1, 2, 127, 128, 256, 512, 1024):
        one, other = z[lag:], z[:-lag]
        assert abs((one * other).mean()) < 5 / n**0.5
        # Pairs share a radius: their squares must not be correlated either.
        assert abs(((one.square() - 1) * (other.square() - 1)).mean()) < 5 * 2 / n**0.5


def test_streams_and_draws_are_independent() -> None:
    n = 2**18
    many = torch.stack([drawn(n, key, count) for key in (1, 2, KEY) for count in (0, 1, 2**32, 2**32 + 1)]).double()
    correlation = torch.corrcoef(many) - torch.eye(len(many))
    assert correlation.abs().max() < 5 / n**0.5


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton (its interpreter, no GPU)")
def test_triton_kernels_by_its_interpreter() -> None:
    """Draws and averages against their definitions in float64, at odd sizes and in every precision."""
    tool = Path(__file__).parents[2] / "tools/check_kernels.py"
    done = subprocess.run(
        [sys.executable, tool, "--interpreter"],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "average to torch.bfloat16" in done.stdout
    assert "normed: with noise, torch.bfloat16" in done.stdout


class Kernel:
    """What Triton compiles for the first arguments, and what is launched again with others."""

    def __init__(self) -> None:
        self.first: list[tuple[object, ...]] = []
        self.again: list[tuple[object, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]):
        def compiled(*arguments: object) -> dict[tuple[int, ...], object]:
            self.first.append(arguments)
            return {grid: lambda *others: self.again.append(others), (1, 1, 1): lambda *o: self.again.append(o)}

        return compiled


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch):
    normal_gpu = pytest.importorskip("kapdist.kap.normal_gpu", reason="needs triton (no GPU)", exc_type=ImportError)
    monkeypatch.setattr(normal_gpu, "_add_normal", Kernel())
    monkeypatch.setattr(normal_gpu, "_compiled", {})
    return normal_gpu


def test_a_kernel_for_one_std_is_that_for_every_other(launched) -> None:
    """Triton makes a constant of the whole number 1, and all later layers would have noise of std 1."""
    out, state = torch.zeros(64), torch.tensor([KEY, 0, 0])
    for std in (1, 0.1, 2):
        launched.add_normal(out, out, std, state)
    kernel = launched._add_normal
    assert [type(arguments[3]) for arguments in [*kernel.first, *kernel.again]] == [float, float, float]
    assert [arguments[3] for arguments in kernel.again] == [0.1, 2]


def test_a_kernel_is_for_the_alignment_of_each_tensor(launched) -> None:
    """One that was compiled to read single numbers and write sixteen bytes must not write where it should read."""
    odd, even, state = torch.zeros(65)[1:], torch.zeros(64), torch.tensor([KEY, 0, 0])
    for z, out in ((odd, even), (odd, odd), (even, odd), (even, even), (odd, even)):
        launched.add_normal(z, out, 0.1, state)
    assert (len(launched._add_normal.first), len(launched._add_normal.again)) == (4, 1)


@pytest.mark.parametrize(("variable", "used"), [(None, "True"), ("1", "True"), ("0", "False")])
def test_kernels_of_our_own_can_be_left_out(variable: str | None, used: str, tmp_path: Path) -> None:
    (tmp_path / "triton.py").write_text("")
    environment = {name: value for name, value in os.environ.items() if name != "KAPDIST_TRITON"}
    environment |= {"PYTHONPATH": str(tmp_path)} | ({} if variable is None else {"KAPDIST_TRITON": variable})
    words = [sys.executable, "-c", "from kapdist.kap.draw import HAS_TRITON; print(HAS_TRITON)"]
    told = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == used
