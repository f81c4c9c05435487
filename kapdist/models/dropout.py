"""Dropout of single values or of whole channels, in training alone or in every pass."""

import math
from statistics import NormalDist

import torch
from torch import Tensor, nn

from kapdist.kap.kapify import replace_modules
from kapdist.kap.noise import NoiseSource, NoisyLayer, draw_noise

KINDS = ("1d", "2d")
DRAWS = ("training", "always")


class NoisyDropout(NoisyLayer):
    """Dropout as a noise of its own: drawn in training and in evaluation alike, unless the model's noise is off.

    Each value, or with kind 2d each channel of each image, is zero with probability p; the others grow by
    1 / (1 - p). Modes, streams and saved state are those of `kapdist.kap.noise`: "fixed" is one thinned network
    for all calls and images, "off" the identity, which is dropout in evaluation as it is used.

    A value falls where a standard normal draw is above the normal quantile of 1 - p: the one kind of draw that
    noise has. In float32 whatever x is: the coarse normal numbers of half precision would fall too often or too
    seldom, and all precisions drop the same.

    Shapes: (batch, channels, ...), kept.
    Raises: ValueError for a p outside of [0, 1) and an unknown kind.
    Source: Srivastava et al. 2014 (JMLR 15); drawn at test time, Gal & Ghahramani 2016, arXiv 1506.02142; whole
    channels, Tompson et al. 2015, arXiv 1411.4280.
    """

    def __init__(self, p: float, kind: str = "1d") -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"p must be a probability below 1, found {p!r}")
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, found {kind!r}")
        self.p, self.kind = p, kind
        self.limit = NormalDist().inv_cdf(1 - p) if p > 0 else math.inf
        self.noise_source = NoiseSource()
        self.noise_layer = 0

    @property
    def has_noise(self) -> bool:
        return self.p > 0

    def silence(self) -> None:
        self.p = 0.0

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_noisy():
            return x
        dropped = self._draws(x) > self.limit
        return (x / (1 - self.p)).masked_fill(dropped, 0)

    def _draws(self, x: Tensor) -> Tensor:
        """Standard normal numbers that broadcast over x: one for each value, or for each channel of an image."""
        shape = x.shape[1:] if self.kind == "1d" else (x.shape[1], *[1] * (x.dim() - 2))
        if self.kind == "1d" and x.dim() == 4:
            like = torch.empty_like(x, dtype=torch.float32)
        else:
            like = x.new_empty((len(x), math.prod(shape), 1, 1), dtype=torch.float32)
        drawn = draw_noise(self.noise_source, like, self.noise_layer)
        return drawn if x.dim() == 4 else drawn.reshape(len(drawn), *shape)

    def extra_repr(self) -> str:
        return f"p={self.p}, kind={self.kind}"


def with_dropout(model: nn.Module, kind: str, draws: str) -> nn.Module:
    """Puts dropout of this kind in the place of the model's own layers, in place; returns the model.

    Whatever its constructor calls them, its nn.Dropout and nn.Dropout2d are replaced, with their p. Draws of
    "training" stay torch's layers, which draw from its global generator.

    Raises: ValueError for an unknown kind or draws, and for draws of "always" where no layer drops anything.
    """
    if kind not in KINDS or draws not in DRAWS:
        raise ValueError(f"kind of {', '.join(KINDS)} and draws of {', '.join(DRAWS)}, found {kind!r}, {draws!r}")
    layers = [module for module in model.modules() if isinstance(module, nn.Dropout | nn.Dropout2d) and module.p]
    if draws == "always" and not layers:
        raise ValueError("draws always, and no layer of the model drops anything")
    plain = nn.Dropout if kind == "1d" else nn.Dropout2d
    new: dict[nn.Module, nn.Module] = {
        layer: (NoisyDropout(layer.p, kind) if draws == "always" else plain(layer.p)).train(layer.training)
        for layer in layers
    }
    return replace_modules(model, new)
