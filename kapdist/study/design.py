"""From a study's file to its runs and attacks, every config resolved; pure, so that it can be looked at before."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from kapdist.config import MAY_CHANGE, AnySection, AttackConfig, Config, flatten
from kapdist.config.certify import CertifyConfig
from kapdist.config.claims import ClaimConfig
from kapdist.config.file import beside, load_config, merged, read_layers
from kapdist.config.following import dotted
from kapdist.config.study import FORBIDDEN, Seeds, StudyConfig, each_once
from kapdist.errors import InputError, shown
from kapdist.run.files import fingerprint, to_json
from kapdist.run.paths import StudyDir

OTHERS: dict[str, type[Any]] = {"certificate": CertifyConfig, "corruptions": AttackConfig}
WHEREVER = {"device", "num_shards", "timeout_minutes"}  # of an attack: where and how fast


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


Planned = TypeVar("Planned", AttackConfig, CertifyConfig)
Default = TypeVar("Default", tuple[int, ...], None)


@dataclass(frozen=True)
class Asked(Generic[Planned]):
    """What is asked of trained models, and of which."""

    config: Planned
    arms: tuple[str, ...]
    seeds: tuple[int, ...] | None = None
    """None: all that an arm has."""

    def of(self, run: Trained) -> bool:
        return run.setting.arm in self.arms and (self.seeds is None or run.seed in self.seeds)


@dataclass(frozen=True)
class PlannedAttack(Asked[AttackConfig]):
    """An attack of a study."""

    @property
    def eps(self) -> tuple[float, ...]:
        return self.config.eps if isinstance(self.config.eps, tuple) else (self.config.eps,)


@dataclass(frozen=True)
class Design:
    """All that a study consists of."""

    config: StudyConfig
    base: Mapping[str, Any]
    """What the config says that every arm starts from, its own bases included."""
    trained: tuple[Trained, ...]
    attacks: Mapping[str, PlannedAttack]
    others: Mapping[str, Asked[Any]]
    """What is asked of trained models beside attacks, by its kind, a key of OTHERS."""

    @property
    def dir(self) -> StudyDir:
        return StudyDir(self.root)

    @property
    def root(self) -> Path:
        return self.config.studies_dir / self.config.name

    @cached_property
    def settings(self) -> tuple[Setting, ...]:
        """In the order of the file."""
        return tuple({run.setting.name: run.setting for run in self.trained}.values())

    def of_arm(self, arm: str) -> tuple[Setting, ...]:
        return tuple(setting for setting in self.settings if setting.arm == arm)

    def of_setting(self, setting: Setting) -> tuple[Trained, ...]:
        """The trainings of a setting, by seed."""
        return tuple(run for run in self.trained if run.setting.name == setting.name)

    @property
    def asked(self) -> dict[str, Asked[Any]]:
        """Attacks by their names, and "the certificate" and its kind."""
        return {**self.attacks, **{f"the {name}": found for name, found in self.others.items()}}

    def attacked(self, setting: Setting, attack: str) -> tuple[Trained, ...]:
        """The trainings of a setting that an attack is made on, by seed."""
        return tuple(run for run in self.of_setting(setting) if self.attacks[attack].of(run))

    def attack_of(self, claim: ClaimConfig) -> str:
        return claim.attack or next(iter(self.attacks))

    def described(self) -> dict[str, Any]:
        """Return what decides a number or a word of this study, as JSON values."""
        asked = self.asked.items()
        several = len(self.attacks) > 1
        where_asked = {
            "under": {claim.text: self.attack_of(claim) for claim in self.config.claims if several},
            "seeds": {name: list(found.seeds) for name, found in asked if found.seeds is not None},
            "sanity": list(self.config.sanity),
            "topography": self.config.topography and self.config.topography.model_dump(mode="json"),
        }
        return {
            "runs": {run.name: learned(run.config) for run in self.trained},
            "attacks": {name: found.config.model_dump(mode="json", exclude=WHEREVER) for name, found in asked},
            "arms": {name: list(found.arms) for name, found in asked},
            "claims": [claim.text for claim in self.config.claims],
            **{key: value for key, value in where_asked.items() if value},
        }

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.described())


def make_design(path: Path, overrides: Sequence[str] = ()) -> Design:
    """Read a study's file and resolve every config in it.

    Raises:
        InputError: names the arm, the attack or the claim that is wrong.
    """
    config = load_config(StudyConfig, path, overrides)
    base = beside(path, config.train)
    trained = tuple(run for arm in config.arms for run in trainings(path, base, config, arm))
    check_names(path, trained)
    check_arms_differ(path, trained)
    attacks = {name: planned_attack(path, config, name) for name in config.attacks}
    for name in config.sanity:
        check_known(f"{path}: sanity", "attacks", name, config.attacks)
    written = {name: getattr(config, name) for name in OTHERS}
    design = Design(
        config=config,
        base=merged(read_layers(base)),
        trained=in_turns(trained),
        attacks=attacks,
        others={
            name: asked_of(path, config, name, written[name], kind, name)
            for name, kind in OTHERS.items()
            if written[name] is not None
        },
    )
    check_seeds(path, design)
    for claim in config.claims:
        check_claim(path, design, claim)
    return design


def trainings(path: Path, base: Path, config: StudyConfig, arm: str) -> Iterator[Trained]:
    """Yield the trainings of an arm: every point of its grid, with every seed."""
    place = f"{path}: arms.{arm}"
    values = dotted(config.arms[arm] or {})
    seeds = seeds_of(f"{place}.seeds", values.pop("seeds", None), config.seeds)
    if taken := [key for key in FORBIDDEN if key in values]:
        raise InputError(place, f"keys of what is trained ({taken[0]} is the study's own)", taken[0])
    runs_dir = StudyDir(config.studies_dir / config.name).runs
    for point in grid(place, base, values):
        setting = Setting(arm, {key: value for key, value in point.items() if values[key] != value})
        for seed in seeds:
            own = {"name": f"{setting.name}_seed{seed}", "runs_dir": str(runs_dir), "seed": seed}
            yield Trained(setting, seed, resolved(place, Config, base, point | own))


def grid(place: str, base: Path, values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every combination; a list is one value where the key takes lists, and several where it does not."""
    lists = {key: value for key, value in values.items() if isinstance(value, list)}
    several = {key: value for key, value in lists.items() if not takes(base, key, value)}
    for key, value in several.items():
        if not value or any(value.count(one) > 1 for one in value):
            raise InputError(f"{place}.{key}", "values, each once", shown(value))
    for combination in itertools.product(*several.values()):
        yield {**values, **dict(zip(several, combination, strict=True))}


def takes(base: Path, key: str, value: Any) -> bool:
    """Whether a key takes a value, a list, as it stands."""
    try:
        load_config(Config, base, [word(key, value)])
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
        return load_config(kind, base, [word(key, value) for key, value in values.items()])
    except InputError as error:
        error.args = (f"{place}: {error}",)
        raise


def word(key: str, value: Any) -> str:
    return f"{key}={value if isinstance(value, str) else to_json(value)}"


def planned_attack(path: Path, config: StudyConfig, name: str) -> PlannedAttack:
    found = asked_of(path, config, f"attacks.{name}", config.attacks[name], AttackConfig, name)
    if found.config.num_images == 1:
        raise InputError(f"{path}: attacks.{name}.num_images", "two images or more, or 0 for all", "1")
    return PlannedAttack(found.config, found.arms, found.seeds)


def asked_of(
    path: Path, config: StudyConfig, key: str, written: Mapping[str, Any] | None, kind: type[Planned], name: str
) -> Asked[Planned]:
    """Resolve what is written under a key of the study."""
    place, values = f"{path}: {key}", dict(written or {})
    arms = values.pop("arms", list(config.arms))
    for arm in arms:
        check_known(f"{place}.arms", "arms", arm, config.arms)
    seeds = seeds_of(f"{place}.seeds", values.pop("seeds", None), None)
    own = {"name": name, "threads": values.get("threads", 1)}  # part of a plan, which no machine decides
    return Asked(resolved(place, kind, None, dotted(values) | own), tuple(arms), seeds)


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


def check_seeds(path: Path, design: Design) -> None:
    """Refuse a seed that something is asked of, and that none of its arms has."""
    asked: dict[str, Asked[Any]] = {f"attacks.{name}": found for name, found in design.attacks.items()}
    for name, found in (asked | dict(design.others)).items():
        known = dict.fromkeys(run.seed for run in design.trained if run.setting.arm in found.arms)
        for seed in found.seeds or ():
            check_known(f"{path}: {name}.seeds", "seeds", seed, known)


def check_claim(path: Path, design: Design, claim: ClaimConfig) -> None:
    """Refuse a claim that this study could not decide, whatever came out."""
    place = f"{path}: claims ({claim.text})"
    check_known(place, "attacks", design.attack_of(claim), design.attacks)
    attack = design.attacks[design.attack_of(claim)]
    for arm in (claim.first, claim.over):
        check_known(place, "arms", arm, design.config.arms)
        if arm not in attack.arms:
            raise InputError(place, f"arms that {attack.config.name} attacks ({', '.join(attack.arms)})", arm)
        check_point(place, design, claim, arm)
    if claim.eps is not None and not any(abs(claim.eps - eps) < 1e-9 for eps in attack.eps):
        known = ", ".join(map(in_words, attack.eps))
        raise InputError(place, f"an eps of the attack {attack.config.name} ({known})", in_words(claim.eps))


def in_words(eps: float) -> str:
    """Say a size as a claim may have it: in steps of an 8-bit image, where it is some."""
    steps = round(255 * eps, 6)
    return f"{steps:g}/255" if steps == round(steps) else f"{eps:.6g}"


def check_size(path: Path, design: Design, yes: bool) -> None:
    """Refuse a grid that has exploded, unless it is meant."""
    most, hours = design.config.most_runs, design.config.hours_per_run
    if len(design.trained) > most and not yes:
        takes = f", about {len(design.trained) * hours:g} hours" if hours else ""
        raise InputError(path, f"at most {most} trainings (most_runs), or --yes", f"{len(design.trained)}{takes}")


def check_known(place: str, what: str, name: str | int, known: Iterable[str | int]) -> None:
    if name not in known:
        raise InputError(place, f"{what} of the study ({', '.join(map(str, known))})", shown(name))


def check_point(place: str, design: Design, claim: ClaimConfig, arm: str) -> None:
    points = design.of_arm(arm)
    if claim.equal_clean:
        if len(points) < 2 or len(keys := points[0].point) > 1:
            found = "one setting of it" if len(points) < 2 else f"a grid over {' and '.join(keys)}"
            raise InputError(place, f"of {arm} a grid over one key, which makes a frontier", found)
        return
    if len(fitting := [point for point in points if not point.point or point.matches(claim.where)]) != 1:
        asked = "a `where` that means one of its settings, or at equal clean accuracy"
        names = ", ".join(point.name for point in points)
        raise InputError(place, asked, f"{len(fitting) or 'none'} of {arm}'s ({names})")


def meant(design: Design, claim: ClaimConfig, arm: str) -> Setting:
    """Return the setting of an arm that a claim is about."""
    (setting,) = (point for point in design.of_arm(arm) if not point.point or point.matches(claim.where))
    return setting


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
