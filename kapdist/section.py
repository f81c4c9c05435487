"""What sections of a config are made of: the frozen model, and the numbers that keys are bound by."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """A part of the config that has one owner: frozen, and a key that nobody reads is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True)


def fraction(value: Any) -> Any:
    """Read "4/255" as the number it means and leave everything else to pydantic."""
    if isinstance(value, str) and re.fullmatch(r"\s*-?[\d.]+\s*/\s*-?[\d.]+\s*", value):
        numerator, denominator = value.split("/")
        if Fraction(denominator.strip()) == 0:
            raise ValueError("a fraction that is not over zero")
        return float(Fraction(numerator.strip()) / Fraction(denominator.strip()))
    return value


def written_off(value: Any) -> Any:
    """Read what YAML makes of an unquoted `off`, which is false, as the word."""
    return "off" if value is False else value


Fractional = BeforeValidator(fraction)
Off = BeforeValidator(written_off)
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Natural = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[\w][\w.+-]*$")]
