"""Every config of configs/ loads, is built and planned at its real size; of each kind one takes two steps."""

from __future__ import annotations

import functools
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from kapdist import cli
from kapdist.config import AttackConfig, Config, flatten
from kapdist.config.file import load_config
from kapdist.data.beton.write import write_beton
from kapdist.data.sources import fashion_mnist
from kapdist.engine import Ranks
from kapdist.errors import InputError
from kapdist.forecast.gather import Question, answer, answer_training, describes_study, describes_training
from kapdist.run.paths import RunDir
from kapdist.study.design import make_design
from kapdist.train.job import initial_model
from kapdist.train.loop import train
from launch.cluster import ClusterConfig, load_cluster, split_words

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
BATCH = 4  # two of them are the small data
IN_COMMON = {"name", "runs_dir"}


@dataclass(frozen=True)
class DataSet:
    """What a folder of configs is for: its size as published, and images in its format."""

    num_images: int
    num_classes: int
    sides: tuple[int, ...]
    """Of the small images, in turn, pixels."""
    jpeg_quality: int | None = None


SMALL_RAMP = (
    "data.resolution=32",
    "data.min_resolution=32",
    "data.max_resolution=64",
    "data.start_ramp=0",
    "data.end_ramp=1",
)
DATA_SETS = {
    "fashion_mnist": DataSet(60_000, 10, (32,)),
    "cifar10": DataSet(50_000, 10, (32,)),
    "cifar100": DataSet(50_000, 100, (32,)),
    "tiny_imagenet": DataSet(100_000, 200, (64,), 90),
    "imagenet": DataSet(1_281_167, 1000, (48, 90, 61, 75), 90),
}


@functools.cache
def trainings() -> list[Path]:
    files = [path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "cluster"]
    return sorted(path for path in files if describes_training(path) and not describes_study(path))


@functools.cache
def studies() -> list[Path]:
    return sorted(path for path in CONFIGS.rglob("*.yaml") if describes_study(path))


def others() -> list[Path]:
    return sorted(set(CONFIGS.rglob("*.yaml")) - set(trainings()) - set(studies()))


def called(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


@functools.cache
def config_of(path: Path) -> Config:
    return load_config(Config, path)


# What a kind is called and what it differs in from the plain training.
KINDS = {
    "noise": {"kap.noise_std"},
    "kap": {"kap.pool_size", "kap.norm_first"},
    "kap_alone": {"kap.pool_size"},
    "kap_noise": {"kap.pool_size", "kap.norm_first", "kap.noise_std"},
    "input_noise": {"train.input_noise_std"},
    "kap_input_noise": {"train.input_noise_std", "kap.pool_size", "kap.norm_first"},
    "dropout": {"model.dropout", "model.dropout_kind"},
    "ensemble": {"model.members", "model.width", "model.expansion"},
    "adversarial": {f"adversarial.{key}" for key in ("mode", "eps", "eps_warmup_epochs", "steps", "step_size")},
}
WITHOUT = {"kap": "plain", "kap_alone": "plain", "kap_noise": "noise", "kap_input_noise": "input_noise"}
OWN_NAMES = {("fashion_mnist", "kap"): "kap_noise"}  # the quickstart's three are plain, noise and kap


def kind_of(path: Path) -> str:
    """Return what a training is a kind of; "" for a plain one."""
    found = next((kind for kind in sorted(KINDS, key=len, reverse=True) if named(path, kind)), "")
    return OWN_NAMES.get((path.parent.name, found), found)


def named(path: Path, kind: str) -> bool:
    return path.stem == kind or path.stem.endswith(f"_{kind}")


def beside(path: Path, kind: str) -> Path:
    """Return the training of another kind of the same network and data."""
    own = next((one for one in sorted(KINDS, key=len, reverse=True) if named(path, one)), "plain")
    return path.with_name(f"{path.stem.removesuffix(own)}{kind}.yaml")


def of_kinds() -> list[Path]:
    return [path for path in trainings() if kind_of(path)]


@pytest.mark.parametrize("path", others(), ids=called)
def test_a_config_of_an_attack_or_a_cluster_loads(path: Path) -> None:
    load_config(ClusterConfig if path.parent.name == "cluster" else AttackConfig, path)


@pytest.mark.parametrize("path", studies(), ids=called)
def test_a_study_is_planned_and_is_no_training(path: Path) -> None:
    design = make_design(path)
    assert len(design.trained) <= design.config.most_runs
    assert len(design.config.claims) > 0
    with pytest.raises(InputError, match="kapdist study plan"):
        answer(Question(path))


@pytest.mark.parametrize("path", trainings(), ids=called)
def test_a_training_is_planned_at_its_real_size(path: Path) -> None:
    data = DATA_SETS[path.parent.name]
    config = config_of(path)
    assert config.model.num_classes == data.num_classes
    found = answer_training(Question(path, num_images=data.num_images, gpus_per_node=8))
    assert found.plan.steps_per_epoch == math.ceil(data.num_images / config.train.batch_size)
    assert found.plan.total_steps == config.train.epochs * found.plan.steps_per_epoch
    assert found.plan.peak_lr == config.optim.lr  # a recipe stands at the batch size that its lr is for
    assert found.images_per_rank[0] >= 1


def test_every_run_has_a_directory_of_its_own() -> None:
    names = [config_of(path).name for path in trainings()]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("path", of_kinds(), ids=called)
def test_a_kind_differs_from_plain_in_its_own_keys_alone(path: Path) -> None:
    mine, plain = (flatten(config_of(file)) for file in (path, beside(path, "plain")))
    differing = {key for key in mine if mine[key] != plain[key]} - IN_COMMON
    assert differing
    assert differing <= KINDS[kind_of(path)], differing
    assert (plain["kap.pool_size"], plain["kap.noise_std"], plain["train.input_noise_std"]) == (1, 0, 0)


@pytest.mark.parametrize("path", [path for path in of_kinds() if kind_of(path) in WITHOUT], ids=called)
def test_what_kap_adds_to_a_noise_can_be_told(path: Path) -> None:
    """A kind with KAP differs from the kind without it in the average alone."""
    mine, other = (flatten(config_of(file)) for file in (path, beside(path, WITHOUT[kind_of(path)])))
    differing = {key for key in mine if mine[key] != other[key]} - IN_COMMON
    assert differing <= {"kap.pool_size", "kap.norm_first"}
    assert (mine["kap.pool_size"], mine["kap.layout"]) == (3, "sheet")


# KAP's authors' files: network, stem, widths, side, global batch, epochs, milestones, a norm before the average.
AUTHORS = {
    "cifar10/": ("resnet18", "cifar", "doubling", 32, 128, 200, (150,), False),
    "cifar10/cnn_": ("cnn", "cifar", "doubling", 32, 128, 200, (150,), False),
    "cifar100/": ("resnet18", "cifar", "doubling", 32, 128, 200, (150,), False),
    "tiny_imagenet/": ("resnet18", "imagenet", "squares", 128, 128, 90, (30, 60), True),
    "imagenet/resnet18_": ("resnet18", "imagenet", "squares", 224, 256, 100, (30, 60, 90), True),
    "imagenet/resnet50_": ("resnet50", "imagenet", "squares", 224, 256, 100, (30, 60, 90), True),
}


@pytest.mark.parametrize("place", AUTHORS)
def test_every_kind_is_there_as_the_authors_train(place: str) -> None:
    for kind in ("plain", *KINDS.keys() - {"kap_alone"}):
        path = CONFIGS / f"{place}{kind}.yaml"
        config = config_of(path)
        data, model, optim, train = config.data, config.model, config.optim, config.train
        network, stem, widths, side, batch, epochs, milestones, norm_first = AUTHORS[place]
        assert (model.name, model.stem, model.widths, model.normalise) == (network, stem, widths, False)
        assert (data.resolution, data.min_resolution, data.flip) == (side, None, True)
        assert (data.crop, data.translate) == (("none", 4) if side == 32 else ("random-resized", 0))
        assert (train.batch_size, train.epochs, train.mixup_alpha, data.cutout) == (batch, epochs, 0, 0)
        assert (optim.name, optim.lr, optim.momentum) == ("sgd", 0.1, 0.9)
        assert (optim.weight_decay, optim.decay_norms) == (1e-4, True)
        assert (optim.schedule, optim.milestones, optim.decay_factor) == ("steps", milestones, 0.1)
        assert (optim.warmup_epochs, optim.label_smoothing, optim.ema_decay) == (0, 0, 0)
        assert config.engine.precision == "fp32"
        assert config.kap.norm_first == (norm_first and "kap" in kind)
        assert config.kap.noise_std in (0, 0.2)
        header = [line for line in path.read_text().splitlines() if line.startswith("#")]
        assert "theirs" in " ".join(header).lower(), path


# README and *_configs/*.yaml of github.com/libffcv/ffcv-imagenet: global batch, peak lr, weight decay.
FFCV_IMAGENET = {"resnet50": (8 * 512, 1.7, 1e-4), "resnet18": (1024, 0.5, 5e-5)}


@pytest.mark.parametrize("epochs", [16, 32, 88])
@pytest.mark.parametrize("name", FFCV_IMAGENET)
def test_imagenet_s_resolution_is_the_published_one(name: str, epochs: int) -> None:
    path = CONFIGS / "imagenet" / f"{name}_{epochs}_plain.yaml"
    plan = answer_training(Question(path, num_images=1_281_167, gpus_per_node=8)).plan
    first = {16: 12, 32: 25, 88: 71}[epochs]  # epoch from which the ramp rounds to 192
    found = [plan.resolution(epoch * plan.steps_per_epoch) for epoch in range(epochs)]
    assert found == [160] * first + [192] * (epochs - first)


@pytest.mark.parametrize("epochs", [16, 32, 88])
@pytest.mark.parametrize("name", FFCV_IMAGENET)
def test_imagenet_is_the_published_recipe(name: str, epochs: int) -> None:
    config = config_of(CONFIGS / "imagenet" / f"{name}_{epochs}_plain.yaml")
    optim, model = config.optim, config.model
    assert (config.train.batch_size, optim.lr, optim.weight_decay) == FFCV_IMAGENET[name]
    assert (config.train.epochs, optim.warmup_epochs, optim.schedule) == (epochs, 2, "linear")
    assert (optim.momentum, optim.nesterov, optim.label_smoothing) == (0.9, False, 0.1)
    assert (model.name, model.stem, model.blurpool, model.width) == (name, "imagenet", True, 1)
    assert not optim.decay_norms
    assert (config.data.crop, config.data.crop_ratio, config.data.flip) == ("random-resized", 224 / 256, True)
    assert (config.train.mixup_alpha, config.train.cutmix_alpha, config.optim.ema_decay) == (0, 0, 0)


class Images:
    """Fashion-MNIST's images at other sizes, under labels from the first class to the last."""

    def __init__(self, data: DataSet, count: int) -> None:
        self.name, self.data, self.count = "small", data, count
        self.class_names = tuple(str(label) for label in range(data.num_classes))
        self.largest_bytes = 3 * max(data.sides) ** 2
        self.images = fashion_mnist("test").images[:count]

    def __len__(self) -> int:
        return self.count

    def item(self, index: int) -> tuple[np.ndarray, int]:
        sides = self.data.sides
        size = sides[index % len(sides)], sides[(index + 1) % len(sides)]
        image = Image.fromarray(self.images[index]).convert("RGB").resize(size)
        return np.asarray(image), round((self.data.num_classes - 1) * index / (self.count - 1))

    def image_name(self, index: int) -> str:
        return str(index)


@pytest.fixture(scope="module")
def betons(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """Write a data set's small betons once; return the words that name them."""
    folder = tmp_path_factory.mktemp("formats")

    def betons(name: str) -> list[str]:
        written = []
        for split, count in (("train", 2 * BATCH), ("validation", BATCH + 1)):
            path = folder / name / f"{split}.beton"
            if not path.exists():
                quality = DATA_SETS[name].jpeg_quality
                write_beton(Images(DATA_SETS[name], count), path, jpeg_quality=quality, num_workers=1)
            written.append(f"data.{split}={path}")
        return written

    return betons


@pytest.fixture
def threads() -> Iterator[None]:
    """Give torch its threads back, which a run in this process sets."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


SMALL = [f"train.batch_size={BATCH}", "train.epochs=1", "optim.warmup_epochs=0", "model.width=0.25"]
ONE_CPU = ["engine.device=cpu", "engine.threads=1", "engine.precision=fp32", "data.workers=1"]
STEPS = ["optim.milestones=[0.5]"]


def made_small(config: Config) -> list[str]:
    """Return the words that make two steps of a training small without changing what it is."""
    schedule = STEPS if config.optim.schedule == "steps" else []
    attack = ["adversarial.steps=1"] if config.adversarial.mode not in ("off", "fast", "free") else []
    if config.data.min_resolution:
        return [*SMALL, *schedule, *attack, *SMALL_RAMP]
    side = [] if config.data.crop == "none" else ["data.resolution=32"]
    return [*SMALL, *schedule, *attack, *side]


def taking_steps() -> list[Path]:
    """Return one training of those that differ in classes, depth or epochs alone; the others are but built."""
    again = re.compile(r"imagenet/resnet.*_(32|88)_|(imagenet/resnet50_|cifar100/|.*cnn_)(?!(16_)?plain|kap_noise)")
    return [path for path in trainings() if not again.match(called(path))]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("path", taking_steps(), ids=called)
def test_a_training_takes_two_steps_on_one_process(path: Path, betons: Callable, tmp_path: Path) -> None:
    name = path.parent.name
    words = [*betons(name), *made_small(config_of(path)), *ONE_CPU]
    config = load_config(Config, path, [*words, f"runs_dir={tmp_path}", "train.log_every_steps=1"])
    train(config)

    run = RunDir(tmp_path / config.name)
    assert json.loads(run.done.read_text())["step"] == 2
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    trained = [line for line in lines if line["kind"] == "train"]
    peak = config.optim.lr * BATCH / (config.optim.lr_batch_size or BATCH)
    second = 0.1 * peak if config.optim.schedule == "steps" else peak / 2  # half-way on a line or a cosine
    assert [line["lr"] for line in trained] == pytest.approx([peak, second])
    assert f"global batch {BATCH}, ranks 1, peak learning rate {peak:g}" in run.rank_log(1, 0).read_text()
    assert all(math.isfinite(line["loss"]) for line in trained)
    evaluated = [line for line in lines if line["kind"] == "evaluate"]
    assert [line["num_images"] for line in evaluated] == [BATCH + 1]
    weights, before = load_file(run.weights), initial_model(config, Ranks()).state_dict()
    assert weights.keys() == before.keys()
    heads = [key for key in weights if weights[key].dim() == 2]  # one for each member of an ensemble
    assert len(heads) == config.model.members
    assert not any(torch.equal(weights[key], before[key]) for key in heads)
    assert all(tensor.isfinite().all() for tensor in weights.values())


PAGE = (ROOT / "docs" / "recipes.md").read_text()


def test_the_page_lists_every_recipe() -> None:
    ours = [path for path in trainings() if path.parent.name != "fashion_mnist"]
    assert [called(path) for path in ours if f"`{path.stem}`" not in section(path.parent.name)] == []


def section(folder: str) -> str:
    return next(part for part in PAGE.split("\n## ") if f"configs/{folder}/" in part.splitlines()[0])


def test_the_page_shows_what_the_plan_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    command, printed = re.findall(
        r"^(kapdist forecast .*)\n```\n```\n(.*?)```", PAGE, flags=re.DOTALL | re.MULTILINE
    )[0]
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code in (0, None)
    shown = capsys.readouterr().out.splitlines()
    assert printed.splitlines()
    assert [line for line in printed.splitlines() if line not in shown] == []


def test_the_commands_of_the_page_name_what_there_is() -> None:
    """Those for a cluster; what launch/train.py makes of such words has tests of its own."""
    commands = re.findall(r"^(?:python launch/train.py|torchrun|kapdist train) .*", PAGE, flags=re.MULTILINE)
    assert len(commands) > 2
    for command in commands:
        named = re.findall(r"configs/\S+\.yaml", command)
        config, clusters = ROOT / named[0], named[1:]
        words, cluster_words = split_words([word for word in command.split() if "=" in word])
        assert load_config(Config, config, words).name == config.stem
        for cluster in clusters:
            assert load_cluster(ROOT / cluster, cluster_words).ranks >= 1
