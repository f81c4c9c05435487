"""torch.compile keeps a graph for each shape and mode, up to a limit: past it a model runs uncompiled."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import torch

from kapdist.errors import InputError

log = logging.getLogger(__name__)
THEIRS = logging.getLogger("torch._dynamo.convert_frame")


def check_compiler(device: torch.device) -> None:
    """Refuse to compile for a CPU where torch could not: its own words for that come with the first step.

    Raises:
        InputError: there is no C++ compiler, or torch's folder has spaces in its path, at which torch cuts it.
    """
    if device.type != "cpu":
        return
    if shutil.which(compiler := os.environ.get("CXX", "g++")) is None:
        raise InputError("engine.compile", f"a C++ compiler on a CPU ({compiler}, or CXX)", "none")
    if " " in (folder := str(Path(torch.__file__).parent)):
        raise InputError("engine.compile", "torch in a folder without spaces, on a CPU", folder)


def make_room(graphs: int) -> None:
    """Let torch.compile keep this many graphs of a model, and say in the run's log should it need more after all.

    Torch's limit is 8, and its word on it goes to standard error alone. It is never lowered here.
    """
    import torch._dynamo  # two seconds, for whoever compiles

    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, graphs)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, graphs)
    if not any(isinstance(handler, SaysIt) for handler in THEIRS.handlers):
        THEIRS.addHandler(SaysIt(logging.WARNING))


class SaysIt(logging.Handler):
    """Passes on that the limit was met: from then on what has a new shape is not compiled."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "recompile_limit" in message:
            first = message.partition("\n")[0]
            log.warning("torch.compile keeps no more graphs, new shapes run uncompiled from now on: %s", first)
