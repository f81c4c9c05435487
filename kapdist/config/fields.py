"""What a config is made of: sections, frozen, their keys known and documented; the types of their values."""

from __future__ import annotations

import math
import os
import re
from fractions import Fraction
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    field_validator,
    model_validator,
)

from kapdist.config.following import Rule, follow


class Section(BaseModel):
    """A part of the config that has one owner: frozen, and a key that nobody reads is refused.

    No number of any section may be true, false, infinite or not a number, and no text may hold a NUL.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    follows: ClassVar[tuple[Rule, ...]] = ()
    """Defaults that give way to what is written."""
    stands_for: ClassVar[str | None] = None
    """The key that one value in the place of the whole section means."""

    @model_validator(mode="before")
    @classmethod
    def one_value_is_a_key(cls, values: Any) -> Any:
        return opened(cls, values)

    @model_validator(mode="before")
    @classmethod
    def defaults_follow(cls, values: Any) -> Any:
        return follow(values, cls.follows)

    @field_validator("*", mode="before")
    @classmethod
    def is_what_it_looks_like(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = kinds_of(cls, info.field_name) if info.field_name else frozenset()
        parts = value if isinstance(value, list | tuple) else [value]
        if kinds & {int, float} and bool not in kinds and any(isinstance(part, bool) for part in parts):
            raise ValueError("a number, not true or false")
        if any(isinstance(part, str) and "\0" in part for part in parts):
            raise ValueError("text without the character NUL")
        if any(isinstance(part, str) and not is_encodable(part) for part in parts):
            raise ValueError("text of characters that files can hold")
        return value


def opened(section: type[Section], values: Any) -> Any:
    """Return what is written of a section as a mapping, where one value may stand for it."""
    if section.stands_for is None or isinstance(values, dict | BaseModel):
        return values
    return {section.stands_for: values}


def sections_of(model: type[Section]) -> dict[str, type[Section]]:
    """Return the sections of a config class by their keys."""
    kinds = {key: field.annotation for key, field in model.model_fields.items()}
    return {key: kind for key, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Section)}


def is_encodable(text: str) -> bool:
    """Return whether a text can be a file's name: YAML writes halves of characters, which none can have."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


@cache
def kinds_of(section: type[Section], key: str) -> frozenset[Any]:
    """Return the types that a key's annotation is made of."""
    return frozenset(kinds_in(section.model_fields[key].annotation))


def kinds_in(annotation: Any) -> set[Any]:
    """Return the types that an annotation is made of."""
    return {annotation}.union(*(kinds_in(part) for part in get_args(annotation)))


def fraction(value: Any) -> Any:
    """Read "4/255" as the number it means and leave everything else to pydantic."""
    if isinstance(value, str) and re.fullmatch(r"\s*-?[\d.]+\s*/\s*-?[\d.]+\s*", value):
        numerator, denominator = value.split("/")
        if Fraction(denominator.strip()) == 0:
            raise ValueError("a fraction that is not over zero")
        return float(Fraction(numerator.strip()) / Fraction(denominator.strip()))
    return value


def one_or_several(value: Any) -> Any:
    """Read sizes, each a number or a fraction; several are sorted."""
    if not isinstance(value, list | tuple):
        return size(value)
    sizes = sorted(size(one) for one in value)
    if not sizes or len(set(sizes)) != len(sizes):
        raise ValueError("each once, and one at least")
    return tuple(sizes) if len(sizes) > 1 else sizes[0]


def channels_of_stages(value: Any) -> Any:
    """Read the widths of a network: a preset's name, or one number for each of four stages."""
    if value in ("doubling", "squares"):
        return value
    numbers = value if isinstance(value, list | tuple) else ()
    if len(numbers) != 4 or not all(type(number) is int and number >= 1 for number in numbers):
        raise ValueError("doubling, squares, or four whole numbers of 1 or more, such as [64, 144, 256, 529]")
    return tuple(numbers)


def size(value: Any) -> float:
    try:
        number = float(fraction(value))
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not 0 < number < math.inf:
        raise ValueError("a finite number greater than 0, such as 4/255, or a list of them")
    return number


def written_off(value: Any) -> Any:
    """Read what YAML makes of an unquoted `off`, which is false, as the word."""
    return "off" if value is False else value


def one_word(value: Any) -> Any:
    """Read one word where several may be."""
    return (value,) if isinstance(value, str) else value


def choice_of_images(value: str) -> str:
    """Refuse what chooses no images."""
    if not re.fullmatch(r"random|first|robustbench(:.+)?|list:.+", value):
        raise ValueError("random, first, list:FILE, robustbench or robustbench:FILE")
    return value


def plain_values(value: Any) -> Any:
    """Refuse, anywhere in nested values, what a file of JSON cannot hold."""
    parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("finite numbers")
    if isinstance(value, str) and ("\0" in value or not is_encodable(value)):
        raise ValueError("text of characters that files can hold")
    for part in parts:
        plain_values(part)
    return value


Fractional = BeforeValidator(fraction)
Off = BeforeValidator(written_off)
# Pydantic's own way to write such a union warns of every tuple.
Written = PlainSerializer(lambda value: list(value) if isinstance(value, tuple) else value, when_used="json")
Epsilon = Annotated[float | tuple[float, ...], PlainValidator(one_or_several), Written]
StageWidths = Annotated[
    Literal["doubling", "squares"] | tuple[int, int, int, int], PlainValidator(channels_of_stages), Written
]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Natural = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]
SIDES = range(8, 2048 + 1)  # pixels
Arguments = Annotated[dict[str, Any], AfterValidator(plain_values)]
Pattern = Annotated[str, Field(pattern=r"^!?[^!]")]
Words = Annotated[tuple[str, ...], BeforeValidator(one_word)]
Patterns = Annotated[tuple[Pattern, ...], Field(min_length=1), BeforeValidator(one_word)]
Side = Annotated[int, Field(ge=SIDES[0], le=SIDES[-1])]
NAME = r"^[\w][\w.+-]*$"
Name = Annotated[str, Field(pattern=NAME, max_length=100)]  # of files too, with what is put behind
ClassRule = Literal["exact", "by-name"]
Interpolation = Literal["area", "bilinear", "bicubic"]
ImageChoice = Annotated[str, AfterValidator(choice_of_images)]
Severity = Annotated[int, Field(ge=1, le=5)]
Corruption = Literal[
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
]
CORRUPTIONS: tuple[Corruption, ...] = get_args(Corruption)
PublishedName = Literal[
    "imagenet-c",
    "tiny-imagenet-c",
    "imagenet-3dcc",
    "cifar-10-c",
    "cifar-100-c",
    "imagenet-a",
    "imagenet-r",
    "imagenet-v2",
]
