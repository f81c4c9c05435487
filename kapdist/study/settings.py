"""Settings of a study, arms at the points of their grids, and their trainings: a setting with a seed each."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from kapdist.config import MAY_CHANGE, AnySection, Config, flatten
from kapdist.config.file import is_cut, load_config
from kapdist.config.following import dotted
from kapdist.config.plain_yaml import ONE_LINE, dump, parse
from kapdist.config.study import FORBIDDEN, Seeds, StudyConfig, each_once
from kapdist.errors import InputError, shown
from kapdist.run.files import to_json
from kapdist.run.paths import StudyDir

MOST_TRAININGS = 10_000  # of an arm: --yes allows more than `most_runs`, and not without end


@dataclass(frozen=True)
class Setting:
    """An arm at one point of its grid."""

    arm: str
    point: Mapping[str, Any]
    """{key: value} of what the arm's grid varies."""

    @property
    def name(self) -> str:
        """The arm's name and, where it has several settings, what tells them apart."""
        if len(self.point) == 1:
            return f"{self.arm}_{slug(*self.point.values())}"
        return "_".join([self.arm, *(f"{last(key)}-{slug(value)}" for key, value in self.point.items())])

    def matches(self, where: Mapping[str, Any]) -> bool:
        """Whether this is the point that {key or last word of a key: value} means."""
        return all(
            any(named(key, asked) and same(value, wanted) for key, value in self.point.items())
            for asked, wanted in where.items()
        )


@dataclass(frozen=True)
class Trained:
    """One training of a study: a setting and a seed."""

    setting: Setting
    seed: int
    config: Config

    @property
    def name(self) -> str:
        return self.config.name


Default = TypeVar("Default", tuple[int, ...], None)


def trainings(path: Path, base: Path, config: StudyConfig, arm: str) -> Iterator[Trained]:
    """Yield the trainings of an arm: every point of its grid, with every seed."""
    place = f"{path}: arms.{arm}"
    written = dict(config.arms[arm] or {})
    seeds = seeds_of(f"{place}.seeds", written.pop("seeds", None), config.seeds)
    values = opened(place, written)
    if taken := [key for key in FORBIDDEN if key in values]:
        raise InputError(place, f"keys of what is trained ({taken[0]} is the study's own)", taken[0])
    runs_dir = StudyDir(config.studies_dir / config.name).runs
    for point in grid(place, base, values, len(seeds)):
        setting = Setting(arm, {key: value for key, value in point.items() if values[key] != value})
        for seed in seeds:
            own = {"name": f"{setting.name}_seed{seed}", "runs_dir": str(runs_dir), "seed": seed}
            yield Trained(setting, seed, resolved(place, Config, base, point | own))


def grid(place: str, base: Path, values: Mapping[str, Any], num_seeds: int = 1) -> Iterator[dict[str, Any]]:
    """Yield every combination; a list is one value where the key takes lists, and several where it does not.

    Raises:
        InputError: values that are there twice, or more trainings than anybody means: to resolve them takes hours.
    """
    lists = {key: value for key, value in values.items() if isinstance(value, list)}
    several = {key: value for key, value in lists.items() if not takes(base, key, value)}
    for key, value in several.items():
        if not value or any(value.count(one) > 1 for one in value):
            raise InputError(f"{place}.{key}", "values, each once", shown(value))
    if (many := num_seeds * math.prod(map(len, several.values()))) > MOST_TRAININGS:
        raise InputError(place, f"at most {MOST_TRAININGS:,} trainings of an arm", f"{many:,}")
    for combination in itertools.product(*several.values()):
        yield {**values, **dict(zip(several, combination, strict=True))}


def opened(place: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return {dotted key: value} of what is written with dots, in sections, or both.

    Raises:
        InputError: a key is there in both ways; one of its values would be dropped.
    """
    flat = dotted(values)
    every = [key for part in values for key in dotted({part: values[part]})]
    if twice := next((key for key in flat if every.count(key) > 1), None):
        raise InputError(place, "each key once, with dots or in a section", f"{twice} twice")
    return flat


def takes(base: Path, key: str, value: Any) -> bool:
    """Whether a key takes a value, a list, as it stands."""
    try:
        load_config(Config, base, [word_of(key, value)])
    except InputError:
        return False
    return True


def seeds_of(place: str, value: Any, default: Default) -> tuple[int, ...] | Default:
    if value is None:
        return default
    try:
        return each_once(TypeAdapter(Seeds).validate_python(value))
    except (ValidationError, ValueError) as error:
        said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        said = said.removeprefix("Value error, ").removeprefix("Input should be ")
        raise InputError(place, said, shown(value)) from None


def resolved(place: str, kind: type[AnySection], base: Path | None, values: Mapping[str, Any]) -> AnySection:
    try:
        return load_config(kind, base, [word_of(key, value) for key, value in values.items()])
    except InputError as error:
        error.args = (f"{place}: {error}",)
        raise


def word_of(key: str, value: Any) -> str:
    """Return the override that gives a key a JSON value; text that would be read as another value is in quotes."""
    if not isinstance(value, str):
        return f"{key}={to_json(value)}"
    return f"{key}={value if is_read_as_it_is(value) else quoted(value)}"


def quoted(text: str) -> str:
    return dump(text, default_style='"', width=ONE_LINE).strip()


def is_read_as_it_is(text: str) -> bool:
    try:
        return bool(parse(text, "word") == text) and not is_cut(text, text)
    except InputError:
        return False


def check_names(path: Path, trained: Sequence[Trained]) -> None:
    names = [run.name for run in trained]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{path}: arms", "settings that names tell apart", f"{twice} twice")


def check_arms_differ(path: Path, trained: Sequence[Trained]) -> None:
    """Refuse two settings that would train the same network: their difference is chance alone."""
    seen: dict[str, Trained] = {}
    for run in trained:
        print_of = to_json(learned(run.config))
        if (other := seen.setdefault(print_of, run)) is not run:
            found = f"{run.setting.name} and {other.setting.name}, which train the same"
            raise InputError(f"{path}: arms", "arms that differ in something", found)


def in_turns(trained: Sequence[Trained]) -> tuple[Trained, ...]:
    """Order trainings so that every arm has its first seed before any has its second."""
    rank: dict[str, int] = {}
    order = []
    for run in trained:
        order.append(rank.setdefault(run.setting.name, 0))
        rank[run.setting.name] += 1
    return tuple(run for _, run in sorted(zip(order, trained, strict=True), key=lambda pair: pair[0]))


def learned(config: Config) -> dict[str, Any]:
    """Return the keys that decide what a run learns."""
    aside = {"name", *MAY_CHANGE}
    aside |= {"kap.layout", "kap.norm_first"} if config.kap.pool_size == 1 else set()  # of no average
    return {key: value for key, value in flatten(config).items() if key not in aside}


def named(key: str, asked: str) -> bool:
    return asked in (key, last(key))


def last(key: str) -> str:
    return key.rpartition(".")[2]


def same(value: Any, wanted: Any) -> bool:
    """Whether a value is the one that is written in a claim, where it is text."""
    if isinstance(wanted, str) and not isinstance(value, str):
        if isinstance(value, bool):
            return to_json(value) == wanted
        try:
            return float(wanted) == float(value)
        except (TypeError, ValueError):
            return str(value) == wanted
    return bool(value == wanted)


def slug(value: Any) -> str:
    return re.sub(r"[^\w.+-]+", "-", str(value)).strip("-")
