"""Stochastic depth: its expectation is the branch, its gradient that of the images kept; off in evaluation."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kapdist.config import Config
from kapdist.config.file import load_config
from kapdist.kap import fold, kapify
from kapdist.models import MODELS
from kapdist.models.drop_path import DropPath, drop_rates
from kapdist.run.paths import RunDir
from kapdist.train.loop import train

RESIDUAL = [("resnet10", 0.125), ("preact_resnet18", 0.125), ("wide_resnet28_10", 0.05)]


def test_rates_rise_evenly_to_the_last_block() -> None:
    assert drop_rates(0.6, (1, 2, 3)) == [pytest.approx(rates) for rates in ([0.1], [0.2, 0.3], [0.4, 0.5, 0.6])]
    for name, width in RESIDUAL:
        model = MODELS[name](10, width=width, drop_path=0.3)
        found = [module.rate for module in model.modules() if isinstance(module, DropPath)]
        assert found == pytest.approx([0.3 * (block + 1) / len(found) for block in range(len(found))])
        assert not any(isinstance(module, DropPath) for module in MODELS[name](10, width=width).modules())


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_expectation_is_the_branch(rate: float) -> None:
    torch.manual_seed(0)
    count = 20_000
    drawn = DropPath(rate)(torch.ones(count, 3, 2, 2, dtype=torch.double))
    kept = drawn[:, 0, 0, 0] > 0
    assert torch.equal(drawn, drawn[:, :1, :1, :1].expand_as(drawn)), "an image is dropped whole"
    torch.testing.assert_close(drawn[kept], torch.full_like(drawn[kept], 1 / (1 - rate)))
    assert drawn[~kept].abs().sum() == 0
    deviation = math.sqrt(rate * (1 - rate) / count)
    assert float(kept.double().mean()) == pytest.approx(1 - rate, abs=5 * deviation)


@pytest.mark.parametrize(
    ("package", "name", "words"), [("torchvision", "ops.StochasticDepth", ["row"]), ("timm", "layers.DropPath", [])]
)
def test_draws_are_those_of_the_libraries(package: str, name: str, words: list[str]) -> None:
    pytest.importorskip(package, reason=f"{package} is optional and not installed")
    module, kind = name.split(".")
    theirs = getattr(importlib.import_module(f"{package}.{module}"), kind)(0.3, *words)
    x = torch.randn(64, 3, 2, 2)
    torch.manual_seed(3)
    expected = theirs(x)
    torch.manual_seed(3)
    assert torch.equal(DropPath(0.3)(x), expected)


def test_the_gradient_is_that_of_the_images_that_were_kept() -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 2, 3, 3, dtype=torch.double, requires_grad=True)
    upstream = torch.randn_like(x)
    out = DropPath(0.4)(x)
    kept = (out != 0).any(dim=(1, 2, 3)).double().view(-1, 1, 1, 1)
    assert 0 < kept.sum() < 32
    out.backward(upstream)
    torch.testing.assert_close(x.grad, kept * upstream / 0.6)


@pytest.mark.parametrize(("name", "width"), RESIDUAL)
def test_an_image_that_skips_every_block_passes_the_shortcuts(name: str, width: float) -> None:
    """At a rate of nearly 1 the last block drops all: its output is its shortcut's."""
    torch.manual_seed(0)
    model = MODELS[name](10, width=width, drop_path=1 - 1e-9)
    stage = model.block3.layer if name.startswith("wide") else model.layer4
    block = stage[-1]
    channels = block.conv1.in_channels
    x = torch.rand(4, channels, 4, 4)
    if name == "resnet10":  # its only block of a stage has a projection, and an activation behind the sum
        torch.testing.assert_close(block(x), block.downsample(x).relu())
    else:
        assert torch.equal(block(x), x)


@pytest.mark.parametrize(("name", "width"), RESIDUAL)
def test_it_is_off_in_evaluation_and_folds_away(name: str, width: float) -> None:
    torch.manual_seed(0)
    plain = MODELS[name](10, width=width).eval()
    dropping = kapify(MODELS[name](10, width=width, drop_path=0.5), pool_size=1)
    dropping.load_state_dict(plain.state_dict())
    x = torch.rand(3, 3, 16, 16)
    for module in dropping.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert not torch.equal(dropping(x), dropping(x))
    assert torch.equal(dropping.eval()(x), plain(x))
    assert torch.equal(fold(dropping)(x), plain(x))


def test_a_run_that_goes_on_draws_what_it_would_have_drawn(
    small_betons: tuple[Path, Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The newest checkpoint and the end are taken away, the process's own stream is elsewhere: the same bits."""
    before = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(before))
    words = [f"data.train={small_betons[0]}", f"data.validation={small_betons[1]}", f"runs_dir={tmp_path}"]
    words += ["model.name=preact_resnet18", "model.num_classes=10", "model.width=0.125", "model.drop_path=0.5"]
    words += ["name=run", "train.epochs=1", "train.batch_size=33", "train.checkpoint_every_steps=2", "optim.lr=0.1"]
    words += [
        "model.dropout=0.1",
        "engine.device=cpu",
        "engine.threads=1",
        "data.workers=1",
        "train.log_every_steps=1",
    ]
    config = load_config(Config, None, words)
    train(config)
    run = RunDir(tmp_path / "run")
    whole = load_file(run.weights)
    assert run.checkpoint(2).exists()
    for path in (run.done, run.weights):
        path.unlink()
    torch.manual_seed(99)
    train(config)
    assert "continuing from" in run.rank_log(2, 0).read_text()
    again = load_file(run.weights)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[key], again[key]) for key in whole)
