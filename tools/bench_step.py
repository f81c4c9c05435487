"""What Kernel Average Pooling costs: training steps of several variants, paired in one run.

    python tools/bench_step.py [--network resnet50] [--steps 10] [--batch-size 16] [--pixels 160] [--threads N]
                                [--variants plain kap noise kap-noise norm-first norm-first-noise]
                                [--device cuda] [--precision fp32 bf16 fp16] [--compile | --graph] [--cpu-seconds]

Claims: KAP at most 1.05 times plain, KAP with noise at most 1.05 times the noise alone; norm_first is stated, with
the aim of 1.3. Beside the ratio to the plain step stands that to the variant's twin, the same without averages (of
those with noise, the noise alone). Needs torch alone. Each round times one step of every variant, in turn, so that
whatever else the machine does falls on all of them alike; a ratio is between two steps of the same round, never
between two averages. Beside it stands the ratio of the fastest steps: on a machine with other work the one that
others touch least. With --graph each step is a CUDA graph that is replayed, with --cpu-seconds a step's time is
what its process computes on all threads.
"""

import argparse
import copy
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a bare box has no kapdist installed

from kapdist.kap import KernelAveragePool, kapify
from kapdist.models import resnet18, resnet50

NOISE_STD = 0.3
Clock = Callable[[], float]
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepRow:
    """One variant: its median step, and its ratios to the first variant's step.

    ratio, ratio_min and ratio_max are the median, least and greatest over the paired rounds; ratio_fastest
    compares the fastest step of each; ratio_twin is the median to the same model without averages.
    """

    variant: str
    step_ms: float
    images_per_s: float
    ratio: float
    ratio_min: float
    ratio_max: float
    ratio_fastest: float
    ratio_twin: float


def plain(model: nn.Module) -> nn.Module:
    return model


def kap(model: nn.Module) -> nn.Module:
    return kapify(model)


def line(model: nn.Module) -> nn.Module:
    return kapify(model, layout="line")


def norm_first(model: nn.Module) -> nn.Module:
    return kapify(model, norm_first=True)


def norm_first_noise(model: nn.Module) -> nn.Module:
    return kapify(model, noise_std=NOISE_STD, norm_first=True)


def noise(model: nn.Module) -> nn.Module:
    return kapify(model, pool_size=1, noise_std=NOISE_STD)


def kap_noise(model: nn.Module) -> nn.Module:
    return kapify(model, noise_std=NOISE_STD)


def activation(model: nn.Module) -> nn.Module:
    """A KernelAveragePool after every convolution: what the weights form saves."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                setattr(parent, name, nn.Sequential(child, KernelAveragePool(3)))
    return model


VARIANTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": plain,
    "kap": kap,
    "line": line,
    "activation": activation,
    "noise": noise,
    "kap-noise": kap_noise,
    "norm-first": norm_first,
    "norm-first-noise": norm_first_noise,
}
TWINS = {"kap-noise": "noise", "norm-first-noise": "noise"}
"""What a variant is without its averages, where that is not the plain model."""
CLAIMED = ("plain", "kap", "noise", "kap-noise", "norm-first", "norm-first-noise")
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet50": resnet50,
    "narrow-resnet18": lambda: resnet18(num_classes=10, stem="cifar", width=0.25),
}


class Trainer:
    """One variant with its optimizer; a call takes one training step on the same batch."""

    def __init__(
        self, model: nn.Module, images: Tensor, dtype: torch.dtype, compiled: bool, clock: Clock = time.perf_counter
    ) -> None:
        self.device = images.device
        model = model.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        model = model.train()
        self.model = torch.compile(model) if compiled else model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
        self.images = images
        self.labels = torch.zeros(len(images), dtype=torch.long, device=self.device)
        self.dtype = dtype
        self.clock = clock
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        if self.graph is None:
            self.step()
        else:
            self.graph.replay()

    def capture(self, pool: Any) -> None:
        """From now on a call replays one step as a CUDA graph, whose memory others of the same pool use too."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            self.step()
        self.graph = graph

    def step(self) -> None:
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            loss = nn.functional.cross_entropy(self.model(self.images), self.labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def seconds(self) -> float:
        """Of one step, the device's queue drained before and after."""
        self._wait()
        start = self.clock()
        self()
        self._wait()
        return self.clock() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def bench_steps(
    variants: Sequence[str] = CLAIMED,
    *,
    steps: int = 10,
    warmup: int = 2,
    batch_size: int = 16,
    pixels: int = 160,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
    graph: bool = False,
    clock: Clock = time.perf_counter,
    network: Callable[[], nn.Module] = resnet50,
) -> list[StepRow]:
    """A row for each variant, in this order, after `steps` paired rounds; channels_last throughout.

    dtype is autocast's, float32 for none; fp16 runs without a loss scaler, whose cost no variant changes.
    """
    images = torch.rand(batch_size, 3, pixels, pixels, device=device).to(memory_format=torch.channels_last)
    untrained = network()
    trainers = {
        name: Trainer(VARIANTS[name](copy.deepcopy(untrained)), images, dtype, compiled, clock) for name in variants
    }
    pool = torch.cuda.graph_pool_handle() if graph else None
    for trainer in trainers.values():
        for _ in range(warmup):
            trainer()
        if graph:
            trainer.capture(pool)
    rounds = [{name: trainer.seconds() for name, trainer in trainers.items()} for _ in range(steps)]
    return [step_row(name, variants[0], rounds, batch_size) for name in variants]


def step_row(name: str, baseline: str, rounds: Sequence[dict[str, float]], batch_size: int) -> StepRow:
    """The variant's median, and its ratios to the baseline of the same round."""
    step = statistics.median(seconds[name] for seconds in rounds)
    ratios = [seconds[name] / seconds[baseline] for seconds in rounds]
    fastest = min(seconds[name] for seconds in rounds) / min(seconds[baseline] for seconds in rounds)
    twin = TWINS.get(name, "plain")
    pairs = [seconds[name] / seconds[twin] for seconds in rounds if twin in seconds]
    to_twin = statistics.median(pairs) if pairs else math.nan
    spread = statistics.median(ratios), min(ratios), max(ratios)
    return StepRow(name, 1e3 * step, batch_size / step, *spread, fastest, to_twin)


def step_table(rows: Sequence[StepRow]) -> str:
    columns = f"{'step ms':>10}{'images/s':>10}{'ratio':>8}   {'min - max':<16}{'fastest':<9}to its twin"
    lines = [f"{'variant':<18}{columns}"]
    for row in rows:
        figures = f"{row.step_ms:>10.1f}{row.images_per_s:>10.1f}{row.ratio:>8.3f}"
        lines.append(
            f"{row.variant:<18}{figures}   {row.ratio_min:.3f} - {row.ratio_max:<6.3f}  {row.ratio_fastest:<9.3f}"
            f"{row.ratio_twin:.3f}"
        )
    return "\n".join(lines)


def machine(device: str = "cpu") -> str:
    """The hardware and software that a figure belongs to, on one line."""
    name = (
        torch.cuda.get_device_name(device)
        if device != "cpu"
        else f"{_cpu_name()}, {torch.get_num_threads()} threads"
    )
    return f"{name}; torch {torch.__version__}, Python {platform.python_version()}"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=NETWORKS, default="resnet50")
    parser.add_argument("--steps", type=int, default=10, help="paired rounds")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--pixels", type=int, default=160)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=CLAIMED)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--precision", nargs="+", choices=PRECISIONS, default=["fp32"], help="autocast's, fp32 for none"
    )
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--compile", action="store_true", help="every variant under torch.compile")
    way.add_argument("--graph", action="store_true", help="every step a CUDA graph that is replayed")
    parser.add_argument("--cpu-seconds", action="store_true", help="time the process's own, for busy machines")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    print("a training step with KAP (K = 3) beside the same without; goals: 1.05 times, and 1.3 with norm_first")
    print(f"machine:  {machine(options.device)}")
    print(f"command:  python {' '.join(sys.argv)}")
    size = f"batch {options.batch_size}, {options.pixels} px, channels_last, SGD with momentum"
    print(f"runs:     {options.steps} paired rounds; {options.network}, {size}", flush=True)
    for precision in options.precision:
        rows = bench_steps(
            options.variants,
            steps=options.steps,
            batch_size=options.batch_size,
            pixels=options.pixels,
            device=options.device,
            dtype=PRECISIONS[precision],
            compiled=options.compile,
            graph=options.graph,
            clock=time.process_time if options.cpu_seconds else time.perf_counter,
            network=NETWORKS[options.network],
        )
        mode = "compiled" if options.compile else "as a CUDA graph" if options.graph else "eager"
        print(f"\n{precision}, {mode}\n{step_table(rows)}", flush=True)


if __name__ == "__main__":
    main()
