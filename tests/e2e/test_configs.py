"""Every config of configs/ loads, is planned at its real size, and takes two steps on small data in its format."""

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
from kapdist.forecast.gather import Question, answer_training, describes_training
from kapdist.run.paths import RunDir
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
    small: tuple[str, ...] = ()
    """Words that make a step small without changing what it is."""


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
    "imagenet": DataSet(1_281_167, 1000, (48, 90, 61, 75), 90, SMALL_RAMP),
}


@functools.cache
def trainings() -> list[Path]:
    files = [path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "cluster"]
    return sorted(path for path in files if describes_training(path))


def others() -> list[Path]:
    return sorted(set(CONFIGS.rglob("*.yaml")) - set(trainings()))


def called(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


@functools.cache
def config_of(path: Path) -> Config:
    return load_config(Config, path)


def plain_of(path: Path) -> Path:
    return path.with_name(re.sub(r"(noise|kap|kap_line|kap_sheet)\.yaml$", "plain.yaml", path.name))


@pytest.mark.parametrize("path", others(), ids=called)
def test_a_config_of_an_attack_or_a_cluster_loads(path: Path) -> None:
    load_config(ClusterConfig if path.parent.name == "cluster" else AttackConfig, path)


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


@pytest.mark.parametrize("path", [path for path in trainings() if plain_of(path) != path], ids=called)
def test_noise_and_kap_differ_from_plain_in_the_section_kap_alone(path: Path) -> None:
    mine, plain = (flatten(config_of(file)) for file in (path, plain_of(path)))
    differing = {key for key in mine if mine[key] != plain[key]} - IN_COMMON
    assert differing
    assert all(key.startswith("kap.") for key in differing), differing
    assert (plain["kap.pool_size"], plain["kap.noise_std"]) == (1, 0)
    noise = flatten(config_of(path.with_name(plain_of(path).name.replace("plain", "noise"))))
    assert mine["kap.noise_std"] == noise["kap.noise_std"]  # or nobody could tell what KAP adds to the noise


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


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("path", trainings(), ids=called)
def test_a_training_takes_two_steps_on_one_process(path: Path, betons: Callable, tmp_path: Path) -> None:
    name = path.parent.name
    words = [*betons(name), *DATA_SETS[name].small, *SMALL, *ONE_CPU]
    config = load_config(Config, path, [*words, f"runs_dir={tmp_path}", "train.log_every_steps=1"])
    train(config)

    run = RunDir(tmp_path / config.name)
    assert json.loads(run.done.read_text())["step"] == 2
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    trained = [line for line in lines if line["kind"] == "train"]
    peak = config.optim.lr * BATCH / (config.optim.lr_batch_size or BATCH)
    assert [line["lr"] for line in trained] == pytest.approx([peak, peak / 2])  # half-way on a line or a cosine
    assert f"global batch {BATCH}, ranks 1, peak learning rate {peak:g}" in run.rank_log(1, 0).read_text()
    assert all(math.isfinite(line["loss"]) for line in trained)
    evaluated = [line for line in lines if line["kind"] == "evaluate"]
    assert [line["num_images"] for line in evaluated] == [BATCH + 1]
    weights, before = load_file(run.weights), initial_model(config, Ranks()).state_dict()
    assert weights.keys() == before.keys()
    head = next(key for key in reversed(weights) if weights[key].dim() == 2)
    assert not torch.equal(weights[head], before[head])
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
