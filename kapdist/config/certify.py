"""Certification of a trained model by randomized smoothing: the keys of `kapdist certify`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kapdist.config.attack import AttackConfig, AttackedModelConfig
from kapdist.config.fields import Epsilon, ImageChoice, Name, Natural, Off, Positive, Section
from kapdist.config.images import ImagesConfig


class CertifyConfig(Section):
    """Owner: certify/. A model smoothed by Gaussian noise on its images; keys of an attack's name mean the same."""

    name: Name = "certificate"
    """Name of the result: RUN/certificates/<name>/."""
    seed: Annotated[int, Field(ge=0)] = 0
    """The noise and the choice of images follow from it."""
    model: AttackedModelConfig = AttackedModelConfig()
    data: ImagesConfig = ImagesConfig()
    images: ImageChoice = "random"
    """Which images, as an attack's: random, first, list:FILE or robustbench."""
    num_classes: Annotated[int, Field(ge=2)] | None = None
    """Classes of a factory's model; default: the run's, or the data's."""
    num_images: Annotated[int, Field(ge=0)] | None = None
    """Images to certify, chosen by seed as an attack's; 0 takes all. Default: 500, or all where there are fewer."""
    sigma: Epsilon | None = None
    """Standard deviation of the noise on images in [0, 1], or a list: each is a smoothed model of its own.
    Default: the run's train.input_noise_std."""
    selection_draws: Natural = 100
    """Draws that choose the class of an image (n0), used for nothing else."""
    draws: Natural = 10_000
    """Draws that bound the chance of that class (n)."""
    alpha: Annotated[float, Field(gt=0, le=0.5)] = 0.001
    """Chance that the certificate of an image is wrong."""
    stop_radius: Positive | None = None
    """Stop drawing where the radius is known to reach this or to stay below it; default: all draws of every image.
    The bound is then one that holds at every look at the count, and so a little lower."""
    noise: Annotated[Literal["off", "fixed", "fresh"], Off] = "off"
    """Mode of the model's own noise; fresh noise is a part of the smoothed model, drawn anew in every draw."""
    fold: bool = True
    """Fold averages and norms of a run's model, if its noise is off, into its convolutions, as attacks do."""
    images_per_pass: Natural = 500
    """Draws of one image in one pass, part of the plan: the bound on memory."""
    chunk_size: Natural = 8
    """Images of one unit of work."""
    unit_draws: Natural = 10_000
    """Most draws of an image in one unit of work: more are shared out among units (not with stop_radius)."""
    num_shards: Natural = 1
    """Local processes; more shards never change a certificate."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads per shard, part of the plan; 0 divides this machine's among the shards."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where; auto takes a GPU if there is one."""
    timeout_minutes: Positive = 24 * 60.0
    """Longest time that local shards are waited for."""

    @property
    def sigmas(self) -> tuple[float, ...]:
        """All that are written, ascending."""
        if self.sigma is None:
            return ()
        return self.sigma if isinstance(self.sigma, tuple) else (self.sigma,)

    def subject(self) -> AttackConfig:
        """Return the same model and images as the config of an attack that follows no gradient."""
        own = {key: getattr(self, key) for key in AttackConfig.model_fields if key in type(self).model_fields}
        return AttackConfig.model_validate(own | {"version": "custom", "attacks": ("square",), "rescore": 0})
