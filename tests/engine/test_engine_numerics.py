"""What the ranks set of torch when they join, and put back; whether a GPU then does so is for a GPU to show."""

from __future__ import annotations

import os

import pytest
import torch

from kapdist.config import EngineConfig
from kapdist.engine import join
from kapdist.engine.numerics import tensor_float_32


def flags() -> tuple[bool, ...]:
    cudnn = torch.backends.cudnn
    tf32 = torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32
    return (*tf32, torch.are_deterministic_algorithms_enabled(), cudnn.deterministic)


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
def test_joined_ranks_compute_as_the_config_says(tf32: bool, deterministic: bool, monkeypatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)  # a shard in this process leaves it on
    before = flags()
    with join(EngineConfig(device="cpu", tf32=tf32, deterministic=deterministic)):
        assert flags() == (tf32, tf32, deterministic, deterministic)
        assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == deterministic
        with tensor_float_32(False):
            assert flags()[:2] == (False, False)
        assert flags()[:2] == (tf32, tf32)
    assert flags() == before


def test_an_operation_without_a_deterministic_form_is_refused_by_name() -> None:
    with join(EngineConfig(device="cpu", deterministic=True)):
        with pytest.raises(RuntimeError, match="put_"):
            torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2), accumulate=False)
