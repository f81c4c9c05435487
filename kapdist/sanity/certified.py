"""Do the certificates of this model hold? An L2 attack on the smoothed model, inside of certified radii.

An attack cannot show that a certificate holds. But one that breaks it shows a defect: of the noise, the
counts or the bound.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

import kapdist.attack.images as images_of
from kapdist.attack.averaged import log_mean
from kapdist.attack.model import load_model
from kapdist.certify.draws import NoisyCopies
from kapdist.errors import InputError
from kapdist.kap import noise
from kapdist.records.attack_plan import PlannedModel
from kapdist.records.certificate import CertificatePlan, read_certificate_summary, read_plan
from kapdist.records.sealed import read_table
from kapdist.rng import derive_seed
from kapdist.run.paths import CertificateDir, RunDir
from kapdist.statistics.binomial import upper_bound

log = logging.getLogger(__name__)

MOST_IMAGES = 8  # of each certification
STEPS, DRAWS, JUDGES = 20, 16, 1000
INSIDE = 0.999  # of the radius: the certificate is of what lies within
ALPHA = 1e-5  # chance that an image which holds is called broken
MERGE = "kapdist certify --merge"


class Certified(NamedTuple):
    """An image, the sigma that it is certified at, the class and the radius."""

    image: int
    sigma: float
    predicted: int
    radius: float


def broken_certificates(run: Path, model: PlannedModel, device: torch.device) -> float | None:
    """Return the share of certified images that an attack breaks within their radius; None where there are none.

    What cannot be read, was planned anew and not merged since, or whose images are gone, is said and left out.

    Args:
        model: that is examined; certificates of other weights are left alone.
    """
    broken: list[bool] = []
    for path in sorted(RunDir(run).certificates.glob("*/records.parquet")):
        try:
            directory = CertificateDir(path.parent)
            plan = read_plan(directory)
            if plan.subject.model.weights_sha256 == model.weights_sha256:
                broken += attacked(run, plan, certified_images(directory, plan), device)
        except InputError as error:
            log.warning("certificates that are not attacked: %s", error)
    return sum(broken) / len(broken) if broken else None


def certified_images(directory: CertificateDir, plan: CertificatePlan) -> list[Certified]:
    """Return the first images that have a radius.

    Raises:
        InputError: the records are damaged, or of an earlier plan than the one beside them.
    """
    if read_certificate_summary(directory.summary).plan_fingerprint != plan.fingerprint:
        raise InputError(directory.records, f"records of this plan ({MERGE} writes them)", "those of another plan")
    rows = read_table(directory.records, Certified._fields, f"{MERGE} writes it again")
    return [Certified(*row) for row in rows.drop_nulls().sort("image", "sigma").rows()[:MOST_IMAGES]]


def attacked(run: Path, plan: CertificatePlan, certified: list[Certified], device: torch.device) -> list[bool]:
    """Return of each image whether it was broken."""
    subject, broken = plan.subject, []
    chunks = [subject.images.index(one.image) // subject.chunk_size for one in certified]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        network = load_model(subject.model, run).to(device)
        with noise(network, subject.noise, seed=derive_seed(subject.seed, "certify")):
            copies = NoisyCopies(network, subject, device)
            for one, (images, _) in zip(certified, images_of.read_chunks(subject, chunks), strict=True):
                place = subject.images.index(one.image) % subject.chunk_size
                broken.append(is_broken(copies, images[place].to(device), one))
    return broken


def is_broken(copies: NoisyCopies, image: Tensor, one: Certified) -> bool:
    """Attack one image, then count fresh draws: broken where its class surely has less than half of them."""
    point = ascended(copies, image, one)
    stream = copies.stream(one.image, one.sigma, "judge", 0)
    counts = copies.counts(point, one.image, one.sigma, JUDGES, stream)
    return upper_bound(int(counts[one.predicted]), JUDGES, ALPHA) < 0.5


def ascended(copies: NoisyCopies, image: Tensor, one: Certified) -> Tensor:
    """Return a point within the radius, found by projected gradient ascent on the loss of the mean over copies.

    Salman et al. 2019, https://arxiv.org/abs/1906.04584, section 2.2. The point may leave [0, 1]: the certificate
    is of all perturbations.
    """
    radius, stream = INSIDE * one.radius, copies.stream(one.image, one.sigma, "attack", 0)
    delta = torch.zeros_like(image)
    target = torch.tensor([one.predicted], device=image.device)
    for _ in range(STEPS):
        noisy = torch.randn((DRAWS, *image.shape), generator=stream, device=image.device) * one.sigma
        gradient = slope(copies, image + delta, noisy, target)
        length = gradient.norm()
        if length > 0:
            delta = delta + gradient * (2.5 * radius / STEPS / length)
            delta = delta * (radius / delta.norm()).clamp(max=1)
    return image + delta


def slope(copies: NoisyCopies, point: Tensor, noisy: Tensor, target: Tensor) -> Tensor:
    """Return the gradient of the loss of the mean probability; zeros where the model passes none."""
    point = point.detach().requires_grad_()
    with torch.enable_grad():
        logits = [copies.model(part + point) for part in noisy.split(copies.at_once)]
        loss = functional.nll_loss(log_mean(torch.cat(logits).log_softmax(1)[:, None]), target)
        if not loss.requires_grad:
            return torch.zeros_like(point)
        gradient: Tensor = torch.autograd.grad(loss, point)[0]
    return gradient
