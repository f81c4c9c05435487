"""Every knob, once: defaults < YAML file < `section.key=value`; frozen, documented, checked."""

from kapdist.config.adversarial import AdversarialConfig
from kapdist.config.attack import (
    AttackConfig,
    AttackedModelConfig,
    AttackName,
    CorruptionsConfig,
    RemediesConfig,
    SanityConfig,
)
from kapdist.config.fields import Section
from kapdist.config.robust import RobustConfig
from kapdist.config.training import (
    KEPT,
    MAY_CHANGE,
    MAY_MOVE,
    AnySection,
    Config,
    DataConfig,
    EngineConfig,
    KapConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    check_limits,
    dotted_keys,
    flatten,
)

__all__ = [
    "KEPT",
    "MAY_CHANGE",
    "MAY_MOVE",
    "AdversarialConfig",
    "AnySection",
    "AttackConfig",
    "AttackName",
    "AttackedModelConfig",
    "Config",
    "CorruptionsConfig",
    "DataConfig",
    "EngineConfig",
    "KapConfig",
    "ModelConfig",
    "OptimConfig",
    "RemediesConfig",
    "RobustConfig",
    "SanityConfig",
    "Section",
    "TrainConfig",
    "check_limits",
    "dotted_keys",
    "flatten",
]
