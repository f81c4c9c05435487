"""Keys that are written and say nothing, because another one, that nobody wrote, is at a default that is off."""

from __future__ import annotations

from collections.abc import Iterator

from kapdist.config.adversarial import AdversarialConfig
from kapdist.config.fields import Section
from kapdist.config.robust import RobustConfig
from kapdist.config.training import Config


def others(section: type[Section], key: str) -> tuple[str, ...]:
    return tuple(other for other in section.model_fields if other != key)


SAY_NOTHING = {
    "adversarial.mode": others(AdversarialConfig, "mode"),
    "robust.every_epochs": others(RobustConfig, "every_epochs"),
    "data.crop": ("crop_ratio", "interpolation"),
    "data.min_resolution": ("start_ramp", "end_ramp"),
    "data.rand_augment": ("rand_augment_magnitude",),
    "kap.pool_size": ("layout", "norm_first"),
    "train.wandb_project": ("wandb_mode",),
    "train.mlflow_experiment": ("mlflow_uri",),
}
"""What is off where nobody wrote it, to the keys of its section that count with it alone."""


def in_vain(config: Config) -> Iterator[str]:
    """Yield a line for each key that is written and says nothing.

    Who writes the other one, be it to say that it is off, knows; one who left it out may wait for what never comes.
    """
    for switch, keys in SAY_NOTHING.items():
        name, key = switch.split(".")
        section: Section = getattr(config, name)
        written = section.model_fields_set - taken_by_others(config, name)
        if key not in written:
            value = getattr(section, key)
            off = "not given" if value is None else f"{value}"
            yield from (f"{name}.{other} says nothing: {switch} is {off}" for other in keys if other in written)


def taken_by_others(config: Config, section: str) -> set[str]:
    """Return the keys of a section that count for another one's sake: robust validation has its size from there."""
    return {"norm", "eps"} if section == "adversarial" and config.robust.every_epochs else set()
