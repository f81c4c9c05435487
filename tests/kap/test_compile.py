import pytest
import torch
from compiler import needs_compiler
from torch import Tensor, nn

from kapdist.kap import kapify, noise


def outputs_and_gradients(model: nn.Module, run: nn.Module, x: Tensor) -> list[Tensor]:
    """Of two calls in a row: the second draws where the first stopped."""
    results = []
    for _ in range(2):
        out = run(x)
        results += [out, *torch.autograd.grad(out.square().sum(), list(model.parameters()))]
    return results


def assert_compiled_is_eager(
    layers: nn.Module, layout: str, mode: str, backend: str, memory_format: torch.memory_format
) -> None:
    torch.compiler.reset()
    model = kapify(layers.double(), layout=layout, noise_std=0.3, where=lambda *_: True)
    model.to(memory_format=memory_format)
    x = torch.rand(2, 3, 6, 6, dtype=torch.double).to(memory_format=memory_format)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with noise(model, mode, seed=5):
        eager = outputs_and_gradients(model, model, x)
    with noise(model, mode, seed=5):
        fast = outputs_and_gradients(model, compiled, x)
    torch.testing.assert_close(fast, eager, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mode", ["fresh", "fixed", "off"])
def test_one_graph_with_the_same_draws(mode: str, memory_format: torch.memory_format) -> None:
    layers = nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU(), nn.Conv2d(9, 12, 1, groups=3, bias=False))
    assert_compiled_is_eager(layers, "sheet", mode, "aot_eager", memory_format)


class Branches(nn.Module):
    """Layers that need nothing of each other, which inductor computes in an order of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 9, 3, padding=1, dilation=1) for _ in range(3))
        self.last = nn.Conv2d(9, 9, 1, groups=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = (layer(x) for layer in self.layers)
        return torch.relu(self.last(c)) * a.sigmoid() + b


@pytest.mark.slow
@needs_compiler
def test_branches_draw_the_same_in_generated_code() -> None:
    """Along a line: g++ takes twice as long for a sheet, which tools/gpu_check.py has and a test of it."""
    assert_compiled_is_eager(Branches(), "line", "fresh", "inductor", torch.channels_last)
