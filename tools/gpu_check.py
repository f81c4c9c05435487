"""Whether kapdist.kap does on this GPU what it does on the CPU, and what it costs there: one table.

    python tools/gpu_check.py [--device cuda|cpu] [--steps 20] [--batch-size 128] [--pixels 160]
    python tools/gpu_check.py --all

Needs torch and numpy alone, no install; with deepspeed installed the engines are compared on the GPU too. Without
a GPU, or with --device cpu, it says so and runs the same checks on the CPU with a small network: that shows that
the checks run, not that a GPU passes them. With --all, where everything is installed, what else is promised on GPUs
is checked and timed too, one command after another: COMMANDS.
Exit code 1 when a check fails.
"""

import argparse
import copy
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a bare box has no kapdist installed

from bench_step import VARIANTS, Trainer, bench_steps, machine

from kapdist.kap import KAPConv2d, KernelAveragePool, kapify, load_noise_state, noise, noise_state
from kapdist.models import resnet10, resnet50

ROOT = Path(__file__).resolve().parents[1]

# Largest error relative to the largest activation: a few roundings of sums of some hundred products.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
STEP_VARIANTS = ("plain", "kap", "noise", "kap-noise", "norm-first", "norm-first-noise")

# What needs more than torch, each command with the seconds that it may take: correctness first, then times.
GPU_TESTS = "tests/train/test_train_step.py tests/attack/test_attack_precision.py tests/kap"
GPU_TESTS += " tests/data/load/test_data_device.py::test_every_byte_is_the_same_float_on_a_gpu"
GPU_TESTS += " tests/doctor/test_doctor_command.py"
STEP = "tools/bench_step.py --device cuda --batch-size 128 --pixels 160 --variants plain kap noise kap-noise"
COMMANDS = (
    ("tools/check_kernels.py", 120),
    (f"-m pytest -q -n0 -rs {GPU_TESTS} -k gpu", 300),
    ("tools/bench_passes.py --device cuda --check --model resnet10 --width 0.5 --size 32 --batch 16", 120),
    (f"{STEP} --precision fp32 bf16 fp16 --steps 20", 200),
    (f"{STEP} --precision bf16 fp16 --graph --steps 20", 200),
    ("tools/bench_trainer.py", 300),
    ("tools/bench_passes.py --device cuda --model resnet18 --size 32 --batch 256", 200),
    ("tools/bench_passes.py --device cuda --model resnet50 --size 160 --batch 64 --classes 100", 200),
    ("tools/bench_device_data.py", 200),
)


@dataclass(frozen=True)
class Setting:
    """What is run where: the real sizes on a GPU, small ones on a CPU."""

    device: str
    network: Callable[[], nn.Module]
    network_name: str
    batch_size: int
    pixels: int
    steps: int
    step_kinds: tuple[tuple[torch.dtype, bool], ...]  # autocast's dtype, compiled or not


@dataclass(frozen=True)
class Check:
    """One row: what was checked, how far it was off, and how far it may be."""

    name: str
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.error <= self.limit


def gpu_setting(steps: int, batch_size: int, pixels: int) -> Setting:
    kinds = ((torch.float32, False), (torch.bfloat16, False), (torch.float16, False), (torch.bfloat16, True))
    return Setting("cuda", resnet50, "ResNet-50", batch_size, pixels, steps, kinds)


def cpu_setting() -> Setting:
    kinds = ((torch.float32, False), (torch.bfloat16, False))
    return Setting("cpu", lambda: resnet10(width=0.25), "ResNet-10 of width 0.25", 2, 32, 1, kinds)


def relative_error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max())


def written_out_average(z: Tensor, layout: str) -> Tensor:
    """The mean over 3 (sheet: 3 x 3) neighbours, slice by slice, for 24 channels (sheet: 4 x 6)."""
    height, width = (1, 24) if layout == "line" else (4, 6)
    sheet = z.unflatten(1, (height, width))
    means = [
        sheet[:, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].mean((1, 2))
        for row, column in product(range(height), range(width))
    ]
    return torch.stack(means, dim=1)


def check_forms(device: str) -> Iterator[Check]:
    """Both forms of the average against the written-out one in float64, in every precision and memory format."""
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    for dtype, layout, (name, memory_format) in product(TOLERANCES, ("line", "sheet"), formats.items()):
        kap = KAPConv2d(16, 24, 3, padding=1, layout=layout, device=device, dtype=dtype)
        kap = kap.to(memory_format=memory_format)  # type: ignore[call-overload]
        x = torch.randn(4, 16, 14, 14, device=device).to(dtype, memory_format=memory_format)
        exact = nn.functional.conv2d(x.double(), kap.weight.double(), copy.deepcopy(kap).double().bias, padding=1)
        expected = written_out_average(exact, layout)
        z = nn.functional.conv2d(x, kap.weight, kap.bias, padding=1)
        setting = f"{str(dtype).removeprefix('torch.')}, {layout}, {name}"
        yield Check(f"weights form: {setting}", relative_error(kap(x), expected), TOLERANCES[dtype])
        activations = KernelAveragePool(3, layout=layout)(z)
        yield Check(f"activation form: {setting}", relative_error(activations, expected), TOLERANCES[dtype])


def check_gradients(device: str) -> Iterator[Check]:
    """The average's gradient here against that of the written-out one on the CPU, in float64."""
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    for layout, (name, memory_format) in product(("line", "sheet"), formats.items()):
        z = torch.randn(4, 24, 7, 5, dtype=torch.double).to(memory_format=memory_format)
        upstream = torch.randn_like(z)
        here, there = z.to(device).requires_grad_(), z.requires_grad_()
        average = KernelAveragePool(3, layout=layout)(here)
        (found,) = torch.autograd.grad(average, here, upstream.to(device))
        (expected,) = torch.autograd.grad(written_out_average(there, layout), there, upstream)
        yield Check(f"gradient: {layout}, {name}", relative_error(found.cpu(), expected), 1e-12)


def small_cnn(device: str) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 24, 3, groups=3), nn.ReLU(), nn.Conv2d(24, 12, 1)]
    return kapify(nn.Sequential(*layers), noise_std=0.5).double().to(device)


def check_noise(device: str) -> Iterator[Check]:
    """Streams that continue, a global generator left alone, fixed noise equal to the CPU's, the variance."""
    model, x = small_cnn(device), torch.rand(4, 3, 12, 12, dtype=torch.double, device=device)
    model(x)
    state = noise_state(model)
    before = torch.cuda.get_rng_state() if device == "cuda" else torch.get_rng_state()
    expected = copy.deepcopy(model)(x)
    yield Check("noise: a copy continues the stream", relative_error(model(x), expected), 0)
    after = torch.cuda.get_rng_state() if device == "cuda" else torch.get_rng_state()
    yield Check("noise: the global generator is left alone", float((before != after).sum()), 0)
    load_noise_state(model, state)
    yield Check("noise: a saved state continues the stream", relative_error(model(x), expected), 0)
    with noise(model, "fixed", seed=1):
        here = model(x).cpu()
        on_cpu = copy.deepcopy(model).cpu()(x.cpu())
    yield Check("noise: fixed, as on the CPU", relative_error(here, on_cpu), 1e-12)
    yield check_noise_variance(device)


def check_noise_variance(device: str) -> Check:
    """Largest distance from 1, the variance of the noise behind the average, in standard errors."""
    conv = KAPConv2d(1, 12, 1, noise_std=1.0, device=device)
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    samples = conv(torch.zeros(64, 1, 64, 64, device=device)).detach().double().movedim(1, 0).flatten(1)
    standard_error = (2 / samples.shape[1]) ** 0.5
    return Check("noise: variance, standard errors", float((samples.var(1) - 1).abs().max()) / standard_error, 5)


def check_compile(device: str) -> Iterator[Check]:
    """Logits and gradients, compiled as one graph, against those of eager mode, with the same noise."""
    x = torch.rand(4, 3, 12, 12, dtype=torch.double, device=device)
    modes = ("off", "fixed", "fresh") if device == "cuda" else ("fresh",)  # g++ takes half a minute for each
    for mode in modes:
        torch.compiler.reset()
        model = small_cnn(device)
        compiled = torch.compile(model, fullgraph=True)
        results = []
        for run in (model, compiled):
            with noise(model, mode, seed=1):
                logits = run(x)
            gradients = torch.autograd.grad(logits.square().sum(), list(model.parameters()))
            results.append(torch.cat([logits.flatten(), *(g.flatten() for g in gradients)]))
        yield Check(f"compile on and off: noise {mode}", relative_error(results[1], results[0]), 1e-10)


def peak_gib(setting: Setting, variant: str, dtype: torch.dtype, compiled: bool) -> str:
    """The most memory allocated by the variant alone over two steps, or "-" where torch does not count it."""
    if setting.device != "cuda":
        return "-"
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    images = torch.rand(setting.batch_size, 3, setting.pixels, setting.pixels, device=setting.device)
    images = images.to(memory_format=torch.channels_last)
    trainer = Trainer(VARIANTS[variant](setting.network()), images, dtype, compiled)
    for _ in range(2):
        trainer()
    return f"{(torch.cuda.max_memory_allocated() - before) / 2**30:.2f}"


def check_deepspeed(device: str) -> Iterator[Check]:
    """DeepSpeed's stages against DDP in every precision, on one GPU; nothing where there is no DeepSpeed."""
    if device != "cuda" or importlib.util.find_spec("deepspeed") is None:
        print("engines: skipped, which needs a GPU and deepspeed")
        return
    from bench_engines import check_engines

    from kapdist.config import EngineConfig
    from kapdist.engine import join

    with join(EngineConfig(name="deepspeed", device="cuda")) as ranks:
        yield from (Check(*agreement) for agreement in check_engines(ranks))


def print_checks(device: str) -> bool:
    passed = True
    for checks in (
        check_forms(device),
        check_gradients(device),
        check_noise(device),
        check_compile(device),
        check_deepspeed(device),
    ):
        for check in checks:
            passed &= check.passed
            verdict = "ok" if check.passed else "FAILED"
            print(f"{check.name:<60}{check.error:>12.2e}   <= {check.limit:<8.0e}{verdict}", flush=True)
    return passed


def print_steps(setting: Setting) -> None:
    size = f"{setting.network_name}, batch {setting.batch_size}, {setting.pixels} px, channels_last"
    print(f"\ntraining step: {size}, {setting.steps} paired rounds; ratios to the plain step of the same round")
    head = f"{'precision':<10}{'compile':<9}{'variant':<18}{'ms':>9}{'images/s':>10}{'ratio':>7}"
    print(f"{head}  {'min - max':<16}{'fastest':<9}peak GiB")
    for dtype, compiled in setting.step_kinds:
        rows = bench_steps(
            STEP_VARIANTS,
            steps=setting.steps,
            batch_size=setting.batch_size,
            pixels=setting.pixels,
            device=setting.device,
            dtype=dtype,
            compiled=compiled,
            network=setting.network,
        )
        for row in rows:
            kind = f"{str(dtype).removeprefix('torch.'):<10}{'on' if compiled else 'off':<9}{row.variant:<18}"
            figures = f"{row.step_ms:>9.1f}{row.images_per_s:>10.1f}{row.ratio:>7.3f}"
            peak = peak_gib(setting, row.variant, dtype, compiled)
            spread = f"{row.ratio_min:.3f} - {row.ratio_max:<6.3f}  {row.ratio_fastest:<9.3f}"
            print(f"{kind}{figures}  {spread}{peak}", flush=True)


def run_commands() -> bool:
    """Run the other checks and benchmarks; return whether all ended well."""
    ended = []
    for words, limit in COMMANDS:
        print(f"\n$ python {words}", flush=True)
        start = time.monotonic()
        try:
            code = subprocess.run([sys.executable, *words.split()], cwd=ROOT, timeout=limit).returncode
        except subprocess.TimeoutExpired:
            code = -1
        print(f"exit code {code} after {time.monotonic() - start:.0f} s (at most {limit} s)", flush=True)
        ended.append(code == 0)
    return all(ended)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    parser.add_argument("--steps", type=int, default=20, help="paired rounds, on a GPU")
    parser.add_argument("--batch-size", type=int, default=128, help="on a GPU")
    parser.add_argument("--pixels", type=int, default=160, help="on a GPU")
    parser.add_argument(
        "--all", action="store_true", help="the other checks and benchmarks too; everything installed"
    )
    options = parser.parse_args()
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        reason = "asked for by --device" if options.device else "torch sees no GPU here"
        print(f"CPU ONLY ({reason}): small sizes, to show that the checks run; nothing below is a GPU's result.")
    print(f"machine:  {machine(device)}\ncommand:  python {' '.join(sys.argv)}\n")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    passed = print_checks(device)
    gpu = gpu_setting(options.steps, options.batch_size, options.pixels)
    print_steps(gpu if device == "cuda" else cpu_setting())
    if options.all and device == "cuda":
        passed &= run_commands()
    if not passed:
        sys.exit("a check failed: see FAILED above")


if __name__ == "__main__":
    main()
