"""DeepSpeed as a library that changes nothing around it: its import, its environment, its log, its groups."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType

import torch

from kapdist.environment import package_version
from kapdist.errors import InputError

# One version, because the state of its optimizers is read off their insides (zero.py), which change with patches.
VERSION = "0.19.8"

log = logging.getLogger(__name__)


class Forward(logging.Handler):
    """Sends another library's messages into this one's log."""

    def emit(self, record: logging.LogRecord) -> None:
        log.handle(record)


def load_deepspeed(device: torch.device) -> ModuleType:
    """Import DeepSpeed for a kind of device, with nothing printed and no variable left in the environment.

    Raises:
        InputError: it is absent, of another version, or this process has used it for another kind of device.
    """
    found = package_version("deepspeed")
    if found != VERSION:
        expected = f"the package deepspeed {VERSION} (pip install deepspeed=={VERSION})"
        raise InputError("engine.name=deepspeed", expected, found or "none")
    # Named, the accelerator is not searched for, which would print a warning where there is no GPU.
    with environment(DS_ACCELERATOR=device.type):
        import deepspeed
        import deepspeed.runtime.zero.muon.muon_optimizer  # else in the first step, which then takes seconds
        from deepspeed.accelerator import get_accelerator

    chosen = get_accelerator().device_name()
    if chosen != device.type:
        raise InputError("engine.device", f"{chosen}, for which this process has loaded DeepSpeed", device.type)
    # Else built at the first start, with a compiler, for nothing but messages within one node.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # Its own call; the name that torch 2.13 wants is not known to older ones.
    warnings.filterwarnings("ignore", ".*all_gather_into_tensor. is deprecated", FutureWarning)
    logger = logging.getLogger("DeepSpeed")
    logger.handlers = [Forward()]
    logger.setLevel(logging.ERROR)
    return deepspeed


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables here, and leave the environment as it was whatever the body did to it."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


def forget_groups() -> None:
    """Drop the process groups that DeepSpeed keeps in its globals, so that they may be destroyed."""
    if "deepspeed" in sys.modules:
        from deepspeed.utils import groups

        groups._release_process_group_references(group=None)
