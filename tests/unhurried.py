"""A network that takes its time: few steps are then long enough to be disturbed, and leave the CPUs to others."""

from __future__ import annotations

import re
from pathlib import Path

NETWORK = """\
import time
from kapdist.models.resnet import resnet10

def network(seconds: float):
    model = resnet10(10, width=0.125)
    model.register_forward_pre_hook(lambda *_: time.sleep(seconds))
    return model
"""
MODEL = "{{factory: unhurried.py:network, arguments: {{seconds: {}}}, num_classes: 10, normalise: false}}"


def unhurried(config: str, folder: Path, seconds: float) -> str:
    """Return a config with a ResNet-10 that sleeps before each of its passes, from a file that is written."""
    (folder / "unhurried.py").write_text(NETWORK)
    return re.sub("^model: .*", f"model: {MODEL.format(seconds)}", config, flags=re.MULTILINE)
