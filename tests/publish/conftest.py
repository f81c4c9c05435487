"""Trained runs as they lie on the disk, with weights by chance and norms whose statistics are nobody's default."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from one_thread import one_thread  # noqa: F401
from torch import nn

from kapdist import kap
from kapdist.config import Config
from kapdist.config.file import dump_config
from kapdist.models.build import build_model
from kapdist.models.weights import save_weights
from kapdist.run.files import to_json
from kapdist.run.paths import RunDir

CLASSES = ["ant", "bee", "cat"]
SMALL = {"name": "resnet10", "num_classes": 3, "stem": "cifar", "width": 0.15, "widths": "squares"}
AVERAGE = {"pool_size": 3, "layout": "sheet"}
SIDE = 16

MakeRun = Callable[..., RunDir]


def lay_run(folder: Path, model: dict[str, Any], kap: dict[str, Any], **data: Any) -> RunDir:
    run = RunDir(folder)
    folder.mkdir(parents=True)
    where = {"train": "none/train.beton", "validation": "none/val.beton", "resolution": SIDE}
    values = {"name": folder.name, "seed": 0, "data": where | data, "model": model, "kap": kap}
    run.config.write_text(dump_config(Config.model_validate(values)))
    run.plan.write_text(to_json({"classes": CLASSES, "data": "d" * 64, "validation": "v" * 64}))
    save_weights(by_chance(run), run.weights)
    return run


def by_chance(run: RunDir) -> nn.Module:
    config = run.load_config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = build_model(config.model, config.kap).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for value in (module.weight, module.bias, module.running_mean, module.running_var):
                    value.data.uniform_(0.5, 1.5)
    return model


def logits_of(model: nn.Module, mode: str = "off", side: int = SIDE) -> torch.Tensor:
    images = torch.rand(5, 3, side, side, generator=torch.Generator().manual_seed(3))
    with torch.no_grad(), kap.noise(model, mode, seed=11):
        return model(images)


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    def make(model: dict[str, Any] | None = None, kap: dict[str, Any] | None = None, **data: Any) -> RunDir:
        return lay_run(tmp_path / "runs" / "kap", SMALL | (model or {}), AVERAGE | (kap or {}), **data)

    return make
