"""What an adversarial image may be: finite, in [0, 1] and within eps of the clean one, judged in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kapdist.records.attack_plan import Norm

RELATIVE_TOLERANCE = 1e-6
FLOAT32_SPACING = 2.0**-24  # of floats just below 1
LARGEST_ROUNDING = 1e-3  # of eps: what a projection in float32 may leave beyond it; more is no rounding


def perturbation_norm(adversarial: Tensor, images: Tensor, norm: Norm) -> Tensor:
    """Return the norm of each perturbation, (batch,), float64."""
    delta = (adversarial.double() - images.double()).flatten(1)
    order = {"Linf": math.inf, "L2": 2, "L1": 1}[norm]
    return torch.linalg.vector_norm(delta, order, dim=1)


def largest_norm(norm: Norm, eps: float, num_values: int) -> float:
    """Return the norm up to which a float32 image counts as within eps.

    A relative 1e-6 for the float32 arithmetic of the attacks, and one spacing of the floats below 1 (times the
    root of their number for a sum): x + eps, rounded to float32, lies half of it from where it should, which at
    Linf 4/255 is a relative 1.8e-6 in every APGD image.
    """
    values = 1.0 if norm == "Linf" else math.sqrt(num_values)
    return eps * (1 + RELATIVE_TOLERANCE) + values * FLOAT32_SPACING


def inside(adversarial: Tensor, images: Tensor, norm: Norm, eps: float) -> Tensor:
    """Tell which images, (batch,) bool, are finite, in [0, 1] and within eps of the clean ones."""
    flat = adversarial.flatten(1)
    in_box = (flat >= 0).all(1) & (flat <= 1).all(1)  # false for NaN and infinity too
    largest = largest_norm(norm, eps, images.shape[1:].numel())
    return in_box & (perturbation_norm(adversarial, images, norm) <= largest)


def drop_rounding(images: Tensor) -> Tensor:
    """Bring values that are one float32 rounding outside of [0, 1] back, as L1 attacks leave them; no others."""
    clamped = images.clamp(0, 1)
    return torch.where((images - clamped).abs() <= 2 * FLOAT32_SPACING, clamped, images)


def pull_back(adversarial: Tensor, images: Tensor, norm: Norm, eps: float) -> Tensor:
    """Shrink perturbations that a float32 projection left just beyond eps, as Square's in L1 does now and then.

    Their verdict is that of the image so found. What lies further out stays there, to be refused.
    """
    norms = perturbation_norm(adversarial, images, norm)
    beyond = (norms > largest_norm(norm, eps, images.shape[1:].numel())) & (norms <= eps * (1 + LARGEST_ROUNDING))
    pulled, clean = adversarial.clone(), images[beyond].double()
    size = (eps * (1 - RELATIVE_TOLERANCE) / norms[beyond]).view(-1, 1, 1, 1)
    pulled[beyond] = (clean + size * (adversarial[beyond].double() - clean)).to(pulled.dtype)
    return pulled


def check_adversarial(name: str, norm: Norm, eps: float, images: Tensor, adversarial: Tensor) -> None:
    """Raise RuntimeError unless every image is finite, in [0, 1] and within eps of the clean one."""
    if not len(images):
        return
    if not adversarial.isfinite().all():
        raise RuntimeError(f"{name} returned an adversarial image that is not finite")
    low, high = adversarial.min().item(), adversarial.max().item()
    if low < 0 or high > 1:
        raise RuntimeError(f"{name} returned an adversarial image outside [0, 1]: from {low} to {high}")
    largest = perturbation_norm(adversarial, images, norm).max().item()
    if largest > largest_norm(norm, eps, images[0].numel()):
        raise RuntimeError(f"{name} returned an image at {norm} distance {largest}, beyond eps {eps}")


def vacuous_eps(norm: Norm, num_values: int) -> float:
    """Return the eps from which on every image can be turned into the same grey one.

    Middle grey is at most half of the range away in every value; then no classifier is right on two classes.
    """
    return {"Linf": 0.5, "L2": 0.5 * math.sqrt(num_values), "L1": 0.5 * num_values}[norm]
