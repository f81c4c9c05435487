"""What every section of a config is: frozen, its keys known and documented."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Section(BaseModel):
    """A part of the config that has one owner: frozen, and a key that nobody reads is refused.

    No number of any section may be true, false, infinite or not a number, and no text may hold a NUL.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def is_what_it_looks_like(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = kinds_in(cls.model_fields[info.field_name].annotation) if info.field_name else set()
        parts = value if isinstance(value, list | tuple) else [value]
        if kinds & {int, float} and bool not in kinds and any(isinstance(part, bool) for part in parts):
            raise ValueError("a number, not true or false")
        if any(isinstance(part, str) and "\0" in part for part in parts):
            raise ValueError("text without the character NUL")
        return value


def kinds_in(annotation: Any) -> set[Any]:
    """Return the types that an annotation is made of."""
    return {annotation}.union(*(kinds_in(part) for part in get_args(annotation)))
