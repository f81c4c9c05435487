"""Images in memory in place of a beton, and models small enough to attack in a second."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from attack.kinds import Short
from one_thread import one_thread  # noqa: F401
from processes import warm_python
from torch import Tensor, nn

import kapdist.attack.images as images_of
import kapdist.attack.stock as stock_of
import kapdist.run.files as files
from kapdist.attack.images import ImageSet
from kapdist.attack.stock import resolve
from kapdist.config import AttackConfig
from kapdist.records.attack_plan import AttackPlan, PlannedData, PlannedModel

FACTORY = """
import torch
from torch import nn

def build():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 5))
"""

# The child of `attack run`, with images from a file in place of a beton.
CHILD = """
import sys
import torch
import kapdist.attack.images as images_of
import kapdist.attack.stock as stock_of
import kapdist.run.files as files

images, labels = torch.load(sys.argv[1], weights_only=True)
images_of.beton_batches = lambda plan, batches: ((images[ids], labels[ids]) for ids in batches)

from kapdist.attack.shard import run_shard
from kapdist.attack.units import child_main

sys.exit(child_main(run_shard, sys.argv[2:]))
"""


@dataclass
class World:
    """A folder with a model factory, a run directory to be and NUM images of 8 x 8 in memory."""

    folder: Path
    images: Tensor
    labels: Tensor

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def factory(self) -> str:
        return "factory.py:build"

    def config(self, **fields: object) -> AttackConfig:
        values = {
            "name": "aa",
            "model": {"factory": self.factory},
            "data": self.folder / "images.beton",
            "num_images": 0,
            "num_classes": 5,
            "eps": 0.02,
            "version": "custom",
            "attacks": ("apgd-ce",),
            "chunk_size": 4,
            "threads": 1,
            "device": "cpu",
            "screen": 0,
        }
        return AttackConfig.model_validate(values | fields)

    def describe_images(self, wanted: object, config: object, *others: object) -> ImageSet:
        data = PlannedData(path=Path("images.beton"), fingerprint="f", resolution=8, crop="none", crop_ratio=1)
        return ImageSet(data, len(self.images), tuple("01234"))

    def batches(self, plan: object, batches: list[list[int]]) -> Iterator[tuple[Tensor, Tensor]]:
        for ids in batches:
            yield self.images[ids], self.labels[ids]

    def child_command(self, *words: object) -> list[str]:
        """What starts a shard in a process of its own that sees the same images."""
        return [str(warm_python()), str(self.folder / "child.py"), str(self.folder / "images.pt"), *map(str, words)]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(22, 3, 8, 8, generator=generator)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "factory.py").write_text(FACTORY)
    (tmp_path / "child.py").write_text(CHILD)
    with torch.random.fork_rng():
        scope: dict = {}
        exec(FACTORY, scope)
        labels = scope["build"]().eval()(images).argmax(1)
    labels[::7] = (labels[::7] + 1) % 5
    torch.save((images, labels), tmp_path / "images.pt")
    made = World(tmp_path, images, labels)
    monkeypatch.setattr(images_of, "describe_images", made.describe_images)
    monkeypatch.setattr(images_of, "beton_batches", made.batches)
    threads = torch.get_num_threads()
    yield made
    torch.set_num_threads(threads)


@pytest.fixture
def make_plan() -> Callable[..., AttackPlan]:
    """A plan that needs no files, for attack_chunk alone."""

    def make(norm: str, eps: float, attacks: tuple = (), version: str = "custom", **fields: object) -> AttackPlan:
        num_classes = fields.pop("num_classes", 10)
        names, settings, notes = resolve(version, attacks, norm, eps, num_classes)
        model = {
            "factory": "m:f",
            "factory_sha256": None,
            "architecture": None,
            "weights": None,
            "weights_sha256": "w",
            "num_classes": num_classes,
            "folded": False,
        }
        assert PlannedModel(**model)
        values = {
            "name": "aa",
            "run": "r",
            "model": model,
            "data": {"path": "x", "fingerprint": "f", "resolution": 8, "crop": "none", "crop_ratio": 1},
            "norm": norm,
            "eps": eps,
            "version": version,
            "attacks": names,
            "settings": settings,
            "noise": "off",
            "seed": 3,
            "chunk_size": 16,
            "threads": 1,
            "device": "cpu",
            "keep_adversarial": False,
            "packages": {"kapdist": "0"},
            "num_images": 16,
            "images_sha256": "s",
            "notes": notes,
            "images": tuple(range(16)),
        }
        return AttackPlan.model_validate(values | fields)

    return make


@pytest.fixture
def tiny() -> nn.Module:
    """A network with ten classes for images of 8 x 8."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = nn.Conv2d(3, 8, 3, stride=3), nn.Tanh(), nn.Flatten(), nn.Linear(32, 10)
        return nn.Sequential(*layers).eval().requires_grad_(False)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library with a few of its steps, queries and restarts, and no wait for the disk."""
    monkeypatch.setattr(stock_of, "AutoAttack", Short)
    monkeypatch.setattr(files, "sync", lambda path: None)
