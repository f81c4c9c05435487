"""Dropout that is drawn always is a noise with modes, streams and state; in training alone it is torch's."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kapdist.config import KapConfig, ModelConfig
from kapdist.errors import InputError
from kapdist.kap import kapify, load_noise_state, noise, noise_state, seed_noise
from kapdist.models import MODELS
from kapdist.models.build import build_model
from kapdist.models.dropout import NoisyDropout, with_dropout

NETWORK: dict[str, Any] = {"name": "resnet10", "num_classes": 5, "width": 0.25, "stem": "cifar"}


def dropped(layer: NoisyDropout, x: Tensor) -> Tensor:
    """Which of x's values, none of them zero, fell; the others must have grown by just 1 / (1 - p)."""
    out = layer(x)
    fell = out == 0
    torch.testing.assert_close(out[~fell], (x / (1 - layer.p))[~fell])
    return fell


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("p", [0.05, 0.5])
@pytest.mark.parametrize("training", [True, False])
def test_each_value_falls_with_probability_p(
    p: float, dtype: torch.dtype, memory_format: torch.memory_format, training: bool
) -> None:
    x = torch.ones(16, 32, 16, 16, dtype=dtype).to(memory_format=memory_format)
    fell = dropped(NoisyDropout(p).train(training), x).double()
    assert abs(fell.mean() - p) < 5 * math.sqrt(p * (1 - p) / fell.numel())
    for one, other in ((fell[1:], fell[:-1]), (fell[:, 1:], fell[:, :-1]), (fell[..., 1:], fell[..., :-1])):
        both, count = (one * other).mean(), one.numel()
        assert abs(both - p * p) < 5 * math.sqrt(p * p * (1 - p * p) * 2 / count)


def test_whole_channels_fall() -> None:
    fell = dropped(NoisyDropout(0.3, "2d"), torch.ones(64, 128, 3, 5))
    whole = fell.double().mean((2, 3))
    assert set(whole.flatten().tolist()) == {0.0, 1.0}
    assert abs(whole.mean() - 0.3) < 5 * math.sqrt(0.3 * 0.7 / whole.numel())


@pytest.mark.parametrize("kind", ["1d", "2d"])
@pytest.mark.parametrize("shape", [(6, 40), (6, 8, 5), (6, 8, 2, 5), (6, 8, 2, 5, 3)])
def test_maps_of_any_dimensions(shape: tuple[int, ...], kind: str) -> None:
    layer = NoisyDropout(0.5, kind)
    fell = dropped(layer, torch.ones(shape))
    assert fell.shape == shape
    assert 0 < fell.double().mean() < 1
    assert not torch.equal(fell, dropped(layer, torch.ones(shape)))
    channels = fell.flatten(2).double().mean(2) if len(shape) > 2 else fell.double()
    assert (set(channels.flatten().tolist()) == {0.0, 1.0}) == (kind == "2d" or len(shape) == 2)


def test_fixed_dropout_is_one_network_for_all_images_and_calls() -> None:
    x = torch.rand(4, 8, 5, 5) + 0.1
    for kind in ("1d", "2d"):
        layer = NoisyDropout(0.5, kind)
        with noise(layer, "fixed", seed=3):
            fell = dropped(layer, x)
            assert torch.equal(fell, fell[:1].expand_as(fell))
            assert torch.equal(dropped(layer, x[1:2]), fell[:1])
            assert torch.equal(dropped(layer, x.to(memory_format=torch.channels_last)), fell)
            assert torch.equal(dropped(layer, x.double()), fell)
        with noise(layer, "fixed", seed=4):
            assert not torch.equal(dropped(layer, x), fell)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_all_precisions_drop_the_same(dtype: torch.dtype) -> None:
    layer, x = NoisyDropout(0.3), torch.ones(4, 8, 5, 5)
    fell = []
    for images in (x, x.to(dtype)):
        seed_noise(layer, 3)
        fell.append(dropped(layer, images))
    assert torch.equal(*fell)


def test_off_is_the_identity() -> None:
    layer, x = NoisyDropout(0.5), torch.rand(4, 8, 5, 5)
    with noise(layer, "off"):
        assert layer(x) is x
    layer.silence()
    assert layer(x) is x
    assert NoisyDropout(0.0)(x) is x


def test_its_gradient_is_its_mask() -> None:
    layer, x = NoisyDropout(0.25), torch.ones(3, 8, 4, 4, requires_grad=True)
    out = layer(x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(gradient, out.detach())


def test_a_saved_state_continues_the_draws() -> None:
    model = build_model(
        ModelConfig(**NETWORK, dropout=0.5, dropout_draws="always"),
        KapConfig(pool_size=3, layout="line", noise_std=0.1),
    )
    other, x = copy.deepcopy(model), torch.rand(2, 3, 8, 8)
    seed_noise(model, 5)
    model(x)
    state = noise_state(model)
    assert {key.split(".")[0] for key in state} == {"0"}, "activation noise and dropout share one source"
    before = torch.get_rng_state()
    expected = [model(x), model(x)]
    assert torch.equal(torch.get_rng_state(), before), "torch's generator is left alone"
    other.load_state_dict(model.state_dict())
    load_noise_state(other, state)
    assert all(torch.equal(other(x), logits) for logits in expected)


def test_layers_of_one_model_draw_apart() -> None:
    model = with_dropout(nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5)), "1d", "always")
    kapify(nn.Sequential(model, nn.Conv2d(8, 8, 1)), layout="line", noise_std=0.1)
    first, second = (dropped(layer, torch.ones(4, 8, 8, 8)) for layer in model)
    assert not torch.equal(first, second)


def test_in_training_alone_it_is_the_network_as_it_was() -> None:
    torch.manual_seed(0)
    ours = build_model(ModelConfig(**NETWORK, dropout=0.3, zero_init_residual=False), KapConfig())
    torch.manual_seed(0)
    theirs = MODELS["resnet10"](5, width=0.25, stem="cifar", dropout=0.3)
    x = torch.rand(2, 3, 8, 8)
    logits = []
    for model in (ours, theirs):
        torch.manual_seed(1)
        logits.append(model.train()(x))
    assert torch.equal(*logits)
    assert torch.equal(ours.eval()(x), ours(x))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("kind", "layer"), [("1d", nn.Dropout), ("2d", nn.Dropout2d)])
def test_every_network_has_each_kind(name: str, kind: str, layer: type[nn.Module]) -> None:
    for draws, wanted in (("training", layer), ("always", NoisyDropout)):
        with torch.device("meta"):
            network = MODELS[name](5, width=0.125, dropout=0.25).eval()
        names = [name for name, module in network.named_modules() if isinstance(module, nn.Dropout | nn.Dropout2d)]
        assert names
        network = with_dropout(network, kind, draws)
        found = [network.get_submodule(name) for name in names]
        assert {type(module) for module in found} == {wanted}
        assert {(module.p, module.training) for module in found} == {(0.25, False)}
        assert draws == "training" or {module.kind for module in found} == {kind}


def test_dropout_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"^model.dropout_draws: expected a model that has dropout"):
        build_model(ModelConfig(**NETWORK, dropout_draws="always"), KapConfig())
    with pytest.raises(ValueError, match="p must be a probability below 1, found 1"):
        NoisyDropout(1)
    with pytest.raises(ValueError, match="kind must be one of 1d, 2d, found '3d'"):
        NoisyDropout(0.5, "3d")
    with pytest.raises(ValueError, match="found '1d', 'never'"):
        with_dropout(nn.Sequential(), "1d", "never")
