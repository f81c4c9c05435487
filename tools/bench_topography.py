"""What `kapdist topography` takes of a ResNet-50 with KAP and 512 images: seconds, and seconds of CPU.

    python tools/bench_topography.py [--images 512] [--pixels 224] [--threads 2] [--network resnet50]
                                     [--permutations 1999] [--draws 3] [--noisy-images 16]

The whole measurement as the command makes it (the last weights, those of the first step, every layer's null, maps,
noise) on images and weights of chance, whose values no part of the work depends on. On a machine that others use
the seconds say as much of them; those of the CPU, which all threads together took, say less.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from bench_step import machine
from torch import nn

from kapdist import kap
from kapdist.models import MODELS
from kapdist.topography import measure as parts
from kapdist.topography.images import BATCH, Images
from kapdist.topography.measure import Settings
from kapdist.topography.subject import frozen
from kapdist.topography.variance import ACTIVATION_STDS, INPUT_STDS, Kind, Noise

GOAL_SECONDS = 180
CLASSES = 1000


@dataclass(frozen=True)
class Part:
    """One part of the work: its name, seconds by the clock and by the CPU."""

    name: str
    seconds: float
    cpu_seconds: float


class Watch:
    """Takes the time of one part after the other."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.begin = time.perf_counter(), time.process_time()

    def lap(self, name: str) -> None:
        now = time.perf_counter(), time.process_time()
        self.parts.append(Part(name, now[0] - self.begin[0], now[1] - self.begin[1]))
        self.begin = now
        print(row(self.parts[-1]), flush=True)

    @property
    def total(self) -> Part:
        return Part("total", sum(part.seconds for part in self.parts), sum(part.cpu_seconds for part in self.parts))


def row(part: Part) -> str:
    return f"{part.name:<32}{part.seconds:>8.1f} s {part.cpu_seconds:>9.1f} s of CPU"


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return frozen(kap.kapify(MODELS[name](num_classes=CLASSES), layout="sheet"), torch.device("cpu"))


def images_of(count: int, pixels: int) -> Images:
    labels = (torch.arange(count) % CLASSES).split(BATCH)
    batches = [(torch.rand(len(part), 3, pixels, pixels), part) for part in labels]
    return Images(batches, Path("random"), "", "", tuple(map(str, range(CLASSES))))


def settings_of(options: argparse.Namespace) -> Settings:
    stds: list[tuple[Kind, float]] = [("input", std) for std in INPUT_STDS]
    stds += [("activation", std) for std in ACTIVATION_STDS]
    noises = tuple(Noise(kind, std, options.draws, 0) for kind, std in stds) if options.draws else ()
    return Settings("sheet", options.permutations, 0, noises, options.noisy_images, options.threads)


def bench(options: argparse.Namespace) -> Watch:
    images, settings = images_of(options.images, options.pixels), settings_of(options)
    model = network(options.network)
    watch = Watch()
    shown = parts.answered(model, images, images.count, settings, ignored)
    watch.lap(f"responses to {images.count} images")
    parts.side_by_side(lambda layer: parts.layer_topography(layer, shown.moments, settings), shown, settings)
    watch.lap(f"{len(shown.layers)} layers and their nulls")
    parts.pictures_of(shown, images, settings)
    watch.lap("maps")
    first = parts.Moment(0, "before the first step", lambda device: model)
    parts.stage_of(first, images, settings, torch.device("cpu"), ignored)
    watch.lap("the first step's weights")
    parts.noise_levels(shown, images, settings, ignored)
    watch.lap(f"noise, {options.draws} draws of {len(settings.noises)}")
    return watch


def ignored(images: int) -> None:
    pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--network", choices=MODELS, default="resnet50")
    parser.add_argument("--permutations", type=int, default=1999)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--noisy-images", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"Topography of a {options.network} with {options.images} images; goal: {GOAL_SECONDS} s on two cores")
    print(f"machine:  {machine()}")
    print(f"command:  python {' '.join(sys.argv)}")
    print(f"runs:     1; {options.pixels} px, KAP 3 on the sheet", flush=True)
    print(row(bench(options).total))


if __name__ == "__main__":
    main()
