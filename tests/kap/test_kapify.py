import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, nn

from kapdist.kap import KAPConv2d, fold, kapify, kernel_average, noise


class Separable(nn.Module):
    """An arbitrary CNN: a depthwise and a grouped convolution, a shared one, and a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.grouped = nn.Conv2d(12, 24, 1, groups=4)
        self.shared = nn.Conv2d(24, 24, 1)
        self.again = self.shared
        self.head = nn.Conv2d(24, 9, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = self.grouped(torch.relu(x + self.depthwise(x)))
        return self.head(self.again(torch.relu(self.shared(x)))).mean((2, 3))


class WithPools(Separable):
    """The same, the averages written out as activations."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(kernel_average(self.stem(x), 3))
        x = kernel_average(self.grouped(torch.relu(x + kernel_average(self.depthwise(x), 3))), 3)
        x = kernel_average(self.again(torch.relu(kernel_average(self.shared(x), 3))), 3)
        return kernel_average(self.head(x), 3).mean((2, 3))


def test_kapify_puts_an_average_after_every_convolution() -> None:
    written_out = WithPools().double()
    model = Separable().double()
    model.load_state_dict(written_out.state_dict())
    keys = list(model.state_dict())
    parameters = list(model.parameters())
    assert kapify(model, where=lambda *_: True) is model
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert isinstance(model.again, KAPConv2d)
    assert model.again is model.shared
    x = torch.rand(2, 3, 8, 8, dtype=torch.double)
    torch.testing.assert_close(model(x), written_out(x), rtol=0, atol=1e-12)


def test_all_layers_share_one_source_and_differ_in_number() -> None:
    model = kapify(Separable(), noise_std=0.1, where=lambda name, _: name == "stem")
    kapify(model, noise_std=0.1, pool_size=1, where=lambda name, _: name != "stem")
    layers = [module for module in model.modules() if isinstance(module, KAPConv2d)]
    assert len({id(layer.noise_source) for layer in layers}) == 1
    assert [layer.noise_layer for layer in layers] == list(range(5))
    assert [layer.pool_size for layer in layers] == [3, 1, 1, 1, 1]


def test_channels_too_few_are_refused_by_name_before_anything_changes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 9, 3), nn.Conv2d(9, 2, 1), nn.Conv2d(2, 1, 1))
    with pytest.raises(
        ValueError, match=r"leave these convolutions out with `where`: 1: .*2 channels.*; 2: .*1 chan"
    ):
        kapify(model)
    assert not any(isinstance(module, KAPConv2d) for module in model)
    kapify(model, where=lambda _, conv: conv.out_channels >= 3)
    assert [type(module) for module in model] == [KAPConv2d, nn.Conv2d, nn.Conv2d]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool_size": 2}, "odd number"),
        ({"layout": "ring"}, "found 'ring'"),
        ({"noise_std": -1.0}, "at least 0, found -1.0"),
        ({"pool_size": 3, "layout": "sheet"}, "0: .*8 channels on a 2 x 4 sheet"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kapify(nn.Sequential(nn.Conv2d(3, 8, 3)), **options)


def test_subclasses_are_left_with_a_warning() -> None:
    class Standardised(nn.Conv2d):
        pass

    model = nn.Sequential(nn.Conv2d(3, 9, 3), Standardised(9, 9, 3))
    with pytest.warns(UserWarning, match=r"leaves subclasses of nn.Conv2d as they are: 1 \(Standardised\)"):
        kapify(model)
    assert type(model[0]) is KAPConv2d
    assert type(model[1]) is Standardised


def test_a_layer_is_not_kapified_twice() -> None:
    model = kapify(nn.Sequential(nn.Conv2d(3, 9, 3)))
    layer = model[0]
    assert kapify(model)[0] is layer
    with pytest.raises(ValueError, match="0 is a KAPConv2d already"):
        kapify(model, where=lambda *_: True)


def test_a_lone_convolution_is_returned_as_its_replacement() -> None:
    conv = nn.Conv2d(3, 8, 3).eval().to(memory_format=torch.channels_last)
    kap = kapify(conv, layout="line")
    assert isinstance(kap, KAPConv2d)
    assert kap.weight is conv.weight
    assert not kap.training


def test_copies_are_independent() -> None:
    model = kapify(Separable(), noise_std=0.2, where=lambda *_: True)
    other = copy.deepcopy(model)
    with noise(other, "off"):
        assert model.stem.noise_source.mode == "fresh"
        assert other.head.noise_source.mode == "off"


def test_torchvision_or_timm_networks() -> None:
    torchvision = pytest.importorskip("torchvision", reason="torchvision is optional and not installed")
    model = kapify(torchvision.models.mobilenet_v3_small(), noise_std=0.1)
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 1000)


class Squeezed(nn.Module):
    """A gate as in squeeze-and-excitation, and squeezenet's classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce, self.expand = nn.Conv2d(12, 9, 1), nn.Conv2d(9, 12, 1)
        self.head = nn.Sequential(nn.Dropout(), nn.Conv2d(12, 9, 1), nn.ReLU(), nn.AdaptiveAvgPool2d((1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for squeezed in (self.pool(x), x.mean((2, 3), keepdim=True)):
            x = x * torch.sigmoid(self.expand(torch.relu(self.reduce(squeezed))))
        return torch.flatten(self.head(x), 1)


def test_gates_and_logits_are_left_out_unless_asked_for() -> None:
    left = r"reduce \(on maps of one pixel\), expand \(on maps of one pixel\), head.1 \(makes the logits\)"
    with pytest.warns(UserWarning, match=f"leaves out, unless `where` picks them: {left}"):
        model = kapify(Squeezed())
    assert [name for name, m in model.named_modules() if isinstance(m, KAPConv2d)] == ["stem"]
    asked = kapify(Squeezed(), where=lambda *_: True)
    assert sum(isinstance(m, KAPConv2d) for m in asked.modules()) == 4


def test_a_model_without_convolutions_is_refused() -> None:
    with pytest.raises(ValueError, match="found no convolution to replace in Sequential"):
        kapify(nn.Sequential(nn.Linear(3, 4)))
    with pytest.warns(UserWarning, match="replaced nothing"):
        kapify(kapify(nn.Sequential(nn.Conv2d(3, 9, 3))))


@pytest.mark.parametrize(
    "change",
    [
        torch.nn.utils.weight_norm,
        torch.nn.utils.spectral_norm,
        torch.nn.utils.parametrizations.weight_norm,
        torch.nn.utils.parametrizations.spectral_norm,
        lambda conv: torch.nn.utils.prune.l1_unstructured(conv, "weight", 0.5),
        lambda conv: torch.nn.utils.prune.l1_unstructured(conv, "bias", 0.5),
    ],
)
def test_weights_made_anew_in_every_pass_are_refused_by_name(change: Callable[[nn.Module], object]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 9, 3), nn.Conv2d(9, 9, 3))
    change(model[1])
    with pytest.raises(ValueError, match="1: its weight is made anew in every pass"):
        kapify(model)
    assert type(model[0]) is nn.Conv2d


class Listed(nn.Module):
    """A forward that goes through lists beside its modules, as feature pyramids keep their layers."""

    def __init__(self) -> None:
        super().__init__()
        convs = [nn.Conv2d(3, 9, 3), nn.Conv2d(9, 9, 3)]
        for number, conv in enumerate(convs):
            self.add_module(f"conv{number}", conv)
        self.bn0, self.bn1 = nn.BatchNorm2d(9), nn.BatchNorm2d(9)
        self.steps = [(convs[0], "bn0"), {"conv": convs[1], "norm": "bn1"}]
        self.steps.append(self.steps)  # no end to it
        self.fc = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        (first, norm), second, _ = self.steps
        x = torch.relu(getattr(self, norm)(first(x)))
        x = torch.relu(getattr(self, second["norm"])(second["conv"](x)))
        return self.fc(x.mean((2, 3)))


def test_convolutions_in_plain_lists_are_replaced_there_too() -> None:
    """Else the model would look averaged and noisy, and compute what it did before; folded, it would lose norms."""
    torch.manual_seed(0)
    plain = Listed().double().eval()
    for norm in (plain.bn0, plain.bn1):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    x = torch.rand(2, 3, 8, 8, dtype=torch.double)
    logits = plain(x)
    torch.testing.assert_close(fold(plain, norms=True)(x), logits)
    model = kapify(copy.deepcopy(plain), noise_std=0.5)
    assert model.steps[0][0] is model.conv0
    assert not torch.equal(model(x), model(x))
    with noise(model, "off"):
        averaged = model(x)
    maps = torch.relu(plain.bn0(kernel_average(plain.conv0(x), 3)))
    maps = torch.relu(plain.bn1(kernel_average(plain.conv1(maps), 3)))
    torch.testing.assert_close(averaged, plain.fc(maps.mean((2, 3))))
    torch.testing.assert_close(fold(model, norms=True)(x), averaged)
