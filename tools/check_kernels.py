"""Whether the Triton kernels of kapdist.kap compute on this GPU what their definitions say.

    python tools/check_kernels.py [--interpreter]

One line for each check: how far it is off, and how far it may be. Exit code 1 when one fails. With --interpreter
Triton's own interpreter runs them on the CPU, at small sizes: what a compiled kernel does only a GPU shows.
"""

import argparse
import copy
import math
import os
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

if "--interpreter" in sys.argv:  # which Triton wants to know before it is imported
    os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a bare box has no kapdist installed

from kapdist.kap import kapify, noise_state, seed_noise
from kapdist.kap.ahead import averages_of
from kapdist.kap.average import kernel_average, transposed_average
from kapdist.kap.average_gpu import average
from kapdist.kap.conv import KAPConv2d
from kapdist.kap.normal import normal
from kapdist.kap.normal_gpu import add_normal, add_rows
from kapdist.kap.normed import window_of
from kapdist.kap.normed_gpu import coefficients, sums, transposed_table
from kapdist.kap.rows import TILE, rows_of, tables

Checked = tuple[str, float, float]
CPU = torch.device("cpu")
KEY, DRAW = 0x1234567890ABCDEF, 2**33 + 7
# Of a number of 5 standard deviations, times 2 and added to one of 3: half a unit in the last place of 13, doubled;
# of the GPU's approximate logarithm, 2^-22 off, a number near 0 is off by 2^-10.
ROUNDING = {torch.float32: 3e-3, torch.float64: 3e-3, torch.bfloat16: 0.07, torch.float16: 0.01}


def check_draws(device: str) -> Iterator[Checked]:
    """The kernel's numbers against the definition on the CPU, at odd sizes and offsets, in every precision."""
    for numel in (1000, 5013) if device == "cpu" else (1000, 1024 * 4300 + 77):
        numbers = normal(numel, KEY, DRAW, CPU).double()
        for dtype, limit in ROUNDING.items():
            whole = torch.randn(numel + 3, device=device).clamp(-3, 3).to(dtype)
            skipped = 3 if dtype == torch.float32 else 0  # a start that no vector may be read from
            z, stream = whole[skipped:][:numel], torch.tensor([KEY, DRAW, 0], device=device)
            expected, out = z.double().cpu() + 2 * numbers, torch.empty_like(z)
            add_normal(z, out, 2.0, stream)
            yield f"draw: {dtype}, {numel}, apart", float((out.cpu().double() - expected).abs().max()), limit
            stream[1] = DRAW
            add_normal(z, z, 2.0, stream)
            yield f"draw: {dtype}, {numel}", float((z.cpu().double() - expected).abs().max()), limit
            yield "draw: counted once", float((stream.cpu() - torch.tensor([KEY, DRAW + 1, 0])).abs().max()), 0


def check_rows(device: str) -> Iterator[Checked]:
    """A draw for each row, where a row ends within a block or a tile, at counts beyond 32 bits."""
    for numel in (77, 3072, 8 * 1024 + 5):
        draws = torch.tensor([0, 7, 2**33 + 1, 3])
        numbers = torch.stack([normal(numel, KEY, int(draw), CPU) for draw in draws]).double()
        for dtype, limit in ROUNDING.items():
            out = torch.randn(numbers.shape).clamp(-3, 3).to(device, dtype)
            expected = out.double().cpu() + 2 * numbers
            add_rows(out, 2.0, torch.tensor([KEY, *draws.tolist()], device=device))
            yield f"rows: {dtype}, {numel}", float((out.cpu().double() - expected).abs().max()), limit


def check_statistics(_: str) -> Iterator[Checked]:
    """Moments in standard errors, the empirical distribution's distance times sqrt(n), for 2^27 numbers."""
    n = 2**27
    z, other = (torch.empty(n, device="cuda") for _ in range(2))
    stream = torch.tensor([KEY, 0, 0], device="cuda")
    add_normal(None, z, 1.0, stream)
    add_normal(None, other, 1.0, stream)
    yield "mean", abs(float(z.double().mean())) * n**0.5, 5
    yield "variance", abs(float(z.double().square().mean()) - 1) * (n / 2) ** 0.5, 5
    yield "fourth moment", abs(float(z.double().pow(4).mean()) - 3) * (n / 96) ** 0.5, 5
    for lag in (1, 127, 128, 256, 1024):
        yield f"autocorrelation at {lag}", abs(float((z[lag:].double() * z[:-lag]).mean())) * n**0.5, 5
    yield "next draw", abs(float((z.double() * other).mean())) * n**0.5, 5
    part = z[: 2**24].sort().values.double()
    steps = torch.arange(1, len(part) + 1, device="cuda", dtype=torch.double) / len(part)
    distance = float((torch.special.ndtr(part) - steps).abs().max())
    yield "Kolmogorov and Smirnov", distance * len(part) ** 0.5, 2.3  # p = 5e-5


def check_averages(device: str) -> Iterator[Checked]:
    """Odd shapes in one lot, against the operator's CPU form in float64."""
    layers = [rows_of((12,), 5, 3, 1), rows_of((4, 6), 7, 3, 1), rows_of((4, 6), 3, 3, 2), rows_of((9,), 300, 5, 2)]
    layers += [rows_of((8, 8), 1, 3, 1)]
    layers += [rows_of((16, 16), 2304, 5, 1), rows_of((23, 23), 576, 7, 1)] if device == "cuda" else []
    before, after = sum(rows.before for rows in layers), sum(rows.after for rows in layers)
    op, here, there = torch.ops.kapdist.average_rows, tables(layers, torch.device(device)), tables(layers, CPU)
    limits = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
    for dtype, limit in limits.items():
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        z, g = torch.randn(before, dtype=wide), torch.randn(after).to(dtype)
        forward, backward = (torch.empty(n, dtype=t, device=device) for n, t in ((after, dtype), (before, wide)))
        average(z.to(device), forward, *here, False, TILE)
        average(g.to(device), backward, *here, True, TILE)
        expected = op(z.double(), *there, False, after, torch.double)
        yield f"average to {dtype}", float((forward.cpu().double() - expected).abs().max()), limit
        expected = op(g.double(), *there, True, before, torch.double)
        limit = 1e-14 if wide == torch.float64 else 1e-5
        yield f"transpose from {dtype}", float((backward.cpu().double() - expected).abs().max()), limit


def check_normed(device: str) -> Iterator[Checked]:
    """Activations normalised, averaged and noisy at once, and the transpose, against float64 and the definition."""
    limits = {torch.float32: 2e-5, torch.bfloat16: 0.07, torch.float16: 0.01}
    shapes = [(77, 12, 3, "sheet"), (231, 56, 5, "sheet"), (500, 9, 5, "line"), (9, 1024, 3, "sheet")]
    shapes += [(7 * 32**2, 256, 3, "sheet"), (49, 2048, 5, "sheet")] if device == "cuda" else []
    for rows, channels, pool_size, layout in shapes:
        window = window_of(channels, pool_size, layout)
        reach, where = (window.sides, window.halves), f"{layout} {window.sides}"
        z, (mean, weight, bias) = torch.randn(rows, channels, 1, 1), torch.randn(3, channels)
        variance = torch.randn(channels).exp()
        norm = mean.to(device), variance.to(device), weight.to(device), bias.to(device), 1e-5
        deviation, table, shift = coefficients(*norm, *reach)
        off = deviation.cpu().double() * (variance.double() + 1e-5).sqrt() - 1
        yield f"normed: deviation, {where}", float(off.abs().max()), 1e-6
        stream = torch.tensor([KEY, DRAW, 0], device=device)
        transposed = transposed_table(*reach, torch.device(device))
        numbers = normal(z.numel(), KEY, DRAW, CPU).view(z.shape).double()
        for dtype, limit in limits.items():
            given, out = z.to(dtype).double(), torch.empty(z.numel(), dtype=dtype, device=device)
            normed = functional.batch_norm(given, mean.double(), variance.double(), weight.double(), bias.double())
            clean = kernel_average(normed, pool_size, layout=layout)
            back = transposed_average(given, pool_size, 1, window.grid, 1)
            for what, noise, of, plus, expected, allowed in (
                ("norm and average", None, table, shift, clean, limit),
                ("with noise", (2.0, stream), table, shift, clean + 2 * numbers, ROUNDING[dtype]),
                ("transpose", None, transposed, None, back, limit),
            ):
                sums(z.to(dtype).flatten().to(device), out, of, plus, *reach, noise)
                off = (out.cpu().double() - expected.flatten()) / (expected.flatten().abs() / 4).clamp(min=1)
                yield f"normed: {what}, {dtype}, {where}", float(off.abs().max()), allowed
            yield "normed: counted once", float((stream.cpu() - torch.tensor([KEY, DRAW + 1, 0])).abs().max()), 0
            stream[1] = DRAW


def check_norm_first(_: str) -> Iterator[Checked]:
    """Layers with a norm before the average, at once against step by step: outputs, gradients and statistics."""
    for dtype, layout in product((None, torch.bfloat16, torch.float16), ("line", "sheet")):
        torch.manual_seed(0)
        layer = KAPConv2d(16, 64, 3, bias=False, layout=layout, noise_std=0.3, inner_norm=nn.BatchNorm2d(64)).cuda()
        layer = layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = torch.randn(8, 16, 19, 17, device="cuda").to(memory_format=torch.channels_last)
        found = []
        for at_once in (True, False):
            twin, images = copy.deepcopy(layer), x.clone().requires_grad_()
            if not at_once:
                twin.inner_norm.register_forward_hook(lambda *_: None)  # which wants to see the norm's own results
            with torch.autocast("cuda", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
                out = twin(images)
            gradients = torch.autograd.grad(out.float().square().mean(), [images, *twin.parameters()])
            statistics = [twin.inner_norm.running_mean, twin.inner_norm.running_var]
            found.append([out, *gradients, *statistics, *noise_state(twin).values()])
        limit = {None: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}[dtype]
        for name, ours, theirs in zip(("out", "images", "weight", "norm's weight", "norm's bias", "mean",
                                       "variance", "seed", "draws"), *found, strict=True):  # fmt: skip
            off = float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp(min=1e-9))
            yield f"norm first: {name}, {dtype}, {layout}", off, limit


def check_models(_: str) -> Iterator[Checked]:
    """Gradients with the averages made ahead against those with each layer's own, in each format and precision."""
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    for (name, memory_format), dtype, layout in product(
        formats.items(), (None, torch.bfloat16, torch.float16), ("line", "sheet")
    ):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 56, 1, bias=False), nn.ReLU(), nn.Conv2d(56, 9, 3)]
        model = kapify(nn.Sequential(*layers), layout=layout).cuda()
        model = model.to(memory_format=memory_format)  # type: ignore[call-overload]
        x = torch.randn(4, 3, 17, 13, device="cuda").to(memory_format=memory_format)
        seen: list[bool] = []
        model[2].register_forward_pre_hook(
            lambda conv, _, seen=seen: seen.append(averages_of(conv, conv.weight) is not None)
        )

        def gradients(
            run: object, model: nn.Module = model, x: Tensor = x, dtype: torch.dtype | None = dtype
        ) -> Tensor:
            with torch.autocast("cuda", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
                out = run(x)  # type: ignore[operator]
            found = torch.autograd.grad(out.float().square().mean(), list(model.parameters()))
            return torch.cat([each.float().flatten() for each in found])

        ahead, alone = gradients(model), gradients(model.forward)
        off = float((ahead - alone).abs().max() / alone.abs().max())
        limit = {None: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
        yield f"averages ahead: {name}, {dtype}, {layout}", off if seen == [True, False] else math.inf, limit


def check_graph(_: str) -> Iterator[Checked]:
    """A CUDA graph that is replayed draws on: the same as eager calls, and its count can be saved and continued."""
    conv = KAPConv2d(4, 12, 1, noise_std=0.7).cuda()
    x = torch.zeros(8, 4, 31, 33, device="cuda").to(memory_format=torch.channels_last)
    with torch.no_grad():
        seed_noise(conv, 5)
        eager = [conv(x).clone() for _ in range(5)]
        seed_noise(conv, 5)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            conv(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = conv(x)
        replayed = []
        for _replay in range(3):
            graph.replay()
            replayed.append(out.clone())
        yield (
            "graph: replays draw on",
            max(float((a - b).abs().max()) for a, b in zip(replayed, eager[1:], strict=False)),
            0,
        )
        yield "graph: the count", float(abs(noise_state(conv)["0.0.cuda"] - 4)), 0
        yield "graph: eager calls go on", float((conv(x) - eager[4]).abs().max()), 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--interpreter", action="store_true", help="on the CPU, by Triton's interpreter")
    options = parser.parse_args()
    if not options.interpreter and not torch.cuda.is_available():
        sys.exit("check_kernels needs a CUDA device, and torch sees none here: --interpreter needs none")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = "cpu" if options.interpreter else "cuda"
    failed = 0
    for check in (check_draws, check_rows, check_averages, check_normed, *(() if options.interpreter else ON_GPUS)):
        for name, off, limit in check(device):
            passed = off <= limit
            failed += not passed
            print(f"{name:<60}{off:>12.2e}   <= {limit:<8.1e}{'ok' if passed else 'FAILED'}", flush=True)
    sys.exit(failed > 0)


ON_GPUS = (check_statistics, check_models, check_norm_first, check_graph)

if __name__ == "__main__":
    main()
