"""Fused networks: the logits of the ones that they were made of, bit by bit."""

import gc
import operator
import warnings
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

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
def same(network: nn.Module, form: nn.Module, channels: int = 3) -> bool:
    batches = [images(rows, channels) for rows in reversed(ROWS)]
    return all(torch.equal(network(batch), form(batch)) for batch in batches)


def in_one(form: nn.Module) -> list[bool]:
    return [bool(module.fits) for module in form.modules() if isinstance(module, Convolution)]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_network_of_ours_keeps_its_logits(name: str) -> None:
    torch.manual_seed(0)
    network = MODELS[name](num_classes=10, width=SMALL.get(name, 0.125))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network.train()(images(8))  # statistics that are not the identity
        network = frozen(fold(network, norms=True))
    form = fused(network)
    assert form is not network
    assert same(network, form)
    done = in_one(form)
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
    form = fused(network)
    assert same(network, form, 8)
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
    assert same(network, fused(network), 8)


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
    frozen(network)
    assert fused(network) is network


def test_a_convolution_that_rounds_otherwise_stays_as_it_was() -> None:
    """Of 512 channels on one pixel torch makes another sum where there are few rows."""
    torch.manual_seed(0)
    network = frozen(nn.Sequential(nn.Conv2d(8, 512, 3), nn.ReLU(), nn.Conv2d(512, 16, 1)))
    assert same(network, fused(network), 8)


@torch.inference_mode()
def test_one_that_is_wrong_for_few_rows_or_fails_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: Convolution, x: Tensor, shortcut: Tensor | None) -> Tensor:
        return self.one_by_one(x, shortcut) + (1e-6 if len(x) == 2 else 0)

    def fails(self: Convolution, x: Tensor, shortcut: Tensor | None) -> Tensor:
        raise RuntimeError("could not create a primitive")

    for instead in (wrong, fails):
        monkeypatch.setattr(Convolution, "in_one", instead)
        network = frozen(Graph(lambda g, x: g.two(g.one(x)) + x))
        form = fused(network)
        assert torch.equal(form(images(7, 8)), network(images(7, 8)))
        assert not any(in_one(form))
        assert torch.equal(form(images(2, 8)), network(images(2, 8)))


@torch.inference_mode()
def test_what_is_not_a_number_stays_none() -> None:
    """oneDNN's own way to cut off below zero would make 0 of it, and a broken network would have fine logits."""
    network = frozen(Graph(lambda g, x: g.relu(g.two(g.relu(g.one(x))) + x)))
    form = fused(network)
    form(images(7, 8))
    batch = images(7, 8)
    batch[2, 0, 3, 3], batch[4, 0, 3, 3], batch[4, 1, 3, 3] = torch.nan, torch.inf, -torch.inf
    expected = network(batch)
    assert expected[2].isnan().any()
    assert torch.equal(expected.isnan(), form(batch).isnan())
    assert torch.equal(expected.nan_to_num(7), form(batch).nan_to_num(7))


def test_passes_without_a_gradient_are_fused_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    forward = Convolution.forward
    monkeypatch.setattr(
        Convolution, "forward", lambda *given: (seen.append(torch.is_inference_mode_enabled()), forward(*given))[1]
    )
    network = frozen(Graph(lambda g, x: (g.two(g.one(x)) + x).mean((2, 3))))
    counted, stock = CountedModel(network, CPU, 0, inference=True), CountedModel(network, CPU, 0)
    batch = images(5, 8)
    with torch.no_grad():
        assert torch.equal(counted(batch), network(batch))
        assert seen == [True, True]
        stock(batch)
    logits = counted(batch.requires_grad_())
    logits.sum().backward()
    assert batch.grad is not None
    assert seen == [True, True]
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
