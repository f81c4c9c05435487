"""A key that nobody wrote refuses no key that somebody did: its default follows."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import annotated_types as bounds
import pytest
from pydantic.fields import FieldInfo

from kapdist.config import AttackConfig, Config, Section, check_limits, dotted_keys
from kapdist.config.attack import AttackedModelConfig
from kapdist.config.certify import CertifyConfig
from kapdist.config.evaluation import EvaluationConfig
from kapdist.config.fields import kinds_in
from kapdist.config.file import dump_config, load_config
from kapdist.errors import InputError
from kapdist.plan.training import Room, make_plan
from kapdist.run.files import write_json
from kapdist.run.paths import RunDir

NUM_IMAGES = 50_000
DATA = ["data.train=a.beton", "data.validation=b.beton"]
LARGE = 1000  # where nothing bounds a number

# Values whose own rule is none of a bound, or that are bounded by the images, a norm, or that one has no variance.
OF_KEYS = {
    "name": ["other"],
    "kap.pool_size": [1, 999],
    "adversarial.eps": [1e-6, 1],
    "data.min_resolution": [32, 2048],
    "data.max_resolution": [32, 2048],
    "model.mean": ["[0, 0, 0]"],
    "model.arguments": ["{}", "{a: 1}"],
    "optim.betas": ["[0, 0.999999]"],
    "optim.milestones": ["[]", "[1e-6]", "[1, 1000]"],
    "model.std": ["[1, 1, 1]"],
    "train.batch_size": [2, NUM_IMAGES],
    "train.profile_steps": ["[1]", "[]"],
    "train.accumulation_steps": [1, NUM_IMAGES // 2],
    "engine.timeout_minutes": [1e-6, 10, 10.1, 1000],
    "train.stall_minutes": [1e-6, 14.9, 15, 1000],
    "eps": ["1/255", "[0.1, 0.2]", 1],
    "attacks": ["[apgd-ce]", "[square, fab]", "[a.py:f]"],
    "transfer_from": ["x"],
    "sanity.surrogate": ["x", "m:f", "[x, y]", "{factory: m:f, weights: w}"],
    "images": ["first", "list:x", "robustbench", "robustbench:x"],
    "sigma": ["1/4", "[0.1, 0.2]", 1000],
    "corruptions.kinds": ["[frost]"],
    "corruptions.severities": ["[5]"],
    "corruptions.noise_stds": ["[0.5]", "[]"],
}
# What cannot follow, since only the user can name it: attacks, a run, a network, weights, how many members.
TO_NAME = {
    ("version", "custom"),
    ("attacks", "[transfer]"),
    ("transfer_from", "x"),
    ("model.arguments", "{a: 1}"),
    ("model.weights", "x"),
    ("num_classes", 2),
    ("num_classes", 1000),
    ("model.new_head", "true"),
    ("model.members_mean", "probabilities"),
    ("model.random_member", "true"),
}


def values_of(key: str, field: FieldInfo) -> list[Any]:
    """Return the extreme values that a key may have."""
    if key in OF_KEYS:
        return OF_KEYS[key]
    kinds = kinds_in(field.annotation)
    if words := [word for kind in kinds for word in get_args(kind) if isinstance(word, str)]:
        return words
    if bool in kinds:
        return ["true", "false"]
    if kinds & {Path, str}:
        return ["x"]
    assert kinds & {int, float}, key
    parts = [*field.metadata, *(part for kind in kinds for part in getattr(kind, "__metadata__", ()))]
    rules = [rule for part in parts for rule in (part, *getattr(part, "metadata", ()))]
    low = {type(rule): getattr(rule, type(rule).__name__.lower(), None) for rule in rules}
    step = 1 if float not in kinds else 1e-6
    least = low.get(bounds.Ge, 0) if bounds.Gt not in low else low[bounds.Gt] + step
    most = low.get(bounds.Le, LARGE) if bounds.Lt not in low else low[bounds.Lt] - step
    return [least, most]


def cases(model: type[Section]) -> list[tuple[str, Any]]:
    found = []
    for key in dotted_keys(model):
        owner: Any = model
        *path, last = key.split(".")
        for part in path:
            owner = owner.model_fields[part].annotation
        field = owner.model_fields[last]
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, Section)) and key not in (
            "data.train",
            "data.validation",
        ):
            found += [(key, value) for value in values_of(key, field)]
    return [case for case in found if case not in TO_NAME]


def planned(config: Config) -> None:
    check_limits(config)
    make_plan(config, NUM_IMAGES, 1)


@pytest.mark.parametrize("model", [Config, AttackConfig, EvaluationConfig, CertifyConfig])
def test_no_key_is_refused_for_one_that_is_not_written(model: type[Section]) -> None:
    found = cases(model)
    assert len(found) > 20
    for key, value in found:
        words = [f"{key}={value}", *(DATA if model is Config else ())]
        words += ["name=x"] if key != "name" else []
        config = load_config(model, None, words)
        if isinstance(config, Config):
            planned(config)


@pytest.mark.parametrize(
    ("words", "key", "followed"),
    [
        ("train.epochs=1", "optim.warmup_epochs", 0.5),
        ("optim.warmup_epochs=20.5", "train.epochs", 21),
        ("data.min_resolution=64 data.end_ramp=40", "train.epochs", 40),
        ("data.end_ramp=40", "train.epochs", 16),  # without a ramp it means nothing
        ("adversarial.mode=pgd adversarial.eps_warmup_epochs=30", "train.epochs", 30),
        ("adversarial.mode=off adversarial.eps_warmup_epochs=30", "train.epochs", 16),
        ("optim.milestones=[30,60.5]", "optim.schedule", "steps"),
        ("optim.milestones=[30,60.5]", "train.epochs", 61),
        ("optim.milestones=[30,60]", "train.epochs", 61),
        ("optim.milestones=[]", "optim.schedule", "linear"),
        ("optim.schedule=steps", "train.epochs", 16),
        ("optim.name=adamw", "optim.lr", 1e-3),
        ("optim.name=adamw", "optim.weight_decay", 1e-2),
        ("optim.name=adamw optim.lr=0.5", "optim.lr", 0.5),
        ("optim.name=sgd", "optim.lr", 0.5),
        ("adversarial.mode=pgd adversarial.awp_warmup_epochs=30", "train.epochs", 30),
        ("adversarial.mode=fast adversarial.start_magnitude=3", "adversarial.start", "n-fgsm"),
        ("adversarial.mode=fast", "adversarial.start", None),
        ("train.best=robust train.evaluate_every_epochs=3", "robust.every_epochs", 3),
        ("train.best=robust", "robust.every_epochs", 1),
        ("train.best=clean", "robust.every_epochs", 0),
        ("robust.draws=4", "robust.noise", "fresh"),
        ("data.min_resolution=64", "data.max_resolution", 64),
        ("data.min_resolution=64 data.resolution=200", "data.max_resolution", 192),
        ("data.max_resolution=256 data.resolution=224", "data.min_resolution", 224),
        ("data.max_resolution=64 data.resolution=224", "data.min_resolution", 64),
        ("data.min_resolution=64 data.start_ramp=5", "data.end_ramp", 5),
        ("data.max_resolution=64", "data.crop", "random-resized"),
        ("data.cache=process", "data.order", "quasi-random"),
        ("data.cache=auto", "data.order", "random"),
        ("engine.zero_stage=1", "engine.name", "deepspeed"),
        ("engine.zero_stage=0", "engine.name", "ddp"),
        ("train.checkpoint_every_minutes=0", "train.checkpoint_every_steps", 1000),
        ("train.checkpoint_every_minutes=1", "train.checkpoint_every_steps", 0),
        ("train.stall_minutes=20", "engine.timeout_minutes", 30),
        ("train.stall_minutes=14", "engine.timeout_minutes", 15),
        ("engine.timeout_minutes=3", "train.stall_minutes", 2),
        ("engine.timeout_minutes=20", "train.stall_minutes", 10),
    ],
)
def test_what_follows_in_a_training(words: str, key: str, followed: object) -> None:
    config = load_config(Config, None, [*DATA, "name=x", *words.split()])
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    assert value == followed
    planned(config)


@pytest.mark.parametrize(
    ("words", "key", "followed"),
    [
        ("attacks=[square]", "version", "custom"),
        ("eot=5", "noise", "fresh"),
        ("eot=1", "noise", "off"),
        ("version=eot-standard", "noise", "fresh"),
        ("version=rand", "noise", "off"),
        ("norm=Linf", "eps", 4 / 255),
        ("norm=L2", "eps", 0.5),
        ("norm=L1", "eps", 12),
        ("norm=L2 eps=8/255", "eps", 8 / 255),
        ("norm=L2 eps=null", "eps", 0.5),
    ],
)
def test_what_follows_in_an_attack(words: str, key: str, followed: object) -> None:
    assert getattr(load_config(AttackConfig, None, ["name=x", *words.split()]), key) == followed


def test_draws_of_an_evaluation_are_of_fresh_noise() -> None:
    assert load_config(EvaluationConfig, None, ["draws=2"]).noise == "fresh"
    assert load_config(EvaluationConfig, None, ["draws=1"]).noise == "off"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("train.epochs=1 optim.warmup_epochs=2", "optim.warmup_epochs: expected at most train.epochs = 1"),
        ("data.min_resolution=64 data.end_ramp=40 train.epochs=16", "data.end_ramp: expected at most train.epochs"),
        (
            "optim.milestones=[8,16] train.epochs=16",
            "optim.milestones: expected epochs below train.epochs = 16, found 16",
        ),
        ("optim.milestones=[8] optim.schedule=cosine", "milestones with schedule steps only"),
        ("optim.milestones=[8,4]", "milestones that ascend, each once"),
        ("optim.milestones=[8,8]", "milestones that ascend, each once"),
        ("data.min_resolution=64 data.crop=none", "min_resolution with crop random-resized only"),
        ("data.cache=process data.order=random", "cache process with order quasi-random only"),
        ("engine.zero_stage=1 engine.name=ddp", "zero_stage above 0 with name deepspeed only"),
        ("train.checkpoint_every_minutes=0 train.checkpoint_every_steps=0", "above 0"),
        ("train.stall_minutes=20 engine.timeout_minutes=15", "less than engine.timeout_minutes = 15"),
        ("train.batch_size=1024 train.accumulation_steps=2000", "train.batch_size: expected at least 2000"),
        ("train.accumulation_steps=60000", "data.train: expected at least 60000 images, for 1 ranks x 60000"),
    ],
)
def test_two_that_are_written_are_not_taken_for_one_another(words: str, line: str) -> None:
    with pytest.raises(InputError) as error:
        planned(load_config(Config, None, [*DATA, "name=x", *words.split()]))
    assert line in str(error.value)


def test_a_config_written_down_whole_has_nothing_that_follows(tmp_path: Path) -> None:
    words = ["data.max_resolution=64", "engine.zero_stage=1", "train.stall_minutes=30", "optim.milestones=[17]"]
    config = load_config(Config, None, [*DATA, "name=x", *words])
    (tmp_path / "x.yaml").write_text(dump_config(config))
    assert load_config(Config, tmp_path / "x.yaml") == config


def test_defaults_follow_in_python_too_beside_sections_that_were_made() -> None:
    """Else an attack of a factory's model in L2 has 4/255, which breaks nothing."""
    model = AttackedModelConfig(factory="zoo.py:net", weights=Path("net.pt"))
    attack = AttackConfig(name="l2", norm="L2", model=model)
    assert attack.eps == 0.5
    assert attack.model == model
    assert AttackConfig(name="l2", norm="L2", eps=4 / 255, model=model).eps == 4 / 255
    words = ["data.max_resolution=64", "optim.milestones=[17]"]
    config = load_config(Config, None, [*DATA, "name=x", *words])
    parts = {key: getattr(config, key) for key in Config.model_fields}
    assert Config(**parts) == config
    assert Config(name="x", data=config.data, optim=config.optim) == config


@pytest.mark.parametrize(
    ("num_images", "ranks", "accumulation", "batch_size"),
    [
        (50_000, 1, 1, 1024),
        (50_000, 512, 1, 1042),  # 48 batches: in 49 some rank would have one image
        (50_000, 1, 1000, 2000),
        (50_000, 4, 500, 4167),  # 12 batches, two images for each of 2,000 parts, hardly more
        (1025, 1, 1, 1024),
        (1025, 1, 300, 1025),
        (70, 1, 1, 70),
        (70, 4, 8, 70),
    ],
)
def test_the_batch_of_whom_wrote_none(num_images: int, ranks: int, accumulation: int, batch_size: int) -> None:
    config = load_config(Config, None, [*DATA, "name=x", f"train.accumulation_steps={accumulation}"])
    plan = make_plan(config, num_images, ranks)
    assert plan.batch_size == batch_size
    smallest = min(
        len(plan.rank_batch(step, rank)) for step in range(plan.steps_per_epoch) for rank in range(ranks)
    )
    assert smallest >= 2 * accumulation


def test_a_run_keeps_to_the_batch_that_it_began_with(tmp_path: Path) -> None:
    written = load_config(Config, None, [*DATA, "name=x", "train.batch_size=64"])
    unwritten = load_config(Config, None, [*DATA, "name=x"])
    run = RunDir(tmp_path)
    run.claim(written)
    run.checkpoint(1).mkdir(parents=True)
    with pytest.raises(InputError, match=r"train\.batch_size = 64 as this run began"):
        run.check(unwritten)  # nothing says what it began with
    write_json(run.plan, {"batch_size": 64})
    run.check(unwritten)
    assert make_plan(unwritten, NUM_IMAGES, 1, Room(1, 1, batch_size=64)).batch_size == 64
    with pytest.raises(InputError, match=r"train\.batch_size = 64 as this run began"):
        run.check(load_config(Config, None, [*DATA, "name=x", "train.batch_size=32"]))


@pytest.mark.parametrize(
    ("words", "available", "asked"),
    [([], 70, 70), ([], 6000, 5000), ([], None, 5000), (["num_images=0"], 70, 70), (["num_images=0"], None, None)],
)
def test_the_images_of_an_attack(words: list[str], available: int | None, asked: int | None) -> None:
    assert load_config(AttackConfig, None, ["name=x", *words]).num_asked(available) == asked
    assert load_config(AttackConfig, None, ["name=x", "num_images=5000"]).num_asked(70) == 5000  # and is refused
