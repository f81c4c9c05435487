"""Runs -> blocks of rows, one block per attack setting, so that no column mixes two of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from kapdist.config.attack import attack_of_stage, size_name
from kapdist.config.noises import noises
from kapdist.report.reading import Attack, Run
from kapdist.report.strength import NOTHING_TOLD, Strength, strength_of
from kapdist.report.words import attack_text, eps_in_full, eps_text, plural
from kapdist.statistics.intervals import Proportion, wilson

LONGEST_SLUG = 120  # characters; a file system takes 255 bytes, and plots put their own before it


@dataclass(frozen=True)
class Setting:
    """What must be equal for two robust accuracies to stand in one column."""

    norm: str
    eps: float = field(compare=False)
    """Equal where it is to six digits: 0.0313725 is 8/255."""
    version: str
    attacks: tuple[str, ...]
    noise: str
    num_images: int
    gradient_of: str | None = None
    functions: tuple[tuple[str, str | None], ...] = ()
    """Those of the user's, and the sha256 of their files."""
    strength: Strength = field(default_factory=Strength)
    size: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", size_name(self.eps))

    @property
    def eps_text(self) -> str:
        return eps_in_full(self.norm, self.eps)

    @property
    def version_text(self) -> str:
        functions = dict(self.functions)
        names = ", ".join(attack_text(name, functions) for name in self.attacks)
        listed = f" ({names})" if self.version == "custom" else ""
        other = self.gradient_of and attack_text(self.gradient_of, functions)
        return f"AutoAttack {self.version}{listed}{f', the gradient of {other}' if other else ''}"

    def protocol(self, told: Collection[str] = NOTHING_TOLD) -> str:
        """Say the noise and what is unusual about the attack's strength, and the parts of it that are `told`."""
        return ", ".join((f"noise {self.noise}", *self.strength.in_words(told)))

    def in_words(self, told: Collection[str] = NOTHING_TOLD) -> str:
        images = plural(self.num_images, "image")
        return f"{self.version_text}, {self.norm}, eps {self.eps_text}, {images}, {self.protocol(told)}"

    def slug(self, told: Collection[str] = NOTHING_TOLD) -> str:
        """The setting as a part of a file name."""
        eps = eps_text(self.norm, self.eps).replace("/", "_")
        words = "+".join(self.attacks) if self.version == "custom" else self.version
        own = "".join(f"-{(sha256 or name)[:6]}" for name, sha256 in self.functions)
        strength = "".join(f"-{text}" for text in self.strength.in_words(told))
        parts = f"{self.norm}-{eps}-{words}-{self.noise}-{self.num_images}{own}{strength}"
        whole = re.sub(r"[^\w.+@-]", "_", parts)
        if len(whole) <= LONGEST_SLUG:
            return whole
        return f"{whole[:LONGEST_SLUG]}-{hashlib.blake2b(whole.encode(), digest_size=4).hexdigest()}"


@dataclass(frozen=True)
class Row:
    """One model in one block; `attack` is None where the model has not been attacked."""

    name: str
    run: Run
    attack: Attack | None

    @property
    def own(self) -> bool:
        """Whether the attacked model is the one that this run's config describes."""
        return self.run.config is not None and (self.attack is None or self.attack.factory is None)

    @property
    def model(self) -> str:
        if self.attack is not None and self.attack.factory is not None:
            return self.attack.factory
        if self.run.config is None:
            return "from outside"
        return self.run.config.model.in_words()

    @property
    def pool(self) -> str:
        if not self.own or self.run.config is None:
            return "–"
        kap = self.run.config.kap
        size = f"{kap.pool_size}×{kap.pool_size}" if kap.layout == "sheet" else f"{kap.pool_size}"
        order = ", norm first" if kap.norm_first else ""
        where = f" of {', '.join(kap.where)}" if kap.where else ""
        return "1" if kap.pool_size == 1 else f"{size} {kap.layout}{order}{where}"

    @property
    def noise_std(self) -> float | None:
        return self.run.config.kap.noise_std if self.own and self.run.config else None

    @property
    def noises(self) -> dict[str, str]:
        """What the model draws in every pass unless its noise is off; of a factory's model it is not known."""
        return noises(self.run.config.model, self.run.config.kap) if self.own and self.run.config else {}

    @property
    def input_noise_std(self) -> float | None:
        return self.run.config.train.input_noise_std if self.own and self.run.config else None

    @property
    def epochs(self) -> int | None:
        return self.run.config.train.epochs if self.own and self.run.config else None

    @cached_property
    def clean(self) -> Proportion | None:
        """Clean accuracy on the attacked images; without an attack, that of the last evaluation."""
        if self.attack is not None:
            return self.attack.summary.clean_accuracy
        last = self.run.metrics.shown[-1] if self.run.metrics.shown else None
        return None if last is None else share_of(last)

    @property
    def robust(self) -> Proportion | None:
        return self.attack.summary.robust_accuracy if self.attack else None

    @property
    def num_images(self) -> int | None:
        if self.attack is not None:
            return self.attack.summary.num_images
        return int(self.run.metrics.shown[-1]["num_images"]) if self.run.metrics.shown else None

    @property
    def passes(self) -> tuple[int, int] | None:
        """Forward and backward passes of the attack, each of one image."""
        return (self.attack.summary.forwards, self.attack.summary.backwards) if self.attack else None


@dataclass(frozen=True)
class Block:
    """The rows that may be compared with each other; `setting` is None for models without an attack."""

    setting: Setting | None
    rows: tuple[Row, ...]
    told: frozenset[str] = NOTHING_TOLD
    """Parts of the attack's strength in which blocks beside it differ, and in nothing else."""

    @property
    def title(self) -> str:
        return self.setting.in_words(self.told) if self.setting else "Not attacked yet"

    @property
    def slug(self) -> str:
        """The title as a part of a file name."""
        return self.setting.slug(self.told) if self.setting else "idle"


def blocks(runs: Sequence[Run]) -> tuple[Block, ...]:
    """Put the attacked models in one block per setting, and those without an attack in a last one."""
    found: dict[Setting, list[tuple[Run, Attack]]] = {}
    for run in runs:
        for attack in run.attacks:
            found.setdefault(setting(attack), []).append((run, attack))
    idle = tuple(Row(run.label, run, None) for run in runs if not run.attacks)
    attacked = [Block(key, named_rows(pairs), told(key, found)) for key, pairs in found.items()]
    return (*attacked, Block(None, idle)) if idle else tuple(attacked)


def setting(attack: Attack) -> Setting:
    summary = attack.summary
    # A named version fixes its list; a list cut short because nothing was left to break is the same setting.
    # Smaller eps that were tried first change nothing at the largest.
    names = dict.fromkeys(attack_of_stage(stage.name, stage.eps) for stage in summary.attacks)
    return Setting(
        summary.norm,
        summary.eps,
        summary.version,
        tuple(names) if summary.version == "custom" else (),
        summary.noise,
        summary.num_images,
        summary.gradient_of,
        tuple(sorted(summary.functions.items())),
        strength_of(attack.plan | {"eot": summary.eot, "screen": summary.screen}),
    )


def told(where: Setting, among: Iterable[Setting]) -> frozenset[str]:
    """Return what tells a setting from those among others that are like it in all but the attack's strength."""
    alike = [other.strength for other in among if replace(other, strength=where.strength) == where]
    return where.strength.differing(alike)


def named_rows(pairs: Sequence[tuple[Run, Attack]]) -> tuple[Row, ...]:
    """Name rows by their run, and by the attack too where a run has several of one setting."""
    labels = [run.label for run, _ in pairs]
    return tuple(
        Row(run.label if labels.count(run.label) == 1 else f"{run.label} ({attack.name})", run, attack)
        for run, attack in pairs
    )


def share_of(evaluation: dict[str, Any]) -> Proportion:
    """Return the clean accuracy that a line of metrics tells, with its interval over images."""
    num_images = int(evaluation["num_images"])
    return wilson(round(evaluation["top1"] * num_images), num_images)
