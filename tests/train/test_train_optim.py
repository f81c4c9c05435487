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
