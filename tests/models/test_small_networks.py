"""The networks for small images: sizes and state keys as published, and the whole forward pass written out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kapdist.errors import InputError
from kapdist.kap import kapify
from kapdist.kap.average import sheet_grid
from kapdist.models import CNN, MODELS, SMALL_IMAGES, PreActResNet, WideResNet
from kapdist.models.weights import load_weights

Shapes = dict[str, tuple[int, ...]]

# Of 10 classes: 36.5M of Zagoruyko & Komodakis 2016 (table 4), 46.2M of TRADES' network, 11.2M of Rice et al.'s.
PARAMETERS = {"wide_resnet28_10": 36_479_194, "wide_resnet34_10": 46_160_474, "preact_resnet18": 11_172_170}


def norm_keys(name: str, channels: int) -> Shapes:
    values: Shapes = dict.fromkeys(
        [f"{name}.{key}" for key in ("weight", "bias", "running_mean", "running_var")], (channels,)
    )
    return values | {f"{name}.num_batches_tracked": ()}


def block_keys(name: str, source: int, channels: int, projection: str | None) -> Shapes:
    keys = norm_keys(f"{name}.bn1", source) | {f"{name}.conv1.weight": (channels, source, 3, 3)}
    keys |= norm_keys(f"{name}.bn2", channels) | {f"{name}.conv2.weight": (channels, channels, 3, 3)}
    return keys | ({f"{name}.{projection}.weight": (channels, source, 1, 1)} if projection else {})


def wide_keys(blocks: int, classes: int) -> Shapes:
    """What TRADES' and RobustBench's WideResNet of widen_factor 10 has."""
    keys: Shapes = {"conv1.weight": (16, 3, 3, 3)}
    source = 16
    for stage, channels in enumerate((160, 320, 640), start=1):
        for block in range(blocks):
            projection = "convShortcut" if block == 0 else None
            keys |= block_keys(f"block{stage}.layer.{block}", source, channels, projection)
            source = channels
    return keys | norm_keys("bn1", 640) | {"fc.weight": (classes, 640), "fc.bias": (classes,)}


def preact_keys(classes: int) -> Shapes:
    """What the PreActResNet18 of fast_adversarial and robust_overfitting has."""
    keys: Shapes = {"conv1.weight": (64, 3, 3, 3)}
    source = 64
    for stage, channels in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            projection = "shortcut.0" if source != channels else None
            keys |= block_keys(f"layer{stage}.{block}", source, channels, projection)
            source = channels
    return keys | norm_keys("bn", 512) | {"linear.weight": (classes, 512), "linear.bias": (classes,)}


KEYS = {
    "wide_resnet28_10": wide_keys(4, 10),
    "wide_resnet34_10": wide_keys(5, 10),
    "preact_resnet18": preact_keys(10),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes_and_state_keys_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        model = MODELS[name](10)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    state = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert state == KEYS[name]
    kapify(model, layout="sheet", noise_std=0.5)
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == state


def test_options_without_state_change_no_key() -> None:
    with torch.device("meta"):
        for name in set(SMALL_IMAGES) - {"cnn"}:
            model = MODELS[name](10, blurpool=True, dropout=0.1, drop_path=0.1, normalise=False)
            assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == KEYS[name]


@pytest.mark.parametrize("expansion", [1, 2])
def test_kernels_of_the_cnn_are_those_of_its_square_many(expansion: int) -> None:
    with torch.device("meta"):
        state = CNN(10, expansion=expansion).state_dict()
    kernels = [state[f"conv{number}.weight"].shape for number in (1, 2, 3)]
    assert [shape[0] for shape in kernels] == [64 * expansion**2, 144 * expansion**2, 225 * expansion**2]
    assert {tuple(shape[2:]) for shape in kernels} == {(3, 3)}
    assert state["fc.weight"].shape == (10, 225 * expansion**2)


def test_kernels_of_the_cnn_fill_square_sheets_at_any_width() -> None:
    for width in (0.05, 0.25, 0.7, 1.5):
        with torch.device("meta"):
            model = kapify(CNN(10, width=width, expansion=3), layout="sheet")
        sheets = [sheet_grid(conv.out_channels) for conv in model.modules() if isinstance(conv, nn.Conv2d)]
        assert len(sheets) == 3
        assert all(height == across for height, across in sheets)


def settled(model: nn.Module) -> nn.Module:
    """The model in float64 and eval mode, its norms with statistics and weights that are none of an identity."""
    generator = torch.Generator().manual_seed(1)
    model = model.double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight.data, module.running_var):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            for value in (module.bias.data, module.running_mean):
                value.copy_(torch.randn(value.shape, generator=generator) / 4)
    return model


class WrittenOut:
    """The layers of a state_dict in functional form, and images as the networks take them."""

    def __init__(self, model: nn.Module) -> None:
        self.state = model.state_dict()

    def images(self, x: Tensor) -> Tensor:
        mean = torch.tensor([0.485, 0.456, 0.406]).double().view(3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225]).double().view(3, 1, 1)
        return (x - mean) / std

    def conv(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def norm_relu(self, x: Tensor, name: str) -> Tensor:
        mean, variance, weight, bias = (
            self.state[f"{name}.{key}"].view(-1, 1, 1) for key in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (variance + 1e-5).sqrt() * weight + bias).clamp(min=0)

    def block(self, x: Tensor, name: str, stride: int, projection: str) -> Tensor:
        activated = self.norm_relu(x, f"{name}.bn1")
        out = self.conv(
            self.norm_relu(self.conv(activated, f"{name}.conv1", stride), f"{name}.bn2"), f"{name}.conv2"
        )
        key = f"{name}.{projection}"
        return out + (self.conv(activated, key, stride) if f"{key}.weight" in self.state else x)

    def logits(self, x: Tensor, linear: str) -> Tensor:
        return x.mean((2, 3)) @ self.state[f"{linear}.weight"].T + self.state[f"{linear}.bias"]


def wide(model: WideResNet, x: Tensor) -> Tensor:
    net = WrittenOut(model)
    y = net.conv(net.images(x), "conv1")
    for stage in (1, 2, 3):
        for block in range(len(model.block1.layer)):
            stride = 2 if stage > 1 and block == 0 else 1
            y = net.block(y, f"block{stage}.layer.{block}", stride, "convShortcut")
    return net.logits(net.norm_relu(y, "bn1"), "fc")


def preact(model: PreActResNet, x: Tensor) -> Tensor:
    net = WrittenOut(model)
    y = net.conv(net.images(x), "conv1")
    for stage, block in [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1), (4, 0), (4, 1)]:
        y = net.block(y, f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1, "shortcut.0")
    return net.logits(net.norm_relu(y, "bn"), "linear")


def cnn(model: CNN, x: Tensor) -> Tensor:
    net = WrittenOut(model)
    y = functional.max_pool2d(net.norm_relu(net.conv(net.images(x), "conv1"), "bn1"), 2, ceil_mode=True)
    y = net.norm_relu(net.conv(y, "conv2"), "bn2")
    y = functional.max_pool2d(net.norm_relu(net.conv(y, "conv3"), "bn3"), 2, ceil_mode=True)
    return net.logits(y, "fc")


FORWARD: list[tuple[str, float, Callable[[Any, Tensor], Tensor]]] = [
    ("wide_resnet28_10", 0.1, wide),
    ("wide_resnet34_10", 0.05, wide),
    ("preact_resnet18", 0.25, preact),
    ("cnn", 0.25, cnn),
]


@pytest.mark.parametrize("side", [16, 14, 9])
@pytest.mark.parametrize(("name", "width", "written_out"), FORWARD)
def test_forward_pass_written_out(name: str, width: float, written_out: Callable, side: int) -> None:
    torch.manual_seed(0)
    model = settled(MODELS[name](5, width=width))
    x = torch.rand(2, 3, side, side, dtype=torch.double)
    torch.testing.assert_close(model(x), written_out(model, x), rtol=1e-10, atol=1e-10)


def test_the_cnn_of_32_pixels_ends_in_8_by_8() -> None:
    model = CNN(10, width=0.1)
    assert model.maxpool(model.maxpool(torch.rand(1, 4, 32, 32))).shape == (1, 4, 8, 8)


@pytest.mark.parametrize("name", ["wide_resnet28_10", "preact_resnet18"])
def test_blurpool_changes_strided_blocks_alone(name: str) -> None:
    plain, blurred = MODELS[name](5, width=0.25).eval(), MODELS[name](5, width=0.25, blurpool=True).eval()
    blurred.load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, 16, 16)
    first = ("block1", "block2") if name == "wide_resnet28_10" else ("layer1", "layer2")
    y = {key: model.conv1(x) for key, model in (("plain", plain), ("blurred", blurred))}
    y = {key: getattr(model, first[0])(y[key]) for key, model in (("plain", plain), ("blurred", blurred))}
    assert torch.equal(y["plain"], y["blurred"])
    y = {key: getattr(model, first[1])(y[key]) for key, model in (("plain", plain), ("blurred", blurred))}
    assert y["plain"].shape == y["blurred"].shape
    assert not torch.allclose(y["plain"], y["blurred"])


@pytest.mark.parametrize("width", [0.01, 0.1, 0.35, 2.0])
def test_a_wide_resnet_keeps_its_stem_and_rounds_its_stages(width: float) -> None:
    with torch.device("meta"):
        model = MODELS["wide_resnet28_10"](10, width=width)
    assert model.conv1.out_channels == 16
    found = [getattr(model, f"block{stage}").layer[-1].conv2.out_channels for stage in (1, 2, 3)]
    assert found == [max(8, 8 * round(160 * 2**stage * width / 8)) for stage in range(3)]
    assert model(torch.empty(2, 3, 16, 16, device="meta")).shape == (2, 10)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: WideResNet(29, 10), "depth must be 6 n \\+ 4 .* found 29"),
        (lambda: WideResNet(4, 10), "depth must be 6 n \\+ 4 .* found 4"),
        (lambda: WideResNet(10, 1, width=0.0), "width must be above 0, found 0"),
        (lambda: CNN(expansion=0), "expansion must be 1 or more, found 0"),
        (lambda: CNN(width=-1.0), "width must be above 0, found -1"),
        (lambda: MODELS["preact_resnet18"](drop_path=1.0), "drop_path must be at least 0 and below 1, found"),
        (lambda: CNN(mean=[0.5]), "mean must have one number for each of the 3 channels, found 1"),
    ],
)
def test_bad_options_are_refused(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_what_trades_checkpoints_hold_and_never_use_is_left_out(tmp_path: Path) -> None:
    """TRADES' network has a second copy of its first stage that its forward pass does not call."""
    theirs, ours = MODELS["wide_resnet34_10"](10, width=0.1), MODELS["wide_resnet34_10"](10, width=0.1)
    state = theirs.state_dict()
    unused = {f"sub_{key}": value + 1 for key, value in state.items() if key.startswith("block1.")}
    torch.save(state | unused, tmp_path / "trades.pt")
    load_weights(ours, tmp_path / "trades.pt")
    assert all(torch.equal(value, state[key]) for key, value in ours.state_dict().items())
    torch.save(state | {"sub_block2.layer.0.bn1.weight": torch.ones(16)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="sub_block2"):
        load_weights(ours, tmp_path / "other.pt")


def test_logits_of_preact_checkpoints_without_a_last_norm_are_not_made_up(tmp_path: Path) -> None:
    """Some published PreActResNets have no norm before the linear layer: another function, and no key for it."""
    model = MODELS["preact_resnet18"](10, width=0.125)
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("bn.")}
    torch.save(state, tmp_path / "without.pt")
    with pytest.raises(InputError, match=r"expected bn\.weight of shape \(64,\), found no such key"):
        load_weights(model, tmp_path / "without.pt")
