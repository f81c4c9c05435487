"""What decays, and the momentum's two forms against their definition."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kapdist.config import OptimConfig
from kapdist.kap import kapify
from kapdist.models import MODELS
from kapdist.train.optim import make_ema, make_optimizer, parameter_groups


@pytest.mark.parametrize("pool_size", [1, 3])
def test_no_norm_and_no_bias_decays(pool_size: int) -> None:
    """Norms of shortcuts (`downsample.1`) included, which a filter for "bn" in the name would let decay."""
    model = MODELS["resnet50"](num_classes=10, width=0.125)
    if pool_size > 1:
        kapify(model, pool_size=pool_size, layout="line")
    decayed, rest = parameter_groups(model, 1e-4)
    assert (decayed["weight_decay"], rest["weight_decay"]) == (1e-4, 0.0)
    assert len(decayed["params"]) == 53 + 1  # convolutions, and the last layer's weight
    assert len(rest["params"]) == 2 * 53 + 1  # the norms' weights and biases, and the last layer's bias
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    assert all(parameter.ndim == 1 for parameter in rest["params"])


@pytest.mark.parametrize(("nesterov", "momentum"), [(True, 0.9), (False, 0.9), (True, 0.0)])
def test_the_momentum(nesterov: bool, momentum: float) -> None:
    """Sutskever et al. 2013, as PyTorch writes it: v = mu v + g, then w -= lr (g + mu v) or w -= lr v."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    optimizer = make_optimizer(layer, OptimConfig(lr=0.5, momentum=momentum, nesterov=nesterov, weight_decay=0))
    w = v = 0.0
    for g in (1.0, -2.0, 3.0):
        layer.weight.grad = torch.full_like(layer.weight, g)
        optimizer.step()
        v = momentum * v + g
        w -= 0.5 * (g + momentum * v if nesterov else v)
    assert layer.weight.item() == pytest.approx(w, rel=1e-6)


def test_every_parameter_decays_where_it_is_asked_for() -> None:
    """One step from a gradient of zero: w -= lr x decay x w, for norms and biases too."""
    model = MODELS["resnet10"](num_classes=10, width=0.125)
    before = copy.deepcopy(model.state_dict())
    optimizer = make_optimizer(model, OptimConfig(lr=0.5, momentum=0, weight_decay=0.1, decay_norms=True))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), 0.95 * before[name])


@pytest.mark.parametrize("decay_norms", [False, True])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.75)])
def test_adamw(betas: tuple[float, float], decay_norms: bool) -> None:
    """Loshchilov and Hutter 2019, algorithm 2, in float64: the decay goes by lr, not through the averages."""
    layer = nn.Linear(1, 1).double()
    nn.init.ones_(layer.weight)
    nn.init.ones_(layer.bias)
    config = OptimConfig(
        name="adamw", lr=0.5, betas=betas, eps=1e-3, weight_decay=0.1, decay_norms=decay_norms, momentum=0.5
    )
    optimizer = make_optimizer(layer, config)
    assert type(optimizer) is torch.optim.AdamW
    found = {name: getattr(OptimConfig(), name) for name in ("betas", "eps")}
    assert found == {name: torch.optim.AdamW([torch.zeros(1)]).defaults[name] for name in found}
    w = {"weight": 1.0, "bias": 1.0}
    m = v = 0.0
    for t, g in enumerate((1.0, -2.0, 3.0), start=1):
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g**2
        for name, parameter in layer.named_parameters():
            parameter.grad = torch.full_like(parameter, g)
            decay = 0.1 if name == "weight" or decay_norms else 0.0
            step = m / (1 - betas[0] ** t) / ((v / (1 - betas[1] ** t)) ** 0.5 + 1e-3)
            w[name] -= 0.5 * (step + decay * w[name])
        optimizer.step()
    assert layer.weight.item() == pytest.approx(w["weight"], rel=1e-12)
    assert layer.bias.item() == pytest.approx(w["bias"], rel=1e-12)


def test_the_moving_average_is_torchs_to_the_last_bit() -> None:
    """Over updates and over a resume, in values and in the state's keys; counts of batches are the model's own."""

    def average() -> AveragedModel:
        return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    ours, theirs = make_ema(model, OptimConfig(ema_decay=0.9)), average()
    for update in range(4):
        model(torch.randn(5, 3, 2, 2)).square().sum().backward()
        for parameter in model.parameters():
            parameter.data.sub_(0.1 * parameter.grad)
        for one in (ours, theirs):
            one.update_parameters(model)
        if update == 1:
            state = copy.deepcopy(ours.state_dict())
            ours = make_ema(model, OptimConfig(ema_decay=0.9))
            ours.load_state_dict(state)
    expected, found = theirs.state_dict(), ours.state_dict()
    assert expected.keys() == found.keys()
    counts = {name for name in expected if name.endswith("num_batches_tracked")}
    assert all(torch.equal(found[name], expected[name]) for name in expected.keys() - counts)
    assert found["module.1.num_batches_tracked"] == 4
