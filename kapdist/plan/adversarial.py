"""What follows from the section `adversarial`: sizes by step, passes per image. Pure: no torch, no files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kapdist.config.adversarial import AdversarialConfig
from kapdist.errors import InputError

EPS = {"Linf": 4 / 255, "L2": 3.0}  # the usual sizes on ImageNet (Engstrom et al. 2019, Salman et al. 2020)
PGD_STEPS = 7  # Madry et al. 2018, section 5, on CIFAR-10
REPLAYS = 4  # Shafahi et al. 2019, section 5, on ImageNet


@dataclass(frozen=True)
class AdversarialPlan:
    """An attack inside of every step of a training."""

    mode: str
    norm: Literal["Linf", "L2"]
    largest_eps: float
    eps_warmup_steps: int
    relative_step_size: float
    """Way of one step of the attack, in units of eps."""
    steps: int
    """Steps of the attack before an update of the weights; 0 for free, which reuses the update's gradient."""
    replays: int
    """Updates of the weights in one step of the training: 1, but for free."""
    clean_share: float
    random_start: bool
    statistics: str
    """Of norms, while the steps of the attack are taken: "eval" or "train"."""
    noise: str
    """Of activations, likewise: "fresh", "fixed" or "off"."""

    def eps(self, step: int) -> float:
        """Size of the perturbation in the step after `step` finished ones."""
        if step < self.eps_warmup_steps:
            return self.largest_eps * (step + 1) / self.eps_warmup_steps
        return self.largest_eps

    def step_size(self, step: int) -> float:
        return self.relative_step_size * self.eps(step)

    @property
    def reads_statistics(self) -> bool:
        """Whether the attack reads running statistics, which ranks other than the first have to be given."""
        return self.steps > 0 and self.statistics == "eval"

    @property
    def passes_per_image(self) -> int:
        """Forward passes, each with its backward, that a step of the training takes of each of its images."""
        return self.steps + self.replays * (2 if self.clean_share else 1)


def plan_adversarial(config: AdversarialConfig, epochs: int, steps_per_epoch: int) -> AdversarialPlan | None:
    """Derive the plan of adversarial training, None where the mode is off.

    Raises:
        InputError: the size grows for longer than the training takes.
    """
    if config.mode == "off":
        return None
    if config.eps_warmup_epochs > epochs:
        found = f"{config.eps_warmup_epochs:g}"
        raise InputError("adversarial.eps_warmup_epochs", f"at most train.epochs = {epochs}", found)
    eps = EPS[config.norm] if config.eps is None else config.eps
    steps = {"pgd": PGD_STEPS if config.steps is None else config.steps, "fast": 1, "free": 0}[config.mode]
    step_size = default_step_size(config.mode, steps) if config.step_size is None else config.step_size / eps
    return AdversarialPlan(
        mode=config.mode,
        norm=config.norm,
        largest_eps=eps,
        eps_warmup_steps=round(config.eps_warmup_epochs * steps_per_epoch),
        relative_step_size=step_size,
        steps=steps,
        replays=(config.replays or REPLAYS) if config.mode == "free" else 1,
        clean_share=config.clean_share,
        random_start=config.random_start,
        statistics=config.statistics or ("train" if config.mode == "free" else "eval"),
        noise=config.noise or "fresh",
    )


def default_step_size(mode: str, steps: int) -> float:
    """Return the published way of one step, in units of eps.

    pgd: the border can be reached from anywhere within the ball, and there is way left to move along it (Madry et
    al. 2018, https://arxiv.org/abs/1706.06083, appendix on L2); fast: Wong et al. 2020
    (https://arxiv.org/abs/2001.03994), section 4; free: Shafahi et al. 2019 (https://arxiv.org/abs/1904.12843).
    """
    return {"pgd": 2.5 / max(1, steps), "fast": 1.25, "free": 1.0}[mode]
