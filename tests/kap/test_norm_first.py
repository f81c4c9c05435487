"""conv, norm, mean, noise: against the modules of the formula, one by one, in float64."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kapdist.kap import KAPConv2d, NoNormError, fold, kapify, load_noise_state, noise, noise_state, seed_noise
from kapdist.models import MODELS

Dense = Callable[[int, int, int, str], Tensor]
CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "1x1": {"kernel_size": 1, "bias": False},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False},
    "biased": {"kernel_size": 3, "padding": "same", "bias": True},
    "grouped": {"kernel_size": 3, "groups": 4, "bias": True},
}
WINDOWS = [(12, 3, 1, "sheet"), (56, 5, 1, "sheet"), (56, 3, 2, "sheet"), (12, 3, 1, "line"), (12, 5, 2, "line")]


def away_from_identity(norm: nn.Module) -> nn.Module:
    for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        value.data.uniform_(0.5, 1.5)
    return norm


class Formula(nn.Module):
    """A norm(W x + b): every step a module of torch or a matrix."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, matrix: Tensor) -> None:
        super().__init__()
        self.conv, self.norm = copy.deepcopy(conv), copy.deepcopy(norm)
        self.matrix = matrix

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("kc,bchw->bkhw", self.matrix, self.norm(self.conv(x)))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize(("channels", "pool_size", "stride", "layout"), WINDOWS)
def test_it_is_the_formula_trained_and_evaluated(
    dense_average: Dense,
    channels: int,
    pool_size: int,
    stride: int,
    layout: str,
    name: str,
    memory_format: torch.memory_format,
) -> None:
    """Outputs, gradients of all parameters and of the images, and the statistics that training leaves."""
    arguments = CONVOLUTIONS[name] | {"in_channels": 4, "out_channels": channels, "dtype": torch.double}
    conv = nn.Conv2d(**arguments)
    norm = away_from_identity(nn.BatchNorm2d(channels, dtype=torch.double))
    formula = Formula(conv, norm, dense_average(channels, pool_size, stride, layout))
    options = {"pool_size": pool_size, "pool_stride": stride, "layout": layout}
    kap = KAPConv2d(**arguments, **options, inner_norm=norm)
    kap.load_state_dict(kap.state_dict() | conv.state_dict())
    kap = kap.to(memory_format=memory_format)
    for training in (True, False, True):
        x = torch.randn(3, 4, 6, 6, dtype=torch.double).to(memory_format=memory_format)
        results = []
        for model in (kap.train(training), formula.train(training)):
            images = x.clone().requires_grad_()
            out = model(images)
            named = dict(model.named_parameters())
            learned = [named[key] for key in sorted(named, key=lambda key: key.rpartition(".")[::-1])]
            upstream = torch.linspace(-1, 1, out.numel(), dtype=torch.double).view(out.shape)
            results.append([out, *torch.autograd.grad(out, [images, *learned], upstream)])
        torch.testing.assert_close(results[0], results[1], rtol=1e-11, atol=1e-11)
    for key, value in formula.norm.state_dict().items():
        torch.testing.assert_close(kap.inner_norm.state_dict()[key], value, rtol=1e-12, atol=1e-12)
    assert int(kap.inner_norm.num_batches_tracked) == 2


def test_the_noise_comes_behind_the_average() -> None:
    kap = KAPConv2d(4, 12, 1, noise_std=0.7, inner_norm=nn.BatchNorm2d(12))
    alone = KAPConv2d(4, 12, 1, noise_std=0.7, pool_size=1)
    for conv in (kap, alone):
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
        seed_noise(conv, 3)
    x = torch.zeros(64, 4, 16, 16)
    for training in (True, False):
        drawn = kap.train(training)(x)
        assert torch.equal(drawn, alone(x))
        samples = drawn.detach().double().movedim(1, 0).flatten(1)
        assert ((samples.var(1) / 0.7**2 - 1).abs() < 5 * (2 / samples.shape[1]) ** 0.5).all()


def network(**options: Any) -> nn.Module:
    return kapify(MODELS["resnet18"](10, width=0.25, stem="cifar"), norm_first=True, **options)


def trained(model: nn.Module) -> nn.Module:
    """In eval mode and float64, every norm away from where it starts."""
    for module in model.double().modules():
        if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
            away_from_identity(module)
    return model.eval()


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("layout", ["sheet", "line"])
def test_a_folded_network_has_one_convolution_a_layer_and_equal_logits(layout: str, norms: bool) -> None:
    model = trained(network(layout=layout, noise_std=0.3))
    x = torch.rand(2, 3, 16, 16, dtype=torch.double)
    folded = fold(model, norms=norms)
    with noise(model, "off"):
        logits = model(x)
        torch.testing.assert_close(folded(x), logits, rtol=1e-10, atol=1e-10)
        for conv in model.modules():
            if isinstance(conv, KAPConv2d):  # the same network, layer by layer as it is written
                pool, conv.pool_size = conv.pool_size, 1
                norm, conv.inner_norm = conv.inner_norm, None
                conv.register_forward_hook(lambda c, _, z, n=norm, k=pool: written_out(c, n, z, k))
        torch.testing.assert_close(model(x), logits, rtol=1e-10, atol=1e-10)
    kinds = [type(module) for module in folded.modules()]
    assert kinds.count(nn.Conv2d) == 20
    assert kinds.count(nn.BatchNorm2d) == (0 if norms else 20)
    assert KAPConv2d not in kinds


def written_out(conv: KAPConv2d, norm: nn.Module, z: Tensor, pool_size: int) -> Tensor:
    from kapdist.kap import kernel_average

    return kernel_average(norm(z), pool_size, layout=conv.layout)


@pytest.mark.parametrize("dense", [False, True])
def test_a_grouped_convolution_is_folded_too(dense: bool) -> None:
    layers = [nn.Conv2d(4, 12, 3, groups=4, bias=False), nn.BatchNorm2d(12), nn.ReLU()]
    model = trained(kapify(nn.Sequential(*layers), norm_first=True))
    x = torch.rand(2, 4, 8, 8, dtype=torch.double)
    folded = fold(model, dense=dense)
    assert type(folded[0]) is (nn.Conv2d if dense else KAPConv2d)
    assert getattr(folded[0], "inner_norm", None) is None
    torch.testing.assert_close(folded(x), model(x), rtol=1e-11, atol=1e-11)
    assert model[0].inner_norm is not None


def test_what_the_batch_decides_is_not_folded() -> None:
    model = kapify(nn.Sequential(nn.Conv2d(4, 12, 3), nn.BatchNorm2d(12)), norm_first=True)
    with pytest.raises(ValueError, match=r"0: its inner norm is in training mode: call \.eval\(\) first"):
        fold(model)
    assert type(fold(model, norms=True)[0]) is nn.Conv2d
    norm = nn.BatchNorm2d(12, track_running_stats=False)
    model = kapify(nn.Sequential(nn.Conv2d(4, 12, 3), norm), norm_first=True).eval()
    with pytest.warns(UserWarning, match="fold leaves 0 as it is: its inner norm keeps no statistics"):
        folded = fold(model)
    x = torch.rand(3, 4, 8, 8)
    assert torch.equal(folded(x), model(x))


def test_statistics_that_are_frozen_in_training_go_into_the_weights() -> None:
    """As fine-tuning freezes them: the norms alone in eval mode."""
    model = trained(network())
    x = torch.rand(4, 3, 8, 8, dtype=torch.double)
    expected = model(x)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


def test_only_averages_have_a_norm_before_them() -> None:
    keys = list(network(pool_size=1, noise_std=0.3).state_dict())
    assert keys == list(MODELS["resnet18"](10, width=0.25, stem="cifar").state_dict())


def test_keys_of_the_convolutions_stay_and_inner_norms_come_beside_them() -> None:
    plain = MODELS["resnet18"](10, width=0.25, stem="cifar").state_dict()
    model = network()
    state = model.state_dict()
    assert [key for key in state if ".inner_norm." not in key] == list(plain)
    assert "layer2.0.downsample.0.inner_norm.running_var" in state
    convs = [module for module in model.modules() if isinstance(module, KAPConv2d)]
    assert len(state) == len(plain) + 5 * len(convs) == len(plain) + 100
    for conv in convs:
        assert conv.inner_norm.num_features == conv.out_channels
        assert bool((conv.inner_norm.weight == 1).all()), "the last norms of the blocks start at zero, these do not"


class Settled(nn.BatchNorm2d):
    """A norm with an activation of its own, as timm's."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        (nn.BatchNorm2d(12, eps=1e-3, momentum=0.2), nn.BatchNorm2d),
        (nn.BatchNorm2d(12, affine=False), nn.BatchNorm2d),
        (nn.SyncBatchNorm(12, eps=1e-3), nn.SyncBatchNorm),
        (Settled(12, momentum=None), nn.BatchNorm2d),
    ],
)
def test_the_inner_norm_is_of_the_kind_of_the_one_behind(norm: nn.Module, kind: type[nn.Module]) -> None:
    model = kapify(nn.Sequential(nn.Conv2d(3, 12, 3), norm).double(), norm_first=True)
    inner = model[0].inner_norm
    assert type(inner) is kind
    for name in ("eps", "momentum", "affine", "track_running_stats", "num_features"):
        assert getattr(inner, name) == getattr(norm, name)
    assert inner.running_var.dtype == torch.double


def test_norms_of_all_ranks_reach_the_inner_ones() -> None:
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(network())
    kinds = [type(module) for module in synced.modules()]
    assert (kinds.count(nn.SyncBatchNorm), kinds.count(nn.BatchNorm2d)) == (40, 0)
    model = trained(synced)
    x = torch.rand(2, 3, 8, 8, dtype=torch.double)
    torch.testing.assert_close(fold(model, norms=True)(x), model(x), rtol=1e-10, atol=1e-10)


class Residual(nn.Module):
    """One convolution with a norm, one whose norm has another source too, one without any."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.second, self.third = nn.Conv2d(12, 12, 1), nn.Conv2d(12, 12, 3)
        self.norm2 = nn.BatchNorm2d(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.first(x)).relu()
        return self.third(self.norm2(x + self.second(x))).relu().mean((2, 3))


def test_convolutions_without_a_norm_are_named_before_anything_changes() -> None:
    model = Residual()
    with pytest.raises(NoNormError, match=r"leave these out with `where`: second, third$"):
        kapify(model, norm_first=True, where=lambda *_: True)
    assert not any(isinstance(module, KAPConv2d) for module in model.modules())
    kapify(model, norm_first=True, where=lambda name, _: name == "first")
    assert model.first.inner_norm is not None
    with pytest.raises(NoNormError, match="the model itself"):
        kapify(nn.Conv2d(3, 12, 3), norm_first=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_norm": nn.BatchNorm2d(11)}, "a batch norm of 12 channels, found BatchNorm2d"),
        ({"inner_norm": nn.GroupNorm(3, 12)}, "a batch norm of 12 channels, found GroupNorm"),
        ({"inner_norm": nn.BatchNorm2d(12), "pool_size": 1}, "pool_size must be above 1"),
    ],
)
def test_other_inner_norms_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KAPConv2d(3, 12, 3, **options)


def test_a_saved_state_continues_bit_by_bit() -> None:
    """Weights, inner statistics and noise: a step after it is the step that would have been taken."""
    model = network(noise_std=0.3)
    seed_noise(model, 11)
    batches = torch.rand(3, 4, 3, 8, 8)

    def steps(model: nn.Module, batches: Tensor) -> list[Tensor]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for x in batches:
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        return list(model.state_dict().values())

    steps(model, batches[:1])
    weights, drawn = copy.deepcopy(model.state_dict()), noise_state(model)
    expected = steps(model, batches[1:])
    other = network(noise_std=0.3)
    other.load_state_dict(weights)
    load_noise_state(other, drawn)
    assert all(map(torch.equal, steps(other, batches[1:]), expected))


@pytest.mark.parametrize("training", [True, False])
def test_autocast_computes_in_bfloat16(training: bool) -> None:
    kap = KAPConv2d(4, 12, 3, inner_norm=away_from_identity(nn.BatchNorm2d(12))).train(training)
    x = torch.randn(4, 4, 8, 8).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = kap(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), kap(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(("training", "mode"), list(itertools.product((True, False), ("fresh", "off"))))
def test_compiled_as_one_graph_it_is_the_same(training: bool, mode: str) -> None:
    torch.compiler.reset()
    layers = [nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU()]
    model = kapify(nn.Sequential(*layers).double(), noise_std=0.3, norm_first=True).train(training)
    copied = copy.deepcopy(model)
    compiled = torch.compile(copied, fullgraph=True, backend="aot_eager")
    x = torch.rand(2, 3, 6, 6, dtype=torch.double)
    results = []
    for run, owner in ((model, model), (compiled, copied)):
        with noise(owner, mode, seed=5):
            out = run(x)
        results.append([out, *torch.autograd.grad(out.square().sum(), list(owner.parameters()))])
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(list(model.buffers()), list(copied.buffers()), rtol=1e-12, atol=1e-12)
