"""The images that an attack may choose from: within eps of the clean one, and in [0, 1]."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kapdist.records.attack_plan import Norm

ORDER: dict[Norm, float] = {"Linf": math.inf, "L2": 2, "L1": 1}
DUAL: dict[Norm, Norm] = {"Linf": "L1", "L2": "L2", "L1": "Linf"}
TINY = torch.finfo(torch.float32).tiny
HUGE = 1e15
RELATIVE_TOLERANCE = 1e-6
FLOAT32_SPACING = 2.0**-24  # of floats just below 1
LARGEST_ROUNDING = 1e-3  # of eps: what a projection in float32 may leave beyond it; more is no rounding
ROUNDING_OF_A_SUM = 2.0**-22  # of each value: so far beyond an L1 projection may end, which adds all of them up


@dataclass(frozen=True)
class Ball:
    """Images within eps of others; all are (batch, channels, height, width), and a method's first are its points.

    A value that input noise has taken out of [0, 1] may stay where it is, and go no further out.
    """

    norm: Norm
    eps: float

    def resized(self, eps: float) -> Ball:
        return Ball(self.norm, eps)

    def project(self, points: Tensor, images: Tensor) -> Tensor:
        """Return the nearest points of the ball, then cut to [0, 1], which takes none of them out of it."""
        low, high = images.clamp(max=0), images.clamp(min=1)
        if self.norm == "Linf":
            return points.clamp(low.maximum(images - self.eps), high.minimum(images + self.eps))
        return (images + nearest(points - images, self.norm, self.eps)).clamp(low, high)

    def ascend(self, points: Tensor, images: Tensor, gradient: Tensor, step_size: float) -> Tensor:
        """Return the points one step further up their gradient."""
        return self.project(points + step_size * self.steepest(gradient), images)

    def steepest(self, gradient: Tensor) -> Tensor:
        """Return the step of norm 1 that climbs fastest; a gradient that is not finite, as of fp16, is zero."""
        gradient = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        if self.norm == "Linf":
            return gradient.sign()
        largest = length(gradient, "Linf")
        if self.norm == "L1":  # along the values of the largest slope alone
            gradient = gradient.where(gradient.abs() == largest, 0)
        # Squares of the largest and the smallest numbers are none.
        gradient = gradient / largest.clamp_min(TINY).where((largest > HUGE) | (largest < 1 / HUGE), 1)
        return gradient / length(gradient, self.norm).clamp_min(TINY)

    def reach(self, gradient: Tensor) -> Tensor:
        """Return how far a linear function of this gradient rises within the ball, (batch,): eps x dual norm."""
        return self.eps * length(gradient, DUAL[self.norm]).flatten()

    def random_direction(self, shape: torch.Size, random: torch.Generator) -> Tensor:
        """Return random perturbations of norm 1: corners for Linf, else uniform on the sphere."""
        vectors = self.random_vectors(shape, random)
        return torch.where(vectors < 0, -1.0, 1.0) if self.norm == "Linf" else vectors / length(vectors, self.norm)

    def random_point(self, shape: torch.Size, random: torch.Generator) -> Tensor:
        """Return random perturbations of norm at most 1, uniform in the ball."""
        if self.norm == "Linf":
            return torch.empty(shape, device=random.device).uniform_(-1, 1, generator=random)
        vectors = self.random_vectors(shape, random)
        chance = torch.rand((*shape[:-3], 1, 1, 1), generator=random, device=random.device)
        radius = chance ** (1 / shape[-3:].numel())
        return vectors * (radius / length(vectors, self.norm).clamp_min(TINY))

    def random_vectors(self, shape: torch.Size, random: torch.Generator) -> Tensor:
        """Return vectors of random size whose directions are uniform: normal, or for L1 Laplace."""
        normal = torch.randn(shape, generator=random, device=random.device)
        if self.norm == "L1":
            return normal.sign() * torch.empty_like(normal).exponential_(generator=random)
        return normal

    def distance(self, points: Tensor, images: Tensor) -> Tensor:
        """Return the norm of each perturbation, (batch,), float64."""
        return length(points.double() - images.double(), self.norm).flatten()

    def largest_distance(self, num_values: int) -> float:
        """Return the distance up to which a float32 image counts as within eps.

        A relative 1e-6 for the float32 arithmetic of the attacks, and one spacing of the floats below 1 (times the
        root of their number for a sum): x + eps, rounded to float32, lies half of it from where it should, which at
        Linf 4/255 is a relative 1.8e-6 in every APGD image.
        """
        values = 1.0 if self.norm == "Linf" else math.sqrt(num_values)
        return self.eps * (1 + RELATIVE_TOLERANCE) + values * FLOAT32_SPACING

    def inside(self, points: Tensor, images: Tensor) -> Tensor:
        """Tell which points, (batch,) bool, are finite, in [0, 1] and within eps of the images."""
        flat = points.flatten(1)
        in_box = (flat >= 0).all(1) & (flat <= 1).all(1)  # false for NaN and infinity too
        return in_box & (self.distance(points, images) <= self.largest_distance(images.shape[1:].numel()))

    def pull_back(self, points: Tensor, images: Tensor) -> Tensor:
        """Shrink perturbations that a float32 projection left just beyond eps, as the library's in L1 do.

        Its sums over all values of an image leave the more beyond the larger the image, whatever eps: 0.015 at 224
        pixels, a thousandth of 12 and three hundredths of 0.5. The verdict is that of the image so found. What lies
        further out stays there, to be refused.
        """
        norms = self.distance(points, images)
        largest = self.largest_distance(images.shape[1:].numel())
        rounding = ROUNDING_OF_A_SUM * images.shape[1:].numel() if self.norm == "L1" else 0.0
        beyond = (norms > largest) & (norms <= self.eps * (1 + LARGEST_ROUNDING) + rounding)
        size = (self.eps * (1 - RELATIVE_TOLERANCE) / norms[beyond]).view(-1, 1, 1, 1)
        pulled = points.clone()
        pulled[beyond] = shrunk(points[beyond], images[beyond], size)
        return pulled

    def check(self, name: str, points: Tensor, images: Tensor) -> None:
        """Raise RuntimeError unless every point is finite, in [0, 1] and within eps of its image."""
        if not len(images):
            return
        if not points.isfinite().all():
            raise RuntimeError(f"{name} returned an adversarial image that is not finite")
        low, high = points.min().item(), points.max().item()
        if low < 0 or high > 1:
            raise RuntimeError(f"{name} returned an adversarial image outside [0, 1]: from {low} to {high}")
        largest = self.distance(points, images).max().item()
        if largest > self.largest_distance(images[0].numel()):
            raise RuntimeError(f"{name} returned an image at {self.norm} distance {largest}, beyond eps {self.eps}")


def shrunk(points: Tensor, images: Tensor, size: Tensor) -> Tensor:
    """Return points nearer to the images by a factor each, rounded towards them: many small steps add up."""
    clean, points64 = images.double(), points.double()
    exact = clean + size * (points64 - clean)
    rounded = exact.to(points.dtype)
    too_far = (rounded.double() - clean).abs() > (exact - clean).abs()
    return torch.where(too_far, torch.nextafter(rounded, images), rounded)


def nearest(delta: Tensor, norm: Norm, eps: float | Tensor) -> Tensor:
    """Return the nearest perturbations of norm at most eps, one for all or (batch, 1, 1, 1)."""
    if norm == "Linf":
        return delta.clamp(-eps, eps)  # type: ignore[arg-type]  # torch takes floats and tensors alike
    if norm == "L1":
        return delta.sign() * (delta.abs() - excess_of_each(delta, eps)).clamp(min=0)
    return delta * (eps / length(delta, norm).clamp_min(TINY)).clamp(max=1)


def excess_of_each(delta: Tensor, eps: float | Tensor) -> Tensor:
    """Return what to take off every value's size for L1 norms of at most eps, (batch, 1, 1, 1).

    Duchi et al. 2008, https://dl.acm.org/doi/10.1145/1390156.1390191, figure 1.
    """
    sizes = delta.abs().flatten(1).sort(descending=True).values
    counts = torch.arange(1, sizes.shape[1] + 1, device=sizes.device)
    limits = eps.flatten(1) if isinstance(eps, Tensor) else eps
    return ((sizes.cumsum(1) - limits) / counts).amax(1).clamp(min=0).view(-1, 1, 1, 1)


def length(vectors: Tensor, norm: Norm) -> Tensor:
    """Return the norm of each image's values, (..., 1, 1, 1)."""
    return torch.linalg.vector_norm(vectors, ORDER[norm], dim=(-3, -2, -1), keepdim=True)


def black_to_white(norm: Norm, num_values: int) -> float:
    """Return the largest distance between two images: the norm of a vector of ones."""
    return num_values ** (1 / ORDER[norm])


def vacuous_eps(norm: Norm, num_values: int) -> float:
    """Return the eps from which on every image can be turned into the same grey one.

    Middle grey is at most half of the range away in every value; then no classifier is right on two classes.
    """
    return 0.5 * black_to_white(norm, num_values)


def drop_rounding(images: Tensor) -> Tensor:
    """Bring values that are one float32 rounding outside of [0, 1] back, as L1 attacks leave them; no others."""
    clamped = images.clamp(0, 1)
    return torch.where((images - clamped).abs() <= 2 * FLOAT32_SPACING, clamped, images)
