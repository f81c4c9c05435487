"""timm, torchvision and RobustBench as far as kapdist calls them, with a tiny network, where they are not."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from kapdist.models import zoo

OUTSIDE = Path(__file__).parent / "outside.py"
PACKAGES = ("timm", "torchvision", "robustbench")

TIMM = """
from timm.models.nets import build
def create_model(name, pretrained=False, num_classes=1000, **options):
    assert pretrained is False, "a download"
    base = name.partition(".")[0]
    model = build(num_classes, **options)
    model.pretrained_cfg = model.default_cfg = vars(models.get_pretrained_cfg(name))
    return model
def is_model(name):
    return models.is_model(name)
from timm import models
"""
TIMM_MODELS = """
from types import SimpleNamespace
from timm.models import nets
NAMES = ["small", "smaller", "large", "wide", "squashed"]
def is_model(name): return name in NAMES
def list_models(): return NAMES
def list_pretrained(pattern): return [pattern.replace("*", tag) for tag in ("in1k", "in21k")]
def model_entrypoint(name): return nets.build
def get_pretrained_cfg(name):
    base, _, tag = name.partition(".")
    half = tag == "in21k"
    return SimpleNamespace(
        input_size=(3, 32, 64 if base == "wide" else 32), crop_pct=0.95, interpolation="bicubic",
        crop_mode="squash" if base == "squashed" else "center",
        mean=(0.5, 0.5, 0.5) if half else (0.4, 0.5, 0.6), std=(0.5, 0.5, 0.5) if half else (0.2, 0.25, 0.3))
"""
TORCHVISION = """
import enum
from types import SimpleNamespace
from torchvision.models import nets
def transforms(resize):
    return SimpleNamespace(crop_size=[32], resize_size=[resize], interpolation=SimpleNamespace(value="bilinear"),
                           mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3])
class Weights(enum.Enum):
    V1 = 40
    V2 = 36
    DEFAULT = 36
    def transforms(self): return transforms(self.value)
def list_models(module=None): return ["small"]
def get_model_weights(name): return Weights
def get_model_builder(name): return nets.build
def get_model(name, weights, **options):
    assert weights is None, "a download"
    return nets.build(**options)
"""
ROBUSTBENCH = """
import enum
from collections import OrderedDict
import timm, torch
from torch import nn
from robustbench.model_zoo.nets import build
class Dataset(enum.Enum):
    cifar_10, imagenet = "cifar10", "imagenet"
class Threat(enum.Enum):
    Linf, L2 = "Linf", "L2"
class Normalizer(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.25, 0.3]).view(1, 3, 1, 1))
    def forward(self, x): return (x - self.mean) / self.std
class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mu", torch.full((1, 3, 1, 1), 0.5))
        self.net = build(10)
    def forward(self, x): return self.net(x - self.mu)
def normalised(): return nn.Sequential(OrderedDict(normalize=Normalizer(), model=build(5)))
def registered(): return timm.create_model("small", pretrained=True, num_classes=5)
def downloads():
    torch.hub.load_state_dict_from_url("https://example.invalid/none-such.pth")
model_dicts = {
    Dataset.cifar_10: {Threat.Linf: {"Standard": {"model": Own}, "Own2020": {"model": Own}},
                       Threat.L2: {"Standard": {"model": Own}}},
    Dataset.imagenet: {Threat.Linf: {
        "Wong2020Fast": {"model": normalised, "preprocessing": "Crop288"},
        "Salman2020Do": {"model": normalised, "preprocessing": "BicubicRes256Crop224"},
        "Registered2022": {"model": registered},
        "Strange2030": {"model": normalised, "preprocessing": "Res1024"},
        "Standard_R50": {"model": downloads, "preprocessing": "Res256Crop224"}}},
}
"""


def lay(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if path.parent.parent != folder:
            shutil.copy(OUTSIDE, path.parent / "nets.py")


@pytest.fixture
def zoos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the three packages, first on the path."""
    folder = tmp_path / "zoos"
    files = {"timm/__init__.py": TIMM, "timm/models/__init__.py": TIMM_MODELS}
    files |= {"torchvision/__init__.py": "", "torchvision/models/__init__.py": TORCHVISION}
    files |= {"robustbench/__init__.py": "", "robustbench/model_zoo/__init__.py": ROBUSTBENCH}
    files |= {f"robustbench/model_zoo/{name}.py": "" for name in ("cifar10", "imagenet")}
    lay(folder, files)
    lay(folder, {f"{name}-9.9.dist-info/METADATA": f"Name: {name}\nVersion: 9.9\n" for name in PACKAGES})
    without_zoos(monkeypatch)
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in imported():
        del sys.modules[name]
    zoo.published.cache_clear()


def imported() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] in PACKAGES]


def without_zoos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what was imported of the packages; afterwards it is there again."""
    for name in imported():
        monkeypatch.delitem(sys.modules, name)
    zoo.published.cache_clear()
