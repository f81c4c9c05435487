import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kapdist.kap import KAPConv2d, kapify
from kapdist.models import MODELS, RESNETS, ResNet
from kapdist.models.blur import Blur

TORCHVISION = json.loads((Path(__file__).parent / "torchvision_keys.json").read_text())


@pytest.mark.parametrize("name", TORCHVISION)
@pytest.mark.parametrize("options", [{}, {"blurpool": True, "dropout": 0.1, "zero_init_residual": True}])
def test_state_is_torchvisions(name: str, options: dict[str, Any]) -> None:
    """torchvision_keys.json was written from torchvision 0.29.1's own models."""
    with torch.device("meta"):
        model = MODELS[name](**options)
    state = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert list(state.items()) == list(TORCHVISION[name].items())
    with_kap = {key: list(value.shape) for key, value in kapify(model, noise_std=0.5).state_dict().items()}
    assert with_kap == state


def test_resnet10_is_resnet18_with_one_block_a_stage() -> None:
    second_blocks = tuple(f"layer{stage}.1." for stage in (1, 2, 3, 4))
    expected = {key: shape for key, shape in TORCHVISION["resnet18"].items() if not key.startswith(second_blocks)}
    assert {key: list(value.shape) for key, value in MODELS["resnet10"]().state_dict().items()} == expected


@pytest.mark.parametrize("name", TORCHVISION)
def test_logits_are_torchvisions(name: str) -> None:
    torchvision = pytest.importorskip("torchvision", reason="torchvision is optional and not installed")
    theirs = torchvision.models.get_model(name).eval()
    ours = MODELS[name]().eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs((x - ours.mean) / ours.std))


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_forward_pass_written_out(stem: str) -> None:
    """The whole forward pass of a ResNet-18 in functional form, from its state_dict alone."""
    model = MODELS["resnet18"](10, width=0.125, stem=stem).double().eval()
    state = {key: value.double() for key, value in model.state_dict().items()}

    def conv_norm(x: Tensor, conv: str, norm: str, stride: int) -> Tensor:
        weight = state[f"{conv}.weight"]
        x = nn.functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        names = ("running_mean", "running_var", "weight", "bias")
        return nn.functional.batch_norm(x, *(state[f"{norm}.{name}"] for name in names))

    x = torch.rand(2, 3, 32, 32, dtype=torch.double)
    mean = torch.tensor([0.485, 0.456, 0.406]).double().view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).double().view(3, 1, 1)
    y = conv_norm((x - mean) / std, "conv1", "bn1", 2 if stem == "imagenet" else 1).relu()
    y = nn.functional.max_pool2d(y, 3, 2, 1) if stem == "imagenet" else y
    for stage, block in [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1), (4, 0), (4, 1)]:
        at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
        inner = conv_norm(y, f"{at}.conv1", f"{at}.bn1", stride).relu()
        outer = conv_norm(y, f"{at}.downsample.0", f"{at}.downsample.1", stride) if stride == 2 else y
        y = (conv_norm(inner, f"{at}.conv2", f"{at}.bn2", 1) + outer).relu()
    logits = y.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]
    torch.testing.assert_close(model(x), logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("blurpool", [False, True])
def test_kap_of_one_kernel_without_noise_is_bitwise_the_plain_network(name: str, blurpool: bool) -> None:
    plain = MODELS[name](10, width=0.25, blurpool=blurpool)
    kap = MODELS[name](10, width=0.25, blurpool=blurpool)
    kapify(kap, pool_size=1, noise_std=0.0).load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(kap(x), plain(x))


@pytest.mark.parametrize("layout", ["line", "sheet"])
@pytest.mark.parametrize("width", [0.25, 0.375, 0.5])
@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_narrow_networks_take_kap(layout: str, width: float, stem: str) -> None:
    model = kapify(MODELS["resnet18"](10, width=width, stem=stem), layout=layout, noise_std=0.3)
    logits = model(torch.rand(2, 3, 16, 16))
    assert logits.shape == (2, 10)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_width_scales_every_layer() -> None:
    widths = [
        module.out_channels for module in MODELS["resnet18"](width=0.375).modules() if isinstance(module, nn.Conv2d)
    ]
    assert sorted(set(widths)) == [24, 48, 96, 192]
    assert MODELS["resnet50"](width=0.01).fc.in_features == 8 * 8 * 4


def test_cifar_stem_keeps_the_resolution() -> None:
    model = MODELS["resnet18"](10, stem="cifar", width=0.125)
    x = torch.rand(2, 3, 32, 32)
    assert model.maxpool(model.conv1(x)).shape == (2, 8, 32, 32)


def test_blur_is_the_binomial_filter_before_strided_convolutions() -> None:
    impulse = torch.zeros(1, 2, 5, 5)
    impulse[0, 1, 2, 2] = 16
    assert Blur()(impulse)[0, 1, 1:4, 1:4].tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]
    assert Blur()(impulse)[0, 0].abs().sum() == 0

    blurred_networks = {name: RESNETS[name](width=0.25, blurpool=True) for name in RESNETS}
    blurs = {name: sum(isinstance(m, Blur) for m in net.modules()) for name, net in blurred_networks.items()}
    assert blurs == {"resnet10": 3, "resnet18": 3, "resnet34": 3, "resnet50": 6, "resnet101": 6}
    narrow = MODELS["resnet18"](width=0.125, blurpool=True)  # 8 channels before the first strided block
    assert sum(isinstance(module, Blur) for module in narrow.modules()) == 2
    x = torch.rand(1, 3, 64, 64)
    torch.manual_seed(0)
    plain = MODELS["resnet50"](10, width=0.25).eval()
    blurred = MODELS["resnet50"](10, width=0.25, blurpool=True).eval()
    blurred.load_state_dict(plain.state_dict())
    assert plain(x).shape == blurred(x).shape
    assert not torch.allclose(plain(x), blurred(x))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_zero_initialised_blocks_start_as_their_shortcuts(name: str) -> None:
    block = MODELS[name](width=0.125, zero_init_residual=True).layer1[1]
    x = torch.rand(2, block.conv1.in_channels, 4, 4)
    assert torch.equal(block(x), x)
    assert not torch.equal(MODELS[name](width=0.125).layer1[1](x), x)


def test_dropout_acts_in_training_alone() -> None:
    model = MODELS["resnet18"](10, width=0.125, dropout=0.5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    x = torch.rand(2, 3, 32, 32)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_normalisation_is_part_of_the_model() -> None:
    x = torch.rand(2, 3, 32, 32)
    own = MODELS["resnet18"](10, width=0.125, mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4]).eval()
    none = MODELS["resnet18"](10, width=0.125, mean=[0.0] * 3, std=[1.0] * 3).eval()
    none.load_state_dict(own.state_dict())
    shifted = (x - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    torch.testing.assert_close(own(x), none(shifted))
    assert MODELS["resnet18"](10, width=0.125, in_channels=1)(x[:, :1]).shape == (2, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "svhn"}, "stem must be one of imagenet, cifar, found 'svhn'"),
        ({"width": 0}, "width must be above 0, found 0"),
        ({"mean": [0.5]}, "mean must have one number for each of the 3 channels, found 1"),
        (
            {"in_channels": 1, "std": [1.0, 1.0, 1.0]},
            "std must have one number for each of the 1 channels, found 3",
        ),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        MODELS["resnet18"](**options)


def test_a_sheet_too_small_is_refused_by_name() -> None:
    model: ResNet = MODELS["resnet18"](width=0.125)
    with pytest.raises(ValueError, match=r"conv1: .*8 channels on a 2 x 4 sheet"):
        kapify(model, layout="sheet")
    assert not any(isinstance(module, KAPConv2d) for module in model.modules())
