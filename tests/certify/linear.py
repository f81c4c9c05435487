"""A model whose smoothed form and radii are known in closed form, and a certification of a few draws."""

from __future__ import annotations

import polars as pl
import pytest
import torch

import kapdist.run.files as files
from kapdist.config.certify import CertifyConfig
from kapdist.records.sealed import read_table
from kapdist.run.paths import CertificateDir, RunDir

# Two classes, logits (0, w x + b): smoothed by any noise it is itself, and robust in |w x + b| / |w|.
LINEAR = """
import torch
from torch import nn

class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(192, generator=torch.Generator().manual_seed(5)))
        self.b = nn.Parameter(-self.w.detach().sum() / 2)

    def forward(self, images):
        margin = images.flatten(1) @ self.w + self.b
        return torch.stack([torch.zeros_like(margin), margin], dim=1)

def build():
    return Linear()
"""


def settings(world, **fields: object) -> CertifyConfig:
    values = {
        "name": "c",
        "model": {"factory": world.factory},
        "data": world.folder / "images.beton",
        "num_classes": 5,
        "sigma": 0.25,
        "draws": 300,
        "selection_draws": 30,
        "images_per_pass": 64,
        "chunk_size": 5,
        "threads": 1,
        "device": "cpu",
    }
    return CertifyConfig.model_validate(values | fields)


def directory(world, run: str = "run") -> CertificateDir:
    return RunDir(world.folder / run).certified("c")


def records(world, run: str = "run") -> pl.DataFrame:
    return read_table(directory(world, run).records)


def margins(world) -> torch.Tensor:
    """(images,) |w x + b| / |w| in double precision."""
    scope: dict = {}
    exec(LINEAR, scope)
    w = scope["build"]().w.detach().double()
    return (world.images.flatten(1).double() - 0.5) @ w / w.norm()


@pytest.fixture(autouse=True)
def no_wait_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "sync", lambda path: None)


@pytest.fixture
def linear(world) -> dict[str, object]:
    world.labels = world.labels % 2
    (world.folder / "linear.py").write_text(LINEAR)
    return {"model": {"factory": "linear.py:build"}, "num_classes": 2}
