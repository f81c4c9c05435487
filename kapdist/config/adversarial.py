"""Adversarial training: the section `adversarial` of a training run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kapdist.config.fields import Fractional, Natural, NonNegative, Off, Positive, Section

Size = Annotated[Positive | None, Fractional]

# What the modes differ in; every other key goes with all of them.
CLIMBING = ("pgd", "fast", "trades", "mart")
TAKEN_BY = {
    "steps": ("pgd", "trades", "mart"),
    "beta": ("trades", "mart"),
    "replays": ("free",),
    "statistics": CLIMBING,
    "noise": CLIMBING,
    "clean_share": ("pgd", "fast", "free"),
    "awp_gamma": CLIMBING,
}
STARTS = {
    "uniform": ("pgd", "fast", "free", "trades", "mart"),
    "gaussian": ("pgd", "trades", "mart"),
    "n-fgsm": ("fast",),
}


class AdversarialConfig(Section):
    """Owner: train/adversarial.py, train/pgd.py, trades.py, mart.py, awp.py.

    With mode off no other key counts, but for norm and eps where `robust` has them from here.
    """

    mode: Annotated[Literal["off", "pgd", "fast", "free", "trades", "mart"], Off] = "off"
    """pgd: images after some steps of projected gradient ascent (Madry 2018); fast: after one step from a random
    start (Wong 2020); free: every batch several times, the gradient of an update reused for the images (Shafahi
    2019); trades: clean images, and the divergence from them to their worst neighbours (Zhang 2019); mart: pgd with
    a margin, and that divergence most where the clean image is in doubt (Wang 2020)."""
    norm: Literal["Linf", "L2"] = "Linf"
    """Norm that bounds the perturbation of an image."""
    eps: Size = None
    """Size of the perturbation, of images in [0, 1]; a fraction such as 8/255 may be written. Default: 4/255 for
    Linf, 3 for L2."""
    eps_warmup_epochs: NonNegative = 0.0
    """Epochs in which the size grows from zero, linear by step; the step size grows with it."""
    steps: Natural | None = None
    """Steps of pgd, trades and mart; default: 7, and 10 for trades and mart. Fast has one, free one per replay."""
    step_size: Size = None
    """Way of one step. Default, as published: 2.5 eps / steps for pgd, trades and mart; 1.25 eps for fast, eps with
    start n-fgsm; eps for free."""
    beta: Positive | None = None
    """Weight of the divergence in trades (their 1/lambda; default: 6) and in mart (their lambda; default: 5)."""
    replays: Natural | None = None
    """How often free takes a batch, one update of the weights each; default: 4."""
    random_start: bool = True
    """Start from a random point, of (seed, epoch, image); else from the image itself, where trades has no slope."""
    start: Literal["uniform", "gaussian", "n-fgsm"] | None = None
    """Random start: uniform in the ball; gaussian, of standard deviation 0.001 about the image (default of trades
    and mart); n-fgsm, a form of fast: uniform in a larger ball, from where the step is not projected back (de Jorge
    2022)."""
    start_magnitude: Positive | None = None
    """Size of n-fgsm's start, in units of eps; default: 2. Where start is not written, it is n-fgsm with this."""
    clean_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Weight of the clean images: loss = clean_share x clean + (1 - clean_share) x adversarial (Goodfellow 2015).
    Above 0 both go through the model in one batch, so that the norms see both (Kurakin 2017)."""
    statistics: Literal["eval", "train"] | None = None
    """Norms and dropout while pgd and fast attack: eval, running statistics and no dropout; train, the batch's own
    statistics and dropout. Running statistics stay as they are in both. Default: eval. Free attacks in training."""
    noise: Annotated[Literal["fresh", "fixed", "off"] | None, Off] = None
    """The model's noise while pgd and fast attack: fresh, drawn at every pass; fixed, one draw for each
    layer and step of the training; off. Default: fresh. Free attacks in training, where it is fresh."""
    awp_gamma: NonNegative = 0.0
    """Adversarial weight perturbation (Wu 2020): every layer's weights are taken this share of their norm up the
    loss before the gradient of an update; 0 does not. One pass more, two with trades, mart or a clean_share."""
    awp_warmup_epochs: NonNegative = 0.0
    """Epochs before weights are perturbed."""

    @model_validator(mode="after")
    def keys_go_with_modes(self) -> AdversarialConfig:
        for key, modes in TAKEN_BY.items():
            if self.mode not in ("off", *modes) and getattr(self, key):
                raise ValueError(f"{key} with mode {either(modes)} only")
        return self

    @model_validator(mode="after")
    def start_goes_with_mode(self) -> AdversarialConfig:
        if self.mode == "trades" and not self.random_start:
            raise ValueError("random_start with mode trades: from the image itself its divergence has no slope")
        if self.start is not None and not self.random_start:
            raise ValueError("start with random_start only")
        if self.start is not None and self.mode not in ("off", *STARTS[self.start]):
            raise ValueError(f"start {self.start} with mode {either(STARTS[self.start])} only")
        if self.start_magnitude is not None and self.start != "n-fgsm":
            raise ValueError("start_magnitude with start n-fgsm only")
        return self

    @model_validator(mode="after")
    def images_end_at_one(self) -> AdversarialConfig:
        if self.norm == "Linf" and self.eps is not None and self.eps > 1:
            raise ValueError("eps of at most 1 with Linf (images are in [0, 1]; 8/255 may be written)")
        return self


def either(words: tuple[str, ...]) -> str:
    """Return e.g. "pgd, trades or mart"."""
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last
