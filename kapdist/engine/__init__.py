"""The engines that run a step over ranks, behind one small protocol."""

from kapdist.engine.ddp import DDPEngine
from kapdist.engine.deepspeed import DeepSpeedEngine
from kapdist.engine.protocol import Engine, StepResult
from kapdist.engine.ranks import Answer, Ranks, join

ENGINES: dict[str, type[DDPEngine] | type[DeepSpeedEngine]] = {"ddp": DDPEngine, "deepspeed": DeepSpeedEngine}

__all__ = ["ENGINES", "Answer", "DDPEngine", "DeepSpeedEngine", "Engine", "Ranks", "StepResult", "join"]
