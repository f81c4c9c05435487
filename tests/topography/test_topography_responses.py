"""Responses reduced as they pass, what is preferred, and what noise moves, on small networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from kapdist.kap import KAPConv2d, kapify, kernel_average
from kapdist.topography.layers import layers_of, patches_product
from kapdist.topography.null import orders_of
from kapdist.topography.places import pairs_of
from kapdist.topography.preferences import (
    class_map,
    grating_responses,
    kernel_pictures,
    orientations,
    preferred_orientations,
)
from kapdist.topography.responses import POSITIONS, Moments, moments_of, positions_of
from kapdist.topography.similarity import averaged, similarities
from kapdist.topography.variance import Noise, Spread, moved_by, signal_of

CLASSES = 5


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def network(pool_size: int = 3, layout: str = "sheet") -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(16, 9, 3, stride=2, padding=1)
    model = nn.Sequential(*layers, nn.BatchNorm2d(9), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(*model, nn.Linear(9, CLASSES)).eval().requires_grad_(False)
    return kapify(model, pool_size=pool_size, layout=layout) if pool_size > 1 else model


def batches(count: int = 24) -> list[tuple[Tensor, Tensor]]:
    labels = torch.arange(count) % CLASSES
    return list(zip(seeded(count, 3, 6, 6).split(10), labels.split(10), strict=True))


def ignored(images: int) -> None:
    pass


# Responses.


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation", "groups"), [
    (3, 1, 1, 1, 1), (3, 2, 1, 1, 2), (1, 2, 0, 1, 1), ((3, 1), (1, 2), (2, 1), (2, 1), 4), (3, 1, "same", 2, 1),
])  # fmt: skip
def test_products_of_patches_are_the_convolution_s(kernel, stride, padding, dilation, groups, mode: str) -> None:
    conv = nn.Conv2d(8, 12, kernel, stride, padding, dilation, groups, padding_mode=mode).double()
    x = seeded(2, 8, 7, 9).double()
    expected = conv(x)
    places = torch.tensor([0, 3, expected.shape[2] * expected.shape[3] - 1])
    found = patches_product(conv, x, places, expected.shape[3])
    wanted = expected.flatten(2)[:, :, places].transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(("pool_size", "layout"), [(1, "sheet"), (3, "sheet"), (3, "line")])
def test_correlations_are_numpy_s_of_all_activations(pool_size: int, layout: str) -> None:
    """Behind the average the network's own activations are looked at; before it those of W alone."""
    model = network(pool_size, layout)
    layers = layers_of(model, layout)
    moments, _ = moments_of(model, layers, batches(), CLASSES, 0, ignored)
    x = torch.cat([images for images, _ in batches()])
    inputs = x, functional.relu(model[0](x))
    for layer, seen in zip(layers, inputs, strict=True):
        conv = layer.conv
        places = positions_of(*conv(seen).shape[2:], 0, layer.name)
        before = functional.conv2d(seen, conv.weight, conv.bias, conv.stride, conv.padding).flatten(2)[:, :, places]
        rows = before.transpose(0, 1).flatten(1).double().numpy()
        found = similarities(moments[layer.name].covariance)
        assert moments[layer.name].count == rows.shape[1] == len(x) * len(places)
        np.testing.assert_allclose(found, np.corrcoef(rows), atol=1e-5)
        after = conv(seen).flatten(2)[:, :, places].transpose(0, 1).flatten(1).double().numpy()
        pooled = similarities(averaged(moments[layer.name].covariance, layer.average))
        np.testing.assert_allclose(pooled, np.corrcoef(after), atol=1e-5)


def test_a_grouped_average_and_a_shared_layer_are_followed() -> None:
    torch.manual_seed(0)
    conv = KAPConv2d(16, 16, 3, padding=1, groups=4, pool_size=3, layout="sheet")
    model = nn.Sequential(nn.Conv2d(3, 16, 1), conv, conv, nn.Flatten(), nn.Linear(16 * 36, CLASSES)).eval()
    layers = layers_of(model, "sheet")
    assert [layer.name for layer in layers] == ["0", "1"]
    moments, logits = moments_of(model, layers, batches(), CLASSES, 0, ignored)
    assert moments["1"].count == 2 * 24 * POSITIONS
    assert logits.shape == (24, CLASSES)


def test_a_convolution_that_makes_its_own_weights_is_taken_at_its_word() -> None:
    class Doubled(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return self._conv_forward(x, 2 * self.weight, self.bias)

    conv = Doubled(3, 9, 3)
    layer = layers_of(nn.Sequential(conv), "sheet")[0]
    x = seeded(2, 3, 5, 5)
    found = layer.before_average(x, conv(x), torch.arange(9))
    torch.testing.assert_close(found, conv(x).flatten(2).transpose(1, 2).flatten(0, 1))


def test_a_norm_between_convolution_and_average_is_part_of_what_is_averaged() -> None:
    conv = KAPConv2d(3, 9, 3, pool_size=3, layout="sheet")
    norm = nn.BatchNorm2d(9).eval()
    norm.running_mean, norm.running_var = seeded(9, seed=1), 0.5 + seeded(9, seed=2)
    norm.weight.data, norm.bias.data = seeded(9, seed=3) - 0.5, seeded(9, seed=4)
    conv.register_module("inner_norm", norm)
    layer, x = layers_of(nn.Sequential(conv), "sheet")[0], seeded(2, 3, 5, 5)
    before = norm(functional.conv2d(x, conv.weight, conv.bias))
    found = layer.before_average(x, kernel_average(before, 3, layout="sheet"), torch.arange(9))
    torch.testing.assert_close(found, before.flatten(2).transpose(1, 2).flatten(0, 1))
    still = norm(torch.zeros(1, 9, 1, 1)).flatten()
    torch.testing.assert_close(layer.scale, norm(torch.ones(1, 9, 1, 1)).flatten() - still)


def test_positions_are_a_function_of_seed_and_layer() -> None:
    assert len(positions_of(8, 8, 0, "a")) == POSITIONS
    assert positions_of(2, 2, 0, "a").tolist() == [0, 1, 2, 3]
    assert positions_of(8, 8, 0, "a").tolist() == positions_of(8, 8, 0, "a").tolist()
    assert positions_of(8, 8, 0, "a").tolist() != positions_of(8, 8, 1, "a").tolist()


# Preferences.


def test_a_kernel_prefers_the_class_that_moves_it_up_most() -> None:
    moments = Moments(9, 3)
    labels = torch.arange(300) % 3
    values = 0.1 * seeded(300, 9)
    for kernel in range(8):
        values[labels == kernel % 3, kernel] += 1
    values[:, 8] = 0.5  # says nothing
    moments.add(values[:100], labels[:100])
    moments.add(values[100:], labels[100:])
    model = nn.Sequential(nn.Conv2d(3, 9, 1))
    layer = layers_of(model, "sheet")[0]
    found = class_map(layer, moments, pairs_of(9, 1, "sheet", 0), orders_of(9, 1, 199, 0, "x"))
    assert found.preferred == (0, 1, 2, 0, 1, 2, 0, 1, -1)
    # Columns of the 3 x 3 sheet are alike: 3 + 2 of 6 pairs down and none of 6 along a row.
    assert found.alike.neighbours == pytest.approx(5 / 12)


def gabor(degrees: float, size: int = 9, frequency: float = 0.2) -> Tensor:
    """Bars at an angle counter-clockwise from upright, as one sees them on a screen."""
    y, x = torch.meshgrid(torch.arange(size) - size // 2, torch.arange(size) - size // 2, indexing="ij")
    angle = math.radians(degrees)
    wave = (2 * math.pi * frequency * (x * math.cos(angle) - y * math.sin(angle)) + 0.7).cos()
    return wave * (-(x**2 + y**2) / 12).exp()


def test_gabors_prefer_the_orientation_that_they_were_made_with() -> None:
    angles = [0.0, 30, 45, 90, 120, 170]
    weight = torch.stack([gabor(angle) for angle in angles])[:, None].repeat(1, 3, 1, 1)
    degrees, selectivity = preferred_orientations(grating_responses(weight))
    apart = (degrees - torch.tensor(angles) + 90) % 180 - 90
    assert apart.abs().max() < 4
    assert selectivity.min() > 0.4
    blob = (-(torch.arange(9.0) - 4).square() / 8).exp()
    round_one = (blob[:, None] * blob)[None, None]
    assert preferred_orientations(grating_responses(round_one))[1].item() < 0.05


def test_a_pinwheel_of_orientations_is_found_and_a_shuffled_one_is_not() -> None:
    angles = torch.linspace(0, 170, 36)
    weight = torch.stack([gabor(float(angle)) for angle in angles])[:, None].repeat(1, 3, 1, 1)
    conv = nn.Conv2d(3, 36, 9)
    layer = layers_of(nn.Sequential(conv), "line")[0]
    pairs, orders = pairs_of(36, 1, "line", 0), orders_of(36, 1, 399, 0, "x")
    found = orientations(layer, weight, pairs, orders)
    assert found.alike.p == 1 / 400
    expected = math.cos(math.radians(2 * 170 / 35))  # of one step along the line
    assert found.alike.neighbours == pytest.approx(expected, abs=0.05)
    mixed = orientations(
        layer, weight[torch.randperm(36, generator=torch.Generator().manual_seed(0))], pairs, orders
    )
    assert mixed.alike.p > 0.02


def test_kernels_are_pictures_of_their_weights() -> None:
    conv = KAPConv2d(3, 9, 2, pool_size=3, layout="sheet", bias=False)
    found = kernel_pictures(layers_of(nn.Sequential(conv), "sheet")[0])
    assert found.shape == (2, 2, 3)
    first = torch.tensor(found.stored[0]).view(2, 2, 3).permute(2, 0, 1)
    largest = conv.weight[0].abs().max()
    torch.testing.assert_close((first - 128) / 127 * largest, conv.weight[0].detach(), atol=0.01, rtol=0.02)
    pooled = kernel_average(conv.weight.detach(), 3, layout="sheet", dim=0)
    assert found.averaged[4][0] == round(128 + 127 * float(pooled[4, 0, 0, 0] / pooled[4].abs().max()))


# Variance.


def test_variances_over_draws_are_numpy_s() -> None:
    draws = seeded(5, 4, 3)
    spread = Spread()
    for draw in draws:
        spread.add(draw)
    torch.testing.assert_close(spread.variances, draws.var(0), atol=1e-6, rtol=1e-4)


def level(model: nn.Module, noise: Noise, count: int = 20):
    shown = batches(count)
    layers = layers_of(model, "sheet")
    moments, logits = moments_of(model, layers, shown, CLASSES, 0, ignored)
    signal = signal_of(layers, moments, logits)
    return moved_by(model, layers, shown, logits, signal, noise, 0, ignored), signal


def test_input_noise_moves_a_linear_network_by_its_weights() -> None:
    """Of W x the variance is sigma^2 |w|^2 for each kernel; of A W x that of the averaged kernels."""
    torch.manual_seed(0)
    conv = KAPConv2d(3, 16, 6, pool_size=3, layout="sheet")
    model = nn.Sequential(conv, nn.Flatten(), nn.Linear(16, CLASSES)).eval().requires_grad_(False)
    found, signal = level(model, Noise("input", 0.1, draws=40, seed=1))
    row = found.layers[0]
    pooled = kernel_average(conv.weight, 3, layout="sheet", dim=0)
    for moved, of, weight in ((row.before, signal.before, conv.weight), (row.after, signal.after, pooled)):
        expected = 0.01 * float(weight.flatten(1).square().sum(1).mean()) / of["0"]
        assert moved == pytest.approx(expected, rel=0.1)
    head = model[2].weight - model[2].weight.mean(0)
    through = head @ pooled.flatten(1)
    expected = 0.01 * float(through.square().sum(1).mean()) / signal.logits
    assert found.logits == pytest.approx(expected, rel=0.15)


def test_activation_noise_is_put_behind_the_average_and_moves_what_follows() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(KAPConv2d(3, 16, 6, pool_size=3, layout="sheet"), nn.Flatten(), nn.Linear(16, CLASSES))
    found, signal = level(model.eval().requires_grad_(False), Noise("activation", 0.5, draws=40, seed=1))
    assert (found.layers[0].before, found.layers[0].after) == (0, 0)
    head = model[2].weight - model[2].weight.mean(0)
    expected = 0.25 * float(head.square().sum(1).mean()) / signal.logits
    assert found.logits == pytest.approx(expected, rel=0.15)


def test_draws_repeat_and_more_noise_moves_more() -> None:
    model = network()
    hooks = [len(module._forward_hooks) for module in model.modules()]
    levels = [level(model, Noise("input", std, draws=3, seed=2))[0] for std in (0.05, 0.05, 0.2)]
    assert levels[0] == levels[1]
    assert levels[0].logits < levels[2].logits
    assert levels[0].layers[0].before < levels[2].layers[0].before
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
