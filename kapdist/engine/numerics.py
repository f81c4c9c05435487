"""How GPUs compute: the same bits every time or as fast as they can, and fp32 in TensorFloat-32 or in full."""

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
    Without it cuDNN tries its algorithms for each shape that is new and takes the fastest.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(tensor_float_32(config.tf32))
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            stack.enter_context(deterministic())
        else:
            stack.enter_context(trying_algorithms(True))
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
def trying_algorithms(wanted: bool) -> Iterator[None]:
    """Let cuDNN time its convolutions on the first batch of each shape, or take them by its own rule."""
    cudnn = torch.backends.cudnn
    before, cudnn.benchmark = cudnn.benchmark, wanted
    try:
        yield
    finally:
        cudnn.benchmark = before


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
