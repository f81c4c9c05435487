"""How hard an attack tried, beyond its list, norm and eps: what must be equal too where numbers are compared."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kapdist.config import AttackConfig
from kapdist.config.surrogates import TRANSFER
from kapdist.report.words import enumeration

OF_A_SURROGATE = ("weights_sha256", "factory", "factory_sha256", "arguments", "mean", "std")
NOTHING_TOLD: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Strength:
    """Of one attack; its defaults are what plans that are older than a key were made with."""

    eot: int = 1
    screen: int = 0
    precision: str = "fp32"
    random_draws: int = 0
    """0, as of the next two: the list has no such attack."""
    hard_label_queries: int = 0
    fmn_steps: int = 0
    surrogates: tuple[tuple[str, str], ...] = ()
    """(attack, what tells its surrogate from others), wherever that lies."""
    places: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    """(attack, what its surrogate is called)."""

    def in_words(self, told: Collection[str] = NOTHING_TOLD) -> tuple[str, ...]:
        """Say what is not as usual, and the fields `told` whatever they are."""
        said = {
            "eot": f"mean of {self.eot} draws" if self.eot > 1 else "single draws",
            "screen": f"{self.screen}-step screen first" if self.screen else "no screen",
            "precision": f"passes in {self.precision}",
            "random_draws": f"{self.random_draws:,} random points",
            "hard_label_queries": f"{self.hard_label_queries:,} hard-label queries",
            "fmn_steps": f"{self.fmn_steps:,} steps of fmn",
            "surrogates": self.surrogates_text,
        }
        return tuple(text for key, text in said.items() if key in told or getattr(self, key) not in USUAL[key])

    @property
    def surrogates_text(self) -> str:
        names = [f"{attack} from {place}" for attack, place in self.places]
        return enumeration(names) if names else f"{TRANSFER} from what is not recorded"

    def differing(self, others: Iterable[Strength]) -> frozenset[str]:
        """Return the fields in which some of the others are not like this one."""
        return frozenset(key for other in others for key in USUAL if getattr(other, key) != getattr(self, key))


def default(key: str) -> Any:
    return AttackConfig.model_fields[key].default


# What is not said by itself. Of screens neither of the two is: whether there is one follows from the noise.
USUAL: dict[str, tuple[Any, ...]] = {
    "eot": (1,),
    "screen": (0, default("screen")),
    "precision": (default("precision"),),
    "random_draws": (0, default("random_draws")),
    "hard_label_queries": (0, default("hard_label_queries")),
    "fmn_steps": (0, default("fmn_steps")),
    "surrogates": ((),),
}


def strength_of(plan: Mapping[str, Any]) -> Strength:
    """Return the strength of a planned attack.

    Args:
        plan: JSON values of plan.json; keys may be missing.
    """
    own = plan.get("own_settings") or {}
    one, several = own.get("surrogate"), own.get("surrogates") or {}
    models: dict[str, dict[str, Any]] = {TRANSFER: one} if one else several
    return Strength(
        eot=plan.get("eot", 1),
        screen=plan.get("screen", 0),
        precision=plan.get("precision", "fp32"),
        random_draws=own.get("random_draws", 0),
        hard_label_queries=own.get("hard_label_queries", 0),
        fmn_steps=own.get("fmn_steps", 0),
        surrogates=tuple((attack, told_apart(model)) for attack, model in models.items()),
        places=tuple((attack, place_of(model)) for attack, model in models.items()),
    )


def told_apart(model: Mapping[str, Any]) -> str:
    """Return what tells a surrogate from others; keys that older plans lack are left out where they are empty."""
    return repr([(key, model[key]) for key in OF_A_SURROGATE if model.get(key)])


def place_of(model: Mapping[str, Any]) -> str:
    """Name a surrogate as its user did, a run without its folder, and its weights as far as that is short."""
    weights = model.get("weights")
    name = model.get("factory") or (Path(weights).parent.name if weights else "")
    return f"{name or 'a model'} (weights {str(model.get('weights_sha256'))[:12]})"
