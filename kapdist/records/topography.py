"""topography/<name>/topography.json: how alike kernels are by their distance, and what noise does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from kapdist.records.record import Count, Record, Share, read_record

Quantity = Literal["stored", "averaged", "responses", "averaged_responses"]
QUANTITIES: tuple[Quantity, ...] = ("stored", "averaged", "responses", "averaged_responses")
ASKED: tuple[Quantity, ...] = ("stored", "responses")
"""What no average makes alike by itself."""
LEVEL = 0.05


class Curve(Record):
    """Mean similarity of the pairs of kernels at each distance, and where 95% of the null's means lie."""

    distance: tuple[float, ...]
    """Mean of each bin, steps on the sheet or line; ascending."""
    similarity: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    pairs: tuple[Count, ...]


class Measure(Record):
    """One quantity of one layer."""

    neighbours: float
    """Mean similarity of kernels that share a side."""
    others: float
    """Of all other pairs."""
    p: Share
    """Of `neighbours - others` under the null, one-sided."""
    p_holm: Share | None = None
    """Corrected for all layers; None where too few permutations were drawn for that."""
    permutations: Count
    effective: float
    """Effective number of independent kernels."""
    effective_null: tuple[float, float] | None = None
    """Where 95% of the null's lie; None where no order of the kernels changes the number."""
    size: float | None
    """The distance at which the similarity falls to the null's band; None where it never does."""
    members: float | None
    """Mean number of kernels that are nearer than that, the kernel itself among them."""
    curve: Curve

    @property
    def contrast(self) -> float:
        return self.neighbours - self.others

    @property
    def is_found(self) -> bool:
        """Whether neighbours are alike beyond chance, at 5% over all layers."""
        return self.p_holm is not None and self.p_holm <= LEVEL


def beyond_chance(measures: Sequence[Measure]) -> str:
    """Say of how many layers it is found; "?" where permutations were too few to find it of any."""
    told = any(one.p_holm is not None for one in measures)
    return f"{sum(one.is_found for one in measures) if told else '?'} of {len(measures)}"


class LayerTopography(Record):
    """One convolution, in the order in which the network calls them."""

    name: str
    kernels: Count
    grid: tuple[Count, ...]
    """(kernels,) of a line, (rows, columns) of a sheet."""
    pool_size: Count
    pool_stride: Count = 1
    groups: Count = 1
    inputs: Count
    """Numbers in one kernel."""
    observations: Count
    """Images times places in them that a response was taken at."""
    silent: Count = 0
    """Kernels without any response that varies; alike to no other."""
    not_asked: str = ""
    """Why there are no numbers of it."""
    stored: Measure | None = None
    averaged: Measure | None = None
    responses: Measure | None = None
    averaged_responses: Measure | None = None

    def measure(self, quantity: Quantity) -> Measure | None:
        found: Measure | None = getattr(self, quantity)
        return found


class KernelPictures(Record):
    """The kernels that see the image, each scaled by its own largest weight: 128 is zero."""

    layer: str
    grid: tuple[Count, ...]
    shape: tuple[Count, Count, Count]
    """Height, width, channels."""
    stored: tuple[tuple[Count, ...], ...]
    """Row by row, 0 to 255, channels last."""
    averaged: tuple[tuple[Count, ...], ...] | None = None


class Neighbourhood(Record):
    """How like neighbours are in what they prefer, with the null's 95% and the one-sided p of it."""

    neighbours: float
    low: float
    high: float
    p: Share


class Orientations(Record):
    """Which gratings the kernels that see the image answer most."""

    layer: str
    grid: tuple[Count, ...]
    degrees: tuple[float, ...]
    """From 0 (vertical bars) to 180, counter-clockwise."""
    selectivity: tuple[Share, ...]
    """0: all orientations alike, 1: one alone."""
    alike: Neighbourhood
    """Mean cosine of twice the angle between neighbours, weighted by selectivity; of kernels with themselves 1."""


class ClassMap(Record):
    """Which class each kernel answers most, relative to its mean answer, before the average."""

    layer: str
    grid: tuple[Count, ...]
    preferred: tuple[int, ...]
    """-1: the kernel never answers."""
    alike: Neighbourhood
    """Share of neighbours that prefer the same class."""


class StageLayer(Record):
    """One layer at one step of the training."""

    name: str
    stored: tuple[float, float] | None
    """Neighbours less others, and p."""
    responses: tuple[float, float] | None


class Stage(Record):
    """The network at one step of its training."""

    step: int | None
    """None where nothing says it."""
    what: str
    num_images: Count
    layers: tuple[StageLayer, ...]


class MovedLayer(Record):
    """Variance over draws of noise relative to that over images, before the layer's average and behind it."""

    name: str
    before: float
    after: float | None


class NoiseLevel(Record):
    """One noise at one standard deviation."""

    kind: Literal["input", "activation"]
    std: float
    logits: float
    """Variance over draws relative to that over images; of logits less their mean over classes."""
    changed: Share
    """Predictions that a draw turns."""
    layers: tuple[MovedLayer, ...]


class SubjectTopography(Record):
    """One run."""

    run: str
    kind: str
    """In words: K, layout, noise."""
    pool_size: Count
    noise_std: float
    weights: str
    """The file, and whether it is the moving average."""
    weights_sha256: str
    is_final: bool
    """Whether these are the weights that the run ended with."""
    accuracy: Share
    """On the images of this record, noise off."""
    layers: tuple[LayerTopography, ...]
    kernels: KernelPictures | None = None
    orientations: Orientations | None = None
    classes: ClassMap | None = None
    stages: tuple[Stage, ...] = ()
    noise: tuple[NoiseLevel, ...] = ()
    notes: tuple[str, ...] = ()

    def measures(self, quantity: Quantity) -> list[tuple[LayerTopography, Measure]]:
        """Return the layers that have the quantity, each with it."""
        pairs = ((layer, layer.measure(quantity)) for layer in self.layers)
        return [(layer, measure) for layer, measure in pairs if measure is not None]


class Topography(Record):
    """The file."""

    format: Literal[1] = 1
    name: str
    run: str
    layout: str
    """Of the layers that average nothing."""
    seed: int
    num_images: Count
    num_noisy_images: Count
    positions: Count
    """Most places in an image that responses are taken at."""
    permutations: Count
    band_permutations: Count
    """Of curves' bands and of averaged quantities."""
    draws: Count
    """Of each noise."""
    data: str
    data_fingerprint: str
    images_sha256: str
    class_names: tuple[str, ...]
    device: str
    threads: Count
    packages: dict[str, str | None]
    subjects: tuple[SubjectTopography, ...] = Field(min_length=1)
    """The run first, then those beside it."""
    seconds: float

    @property
    def subject(self) -> SubjectTopography:
        return self.subjects[0]

    def describe(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


def read_topography(path: Path) -> Topography:
    """Read what `kapdist topography` wrote.

    Raises:
        InputError: the file is none.
    """
    return read_record(Topography, path, "kapdist topography writes it again")
