"""A study: ways to train, seeds, attacks, and the claims that are to be decided."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from kapdist.config.claims import ClaimConfig
from kapdist.config.fields import Name, Natural, Positive, Section, plain_values

Seed = Annotated[int, Field(ge=0)]
MOST_SEEDS = 1000
FORBIDDEN = ("name", "runs_dir", "seed")  # the study's own, of every run


def numbered(value: Any) -> Any:
    """Read a number of seeds as the first so many."""
    numbers = range(value) if type(value) is int and value <= MOST_SEEDS else value
    if not isinstance(numbers, range | list | tuple) or not numbers:
        raise ValueError(f"how many seeds, 1 to {MOST_SEEDS}, or a list of them")
    if any(isinstance(number, bool) for number in numbers):
        raise ValueError("a number, not true or false")
    return tuple(numbers)


def each_once(seeds: tuple[int, ...]) -> tuple[int, ...]:
    twice = [seed for seed in seeds if seeds.count(seed) > 1]
    if twice:
        raise ValueError(f"each seed once, not {twice[0]} twice")
    return seeds


def by_name(value: Any) -> Any:
    """Read a name, or several, as those of which no more is said."""
    names = [value] if isinstance(value, str) else value
    return dict.fromkeys(names) if isinstance(names, list | tuple) and all(type(n) is str for n in names) else value


Seeds = Annotated[tuple[Seed, ...], Field(min_length=1), BeforeValidator(numbered)]
FreeKeys = dict[Name, dict[str, Any] | None]


class TopographyOfStudy(Section):
    """Owner: study/tasks.py. What `kapdist topography` is asked of every run."""

    images: Annotated[int, Field(ge=2)] = 512
    """Images whose responses are compared."""
    permutations: Annotated[int, Field(ge=199)] = 1999
    """Of the kernels, for the p-values."""


class StudyConfig(Section):
    """Owner: study/. Settings times seeds, what is asked of each, and what is to be decided."""

    name: Name
    """Name of the study and of its directory; by default the name of the file."""
    studies_dir: Path = Path("studies")
    """Where directories of studies are."""
    train: Path
    """Config of a training that every arm starts from; a relative path is from the study's own folder."""
    arms: Annotated[FreeKeys, Field(min_length=1)]
    """{name: {key of a training's config: value}}, dotted keys; a list of values is a grid, `seeds` takes the place
    of the study's."""
    seeds: Seeds
    """Seeds of every arm, or how many: 3 is 0, 1 and 2."""
    attacks: Annotated[FreeKeys, Field(min_length=1)]
    """{name: {key of an attack's config: value}}; `arms` and `seeds` say on which, where not on all."""
    sanity: Annotated[FreeKeys, BeforeValidator(by_name)] = Field(default_factory=dict)
    """Attacks that are examined too: a name, several, or {name: {arms: ..., seeds: ...}} where it is not on every
    run that they are made on."""
    certificate: dict[str, Any] | None = None
    """{key of a certification's config: value}, `arms` and `seeds` as for an attack; none, where not written."""
    corruptions: dict[str, Any] | None = None
    """{key of an attack's config: value} for `kapdist attack corruptions`; likewise."""
    topography: TopographyOfStudy | None = None
    """Whether neighbouring kernels become alike: asked of every run where this is written."""
    claims: tuple[ClaimConfig, ...] = ()
    """What is to be decided, sentences such as "kap over noise, robust accuracy at 8/255"."""
    at_once: Annotated[int, Field(ge=0)] = 0
    """Commands at one time on this machine; 0: one for each GPU, or as many as its CPUs bear."""
    retries: Annotated[int, Field(ge=0)] = 1
    """How often a command that failed is tried again."""
    most_runs: Natural = 60
    """Trainings beyond which the study asks for --yes."""
    hours_per_run: Positive | None = None
    """What a training and its attacks are expected to take, for the sum that is shown before."""

    @field_validator("seeds")
    @classmethod
    def seeds_once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return each_once(value)

    @field_validator("arms", "attacks", "sanity")
    @classmethod
    def values_are_plain(cls, value: FreeKeys) -> FreeKeys:
        for values in value.values():
            plain_values(values or {})
        return value

    @field_validator("claims")
    @classmethod
    def claims_once(cls, value: tuple[ClaimConfig, ...]) -> tuple[ClaimConfig, ...]:
        texts = [claim.text for claim in value]
        if twice := [text for text in texts if texts.count(text) > 1]:
            raise ValueError(f"each claim once, not {twice[0]!r} twice")
        return value
