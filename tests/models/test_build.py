"""Every network that a config can name: built from its section, trained, folded, described, refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn
from torch.nn import functional

from kapdist.config import Config, KapConfig, ModelConfig
from kapdist.config.networks import OF_SOME, PREACTIVATION, RESNETS, SMALL_IMAGES, NetworkName
from kapdist.engine import Ranks
from kapdist.errors import InputError
from kapdist.forecast.footprint import footprint
from kapdist.kap import KAPConv2d, fold, noise
from kapdist.kap.average import sheet_grid
from kapdist.models import MODELS
from kapdist.models.build import build_model
from kapdist.models.description import describe
from kapdist.models.weights import load_weights, save_weights
from kapdist.train.job import initial_model
from kapdist.train.optim import make_optimizer

WIDTHS = dict.fromkeys(RESNETS, 0.25) | {"cnn": 0.25, "preact_resnet18": 0.25}
WIDTHS |= {"wide_resnet28_10": 0.1, "wide_resnet34_10": 0.1}
SHEET = {"pool_size": 3, "layout": "sheet"}


def config(kap: dict[str, Any] | None = None, **model: Any) -> Config:
    data = {"train": Path("a"), "validation": Path("b")}
    return Config(name="test", data=data, model={"num_classes": 4} | model, kap=kap or {}, optim={"lr": 0.1})


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def test_a_config_names_every_network_and_no_other() -> None:
    assert set(get_args(NetworkName)) == set(MODELS) == set(WIDTHS) == {*RESNETS, *SMALL_IMAGES}


@pytest.mark.parametrize("name", MODELS)
def test_a_section_is_built_with_all_that_its_network_has(name: str) -> None:
    """The keys of others are left out; no constructor meets one that it does not know."""
    section = config(name=name, width=WIDTHS[name]).model
    with torch.device("meta"):
        assert build_model(section, KapConfig())
    assert section.of_others() == {key for key, these in OF_SOME.items() if name not in these.names}
    found = footprint(config(name=name, width=WIDTHS[name])).num_parameters
    with torch.device("meta"):
        model = MODELS[name](4, width=WIDTHS[name])
    assert found == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_two_steps_with_kap_and_the_same_logits_folded(name: str) -> None:
    """Images of 28 px, as Fashion-MNIST's are; norms that follow a convolution fold, others are named."""
    drops = {} if name == "cnn" else {"drop_path": 0.1}
    wanted = config(SHEET | {"noise_std": 0.1}, name=name, width=WIDTHS[name], dropout=0.1, **drops)
    model = initial_model(wanted, Ranks())
    assert all(isinstance(conv, KAPConv2d) for conv in convolutions(model))
    optimizer = make_optimizer(model, wanted.optim)
    before = {key: value.clone() for key, value in model.named_parameters()}
    images = torch.rand(4, 3, 28, 28).contiguous(memory_format=torch.channels_last)
    for _ in range(2):
        optimizer.zero_grad()
        functional.cross_entropy(model(images), torch.arange(4)).backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
        optimizer.step()
    still = [key for key, value in model.named_parameters() if torch.equal(value, before[key])]
    assert not still
    model = model.double().eval()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        folded = fold(model, norms=True)
    assert not any(isinstance(module, KAPConv2d) for module in folded.modules())
    with noise(model, "off"):
        torch.testing.assert_close(folded(images.double()), model(images.double()), rtol=1e-9, atol=1e-9)
    left = {key for key, module in folded.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert left == norms_that_stay(name, model)
    assert [key for key in left if not any(f"{key} (" in str(warning.message) for warning in said)] == []


def norms_that_stay(name: str, model: nn.Module) -> set[str]:
    """In front of a convolution is a norm behind a sum, or behind a convolution that a shortcut reads too."""
    if name not in PREACTIVATION:
        return set()
    norms = {key for key, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    stay = {key for key in norms if not key.endswith(".bn2")}
    projected = name.startswith("wide") and model.block1.layer[0].projection is not None
    return stay - ({"block1.layer.0.bn1"} if projected else set())  # the stem's only reader


def test_the_squares_preset_makes_square_sheets_of_every_layer() -> None:
    for name, expected in (("resnet18", {64, 144, 256, 529}), ("resnet50", {256, 576, 1024, 2116})):
        section = ModelConfig(name=name, widths="squares")
        with torch.device("meta"):
            model = build_model(section, KapConfig(**SHEET))
        channels = {conv.out_channels for conv in convolutions(model)}
        assert channels == {64, 144, 256, 529} | expected
        assert all(height == across for height, across in map(sheet_grid, channels))


@pytest.mark.parametrize("width", [0.1, 0.25, 0.5, 2.0])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "preact_resnet18"])
def test_squares_stay_squares_at_other_widths(name: str, width: float) -> None:
    with torch.device("meta"):
        model = build_model(ModelConfig(name=name, widths="squares", width=width), KapConfig(**SHEET))
    sheets = {sheet_grid(conv.out_channels) for conv in convolutions(model)}
    assert all(height == across for height, across in sheets)
    first = convolutions(model)[0].out_channels
    assert first == max(3, round(8 * width**0.5)) ** 2


@pytest.mark.parametrize("name", ["resnet10", "resnet50", "preact_resnet18"])
def test_widths_in_numbers_are_the_channels(name: str) -> None:
    with torch.device("meta"):
        model = build_model(ModelConfig(name=name, widths=[9, 25, 16, 36], num_classes=4), KapConfig(**SHEET))
    stages = [getattr(model, f"layer{number}")[-1].conv1.out_channels for number in (1, 2, 3, 4)]
    assert [model.conv1.out_channels, *stages] == [9, 9, 25, 16, 36]
    assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 4)


@pytest.mark.parametrize("name", MODELS)
def test_images_as_they_are_are_those_of_mean_0_and_deviation_1(name: str) -> None:
    torch.manual_seed(0)
    raw = build_model(config(name=name, width=WIDTHS[name], normalise=False).model, KapConfig()).eval()
    unit = config(name=name, width=WIDTHS[name], mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)).model
    normalising = build_model(unit, KapConfig()).eval()
    normalising.load_state_dict(raw.state_dict())
    usual = build_model(config(name=name, width=WIDTHS[name]).model, KapConfig()).eval()
    usual.load_state_dict(raw.state_dict())
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(raw(x), normalising(x))
    assert not torch.allclose(raw(x), usual(x))
    assert describe(raw) == describe(normalising)
    assert json.loads(describe(raw)["model.mean"]) == [0, 0, 0]


def test_weights_of_raw_images_are_refused_by_a_network_that_normalises(tmp_path: Path) -> None:
    raw = build_model(config(name="cnn", width=0.1, normalise=False).model, KapConfig())
    save_weights(raw, tmp_path / "raw")
    usual = build_model(config(name="cnn", width=0.1).model, KapConfig())
    with pytest.raises(InputError, match=r"expected model\.mean \[0\.48.* weights made for \[0\.0, 0\.0, 0\.0\]"):
        load_weights(usual, tmp_path / "raw")


@pytest.mark.parametrize(
    ("section", "pool_size", "line"),
    [
        (
            ModelConfig(name="resnet18", width=0.125),
            3,
            r"width 0.125, allows, found conv1: .* 2 x 4 sheet",
        ),
        (
            ModelConfig(name="resnet18", widths=[8, 64, 64, 64]),
            3,
            r"\[8, 64, 64, 64\], allows, found conv1: ",
        ),
        (ModelConfig(name="cnn", width=0.1), 5, r"cnn, width 0.1, allows, found conv1: .* 3 x 3 sheet"),
        (ModelConfig(name="wide_resnet28_10", width=0.05), 5, r"width 0.05, allows, found conv1: .* 4 x 4 sheet"),
        (ModelConfig(name="preact_resnet18", widths="squares"), 9, r"squares, allows, found conv1: .* 8 x 8 sheet"),
    ],
)
def test_a_window_that_a_width_does_not_fit_is_named(section: ModelConfig, pool_size: int, line: str) -> None:
    with torch.device("meta"), pytest.raises(InputError, match=line) as caught:
        build_model(section, KapConfig(pool_size=pool_size, layout="sheet"))
    assert str(caught.value).startswith("kap: expected an average that ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ({"name": "cnn", "stem": "imagenet"}, "stem cifar with cnn"),
        ({"name": "cnn", "drop_path": 0.1}, "drop_path 0.0 with cnn"),
        ({"name": "cnn", "blurpool": True}, "blurpool false with cnn"),
        ({"name": "wide_resnet34_10", "widths": "squares"}, "widths doubling with wide_resnet34_10"),
        ({"name": "preact_resnet18", "zero_init_residual": True}, "zero_init_residual false with preact_resnet18"),
        ({"name": "resnet18", "expansion": 2}, r"expansion 1 with resnet18 \(other values go with cnn\)"),
        ({"widths": [8, 8, 8, 8], "width": 0.5}, "width 1 with widths in numbers"),
        ({"widths": [8, 8, 8]}, "doubling, squares, or four whole numbers of 1 or more"),
        ({"widths": [8, 8, 8, 0]}, "doubling, squares, or four whole numbers of 1 or more"),
        ({"widths": "halving"}, "doubling, squares, or four whole numbers of 1 or more"),
    ],
)
def test_what_a_network_has_not_is_refused(words: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        ModelConfig(**words)


def test_what_nobody_wrote_goes_with_the_network() -> None:
    for name in SMALL_IMAGES:
        found = ModelConfig(name=name)
        assert (found.stem, found.zero_init_residual) == ("cifar", False)
        assert ModelConfig(**found.model_dump()) == found
        assert ModelConfig(**found.model_dump(mode="json")) == found
    assert ModelConfig(expansion=3).name == "cnn"
    assert ModelConfig().stem == "imagenet"
    four = ModelConfig(widths=[9, 9, 9, 9])
    assert four.in_words() == "resnet18, widths [9, 9, 9, 9]"
    assert ModelConfig(**json.loads(json.dumps(four.model_dump(mode="json")))) == four
