"""How many passes a robust model takes, of those that the library takes on it.

    python tools/bench_fewer.py [--images 8] [--eps 8] [--smaller 2 4] [--train-steps 250] [--attacks apgd-ce ...]

A ResNet-10 of width 1/4 learns Debian's Fashion-MNIST by FGSM from random starts (Wong et al. 2020, eps 16/255); of
the test images that it gets right and that 20 steps of PGD leave, the first few are attacked, at eps/255 after the
smaller ones. The library's own passes on them are known without running it (kapdist/attack/runs.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import bench_passes
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kapdist.attack.ball import Ball
from kapdist.attack.chunk import attack_chunk
from kapdist.data.sources.fashion import fashion_mnist
from kapdist.kap import fold
from kapdist.models import MODELS

TRAINED_AT = Ball("Linf", 16 / 255)
STANDARD = ["apgd-ce", "apgd-t", "fab-t"]  # and Square, whose 5000 queries are hardly ever the same


def read(split: str) -> tuple[Tensor, Tensor]:
    """Return images (n, 1, 28, 28) uint8 and labels (n,)."""
    source = fashion_mnist(split)
    return torch.from_numpy(source.images.copy()).view(-1, 1, 28, 28), torch.from_numpy(source.labels.copy()).long()


def as_images(pixels: Tensor) -> Tensor:
    return (pixels.float() / 255).expand(-1, 3, -1, -1).contiguous()


def gradient_at(model: nn.Module, points: Tensor, labels: Tensor) -> Tensor:
    points = points.detach().requires_grad_()
    return torch.autograd.grad(cross_entropy(model(points), labels, reduction="sum"), points)[0]


def trained(steps: int) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS["resnet10"](num_classes=10, stem="cifar", width=0.25).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    sgd = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(sgd, 0.2, total_steps=steps)
    pixels, all_labels = read("train")
    for rows in torch.randperm(len(pixels)).split(128)[:steps]:
        images, labels = as_images(pixels[rows]), all_labels[rows]
        points = TRAINED_AT.project(images + TRAINED_AT.eps * (2 * torch.rand_like(images) - 1), images)
        points = TRAINED_AT.ascend(points, images, gradient_at(model, points, labels), 1.25 * TRAINED_AT.eps)
        sgd.zero_grad()
        cross_entropy(model(points), labels).backward()
        sgd.step()
        schedule.step()
    folded = fold(model.eval(), norms=True).eval().requires_grad_(False)
    return folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def robust_images(model: nn.Module, num_images: int, eps: float) -> tuple[Tensor, Tensor, str]:
    pixels, labels = (values[: 20 * num_images + 100] for values in read("test"))
    images, ball = as_images(pixels), Ball("Linf", eps)
    right = model(images).argmax(1) == labels
    points = images
    for _ in range(20):
        points = ball.ascend(points, images, gradient_at(model, points, labels), eps / 4)
    left = right & (model(points).argmax(1) == labels)
    said = f"{right.float().mean():.0%} of {len(labels)} right, {left.float().mean():.0%} after PGD-20"
    return images[left][:num_images], labels[left][:num_images], said


def lines(options: argparse.Namespace) -> Iterator[str]:
    model = trained(options.train_steps)
    images, labels, said = robust_images(model, options.images, options.eps / 255)
    yield f"model: {said} at {options.eps:g}/255; {len(images)} of these attacked"
    smaller = tuple(eps / 255 for eps in options.smaller)
    fields: dict[str, Any] = {"smaller_eps": smaller, "screen": options.screen}
    plan = bench_passes.planned(options, options.attacks, options.eps / 255, **fields)
    outcome = attack_chunk(model, images, labels, plan, 0)
    ours, librarys = [0, 0], [0, 0]
    for attack in outcome.attacks:
        passes = (attack.forwards, attack.backwards), (attack.library_forwards, attack.library_backwards)
        ours = [a + b for a, b in zip(ours, passes[0], strict=True)]
        librarys = [a + b for a, b in zip(librarys, passes[1], strict=True)]
        yield f"{attack.name}: {passes[0]} of the library's {passes[1]}; {int(attack.broke.sum())} fell"
    yield (
        f"all: {ours[0] / librarys[0]:.3f} of the forward passes, {ours[1] / max(1, librarys[1]):.3f} of the "
        f"backward, {sum(ours) / sum(librarys):.3f} of both"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--eps", type=float, default=8, help="over 255")
    parser.add_argument("--smaller", type=float, nargs="*", default=[])
    parser.add_argument("--screen", type=int, default=10)
    parser.add_argument("--train-steps", type=int, default=250)
    parser.add_argument("--attacks", nargs="+", default=STANDARD)
    options = parser.parse_args()
    options.model, options.classes, options.size, options.batch = "resnet10", 10, 28, options.images
    options.device, options.precision = "cpu", "fp32"
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}; python tools/bench_fewer.py {' '.join(sys.argv[1:])}", flush=True)
    for line in lines(options):
        print(line, flush=True)


if __name__ == "__main__":
    main()
