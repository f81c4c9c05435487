"""Weights averaged together before a forward pass: what each layer would have made, and never out of date."""

import copy
import io
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from kapdist.kap import ahead, fold, kapify
from kapdist.kap.ahead import averages_of
from kapdist.kap.rows import Rows, rows_of, tables

DenseAverage = Callable[[int, int, int, str], Tensor]
LOT = [rows_of((12,), 5, 3, 1), rows_of((4, 6), 7, 3, 1), rows_of((4, 6), 3, 3, 2), rows_of((8,), 1, 5, 2)]
AS = [(12, 3, 1, "line"), (24, 3, 1, "sheet"), (24, 3, 2, "sheet"), (8, 5, 2, "line")]
OPERATOR = torch.ops.kapdist.average_rows


@pytest.fixture(name="everywhere", autouse=True)
def averages_ahead_on_a_cpu_too(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ahead, "_worthwhile", lambda device: True)
    yield
    assert not ahead._local.found


def sizes() -> tuple[int, int]:
    return sum(rows.before for rows in LOT), sum(rows.after for rows in LOT)


def cut(flat: Tensor, lengths: list[int], rests: list[Rows]) -> list[Tensor]:
    return [part.view(-1, rows.rest) for part, rows in zip(flat.split(lengths), rests, strict=True)]


def test_operator_is_the_dense_matrices(dense_average: DenseAverage) -> None:
    before, after = sizes()
    z, g = torch.randn(before, dtype=torch.double), torch.randn(after, dtype=torch.double)
    where = tables(LOT, torch.device("cpu"))
    inside, outside = [rows.before for rows in LOT], [rows.after for rows in LOT]
    averages = cut(OPERATOR(z, *where, False, after, torch.double), outside, LOT)
    back = cut(OPERATOR(g, *where, True, before, torch.double), inside, LOT)
    for number, arguments in enumerate(AS):
        matrix = dense_average(*arguments)
        torch.testing.assert_close(averages[number], matrix @ cut(z, inside, LOT)[number])
        torch.testing.assert_close(back[number], matrix.T @ cut(g, outside, LOT)[number])


def test_operator_is_registered_as_torch_asks() -> None:
    before, after = sizes()
    where = tables(LOT, torch.device("cpu"))
    z = torch.randn(before, dtype=torch.double, requires_grad=True)
    torch.library.opcheck(OPERATOR, (z, *where, False, after, torch.double))
    kinds = ("test_schema", "test_autograd_registration", "test_faketensor")
    low = z.detach().float().requires_grad_()
    torch.library.opcheck(OPERATOR, (low, *where, False, after, torch.bfloat16), test_utils=kinds)

    def averages(z: Tensor) -> Tensor:
        averaged: Tensor = OPERATOR(z, *where, False, after, torch.double)
        return averaged

    assert torch.autograd.gradcheck(averages, (z,), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda z: averages(z).square(), (z,), fast_mode=True)


def small_cnn(layout: str = "sheet") -> nn.Sequential:
    layers = [
        nn.Conv2d(3, 12, 3),
        nn.ReLU(),
        nn.Conv2d(12, 56, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(56, 9, 3, groups=1),
    ]
    layers += [nn.ReLU(), nn.Conv2d(9, 12, 3, groups=3)]
    model = kapify(nn.Sequential(*layers), layout=layout, where=lambda *_: True)
    assert isinstance(model, nn.Sequential)
    return model


def logits_and_gradients(
    model: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype | None
) -> list[Tensor]:
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        logits = run(x)
    found = torch.autograd.grad(logits.float().square().sum(), [p for p in model.parameters() if p.requires_grad])
    return [logits, *found]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("layout", ["line", "sheet"])
def test_a_model_computes_what_its_layers_compute(
    layout: str, memory_format: torch.memory_format, dtype: torch.dtype | None
) -> None:
    model = small_cnn(layout).to(memory_format=memory_format)
    x = torch.randn(2, 3, 11, 9).to(memory_format=memory_format)
    seen: list[bool] = []
    for place in (0, 2, 4, 6):
        model[place].register_forward_pre_hook(
            lambda conv, _: seen.append(averages_of(conv, conv.weight) is not None)
        )
    together = logits_and_gradients(model, model, x, dtype)
    alone = logits_and_gradients(model, model.forward, x, dtype)
    assert seen == [True, True, True, False, *[False] * 4]  # a grouped one averages its activations
    torch.testing.assert_close(together, alone)
    assert all(g.stride() == p.stride() for g, p in zip(together[1:], model.parameters(), strict=True))


def test_frozen_and_unused_layers_get_no_gradient() -> None:
    model = small_cnn()
    model[0].weight.requires_grad_(False)

    class Short(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.all = model

        def forward(self, x: Tensor) -> Tensor:
            return model[2](model[0](x))

    short = Short()
    ahead.average_ahead(short)
    short(torch.randn(1, 3, 9, 9)).sum().backward()
    assert model[0].weight.grad is None
    assert model[0].bias.grad is not None
    assert model[2].weight.grad is not None
    assert model[4].weight.grad is None


def test_averages_follow_the_weights() -> None:
    model, x = small_cnn(), torch.randn(1, 3, 9, 9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        torch.testing.assert_close(model(x), model.forward(x))
        model(x).sum().backward()
        optimizer.step()
    with torch.no_grad():
        torch.testing.assert_close(model(x), model.forward(x))
    with torch.inference_mode():
        torch.testing.assert_close(model(x), model.forward(x))


def test_a_pass_that_fails_leaves_nothing_that_is_used() -> None:
    model = small_cnn()
    with pytest.raises(RuntimeError, match="channels"):
        model(torch.randn(1, 4, 9, 9))
    with torch.no_grad():
        model[2].weight.mul_(2)
    x = torch.randn(1, 12, 5, 5)
    torch.testing.assert_close(model[2](x), copy.deepcopy(model[2])(x))
    model(torch.randn(1, 3, 9, 9))  # and takes away what was left


def test_other_precision_or_gradients_within_a_pass() -> None:
    """A part of the model that leaves autocast, or wants gradients of its own, makes its own averages."""
    model = small_cnn()
    inner = model[0]

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False), torch.enable_grad():
                return self.inner(x)

    wide, x = Wide(), torch.randn(1, 3, 9, 9)
    ahead.average_ahead(wide)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = wide(x)
    assert out.dtype == torch.float32
    assert out.requires_grad


def test_functional_call_and_ensembles_see_their_own_weights() -> None:
    model, x = small_cnn(), torch.randn(1, 3, 9, 9)
    doubled = {name: 2 * value for name, value in model.state_dict().items()}
    other = copy.deepcopy(model)
    other.load_state_dict(doubled)
    torch.testing.assert_close(torch.func.functional_call(model, doubled, (x,)), other.forward(x))
    gradients = torch.func.grad(lambda p: torch.func.functional_call(model, p, (x,)).sum())(doubled)
    expected = torch.autograd.grad(other.forward(x).sum(), list(other.parameters()))
    torch.testing.assert_close(list(gradients.values()), list(expected))


def test_lots_are_no_larger_than_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_MOST_ENTRIES", 1100)
    model, x = small_cnn(), torch.randn(1, 3, 9, 9)
    torch.testing.assert_close(model(x), model.forward(x))
    assert [len(lot.layers) for lot in ahead._lots[model]] == [2, 1]  # 336 + 672 entries, then 4545


def test_a_folded_model_needs_nothing_of_ours() -> None:
    model = kapify(nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU()))
    assert b"kapdist" not in pickle.dumps(fold(model))
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    x = torch.randn(1, 3, 5, 5)
    torch.testing.assert_close(torch.load(saved, weights_only=False)(x), model(x))


def test_one_graph() -> None:
    torch.compiler.reset()
    model, x = small_cnn(), torch.randn(1, 3, 9, 9)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
