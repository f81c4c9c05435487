"""How GPUs compute: the same bits every time or not, and fp32 in TensorFloat-32 or in full."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from kapdist.config import EngineConfig


@contextlib.contextmanager
def computing(config: EngineConfig) -> Iterator[None]:
    """Compute as the config says; afterwards as before.

    With `deterministic` whatever torch knows no deterministic form of raises RuntimeError, which names it
    (https://docs.pytorch.org/docs/stable/notes/randomness.html). cuBLAS reads its variable when CUDA starts.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(tensor_float_32(config.tf32))
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            stack.enter_context(deterministic())
        yield


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]


@contextlib.contextmanager
def tensor_float_32(allowed: bool) -> Iterator[None]:
    """Let convolutions and products of fp32 round their factors to 10 bits on GPUs, or not.

    Evaluations and attacks never do, so that they agree on what an image is taken for.
    """
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = allowed
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before
