"""How fast an attack's passes are, beside the network's own forward and backward passes at the same batch.

    python tools/bench_passes.py [--device cuda] [--model resnet18] [--size 32] [--batch 64] [--rounds 3]
        [--precision fp32] [--no-graphs] [--attacks apgd-ce fab-t square] [--check]

A folded model that no attack breaks (eps 1e-6, random images, labels as the model says) is attacked with a few of
the library's steps: images passed forward and back, and their time, beside the time that as many passes take of the
bare network, in turn; seconds of the CPU, on a GPU of the clock. The bare network passes eagerly, `model(images)`.
--check says what graphs, batches and precisions do to logits and verdicts, on a network that falls.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

import kapdist.attack.stock as stock
from kapdist.attack.chunk import ChunkOutcome, attack_chunk
from kapdist.attack.devices import tensor_float_32
from kapdist.attack.forms import Forms
from kapdist.attack.watch import passes_of_a_run
from kapdist.kap import fold
from kapdist.models import MODELS
from kapdist.records.attack_plan import AttackPlan


class Few(AutoAttack):
    """The library with a few of its steps, targets and queries."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__(model, **options)
        for attack in (self.apgd, self.apgd_targeted):
            attack.n_iter = attack.n_iter_orig = 20
            attack.n_restarts = 1
        self.apgd_targeted.n_target_classes = self.fab.n_target_classes = 2
        self.fab.n_iter, self.square.n_queries = 10, 100


def planned(options: argparse.Namespace, attacks: list[str], eps: float, **fields: Any) -> AttackPlan:
    names, settings, _ = stock.resolve("custom", attacks, "Linf", eps, options.classes)
    sections = {"model": {"name": options.model}, "kap": {}}
    weights = {"weights": None, "weights_sha256": ""}
    model = {"factory": None, "factory_sha256": None, "architecture": sections, **weights}
    values: dict[str, Any] = {
        "name": "bench", "run": "bench", "norm": "Linf", "eps": eps, "version": "custom", "attacks": names,
        "model": model | {"num_classes": options.classes, "folded": True}, "settings": settings, "noise": "off",
        "data": {"path": Path(), "fingerprint": "", "resolution": options.size, "crop": "none", "crop_ratio": 1},
        "seed": 0, "chunk_size": options.batch, "threads": 1, "device": options.device, "keep_adversarial": False,
        "packages": {}, "num_images": options.batch, "images_sha256": "", "notes": (), "compact": True,
        "images": tuple(range(options.batch)), "precision": options.precision,
    }  # fmt: skip
    return AttackPlan.model_validate(values | fields)


def network(options: argparse.Namespace) -> nn.Module:
    torch.manual_seed(0)
    stem = {"stem": "cifar"} if options.size < 64 else {}
    model = MODELS[options.model](num_classes=options.classes, width=options.width, **stem)
    model = fold(model, norms=True).eval().requires_grad_(False)
    return model.to(options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def given(model: nn.Module, options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    images = torch.rand(options.batch, 3, options.size, options.size, generator=random).to(options.device)
    with torch.no_grad():
        return images, model(images).argmax(1)


def passed(model: nn.Module, images: Tensor, gradient: bool) -> None:
    points = images.detach().requires_grad_(gradient)
    with torch.set_grad_enabled(gradient):
        logits = model(points)
        if gradient:
            torch.autograd.grad(logits.sum(), points)


def seconds(work: Callable[[], Any], device: str) -> tuple[float, Any]:
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device != "cpu":
        torch.cuda.synchronize()
    started = clock()
    result = work()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - started, result


def bare_seconds(model: nn.Module, images: Tensor, gradient: bool, options: argparse.Namespace) -> float:
    """Return the time of one pass of the batch."""
    times = options.passes if options.device == "cpu" else 5 * options.passes

    def work() -> None:
        for _ in range(times):
            passed(model, images, gradient)

    return seconds(work, options.device)[0] / times


def rates(options: argparse.Namespace) -> Iterator[str]:
    model = network(options)
    images, labels = given(model, options)
    graphs = options.batch if options.device != "cpu" and options.graphs else 0
    forms: nn.Module = Forms(model, options.precision, graphs) if graphs or options.precision != "fp32" else model
    medians, bare = {}, []
    for attack in options.attacks:
        plan = planned(options, [attack], 1e-6)
        if options.device != "cpu":
            attack_chunk(forms, images, labels, plan, 0)  # captures the graphs
        ratios = []
        for _ in range(options.rounds):
            forward = bare_seconds(model, images, False, options)
            both = bare_seconds(model, images, True, options)
            took, outcome = seconds(functools.partial(attack_chunk, forms, images, labels, plan, 0), options.device)
            forwards, backwards = passes_of(outcome)
            alone = (forwards - backwards) * forward + backwards * both
            ratios.append(alone / options.batch / took)
            bare.append((forward, both))
        medians[attack] = statistics.median(ratios)
        yield (
            f"{attack}: {statistics.median(ratios):.3f} of the bare rate (median of {len(ratios)}, "
            f"{min(ratios):.3f} to {max(ratios):.3f}); {forwards} forward, {backwards} back in {took:.2f} s; "
            f"bare forward {1e3 * forward:.2f} ms, with its way back {1e3 * both:.2f} ms"
        )
    if {"apgd-ce", "fab-t", "square"} <= medians.keys():
        yield f"standard as a whole: {as_standard(medians, *map(statistics.median, zip(*bare, strict=True))):.3f}"


def as_standard(rates: dict[str, float], forward: float, both: float) -> float:
    """Return the rate of AutoAttack standard on a model that no attack breaks, from those of its attacks.

    Args:
        rates: of the bare rate; apgd-t passes as apgd-ce does.
        forward, both: seconds of a bare pass, and with its way back.
    """
    alone = {
        attack: (forwards - backwards) * forward + backwards * both
        for attack, (forwards, backwards) in passes_of_standard().items()
    }
    rates = rates | {"apgd-t": rates["apgd-ce"]}
    return sum(alone.values()) / sum(seconds / rates[attack] for attack, seconds in alone.items())


def passes_of_standard() -> dict[str, tuple[int, int]]:
    """Return the passes of an image, forward and back, of each attack of the library's standard."""
    library = AutoAttack(nn.Identity(), norm="Linf", eps=8 / 255, version="standard", device="cpu")

    def of(attack: Any, targets: int) -> tuple[int, int]:
        forwards, backwards = passes_of_a_run(attack, targets + 1)
        return targets * attack.n_restarts * forwards, targets * attack.n_restarts * backwards

    targeted, fab = library.apgd_targeted, library.fab
    fab.targeted = True  # as the library sets it when it comes to fab-t
    return {
        "apgd-ce": of(library.apgd, 1),
        "apgd-t": of(targeted, targeted.n_target_classes),
        "fab-t": of(fab, fab.n_target_classes),
        "square": (library.square.n_queries + 1, 0),
    }


def passes_of(outcome: ChunkOutcome) -> tuple[int, int]:
    """Return all passes of a chunk: those of the clean images, which are predicted again at the end, too."""
    outside = 2 * len(outcome.clean_prediction)
    return (
        outside + sum(attack.forwards for attack in outcome.attacks),
        sum(attack.backwards for attack in outcome.attacks),
    )


def checks(options: argparse.Namespace) -> Iterator[str]:
    """Compare graphs with eager passes, a row with itself in other batches, and verdicts in every form."""
    model = network(options)
    images, labels = given(model, options)
    graphs = options.batch if options.device != "cpu" and options.graphs else 0
    graphed = Forms(model, "fp32", graphs)
    with torch.no_grad(), tensor_float_32(False):
        eager, whole = model(images), graphed(images)
        alone = torch.cat([graphed(images[:3]), graphed(images[3:5]), graphed(images[5:])])
        shuffled = torch.cat([images[:4], torch.rand_like(images[4:])])
        mates = torch.equal(graphed(shuffled)[:4], whole[:4])
    scale = eager.abs().max()
    yield f"graphs against eager: {((whole - eager).abs().max() / scale).item():.2e} of the largest logit"
    yield f"other sizes of a batch: {((alone - whole).abs().max() / scale).item():.2e}; other mates: equal {mates}"
    yield f"gradients: {gradients_apart(model, graphed, images):.2e} of the largest"
    forms = {"eager": model, "graphs": graphed}
    forms |= {word: Forms(model, word, graphs) for word in ("tf32", "bf16")}
    verdicts, smallest = {}, eps_that_breaks_half(model, images, labels)
    for name, form in forms.items():
        precision = name if name in ("tf32", "bf16") else "fp32"
        plan = planned(options, ["apgd-ce", "apgd-t", "fab-t", "square"], smallest, precision=precision)
        took, outcome = seconds(functools.partial(attack_chunk, form, images, labels, plan, 0), options.device)
        verdicts[name] = torch.stack([attack.broke for attack in outcome.attacks])
        yield (
            f"{name}: {verdicts[name].sum(1).tolist()} of {options.batch} fall, {took:.2f} s; unlike eager "
            f"{int((verdicts[name].any(0) != verdicts['eager'].any(0)).sum())}; passes {passes_of(outcome)}"
        )
    plan = planned(options, ["apgd-ce", "apgd-t", "fab-t", "square"], smallest, device="cpu", precision="fp32")
    outcome = attack_chunk(model.cpu(), images.cpu(), labels.cpu(), plan, 0)
    broke = torch.stack([attack.broke for attack in outcome.attacks]).any(0)
    yield f"CPU: verdicts unlike eager {int((broke != verdicts['eager'].any(0).cpu()).sum())}"


def gradients_apart(model: nn.Module, graphed: nn.Module, images: Tensor) -> float:
    found = []
    for network in (model, graphed):
        points = images[:5].detach().requires_grad_()
        logits, _ = network(points), network(images[:5].detach().requires_grad_())  # the second overtakes the first
        found.append(torch.autograd.grad(logits.log_softmax(1)[:, 0].sum(), points)[0])
    return ((found[0] - found[1]).abs().max() / found[0].abs().max()).item()


def eps_that_breaks_half(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the median of each image's margin over its gradient's L1 norm: a linear model would lose half."""
    points = images.detach().requires_grad_()
    logits = model(points)
    margin = logits.gather(1, labels[:, None])[:, 0] - logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    (gradient,) = torch.autograd.grad(margin.sum(), points)
    return float((margin.detach() / gradient.abs().flatten(1).sum(1)).median())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", choices=sorted(MODELS), default="resnet18")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="fp32")
    parser.add_argument("--no-graphs", dest="graphs", action="store_false")
    parser.add_argument("--attacks", nargs="+", default=["apgd-ce", "fab-t", "square"])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    stock.AutoAttack = Few
    print(f"torch {torch.__version__}; python tools/bench_passes.py {' '.join(sys.argv[1:])}", flush=True)
    with tensor_float_32(False):
        for line in checks(options) if options.check else rates(options):
            print(line, flush=True)


if __name__ == "__main__":
    main()
