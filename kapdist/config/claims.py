"""A claim of a study, a sentence or its keys: one way to train is better than another by some measure."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kapdist.config.fields import Arguments, Name, Positive, Section, fraction

LIKE = '"FIRST over SECOND, robust accuracy at 8/255" (or "clean accuracy"), and behind further commas as wanted '
LIKE += '"under ATTACK", "by more than 2 points", "at most 1 point lost", "where KEY=VALUE", '
LIKE += '"at equal clean accuracy"'
NUMBER = r"(\d+(?:\.\d+)?)"


def points(text: str) -> float:
    return float(text) / 100


def eps_of(text: str) -> Any:
    return fraction(text.strip())


def pairs(text: str) -> dict[str, str]:
    """Read "KEY=VALUE and KEY=VALUE"; a value's type is that of the key it is for."""
    found = [part.partition("=") for part in re.split(r"\s+and\s+", text.strip())]
    if not all(key and equals and value for key, equals, value in found):
        raise ValueError(f"a claim such as {LIKE}")
    keys = [key.strip() for key, _, _ in found]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise ValueError(f"a claim that says its {twice} once")
    return {key.strip(): value.strip() for key, _, value in found}


# What stands between the commas, and the keys that it means.
PARTS: tuple[tuple[str, Callable[..., dict[str, Any]]], ...] = (
    (r"([\w.+-]+) over ([\w.+-]+)", lambda first, over: {"first": first, "over": over}),
    (r"robust accuracy at (.+)", lambda eps: {"measure": "robust", "eps": eps_of(eps)}),
    (r"robust accuracy", lambda: {"measure": "robust"}),
    (r"clean accuracy", lambda: {"measure": "clean"}),
    (r"under ([\w.+-]+)", lambda attack: {"attack": attack}),
    (rf"by more than {NUMBER} points?", lambda more: {"margin": points(more)}),
    (rf"at most {NUMBER} points? lost", lambda lost: {"margin": -points(lost)}),
    (r"where (.+)", lambda text: {"where": pairs(text)}),
    (r"at equal clean accuracy", lambda: {"equal_clean": True}),
)


class ClaimConfig(Section):
    """Owner: study/claims.py. That `first` is better than `over` by more than a margin."""

    first: Name
    """The arm that is said to be better."""
    over: Name
    """The arm that it is compared with."""
    measure: Literal["robust", "clean"]
    """Accuracy under an attack, or without one on the same images."""
    eps: Positive | None = None
    """Of the robust accuracy; default: the largest of the attack."""
    attack: Name | None = None
    """Of the study's attacks; default: the first."""
    margin: Annotated[float, Field(gt=-1, lt=1)] = 0.0
    """The difference to be exceeded, a share: 0.02 is "by more than 2 points", -0.01 is "at most 1 point lost"."""
    where: Arguments = Field(default_factory=dict)
    """{key: value} that tells which of an arm's several settings is meant."""
    equal_clean: bool = False
    """Compare the arms' frontiers where their clean accuracy is equal, not two settings."""

    @model_validator(mode="before")
    @classmethod
    def sentences_are_read(cls, values: Any) -> Any:
        return read_sentence(values) if isinstance(values, str) else values

    @model_validator(mode="after")
    def compares_two_by_what_there_is(self) -> ClaimConfig:
        if self.first == self.over:
            raise ValueError("two different arms")
        if self.measure == "clean" and (self.eps is not None or self.equal_clean):
            raise ValueError("clean accuracy without an eps, and not at equal clean accuracy")
        if self.equal_clean and self.where:
            raise ValueError("frontiers of whole arms, without `where`, at equal clean accuracy")
        return self

    @property
    def text(self) -> str:
        """The claim as a sentence, which is read as the same claim."""
        at = "" if self.eps is None else f" at {eps_text(self.eps)}"
        said = [f"{self.first} over {self.over}", f"{self.measure} accuracy{at}"]
        if self.attack:
            said.append(f"under {self.attack}")
        if self.margin:
            size = f"{abs(self.margin) * 100:g}"
            unit = "point" if size == "1" else "points"
            said.append(f"by more than {size} {unit}" if self.margin > 0 else f"at most {size} {unit} lost")
        if self.where:
            said.append("where " + " and ".join(f"{key}={value}" for key, value in self.where.items()))
        if self.equal_clean:
            said.append("at equal clean accuracy")
        return ", ".join(said)


def read_sentence(text: str) -> dict[str, Any]:
    """Return the keys that a sentence means; ValueError names the part that is not understood."""
    values: dict[str, Any] = {}
    for part in (words.strip() for words in text.split(",")):
        found = next((keys(*hit.groups()) for form, keys in PARTS if (hit := re.fullmatch(form, part))), None)
        if found is None:
            raise ValueError(f"a claim such as {LIKE}, not {part!r}")
        if twice := values.keys() & found:
            raise ValueError(f"a claim that says its {min(twice)} once")
        values |= found
    if missing := {"first", "measure"} - values.keys():
        raise ValueError(f"a claim such as {LIKE}, with {'two arms' if 'first' in missing else 'a measure'}")
    return values


def eps_text(eps: float) -> str:
    """Return an eps as n/255 where it is one; from 1 on it is of no norm that counts in these."""
    whole = round(eps * 255)
    return f"{whole}/255" if 0 < whole < 255 and abs(eps * 255 - whole) < 1e-9 else f"{eps:g}"
