"""What follows from the section `robust`: the attack, and when. Pure: no torch, no files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kapdist.config import Config
from kapdist.errors import InputError
from kapdist.plan.adversarial import EPS, default_step_size, eps_of
from kapdist.rng import permutation


@dataclass(frozen=True)
class RobustPlan:
    """A short attack on the model between steps of the training."""

    images: tuple[int, ...]
    """Ids in the validation beton, ascending."""
    batch_size: int
    norm: Literal["Linf", "L2"]
    eps: float
    steps: int
    step_size: float
    noise: str
    draws: int
    every_steps: int
    total_steps: int

    def is_due(self, step: int) -> bool:
        """Whether the model is attacked after `step` finished steps."""
        return step % self.every_steps == 0 or step == self.total_steps

    def describe(self) -> dict[str, str | int | float]:
        """Return what tells this attack from others."""
        said = {"norm": self.norm, "eps": self.eps, "attack_steps": self.steps, "noise": self.noise}
        return said | ({"draws": self.draws} if self.noise == "fresh" else {})

    @property
    def passes_per_image(self) -> int:
        """Forward passes of an image each time: the steps, each with its backward, before and after them."""
        return self.draws * (self.steps + 2)


def plan_robust(config: Config, num_images: int, steps_per_epoch: int) -> RobustPlan | None:
    """Derive the plan of robust validation, None where there is none.

    Args:
        num_images: of the validation beton.

    Raises:
        InputError: the noise is to be on in a model that has none, or images may be any others.
    """
    robust = config.robust
    if not robust.every_epochs:
        return None
    if robust.noise == "fresh" and not config.kap.noise_std:
        raise InputError(
            "robust.noise=fresh", "a model with activation noise (kap.noise_std above 0)", "one without"
        )
    norm = robust.norm or config.adversarial.norm
    default = eps_of(config.adversarial) if norm == config.adversarial.norm else EPS[norm]
    eps = default if robust.eps is None else robust.eps
    if norm == "Linf" and eps > 1:
        raise InputError(
            "robust.eps", "at most 1 with Linf (images are in [0, 1]; 8/255 may be written)", f"{eps:g}"
        )
    chosen = permutation(num_images, config.seed, "robust validation images")[: robust.num_images]
    step_size = default_step_size("pgd", "uniform", robust.steps) * eps
    return RobustPlan(
        images=tuple(sorted(chosen.tolist())),
        batch_size=robust.batch_size,
        norm=norm,
        eps=eps,
        steps=robust.steps,
        step_size=step_size if robust.step_size is None else robust.step_size,
        noise=robust.noise,
        draws=robust.draws,
        every_steps=robust.every_epochs * steps_per_epoch,
        total_steps=config.train.epochs * steps_per_epoch,
    )
