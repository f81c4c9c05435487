"""Other models whose adversarial images are tried on the attacked one: `transfer_from` and `sanity.surrogate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, model_validator

from kapdist.config.fields import Section

TRANSFER = "transfer"


class SurrogateConfig(Section):
    """Owner: attack/plan.py. The model of another run, or any other one; text with a colon in it is a factory."""

    run: Path | None = None
    """A finished run."""
    factory: str | None = None
    """`package.module:function` or `file.py:function` that returns the classifier."""
    weights: Path | None = None
    """Weights for the factory's model, or others than the run's own."""

    @model_validator(mode="after")
    def is_a_run_or_a_factory(self) -> SurrogateConfig:
        if (self.run is None) == (self.factory is None):
            raise ValueError("a run or a factory, one of the two")
        return self

    def __str__(self) -> str:
        return str(self.factory or self.run)

    @property
    def short(self) -> str:
        """Without its folder, if it is a run."""
        return self.factory or (self.run.name if self.run else "") or str(self)


def one_or_several(value: Any) -> Any:
    """Read one surrogate or a list of them, each as its keys or as one word."""
    if value is None:
        return ()
    return tuple(map(in_keys, value if isinstance(value, list | tuple) else [value]))


def in_keys(value: Any) -> Any:
    if not isinstance(value, str | Path):
        return value
    return {"factory": value} if isinstance(value, str) and ":" in value else {"run": value}


Surrogates = Annotated[tuple[SurrogateConfig, ...], BeforeValidator(one_or_several)]


def transfers(surrogates: Sequence[SurrogateConfig]) -> dict[str, SurrogateConfig]:
    """Return {attack: the surrogate that it comes from}: `transfer` of one, `transfer:NAME` each of several.

    Names are whole where the short ones are not all different, with their weights where the whole ones are not.

    Raises:
        ValueError: one is there twice.
    """
    if len(surrogates) == 1:
        return {TRANSFER: surrogates[0]}
    short, whole = [it.short for it in surrogates], [str(it) for it in surrogates]
    with_weights = [f"{it}+{it.weights}" if it.weights else str(it) for it in surrogates]
    for names in (short, whole, with_weights):
        if len(set(names)) == len(surrogates):
            return {f"{TRANSFER}:{name}": it for name, it in zip(names, surrogates, strict=True)}
    raise ValueError("each surrogate once")
