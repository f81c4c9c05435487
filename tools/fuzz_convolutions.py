"""Do this machine's convolutions compute their gradients, and stay within their memory, on our models' shapes?

    python tools/fuzz_convolutions.py [--cases 2000] [--seed 0] [--unguarded]

Goes through the distinct convolutions of all our models (architectures, stems, widths) in turn, and draws KAP or
not, batches, memory formats and numbers of threads for each; computes the gradients in float32 in child processes
under a checking malloc, and compares them with float64's. A child that dies names its shape and signal. The
exit code is 1 unless all agree. Strided 1 x 1 convolutions take their pixels first, as in a training; --unguarded
computes them as torch does, which dies on CPUs with AVX-512 (torch 2.13).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kapdist.kap import kapify
from kapdist.models import MODELS, RESNETS
from kapdist.models.strided import guard_strided

WIDTHS = (0.125, 0.25, 0.5, 1.0)
RESOLUTIONS = {"cifar": (28, 32), "imagenet": (64, 96)}
THREADS = (1, 2, 3, 4)
BATCHES = (1, 2, 3, 5, 8, 13, 31, 43, 64, 125)
CHILD_CASES = 100
LARGEST_ELEMENTS = 2**19  # of a layer's input: enough for every kernel to be chosen, and quick
TOLERANCE = 1e-3  # of the largest gradient: float32 sums of a million products
CHECKED = {"GLIBC_TUNABLES": "glibc.malloc.check=3", "LD_PRELOAD": "libc_malloc_debug.so.0"}

Case = dict[str, Any]


@functools.cache
def layers() -> list[Case]:
    """Return every distinct convolution of our models, with the side of its input."""
    found: dict[str, Case] = {}
    for name, (stem, sides), width in itertools.product(MODELS, RESOLUTIONS.items(), WIDTHS):
        if name not in RESNETS and stem != "cifar":
            continue
        for layer in layers_of(name, stem, width, sides[0]):
            found.setdefault(json.dumps({key: layer[key] for key in layer if key != "side"}), layer)
    return list(found.values())


def layers_of(name: str, stem: str, width: float, side: int) -> list[Case]:
    with torch.device("meta"):
        stems = {"stem": stem} if name in RESNETS else {}  # the others have one of their own
        model = MODELS[name](10, width=width, **stems)
    seen: list[Case] = []

    def note(conv: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        assert isinstance(conv, nn.Conv2d)
        keys = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "groups")
        seen.append({key: conv.__dict__[key] for key in keys} | {"side": inputs[0].shape[-1]})

    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(note)
        for child_name, norm in module.named_children():
            if isinstance(norm, nn.BatchNorm2d):  # slow on "meta", and changes no shape
                setattr(module, child_name, nn.Identity())
    model(torch.empty(2, 3, side, side, device="meta"))
    return seen


def draw(layer: Case, chance: random.Random, unguarded: bool) -> Case:
    """Return a case of a layer: a side near its own, a batch, a layout, threads, and KAP or not."""
    side = max(layer["kernel_size"][0], layer["side"] + chance.choice((-1, 0, 0, 1)))
    fits = [n for n in BATCHES if n == 1 or n * layer["in_channels"] * side**2 <= LARGEST_ELEMENTS]
    return layer | {
        "side": side,
        "batch": chance.choice(fits),
        "channels_last": chance.random() < 0.75,
        "threads": chance.choice(THREADS),
        "pool_size": chance.choice((1, 3)),
        "seed": chance.randrange(2**31),
        "unguarded": unguarded,
    }


def worst_difference(case: Case) -> float:
    """Return the largest difference of a gradient from float64's, as a share of that gradient's largest entry."""
    torch.set_num_threads(case["threads"])
    torch.manual_seed(case["seed"])
    shape = {key: case[key] for key in ("kernel_size", "stride", "padding", "groups")}
    conv: nn.Module = nn.Conv2d(case["in_channels"], case["out_channels"], bias=False, **shape)
    conv = kapify(conv, pool_size=case["pool_size"], layout="line") if case["pool_size"] > 1 else conv
    images = torch.randn(case["batch"], case["in_channels"], case["side"], case["side"])
    layout = torch.channels_last if case["channels_last"] else torch.contiguous_format
    exact = gradients(conv.double(), images.double())
    conv = conv.float().to(memory_format=layout)  # type: ignore[call-overload]  # torch's stubs lack it
    if not case["unguarded"]:
        guard_strided(conv)
    found = gradients(conv, images.contiguous(memory_format=layout))
    return max(float((f - e).abs().max() / e.abs().max()) for f, e in zip(found, exact, strict=True))


def gradients(conv: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    images = images.clone().requires_grad_()
    output = conv(images)
    upstream = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return [g.double() for g in torch.autograd.grad(output, [images, *conv.parameters()], upstream)]


def child() -> None:
    """Work through the cases on standard input, a line each; say each before and after."""
    for line in sys.stdin:
        print(f"begin {line.strip()}", flush=True)
        print(f"end {worst_difference(json.loads(line))}", flush=True)


def run(cases: list[Case]) -> Iterator[str]:
    """Run cases in a child, and what is left after a death in another; yield what went wrong, a line each."""
    while cases:
        done = subprocess.run(
            [sys.executable, __file__, "--child"],
            input="\n".join(map(json.dumps, cases)),
            env=os.environ | CHECKED,
            stdout=subprocess.PIPE,
            text=True,
        )
        ends = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("end ")]
        for case, difference in zip(cases, ends, strict=False):
            if not difference <= TOLERANCE:
                yield f"differs by {difference:.2g}: {json.dumps(case)}"
        if len(ends) < len(cases):
            yield f"died of {died_of(done.returncode)}: {json.dumps(cases[len(ends)])}"
        cases = cases[len(ends) + 1 :]


def died_of(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def has_avx512() -> bool:
    path = Path("/proc/cpuinfo")
    return path.exists() and "avx512f" in path.read_text()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--unguarded", action="store_true", help="strided 1 x 1 convolutions as torch computes them"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child()
        return 0
    chance = random.Random(options.seed)
    everyone = chance.sample(layers(), len(layers()))
    drawn = list(itertools.islice(itertools.cycle(everyone), options.cases))  # all of them before one comes again
    cases = [draw(layer, chance, options.unguarded) for layer in drawn]
    wrong = 0
    for start in range(0, len(cases), CHILD_CASES):
        for line in run(cases[start : start + CHILD_CASES]):
            wrong += 1
            print(line, flush=True)
    tried = min(len(cases), len(everyone))
    print(f"{len(cases)} cases of {tried} of our {len(everyone)} distinct convolutions: {wrong} wrong")
    if not has_avx512():
        print("this CPU has no AVX-512: nothing is said of the kernels that only it has")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
