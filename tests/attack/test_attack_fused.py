"""Fused networks: the logits of the ones that they were made of, bit by bit."""

import functools
import gc
import operator
import warnings
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from kapdist.attack.counted import CountedModel
from kapdist.attack.fused import Convolution, fused
from kapdist.kap import fold, kapify
from kapdist.models import MODELS

CPU = torch.device("cpu")
SMALL = {"wide_resnet28_10": 0.1, "wide_resnet34_10": 0.1, "cnn": 1.0}  # widths; of the others an eighth
ROWS = 1, 2, 3, 7, 17


def images(rows: int, channels: int = 3, side: int = 16) -> Tensor:
    random = torch.Generator().manual_seed(rows)
    drawn = torch.rand(rows, channels, side, side, generator=random)
    return drawn.contiguous(memory_format=torch.channels_last)


def frozen(network: nn.Module) -> nn.Module:
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@torch.inference_mode()
def same(network: nn.Module, channels: int = 3) -> bool:
    """Whether the fused form, or what stands in its place, is the network."""
    batches = [images(rows, channels) for rows in reversed(ROWS)]
    return all(torch.equal(network(batch), fused(network)(network, batch)) for batch in batches)


def in_one(network: nn.Module) -> list[bool]:
    form = fused(network).form
    modules = [] if form is None else form.modules()
    return [bool(module.fits) for module in modules if isinstance(module, Convolution)]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_network_of_ours_keeps_its_logits(name: str) -> None:
    torch.manual_seed(0)
    network = MODELS[name](num_classes=10, width=SMALL.get(name, 0.125))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network.train()(images(8))  # statistics that are not the identity
        network = frozen(fold(network, norms=True))
    assert same(network)
    done = in_one(network)
    assert len(done) == sum(isinstance(module, nn.Conv2d) for module in network.modules())
    assert any(done)


class Graph(nn.Module):
    """Two convolutions, joined by a function."""

    def __init__(self, join: Callable[..., Tensor], second: nn.Module | None = None) -> None:
        super().__init__()
        self.one = nn.Conv2d(8, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 8, 3, padding=1) if second is None else second
        self.nothing, self.dropout, self.relu = nn.Identity(), nn.Dropout(0.5), nn.ReLU(inplace=True)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        joined: Tensor = self.join(self, x)
        return joined


GRAPHS: dict[str, tuple[Callable[..., Tensor], int]] = {
    "a shortcut": (lambda g, x: g.relu(g.two(g.one(x)) + x), 1),
    "on the left": (lambda g, x: g.relu(x + g.two(g.one(x))), 1),
    "in place": (lambda g, x: g.relu(operator.iadd(g.two(g.one(x)), x)), 1),
    "keyword": (lambda g, x: torch.add(g.one(x), other=x), 0),
    "behind nothing": (lambda g, x: g.dropout(g.nothing(g.two(g.relu(g.one(x))))) + x, 1),
    "two convolutions": (lambda g, x: g.one(x) + g.two(x), 1),
    "of itself": (lambda g, x: (lambda y: y + y)(g.one(x)), 0),
    "used again": (lambda g, x: (lambda y: (y + x) * y.sigmoid())(g.one(x)), 0),
    "a number": (lambda g, x: g.one(x) + 1, 0),
    "twice as much": (lambda g, x: torch.add(g.one(x), x, alpha=2), 0),
    "a difference": (lambda g, x: g.one(x) - x, 0),
    "another shape": (lambda g, x: g.one(x) + x.mean((2, 3), keepdim=True), 1),
    "a sum of three": (lambda g, x: g.one(x) + x + g.two(x), 2),
    "in another order": (lambda g, x: g.two(x.relu()) + g.one(x), 1),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_what_is_added_is_added_once_and_to_the_same_bits(name: str) -> None:
    join, additions = GRAPHS[name]
    torch.manual_seed(0)
    network = frozen(Graph(join))
    assert same(network, 8)
    form = fused(network).form
    assert isinstance(form, fx.GraphModule)
    given = [node for node in form.graph.nodes if "fused" in str(node.target)]
    assert sum(len(node.args) == 2 for node in given) == additions


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(8, 8, 3, padding=1, groups=4),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, bias=False),
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, (1, 3), padding=(0, 1)),
    ],
)
def test_every_geometry(conv: nn.Conv2d) -> None:
    network = frozen(Graph(lambda g, x: g.two(g.one(x)) + x, conv))
    assert same(network, 8)
    assert in_one(network)


@pytest.mark.parametrize(
    "network",
    [
        Graph(lambda g, x: g.two(x), nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")),
        Graph(lambda g, x: g.two(x), nn.Conv2d(8, 8, 3, padding="same")),
        Graph(lambda g, x: g.one(x) if x.sum() > 0 else x),
        kapify(nn.Sequential(nn.Conv2d(8, 9, 3, padding=1), nn.ReLU(), nn.Conv2d(9, 9, 3)), pool_size=3),
        nn.Sequential(nn.Flatten(), nn.Linear(8, 2)),
    ],
)
def test_what_cannot_be_fused_stays_itself(network: nn.Module) -> None:
    assert fused(frozen(network)).form is None


MISREAD: dict[str, Callable[..., Tensor]] = {
    "nobody uses what a statement changed": lambda g, x: (lambda y: (g.relu(y), g.two(y))[1])(g.one(x)),
    "what a convolution reads is changed before the sum": lambda g, x: (
        lambda y: (lambda c: c + g.relu(y))(g.two(y))
    )(g.one(x)),
    "another name of what is added to": lambda g, x: (
        lambda y: (lambda alias: operator.iadd(y, g.two(x)) * alias)(y.view(y.shape))
    )(x * 2),
    "a number of the shape": lambda g, x: g.one(x) + x.size(2),
    "one number for all": lambda g, x: g.one(x) + x.mean(),
}


@pytest.mark.parametrize("name", MISREAD)
def test_a_network_that_is_read_wrongly_is_passed_as_it_is(name: str) -> None:
    torch.manual_seed(0)
    assert same(frozen(Graph(MISREAD[name])), 8)


@torch.inference_mode()
def test_other_memory_formats_keep_their_logits() -> None:
    """Of a network whose weights are not in channels_last the next convolution would see another layout."""
    torch.manual_seed(0)
    network = fold(MODELS["resnet18"](num_classes=10, width=0.125).eval(), norms=True).requires_grad_(False)
    for rows in (2, 17, 3, 6):
        batch = images(rows).contiguous()
        assert torch.equal(network(batch), fused(network)(network, batch))


@torch.inference_mode()
def test_what_is_tried_are_drawn_numbers() -> None:
    """Of black images any order of adding up is right."""
    torch.manual_seed(0)
    network = frozen(nn.Sequential(nn.Conv2d(8, 512, 3, bias=False), nn.ReLU(), nn.Conv2d(512, 64, 1, bias=False)))
    fused(network)(network, torch.zeros_like(images(17, 8)))
    assert same(network, 8)


def test_hooks_are_called_and_changed_weights_seen() -> None:
    network = frozen(Graph(lambda g, x: g.two(g.one(x)) + x))
    assert same(network, 8)
    first = fused(network)
    network.get_submodule("two").weight.mul_(2)
    assert fused(network) is not first
    assert same(network, 8)
    hooked = frozen(Graph(lambda g, x: g.two(g.one(x)) + x))
    hooked.get_submodule("one").register_forward_hook(lambda module, words, out: out * 2)
    assert fused(hooked).form is None


def test_a_convolution_that_rounds_otherwise_stays_as_it_was() -> None:
    """A convolution of 1 x 1 over 512 channels makes another sum where there are few rows."""
    torch.manual_seed(0)
    network = frozen(nn.Sequential(nn.Conv2d(8, 512, 3), nn.ReLU(), nn.Conv2d(512, 16, 1)))
    assert same(network, 8)


@torch.inference_mode()
def test_one_that_is_wrong_for_few_rows_or_fails_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: Convolution, x: Tensor, shortcut: Tensor | None) -> Tensor:
        return self.one_by_one(x, shortcut) + (1e-6 if len(x) == 2 else 0)

    def fails(self: Convolution, x: Tensor, shortcut: Tensor | None) -> Tensor:
        raise RuntimeError("could not create a primitive")

    for instead in (wrong, fails):
        monkeypatch.setattr(Convolution, "in_one", instead)
        network = frozen(Graph(lambda g, x: g.two(g.one(x)) + x))
        assert same(network, 8)
        assert len(in_one(network)) == 2
        assert not any(in_one(network))


@torch.inference_mode()
def test_what_is_not_a_number_stays_none() -> None:
    """oneDNN's own way to cut off below zero would make 0 of it, and a broken network would have fine logits."""
    network = frozen(Graph(lambda g, x: g.relu(g.two(g.relu(g.one(x))) + x)))
    form = functools.partial(fused(network), network)
    form(images(7, 8))
    assert all(in_one(network))
    batch = images(7, 8)
    batch[2, 0, 3, 3], batch[4, 0, 3, 3], batch[4, 1, 3, 3] = torch.nan, torch.inf, -torch.inf
    expected = network(batch)
    assert expected[2].isnan().any()
    assert torch.equal(expected.isnan(), form(batch).isnan())
    assert torch.equal(expected.nan_to_num(7), form(batch).nan_to_num(7))


def test_passes_without_a_gradient_are_fused_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    forward = Convolution.forward
    monkeypatch.setattr(Convolution, "forward", lambda *given: (seen.append(len(given[1])), forward(*given))[1])
    network = frozen(Graph(lambda g, x: (g.two(g.one(x)) + x).mean((2, 3))))
    counted, stock = CountedModel(network, CPU, 0, inference=True), CountedModel(network, CPU, 0)
    batch = images(5, 8)
    with torch.no_grad():
        assert torch.equal(counted(batch), network(batch))
        assert seen == [5, 5, 2, 2, 5, 5]  # tried, and passed
        stock(batch)
    logits = counted(batch.requires_grad_())
    logits.sum().backward()
    assert batch.grad is not None
    assert len(seen) == 6
    assert (counted.forwards, counted.backwards) == (10, 5)
    assert [*counted.children()] == [network]  # else its layers would be found twice


def test_a_form_is_made_once_and_holds_no_network() -> None:
    def made() -> nn.Module:
        return frozen(Graph(lambda g, x: g.two(g.one(x)) + x))

    network = made()
    assert fused(network) is fused(network)
    kept = weakref.ref(network)
    del network
    fused(made())  # torch.fx holds on to the last one that it read
    gc.collect()
    assert kept() is None
