from collections.abc import Callable

import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from kapdist.kap import KAPConv2d, fold, kapify, noise
from kapdist.models import MODELS


class Tangle(nn.Module):
    """Norms of every kind: one that folds, one behind an activation, one fed twice, one without statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12)
        self.conv2, self.norm2 = nn.Conv2d(12, 12, 1, groups=4), nn.BatchNorm2d(12)
        self.conv3, self.norm3 = nn.Conv2d(12, 12, 1), nn.BatchNorm2d(12)
        self.norm4 = nn.BatchNorm2d(12, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm2(torch.relu(self.conv2(self.norm1(self.conv1(x)))))
        x = self.conv3(x)
        return self.norm4(x + self.norm3(x))


def with_statistics(model: nn.Module) -> nn.Module:
    """In eval mode and float64, with statistics and affine parameters away from their initial values."""
    for module in model.double().modules():
        if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
            for value in (module.weight, module.bias, module.running_mean, module.running_var):
                if value is not None:
                    value.data.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("layout", ["line", "sheet"])
@pytest.mark.parametrize("norms", [False, True])
def test_folded_resnet_has_the_same_logits(layout: str, norms: bool) -> None:
    model = with_statistics(MODELS["resnet18"](10, width=0.25, blurpool=True))
    kapify(model, layout=layout, noise_std=0.3)
    folded = fold(model, norms=norms)
    x = torch.rand(2, 3, 32, 32, dtype=torch.double)
    with noise(model, "off"):
        torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)
    kinds = [type(module) for module in folded.modules()]
    assert KAPConv2d not in kinds
    assert kinds.count(nn.Conv2d) == 20
    assert kinds.count(nn.BatchNorm2d) == (0 if norms else 20)
    assert not (norms and any(module.training for module in folded.modules()))
    assert sum(isinstance(module, KAPConv2d) for module in model.modules()) == 20


def test_folded_bottlenecks_have_the_same_logits() -> None:
    model = kapify(with_statistics(MODELS["resnet50"](10, width=0.25, stem="cifar")))
    x = torch.rand(2, 3, 16, 16, dtype=torch.double)
    torch.testing.assert_close(fold(model, norms=True)(x), model(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("groups", "stride"), [(1, 2), (4, 1), (4, 2), (12, 1)])
def test_folded_convolution_is_plain_and_equal(groups: int, stride: int) -> None:
    kap = KAPConv2d(12, 24, 3, 2, 1, groups=groups, pool_stride=stride, layout="sheet", dtype=torch.double)
    conv = fold(kap, dense=True)
    assert type(conv) is nn.Conv2d
    x = torch.rand(2, 12, 9, 9, dtype=torch.double)
    torch.testing.assert_close(conv(x), kap(x), rtol=0, atol=1e-12)


def test_groups_stay_where_nothing_is_averaged() -> None:
    assert fold(KAPConv2d(12, 24, 3, groups=4, pool_size=1, noise_std=1.0)).groups == 4


def test_only_norms_that_alone_follow_a_convolution_are_folded() -> None:
    model = kapify(with_statistics(Tangle()))
    with pytest.warns(UserWarning, match=r"leaves norms as they are: norm2 \(BatchNorm2d\), norm3"):
        folded = fold(model, norms=True)
    kinds = [type(norm).__name__ for norm in (folded.norm1, folded.norm2, folded.norm3, folded.norm4)]
    assert kinds == ["Identity", "BatchNorm2d", "BatchNorm2d", "BatchNorm2d"]
    x = torch.rand(4, 3, 8, 8, dtype=torch.double)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)


def test_a_forward_that_cannot_be_traced_is_refused() -> None:
    class Branching(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else x

    model = kapify(Branching(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12)))
    assert type(fold(model)[0]) is nn.Conv2d
    with pytest.raises(ValueError, match=r"cannot fold the norms: torch\.fx cannot follow Branching"):
        fold(model, norms=True)


def test_grouped_convolutions_keep_their_size_unless_asked() -> None:
    model = kapify(nn.Sequential(nn.Conv2d(12, 12, 3, groups=12), nn.ReLU()), noise_std=0.5).double()
    folded = fold(model)
    x = torch.rand(2, 12, 6, 6, dtype=torch.double)
    assert folded[0].weight.shape == model[0].weight.shape
    with noise(model, "off"):
        torch.testing.assert_close(folded(x), model(x), rtol=0, atol=1e-12)
    assert model[0].noise_std == 0.5
    assert fold(model, dense=True)[0].weight.numel() == 12 * model[0].weight.numel()


def test_norms_of_all_ranks_are_folded() -> None:
    model = with_statistics(nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12)))
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(kapify(model)).eval()
    folded = fold(synced, norms=True)
    assert [type(module) for module in folded] == [nn.Conv2d, nn.Identity]
    x = torch.rand(2, 3, 8, 8, dtype=torch.double)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)


class NormAct(nn.BatchNorm2d):
    """Norm, dropout and activation in one, written as timm's BatchNormAct2d is (timm/layers/norm_act.py)."""

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(num_features, eps, affine=affine)
        self.drop = nn.Dropout(0.5)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, f"expected 4D input (got {x.ndim}D input)")
        bn_training = self.training or (self.running_mean is None and self.running_var is None)
        momentum = 0.0 if self.momentum is None else self.momentum
        mean, var = self.running_mean, self.running_var
        x = functional.batch_norm(x, mean, var, self.weight, self.bias, bn_training, momentum, self.eps)
        return self.act(self.drop(x))


class NormThenAct(nn.BatchNorm2d):
    """The same by way of torch's own forward."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.act = nn.LeakyReLU(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class SyncedNormThenAct(nn.SyncBatchNorm):
    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.act = nn.LeakyReLU(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class Halved(NormThenAct):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x / 2)


class WithoutBias(NormThenAct):
    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, None, False, 0.1, self.eps
        )


class Residual(NormThenAct):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Attentive(NormThenAct):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x)) if x.mean() > 0 else x


@pytest.mark.parametrize(
    "norm", [NormAct(12), NormAct(12, 0.1), NormAct(12, affine=False), NormThenAct(12), SyncedNormThenAct(12)]
)
def test_an_activation_behind_a_norm_is_left_where_the_norm_was(norm: nn.Module) -> None:
    model = with_statistics(kapify(nn.Sequential(nn.Conv2d(3, 12, 3), norm, nn.Conv2d(12, 12, 1))))
    folded = fold(model, norms=True)
    assert [type(layer) for layer in folded] == [nn.Conv2d, nn.Sequential, nn.Conv2d]
    assert not [layer for layer in folded.modules() if isinstance(layer, nn.BatchNorm2d | nn.SyncBatchNorm)]
    x = torch.randn(4, 3, 8, 8, dtype=torch.double)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", [Halved, WithoutBias, Residual, Attentive])
def test_a_norm_that_does_something_else_stays_and_is_named(kind: type[nn.Module]) -> None:
    model = with_statistics(kapify(nn.Sequential(nn.Conv2d(3, 12, 3), kind(12))))
    with pytest.warns(UserWarning, match=rf"fold leaves norms as they are: 1 \({kind.__name__}\)"):
        folded = fold(model, norms=True)
    x = torch.randn(4, 3, 8, 8, dtype=torch.double)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)


MADE_ANEW: list[Callable[[nn.Module], object]] = [
    lambda conv: torch.nn.utils.prune.l1_unstructured(conv, "weight", 0.5),
    lambda conv: torch.nn.utils.prune.l1_unstructured(conv, "bias", 0.5),
    torch.nn.utils.weight_norm,
    torch.nn.utils.spectral_norm,
    parametrizations.weight_norm,
    parametrizations.orthogonal,
]


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("change", MADE_ANEW)
@pytest.mark.parametrize("norms", [False, True])
def test_a_weight_that_is_made_anew_is_not_folded(change: Callable[[nn.Module], object], norms: bool) -> None:
    model = kapify(nn.Sequential(nn.Conv2d(3, 9, 3), nn.BatchNorm2d(9), nn.Conv2d(9, 9, 3))).eval()
    change(model[2])
    with pytest.raises(
        ValueError, match=r"^2: its weight is made anew in every pass \(.*permanent before it is fold"
    ):
        fold(model, norms=norms)


def test_a_norm_behind_a_convolution_that_is_made_anew_stays() -> None:
    plain = nn.Conv2d(3, 9, 3)
    torch.nn.utils.prune.l1_unstructured(plain, "weight", 0.5)
    model = nn.Sequential(plain, nn.BatchNorm2d(9), kapify(nn.Conv2d(9, 9, 3))).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.double)
    with torch.no_grad():
        expected = model(x)
        with pytest.warns(UserWarning, match=r"fold leaves norms as they are: 1 \(BatchNorm2d\)"):
            folded = fold(model, norms=True)
        torch.testing.assert_close(folded(x), expected, rtol=1e-10, atol=1e-10)
