"""Defences that hide their gradient instead of being robust, on top of an honestly trained network.

Each is a few lines after the papers that broke its kind; PLANTED says which causes a report may name for it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from sanity.hashed import HashedNoise, HashedPermutation, HashedResize, NearestInTable, Table
from sanity.honest import Tempered, Wrapped, fashion
from torch import Tensor, nn
from torch.nn import functional


class HugeTemperature(Tempered):
    """Logits so large that the softmax saturates (Carlini & Wagner 2016 on distillation)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, 2000)


class Temperature1e6(Tempered):
    """Logits so large that in float32 every probability but one is zero."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, 1e6)


class Temperature1e30(Tempered):
    """Logits so large that in float32 their squares, and those of a gradient, are infinite."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, 1e30)


class RoundedInput(Wrapped):
    """Sixteen grey levels; rounding has a gradient of zero."""

    def forward(self, images: Tensor) -> Tensor:
        return self.network((15 * images).round() / 15)


class Thermometer(Wrapped):
    """Each grey value as the number of thresholds below it (Buckman et al. 2018)."""

    def forward(self, images: Tensor) -> Tensor:
        thresholds = torch.arange(0.05, 1, 0.1).to(images)
        return self.network((images.unsqueeze(-1) > thresholds).to(images.dtype).mean(-1))


class Jpeg(Wrapped):
    """Blocks of 8 x 8 whose cosine coefficients are rounded, as JPEG rounds them (Guo et al. 2018)."""

    def forward(self, images: Tensor) -> Tensor:
        steps = torch.arange(8, dtype=images.dtype)
        basis = torch.cos(math.pi * (2 * steps[None] + 1) * steps[:, None] / 16) / 2
        basis[0] /= math.sqrt(2)
        size = images.shape[-1]
        blocks = images.unfold(2, 8, 8).unfold(3, 8, 8)
        coefficients = self.rounded(basis @ blocks @ basis.T / 0.1) * 0.1
        rebuilt = (basis.T @ coefficients @ basis).permute(0, 1, 2, 4, 3, 5)
        return self.network(rebuilt.reshape(len(images), 3, size, size).clamp(0, 1))

    def rounded(self, coefficients: Tensor) -> Tensor:
        return coefficients.round()


class JpegWithGradient(Jpeg):
    """The same rounding, which the backward pass takes for the identity (straight-through: Bengio et al. 2013)."""

    def rounded(self, coefficients: Tensor) -> Tensor:
        return coefficients + (coefficients.round() - coefficients).detach()


class JpegFile(Wrapped):
    """The images are written to a JPEG file and read again: bytes, which have no gradient."""

    def forward(self, images: Tensor) -> Tensor:
        pixels = (255 * images.detach().permute(0, 2, 3, 1)).round().byte().numpy()
        file = io.BytesIO()  # one below the other: a block of 8 x 8 knows nothing of the next, nor an image
        Image.fromarray(pixels.reshape(-1, *pixels.shape[2:])).save(file, "jpeg", quality=75, subsampling=0)
        read = torch.from_numpy(np.array(Image.open(file)).reshape(pixels.shape))
        return self.network(read.permute(0, 3, 1, 2).to(images) / 255)


class RandomShift(Wrapped):
    """A random resize and place on a black canvas at every call (Xie et al. 2018)."""

    def forward(self, images: Tensor) -> Tensor:
        size = images.shape[-1]
        side = int(torch.randint(size - 3, size + 1, ()))
        top, left = torch.randint(0, size - side + 1, (2,)).tolist()
        small = functional.interpolate(images, side, mode="bilinear")
        return self.network(functional.pad(small, (left, size - side - left, top, size - side - top)))


class NoisyLogits(Wrapped):
    """Noise on the logits, which hides small changes from attacks that ask for scores."""

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(images)
        return logits + 0.5 * torch.randn_like(logits)


class Squashed(Wrapped):
    """Saturating units one after the other, whose derivatives multiply to nothing."""

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(images)
        for _ in range(6):
            logits = torch.tanh(4 * logits)
        return 5 * logits


class FlatSlope(Wrapped):
    """Steep confidence far from the boundary: the margin moves by less than float32 can say."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.sigmoid(30 * functional.softmax(self.network(images), 1) - 15) * 10


class Negated(torch.autograd.Function):
    """The identity, with a gradient of the wrong sign."""

    @staticmethod
    def forward(context: object, images: Tensor) -> Tensor:
        return images.clone()

    @staticmethod
    def backward(context: object, gradient: Tensor) -> Tensor:
        return -gradient


class WrongSign(Wrapped):
    """Backward leads downhill."""

    def forward(self, images: Tensor) -> Tensor:
        return self.network(Negated.apply(images))


class DetachedBranch(Wrapped):
    """The network's answer carries no gradient; a smooth branch that decides nothing carries one."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            answer = self.network(images)
        places = torch.linspace(0, 1, answer.shape[1]).to(images)
        return answer + 1e-3 * (images.mean((1, 2, 3)).unsqueeze(1) * places)


class StraightThrough(Wrapped):
    """The forward pass is the network, the backward pass that of its mirror image."""

    def forward(self, images: Tensor) -> Tensor:
        answer, decoy = self.network(images), self.network(images.flip(3))
        return decoy + (answer - decoy).detach()


class Argmax(Wrapped):
    """Only the class is told."""

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(images)
        return 10 * functional.one_hot(logits.argmax(1), logits.shape[1]).to(images.dtype)


class Ripples(Wrapped):
    """A fine ripple on every pixel: hardly another image, quite another derivative (shattered gradients)."""

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images + 0.004 * torch.sin(4000 * images))


class WinnersTakeAll(Wrapped):
    """Only the strongest of a layer's values live (Xiao et al. 2020), here two fifths of the image's edges."""

    def forward(self, images: Tensor) -> Tensor:
        blurred = functional.avg_pool2d(images, 3, 1, 1)
        edges = (images - blurred).flatten(1)
        limit = edges.abs().kthvalue(int(0.6 * edges.shape[1]), dim=1, keepdim=True).values
        kept = torch.where(edges.abs() >= limit, edges, 0).view_as(images)
        return self.network(blurred + kept)


class Counter(Wrapped):
    """The class scores move a little with the number of calls so far."""

    calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        logits = self.network(images)
        return logits + 0.3 * torch.sin(self.calls * torch.arange(1.0, 1 + logits.shape[1])).to(images)


class LateTurn(Wrapped):
    """An honest network for the first hundred calls, which is when people look; a constant afterwards."""

    calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        logits = self.network(images)
        return logits if self.calls < 100 else logits.detach().round()


class BatchStandardised(Wrapped):
    """Each image is shifted by its batch's mean brightness."""

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - images.mean() + 0.29).clamp(0, 1))


class Detector(Wrapped):
    """An image with too much fine structure is taken for an attack: smoothed, without a gradient."""

    def forward(self, images: Tensor) -> Tensor:
        smooth = functional.avg_pool2d(images, 3, 1, 1)
        fine = (images - smooth).abs().mean((1, 2, 3))
        attacked = (fine > 0.75 * images.std((1, 2, 3)) * 0.3).view(-1, 1, 1, 1)
        return self.network(torch.where(attacked, smooth.detach(), images))


class Undefined(Wrapped):
    """A square root at zero: forward is finite, backward is not."""

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images) + (0 * images).abs().sum((1, 2, 3), keepdim=False).sqrt().unsqueeze(1)


class TrainingMode(Wrapped):
    """Dropout that stays on in evaluation, whatever eval() says."""

    def train(self, mode: bool = True) -> TrainingMode:
        return super().train(True)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(functional.dropout(images, 0.1, self.training))


class OnlyAtRest(Wrapped):
    """A gradient for images that nobody has touched; none for values that no photograph of 10 bits has."""

    def forward(self, images: Tensor) -> Tensor:
        off_grid = (images * 1020 - (images * 1020).round()).abs().amax((1, 2, 3), keepdim=True) > 0.01
        return self.network(torch.where(off_grid, images.detach(), images))


class Rounding(Wrapped):
    """Confidence so close to 1 that float32 has no slope left."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.tanh(4 * self.network(images))


class Sign(nn.Module):
    """One bit for each value; its derivative is zero wherever there is one."""

    def forward(self, values: Tensor) -> Tensor:
        return values.sign()


class SignActivations(Wrapped):
    """The last layer but one says of each value only whether it is positive, as binary networks do."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        last = max(place for place, layer in enumerate(network) if isinstance(layer, nn.ReLU))
        network[last] = Sign()

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


class RoundedLogits(Wrapped):
    """Scores of three decimals, as a service would give them."""

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).round(decimals=3)


class Storm(Wrapped):
    """A new random linear function on top of each logit: small in value, large in slope."""

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(images)
        slopes = torch.randn(logits.shape[1], *images.shape[1:]).to(images)
        return logits + ((images - 0.29).unsqueeze(1) * slopes).sum((2, 3, 4))


class MeanSparse(nn.Module):
    """Values near one of their channel's means, (channels, means), become that mean: no gradient there."""

    def __init__(self, means: Tensor, reach: Tensor) -> None:
        super().__init__()
        self.register_buffer("means", means)
        self.register_buffer("reach", reach)

    def forward(self, values: Tensor) -> Tensor:
        means, reach = self.means.to(values), self.reach.to(values)
        away = (values.unsqueeze(-1) - means.view(1, -1, 1, 1, means.shape[1])).abs()
        nearest = means.gather(1, away.argmin(-1).movedim(1, 0).flatten(1)).unflatten(1, values[:, 0].shape)
        return torch.where(away.amin(-1) > reach.view(-1, 1, 1), values, nearest.movedim(0, 1))


class MeanSparsified(Wrapped):
    """Activations within two deviations of a mean become that mean (MeanSparse: Amini et al. 2024).

    Of two means per channel, of its values below and above their mean; with one, as in the paper, what still
    moves is gradient enough for PGD to break this network, and nothing is hidden.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        last = max(place for place, layer in enumerate(network) if isinstance(layer, nn.ReLU))
        with torch.no_grad():
            values = network[:last](fashion("train", 200)[0]).movedim(1, 0).flatten(1)
        middle = values.mean(1, keepdim=True)
        sides = (values * part for part in (values < middle, values >= middle))
        means = [side.sum(1) / side.count_nonzero(1) for side in sides]
        network.insert(last, MeanSparse(torch.stack(means, 1), 2 * values.std(1)))

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


class MultiResolution(Wrapped):
    """The same image at several resolutions, each shifted and noisy by chance, and the median of their logits.

    After the self-ensemble of Fort & Lakshminarayanan 2024, https://arxiv.org/abs/2408.05446.
    """

    sides = (16, 14, 12, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.stack([self.network(self.seen(images, side)) for side in self.sides])
        logits = logits - logits.amax(2, keepdim=True)
        return logits.median(0).values

    def seen(self, images: Tensor, side: int) -> Tensor:
        shift = torch.randint(-1, 2, (2,)).tolist()
        noisy = images + 0.05 * torch.randn_like(images)
        small = functional.interpolate(noisy.roll(shift, (2, 3)), side, mode="bilinear", antialias=True)
        return functional.interpolate(small, images.shape[-1], mode="bilinear")


class RandomMember(Wrapped):
    """At every call one of two networks whose gradients point away from each other (Dbouk & Shanbhag 2022).

    To one the finest checkerboard in the image speaks for a class, to the other against it; images have hardly any.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
        coarse = torch.randn(10, 3, 4, 4, generator=torch.Generator().manual_seed(0)).sign()
        self.register_buffer("slopes", (1 - 2 * ((rows + columns) % 2)) * functional.interpolate(coarse, 16))

    def forward(self, images: Tensor) -> Tensor:
        side = 2 * int(torch.randint(0, 2, ())) - 1
        return self.network(images) + 0.3 * side * torch.einsum("nchw,kchw->nk", images, self.slopes.to(images))


PLANTED: dict[Callable[[nn.Module], nn.Module], set[str]] = {
    HugeTemperature: {"saturated softmax"},
    RoundedInput: {"quantised input"},
    Thermometer: {"quantised input"},
    Jpeg: {"quantised input", "non-differentiable step"},
    RandomShift: {"randomness"},
    NoisyLogits: {"randomness"},
    Squashed: {"vanishing gradient"},
    FlatSlope: {"vanishing gradient"},
    WrongSign: {"false gradient"},
    DetachedBranch: {"false gradient"},
    StraightThrough: {"false gradient"},
    Argmax: {"discrete output"},
    Ripples: {"shattered gradient"},
    WinnersTakeAll: {"shattered gradient", "false gradient"},
    Counter: {"state"},
    LateTurn: {"state"},
    BatchStandardised: {"batch"},
    Detector: {"false gradient", "non-differentiable step"},
    Undefined: {"NaN gradient"},
    TrainingMode: {"training mode"},
    OnlyAtRest: {"masked gradient", "non-differentiable step"},
    Rounding: {"vanishing gradient"},
    Temperature1e6: {"saturated softmax"},
    Temperature1e30: {"saturated softmax"},
    JpegFile: {"quantised input", "non-differentiable step"},
    JpegWithGradient: {"quantised input", "false gradient"},
    SignActivations: {"non-differentiable step"},
    RoundedLogits: {"non-differentiable step"},
    HashedPermutation: {"shattered gradient", "false gradient"},
    HashedNoise: {"shattered gradient", "false gradient"},
    HashedResize: {"shattered gradient", "false gradient"},
    Table: {"discrete output"},
    NearestInTable: {"non-differentiable step"},
    MeanSparsified: {"non-differentiable step", "vanishing gradient", "masked gradient"},
    MultiResolution: {"randomness"},
    RandomMember: {"randomness"},
}

SAME = 1  # images: what defences that change no prediction may leave more than the bare network does
LEFT: dict[Callable[[nn.Module], nn.Module], tuple[int, int]] = {
    HugeTemperature: (SAME, 0),
    Temperature1e6: (SAME, 0),
    Temperature1e30: (SAME, 0),
    RoundedInput: (SAME, 12),
    Thermometer: (SAME, 12),
    Jpeg: (SAME, 12),
    JpegFile: (5, 8),
    Squashed: (4, 1),
    Rounding: (3, 2),
    FlatSlope: (SAME, 0),
    WrongSign: (SAME, 12),
    DetachedBranch: (SAME, 12),
    StraightThrough: (SAME, 8),
    Argmax: (SAME, 12),
    Table: (SAME, 12),
    Ripples: (SAME, 8),
    Undefined: (SAME, 12),
    OnlyAtRest: (SAME, 12),
    SignActivations: (SAME, 8),
    RoundedLogits: (SAME, 12),
    MeanSparsified: (SAME, 8),
    MultiResolution: (3, 1),
}
"""Of 24 images: how many more than of the bare network are left at most, how many the remedies break at least."""
