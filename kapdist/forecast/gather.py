"""`kapdist forecast`: gathers what a forecast needs: config, model, images, measured costs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kapdist.attack.choice import num_available
from kapdist.config import AttackConfig, Config
from kapdist.config.file import load_config, merged, read_layers
from kapdist.config.images import ImagesConfig
from kapdist.errors import InputError
from kapdist.forecast.training import Forecast, Machine, Rate, above_zero, at_least, forecast
from kapdist.plan.adversarial import plan_adversarial
from kapdist.records.metrics import parse_line
from kapdist.run.paths import RunDir, as_ended

if TYPE_CHECKING:
    from kapdist.forecast.attack import AttackForecast

# What an attack's config has none of.
TRAINING_SECTIONS = {"train", "optim", "kap", "engine", "adversarial", "robust"}


@dataclass(frozen=True)
class Question:
    """What a user asks; None where an option was not given."""

    config: Path
    overrides: Sequence[str] = ()
    nodes: int | None = None
    gpus_per_node: int | None = None
    num_images: int | None = None
    run: Path | None = None
    images_per_second_per_rank: float | None = None
    shards: int | None = None
    passes_per_second: float | None = None

    def refuse(self, kind: str, *options: str) -> None:
        for option in options:
            if getattr(self, option) is not None:
                name = f"--{option.replace('_', '-')}"
                raise InputError(name, f"{self.config} to be the config of {kind}", "another")


def answer(question: Question) -> Forecast | AttackForecast:
    """Forecast a training run or an attack, whichever the config describes.

    Raises:
        InputError: a number out of bounds, an option of the other kind, an unknown number of images or classes,
            a plan that is impossible.
    """
    at_least("--num-images", 1, question.num_images)
    if describes_study(question.config):
        found = "a study (kapdist study plan says what it comes to)"
        raise InputError(question.config, "the config of a training or of an attack", found)
    if describes_training(question.config):
        question.refuse("an attack", "shards", "passes_per_second")
        return answer_training(question)
    question.refuse("a training run", "images_per_second_per_rank")
    return answer_attack(question)


def describes_study(path: Path) -> bool:
    """Tell a study's file from a config by what no config has."""
    return "arms" in merged(read_layers(path))


def describes_training(path: Path) -> bool:
    """Tell by the keys: a training config has sections of its own, and in `data` keys that no attack has."""
    values = merged(read_layers(path))
    data = values.get("data")
    own = set(data) - set(ImagesConfig.model_fields) if isinstance(data, Mapping) else set()
    return bool(own or TRAINING_SECTIONS & set(values))


def answer_training(question: Question) -> Forecast:
    above_zero("--images-per-second-per-rank", question.images_per_second_per_rank)
    machine = Machine(given(question.nodes, 1), given(question.gpus_per_node, 1))
    config = load_config(Config, question.config, question.overrides)
    num_images = images_in(config.data.train, question.num_images)
    if num_images is None:
        expected = "a beton (kapdist data write), or --num-images M to plan without one"
        raise InputError(config.data.train, expected, "no file")
    if question.images_per_second_per_rank:
        rate: Rate | None = Rate(question.images_per_second_per_rank, "--images-per-second-per-rank")
    else:
        rate = measured_rate(question.run, config)
    from kapdist.forecast.footprint import footprint

    return forecast(config, num_images, machine, footprint(config), rate)


def answer_attack(question: Question) -> AttackForecast:
    from kapdist.forecast.attack import forecast_attack, measure

    above_zero("--passes-per-second", question.passes_per_second)
    config = load_config(AttackConfig, question.config, question.overrides)
    num_shards = given(question.shards, config.num_shards)
    at_least("--shards", 1, num_shards)
    run_config = config_of(question.run, config)
    num_images, num_classes = attacked(question, config, run_config)
    found = forecast_attack(
        config,
        num_images,
        num_classes,
        num_shards,
        gpus(question, num_shards),
        question.passes_per_second,
        measure(question.run, config.name) if question.run else None,
    )
    return replace(found, notes=(*found.notes, *notes_on_members(config, run_config)))


def notes_on_members(config: AttackConfig, run_config: Config | None) -> list[str]:
    """Say what a pass of an ensemble is: passes and their rate are those of the whole model."""
    if run_config is None or config.model.factory is not None or run_config.model.members == 1:
        return []
    members = run_config.model.members
    if run_config.model.random_member and config.noise != "off":
        return [f"a pass is one of a single member, drawn of {members} for each image"]
    return [f"a pass is one of each of the model's {members} members"]


def gpus(question: Question, num_shards: int) -> int:
    """Return how many shards run together; all of them where nobody says what machine there is."""
    if question.nodes is None and question.gpus_per_node is None:
        return num_shards
    return Machine(given(question.nodes, 1), given(question.gpus_per_node, 1)).ranks


def config_of(run: Path | None, config: AttackConfig) -> Config | None:
    """Return the config of the run that is attacked; with a factory it need not be one."""
    if run is None or (config.model.factory is not None and not RunDir(run).config.exists()):
        return None
    return RunDir(run).load_config()


def attacked(question: Question, config: AttackConfig, run_config: Config | None) -> tuple[int, int]:
    """Return the number of images under attack and of the model's classes."""
    path = config.data.beton or (run_config.data.validation if run_config else None)
    available = num_available(config, images_in(path, question.num_images))
    num_classes = config.num_classes or (run_config.model.num_classes if run_config else None)
    if num_classes is None:
        raise InputError("num_classes", "the model's classes (num_classes=N, or --run RUN)", "neither")
    num_images = config.num_asked(available)
    if available is not None and num_images is not None and num_images > available:
        raise InputError("num_images", f"at most the {available} images there are", str(num_images))
    if num_images is None:
        raise InputError(path or "num_images", "a beton, or --num-images M, as num_images=0 takes all", "neither")
    return num_images, num_classes


def images_in(beton: Path | None, num_images: int | None) -> int | None:
    """Return how many images there are: as many as the user says, else the beton's; None without either."""
    if num_images is not None or beton is None or not beton.exists():
        return num_images
    from kapdist.data.beton.layout import open_beton

    return open_beton(beton).num_images


def measured_rate(named: Path | None, config: Config) -> Rate | None:
    """Return the median rate that a run's metrics tell, per rank of its plan; None where there are none.

    Args:
        named: the run that the user names, else it is the config's own.
    """
    run = RunDir(named or config.runs_dir / config.name)
    if named is not None:
        run.load_config()  # a mistyped name is not a run without metrics
    if not (run.metrics.exists() and run.plan.exists()):
        return None
    try:
        ranks = int(json.loads(as_ended(run.plan).read_text())["world_size"])
        lines = filter(None, map(parse_line, as_ended(run.metrics).read_text().splitlines()))
        rates = [line["images_per_second"] for line in lines if line["kind"] == "train"]
    except InputError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(run.root, "a run with a plan and metrics, to measure by", repr(error)) from None
    if not rates:
        return None
    source = f"{run.metrics} (median of {len(rates)} lines, {ranks} ranks)"
    theirs, ours = passes(run.load_config()), passes(config)
    if theirs != ours:
        source += f", x {theirs}/{ours} for {ours} passes per image in place of {theirs}"
    return Rate(statistics.median(rates) / ranks * theirs / ours, source)


def passes(config: Config) -> int:
    """Return how often a step of the training takes an image through the model."""
    adversarial = plan_adversarial(config.adversarial, config.train.epochs, 1)
    return adversarial.passes_per_image if adversarial else 1


def given(value: int | None, default: int) -> int:
    return default if value is None else value
