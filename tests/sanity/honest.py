"""Honestly trained tiny networks on Fashion-MNIST, brought to 16 x 16 pixels; seconds on one thread."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from kapdist.kap import kapify
from kapdist.kap import noise as kap_noise
from kapdist.models import MODELS

EPS = 16 / 255  # a quarter of the pixels, so twice the 8/255 of the full size
MEAN = STD = (0.29, 0.29, 0.29), (0.35, 0.35, 0.35)


@cache
def fashion(split: str, count: int) -> tuple[Tensor, Tensor]:
    """The first images of a split, (count, 3, 16, 16), and their labels."""
    from kapdist.data.sources import fashion_mnist

    source = fashion_mnist(split)
    pixels, labels = zip(*(source.item(number) for number in range(count)), strict=True)
    images = torch.stack([torch.from_numpy(image.copy()) for image in pixels]).permute(0, 3, 1, 2) / 255
    return functional.avg_pool2d(images, 2).contiguous(), torch.tensor(labels)


def small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def resnet(pool_size: int = 1, noise_std: float = 0.0) -> nn.Module:
    network = MODELS["resnet10"](num_classes=10, stem="cifar", width=0.125, mean=(0.29,) * 3, std=(0.35,) * 3)
    return (
        kapify(network, pool_size=pool_size, layout="line", noise_std=noise_std)
        if pool_size > 1 or noise_std
        else network
    )


class Wrapped(nn.Module):
    """Something around a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


class Tempered(Wrapped):
    """A network with a temperature: the factor on its logits changes no prediction."""

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__(network)
        self.factor = factor

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * self.network(images)


def trained(network: nn.Module, seed: int, epochs: int, count: int = 2000, eps: float = 0.0) -> nn.Module:
    """Train with Adam; with eps on one-step adversarial images from a random start (Wong et al. 2020)."""
    images, labels = fashion("train", count)
    shuffle = torch.Generator().manual_seed(seed)
    steps = epochs * (count // 100)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
    network.train()
    for _ in range(epochs):
        for part in torch.randperm(count, generator=shuffle).split(100):
            batch = adversarial(network, images[part], labels[part], eps, shuffle) if eps else images[part]
            optimizer.zero_grad()
            functional.cross_entropy(network(batch), labels[part]).backward()
            optimizer.step()
            schedule.step()
    return network.eval().requires_grad_(False)


def adversarial(network: nn.Module, images: Tensor, labels: Tensor, eps: float, random: torch.Generator) -> Tensor:
    delta = (eps * (2 * torch.rand(images.shape, generator=random) - 1)).requires_grad_()
    functional.cross_entropy(network(images + delta), labels).backward()
    assert delta.grad is not None
    return (images + (delta.detach() + 1.25 * eps * delta.grad.sign()).clamp(-eps, eps)).clamp(0, 1)


def honest(kind: str, seed: int = 0) -> nn.Module:
    """plain, adversarial, kap, noise (KAP, its noise on), the cnn that defences are planted on, faint or noisy."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "cnn":
            return trained(small_cnn(), seed, epochs=3, count=3000)
        if kind == "faint cnn":
            return Tempered(honest("cnn", seed), 1e-20).eval()
        if kind == "plain":
            return trained(resnet(), seed, epochs=2)
        if kind == "adversarial":
            return trained(resnet(), seed, epochs=3, eps=EPS)
        if kind == "kap":
            return trained(resnet(pool_size=3), seed, epochs=2)
        noisy = {"noise": resnet(3, 0.3), "noisy cnn": kapify(small_cnn(), pool_size=3, noise_std=0.3)}
        network = noisy[kind]
        with kap_noise(network, "fresh", seed=seed):
            return trained(network, seed, epochs=2)
