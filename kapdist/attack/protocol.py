"""What a config's protocol comes to: every eps, the draws that are averaged, the steps of the screen. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from kapdist.records.attack_plan import OwnSettings
from kapdist.config import AttackConfig

EOT_STANDARD_DRAWS = 20


@dataclass(frozen=True)
class Protocol:
    """How the list of attacks is run."""

    sweep: tuple[float, ...]
    """Every eps, ascending; the last is the one that the accuracy is stated for."""
    eot: int
    """Draws averaged inside the model; 1: none are."""
    screen: int
    """Steps of the short attack that goes first; 0: none."""
    compact: bool
    rescore: int
    """Fresh draws that stored images are scored under; 0: none are."""

    @property
    def eps(self) -> float:
        return self.sweep[-1]


def protocol_of(config: AttackConfig) -> Protocol:
    """Return the protocol; verdicts of single noisy draws get no screen, as one more attack would break more."""
    noisy = config.noise == "fresh"
    draws = config.eot or (EOT_STANDARD_DRAWS if config.version == "eot-standard" else 1)
    return Protocol(
        sweep=config.eps if isinstance(config.eps, tuple) else (config.eps,),
        eot=draws,
        screen=0 if noisy and draws == 1 else config.screen,
        compact=config.compact and not noisy,
        rescore=config.rescore if noisy else 0,
    )


def own_settings_of(config: AttackConfig) -> OwnSettings:
    """Return what our own attacks in the list are given, without the surrogate; of others the plan has no trace."""
    return OwnSettings(
        random_draws=config.random_draws if "random-noise" in config.attacks else 0,
        hard_label_queries=config.hard_label_queries if "hard-label" in config.attacks else 0,
    )
