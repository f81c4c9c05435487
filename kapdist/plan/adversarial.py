"""What follows from the section `adversarial`: sizes by step, passes per image. Pure: no torch, no files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kapdist.config.adversarial import AdversarialConfig
from kapdist.errors import InputError

EPS = {"Linf": 4 / 255, "L2": 3.0}  # the usual sizes on ImageNet (Engstrom et al. 2019, Salman et al. 2020)
# Madry et al. 2018, section 5; Zhang et al. 2019, section 5; Wang et al. 2020, section 4: all on CIFAR-10
STEPS = {"pgd": 7, "trades": 10, "mart": 10}
REPLAYS = 4  # Shafahi et al. 2019, section 5, on ImageNet
BETA = {"trades": 6.0, "mart": 5.0}  # Zhang et al. 2019, table 5 (1 / lambda); Wang et al. 2020, section 4
GAUSSIAN_START_STD = 0.001  # Zhang et al. 2019, algorithm 1; of images in [0, 1]
START_MAGNITUDE = 2.0  # de Jorge et al. 2022, section 4: k


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
    beta: float
    """Weight of the divergence, 0 where the loss has none."""
    start: str
    """Where an attack begins: "image", "uniform", "gaussian" or "n-fgsm"."""
    start_magnitude: float
    """Radius of the ball that a start is drawn from, in units of eps."""
    awp_gamma: float
    awp_warmup_steps: int
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

    def perturbs_weights(self, step: int) -> bool:
        """Whether the step after `step` finished ones takes its gradient at perturbed weights."""
        return self.awp_gamma > 0 and step >= self.awp_warmup_steps

    @property
    def projects(self) -> bool:
        """Whether the steps of the attack end within eps: N-FGSM's alone does not."""
        return self.start != "n-fgsm"

    @property
    def compares(self) -> bool:
        """Whether the loss holds the logits of adversarial images against those of the clean ones."""
        return self.mode in ("trades", "mart")

    @property
    def reads_statistics(self) -> bool:
        """Whether the attack reads running statistics, which ranks other than the first have to be given."""
        return self.steps > 0 and self.statistics == "eval"

    @property
    def passes_per_image(self) -> int:
        """Forward passes that a step of the training takes of each of its images, once weights are perturbed too.

        Each has its backward, but for the one of trades that its attack climbs away from.
        """
        both = 2 if self.clean_share or self.compares else 1
        away_from = 1 if self.mode == "trades" else 0
        return away_from + self.steps + self.replays * both + (both if self.awp_gamma else 0)

    def forwards_per_image(self, step: int) -> int:
        """What the step after `step` finished ones costs for each of its images, in forward passes.

        A backward is two of them, and one where the gradient is of the images alone.
        """
        both = 2 if self.clean_share or self.compares else 1
        away_from = 1 if self.mode == "trades" else 0
        return away_from + 2 * self.steps + 3 * both * (self.replays + self.perturbs_weights(step))

    @property
    def num_graphs(self) -> int:
        """What a compiled model is compiled for at one shape: training, attack, measuring it; trades, weights."""
        return 3 + (self.mode == "trades") + (self.awp_gamma > 0)


def plan_adversarial(config: AdversarialConfig, epochs: int, steps_per_epoch: int) -> AdversarialPlan | None:
    """Derive the plan of adversarial training, None where the mode is off.

    Raises:
        InputError: the size grows, or weights are not perturbed yet, for longer than the training takes.
    """
    if config.mode == "off":
        return None
    for key in ("eps_warmup_epochs", "awp_warmup_epochs"):
        if getattr(config, key) > epochs:
            found = f"{getattr(config, key):g}"
            raise InputError(f"adversarial.{key}", f"at most train.epochs = {epochs}", found)
    eps = eps_of(config)
    start = start_of(config)
    steps = {"fast": 1, "free": 0}.get(config.mode) or config.steps or STEPS.get(config.mode, 0)
    step_size = default_step_size(config.mode, start, steps) if config.step_size is None else config.step_size / eps
    return AdversarialPlan(
        mode=config.mode,
        norm=config.norm,
        largest_eps=eps,
        eps_warmup_steps=round(config.eps_warmup_epochs * steps_per_epoch),
        relative_step_size=step_size,
        steps=steps,
        replays=(config.replays or REPLAYS) if config.mode == "free" else 1,
        clean_share=config.clean_share,
        beta=config.beta or BETA.get(config.mode, 0.0),
        start=start,
        start_magnitude=(config.start_magnitude or START_MAGNITUDE) if start == "n-fgsm" else 1.0,
        awp_gamma=config.awp_gamma,
        awp_warmup_steps=round(config.awp_warmup_epochs * steps_per_epoch),
        statistics=config.statistics or ("train" if config.mode == "free" else "eval"),
        noise=config.noise or "fresh",
    )


def eps_of(config: AdversarialConfig) -> float:
    """Return the size of the perturbation, in whatever mode."""
    return EPS[config.norm] if config.eps is None else config.eps


def start_of(config: AdversarialConfig) -> str:
    """Return where an attack begins."""
    if not config.random_start:
        return "image"
    return config.start or ("gaussian" if config.mode in ("trades", "mart") else "uniform")


def default_step_size(mode: str, start: str, steps: int) -> float:
    """Return the published way of one step, in units of eps.

    pgd: the border can be reached from anywhere within the ball, and there is way left to move along it (Madry et
    al. 2018, https://arxiv.org/abs/1706.06083, appendix on L2); trades and mart have about as much (0.007 of 0.031
    in each of ten steps); fast: Wong et al. 2020 (https://arxiv.org/abs/2001.03994), section 4, and with N-FGSM's
    start de Jorge et al. 2022 (https://arxiv.org/abs/2202.01181), section 4; free: Shafahi et al. 2019
    (https://arxiv.org/abs/1904.12843).
    """
    if mode == "fast":
        return 1.0 if start == "n-fgsm" else 1.25
    return 1.0 if mode == "free" else 2.5 / max(1, steps)
