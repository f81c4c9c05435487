"""From a study's file to its runs and attacks, every config resolved; pure, so that it can be looked at before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from kapdist.config import AttackConfig, flatten
from kapdist.config.certify import CertifyConfig
from kapdist.config.claims import ClaimConfig
from kapdist.config.fields import one_word
from kapdist.config.file import beside, load_config, merged, read_layers
from kapdist.config.following import dotted
from kapdist.config.study import FORBIDDEN, StudyConfig
from kapdist.errors import InputError, shown
from kapdist.run.files import fingerprint
from kapdist.run.paths import StudyDir
from kapdist.study.settings import (
    Setting,
    Trained,
    check_arms_differ,
    check_names,
    in_turns,
    learned,
    named,
    opened,
    resolved,
    same,
    seeds_of,
    trainings,
)

OTHERS: dict[str, type[Any]] = {"certificate": CertifyConfig, "corruptions": AttackConfig}
WHEREVER = {"device", "num_shards", "timeout_minutes"}  # of an attack: where and how fast

Planned = TypeVar("Planned", AttackConfig, CertifyConfig)


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
    sanity: Mapping[str, Asked[AttackConfig]]
    """Of which models an attack is examined; those that it is made on, or fewer."""

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
            "sanity": list(self.sanity),
            "examined": {name: fewer for name in self.sanity if (fewer := self.examined_of(name))},
            "topography": self.config.topography and self.config.topography.model_dump(mode="json"),
        }
        return {
            "runs": {run.name: learned(run.config) for run in self.trained},
            "attacks": {name: found.config.model_dump(mode="json", exclude=WHEREVER) for name, found in asked},
            "arms": {name: list(found.arms) for name, found in asked},
            "claims": [claim.text for claim in self.config.claims],
            **{key: value for key, value in where_asked.items() if value},
        }

    def examined_of(self, attack: str) -> dict[str, list[Any]]:
        """Return the arms and seeds that an attack is examined on, where they are fewer than its own."""
        own, found = self.attacks[attack], self.sanity[attack]
        arms = {"arms": list(found.arms)} if set(found.arms) < set(own.arms) else {}
        return arms | ({"seeds": list(found.seeds)} if found.seeds and found.seeds != own.seeds else {})

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
        sanity={name: examined(path, config, name, attacks) for name in config.sanity},
    )
    check_seeds(path, design)
    for claim in config.claims:
        check_claim(path, design, claim)
    return design


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
    arms, seeds = of_which(place, config, values)
    own = {"name": name, "threads": values.get("threads", 1)}  # part of a plan, which no machine decides
    return Asked(resolved(place, kind, None, opened(place, values) | own), arms, seeds)


def of_which(
    place: str, config: StudyConfig, values: dict[str, Any]
) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """Take the arms and the seeds, None for all, out of what is written."""
    arms = one_word(values.pop("arms", list(config.arms)))
    if not isinstance(arms, list | tuple) or not arms:
        raise InputError(f"{place}.arms", "an arm of the study, or a list of them", shown(arms))
    for arm in arms:
        check_known(f"{place}.arms", "arms", arm, config.arms)
    return tuple(arms), seeds_of(f"{place}.seeds", values.pop("seeds", None), None)


def examined(
    path: Path, config: StudyConfig, name: str, attacks: Mapping[str, PlannedAttack]
) -> Asked[AttackConfig]:
    """Read of which models an attack is examined, of those that it is made on."""
    check_known(f"{path}: sanity", "attacks", name, attacks)
    place, own, values = f"{path}: sanity.{name}", attacks[name], dict(config.sanity[name] or {})
    arms, seeds = of_which(place, config, {"arms": list(own.arms)} | values)
    if further := values.keys() - {"arms", "seeds"}:
        raise InputError(place, "arms and seeds (how it is examined: the attack's own key sanity)", min(further))
    for arm in arms:
        check_attacked(place, own, arm)
    return Asked(own.config, arms, seeds or own.seeds)


def check_seeds(path: Path, design: Design) -> None:
    """Refuse a seed that something is asked of, and that none of its arms has."""
    asked: dict[str, Asked[Any]] = {f"attacks.{name}": found for name, found in design.attacks.items()}
    for name, found in (asked | dict(design.others)).items():
        check_known_seeds(f"{path}: {name}.seeds", found, design.trained)
    for name, found in design.sanity.items():
        made_on = [run for run in design.trained if design.attacks[name].of(run)]
        check_known_seeds(f"{path}: sanity.{name}.seeds", found, made_on)


def check_known_seeds(place: str, asked: Asked[Any], runs: Sequence[Trained]) -> None:
    known = dict.fromkeys(run.seed for run in runs if run.setting.arm in asked.arms)
    for seed in asked.seeds or ():
        check_known(place, "seeds", seed, known)


def check_attacked(place: str, attack: PlannedAttack, arm: str) -> None:
    if arm not in attack.arms:
        raise InputError(place, f"arms that {attack.config.name} attacks ({', '.join(attack.arms)})", arm)


def check_claim(path: Path, design: Design, claim: ClaimConfig) -> None:
    """Refuse a claim that this study could not decide, whatever came out."""
    place = f"{path}: claims ({claim.text})"
    check_known(place, "attacks", design.attack_of(claim), design.attacks)
    attack = design.attacks[design.attack_of(claim)]
    for arm in (claim.first, claim.over):
        check_known(place, "arms", arm, design.config.arms)
        check_attacked(place, attack, arm)
        check_point(place, design, claim, arm)
    check_where(place, design, claim)
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


def check_where(place: str, design: Design, claim: ClaimConfig) -> None:
    """Refuse a `where` that is true of neither setting that is meant.

    An arm with one setting is meant as it is, whatever is asked: the verdict would be about what it does not say.
    Nor is it about one seed, name or folder of a setting's trainings.
    """
    if not claim.where:
        return
    arms = (claim.first, claim.over)
    values: list[tuple[str, Any]] = []
    for setting in (meant(design, claim, arm) for arm in arms):
        trained = dotted(flatten(design.of_setting(setting)[0].config))
        values += [*setting.point.items(), *(pair for pair in trained.items() if pair[0] not in FORBIDDEN)]
    for asked, wanted in claim.where.items():
        found = dict.fromkeys(f"{key}={shown(value)}" for key, value in values if named(key, asked))
        if not any(named(key, asked) and same(value, wanted) for key, value in values):
            expected = f"a `where` that is true of a setting of {' or '.join(arms)}"
            said = " and ".join(found) or "no such key"
            raise InputError(place, expected, f"{asked}={wanted}, and {said} in these")


def meant(design: Design, claim: ClaimConfig, arm: str) -> Setting:
    """Return the setting of an arm that a claim is about."""
    (setting,) = (point for point in design.of_arm(arm) if not point.point or point.matches(claim.where))
    return setting
