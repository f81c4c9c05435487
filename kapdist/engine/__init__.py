"""The engines that run a step over ranks, behind one small protocol."""

from kapdist.engine.ddp import DDPEngine
from kapdist.engine.protocol import Engine, StepResult
from kapdist.engine.ranks import Ranks, join

ENGINES = {"ddp": DDPEngine}

__all__ = ["ENGINES", "DDPEngine", "Engine", "Ranks", "StepResult", "join"]
