"""The engines that run a step over ranks, behind one small interface."""

from kapdist.engine.base import Engine, StepResult
from kapdist.engine.ddp import DDPEngine
from kapdist.engine.deepspeed import DeepSpeedEngine
from kapdist.engine.ranks import Answer, Ranks, join

ENGINES: dict[str, type[Engine]] = {"ddp": DDPEngine, "deepspeed": DeepSpeedEngine}

__all__ = ["ENGINES", "Answer", "DDPEngine", "DeepSpeedEngine", "Engine", "Ranks", "StepResult", "join"]
