"""evaluations/<name>.json: a trained run on a beton, counted exactly; sums are float64."""

from __future__ import annotations

from typing import Any

from kapdist.records.record import Count, Record, Share

NOW = {"resolution": "data.resolution", "crop_ratio": "data.crop_ratio"}  # of keys of before that decide a number


class EvaluatedImages(Record):
    """The beton."""

    path: str
    fingerprint: str
    num_images: Count


class EvaluatedWeights(Record):
    """A file of the run."""

    file: str
    sha256: str


class EvaluationInputs(Record):
    """What a result rests on."""

    name: str
    settings: dict[str, Any]
    """Keys of the config that decide a number of the result, as JSON values."""
    resolution: int
    crop_ratio: float | None
    """None: images are taken as they are."""
    interpolation: str = "area"
    data: EvaluatedImages
    weights: EvaluatedWeights

    def same_as(self, other: EvaluationInputs) -> bool:
        """Tell whether settings, weights and images are the same, wherever the images lie."""
        ours, theirs = ((it.written, it.weights, it.data.fingerprint) for it in (self, other))
        return ours == theirs

    @property
    def written(self) -> dict[str, Any]:
        """The settings that are not those of the run, by the names that they have now."""
        return {
            NOW.get(key, key): value for key, value in self.settings.items() if value is not None and key != "data"
        }


class ClassCount(Record):
    """Images of one class."""

    name: str
    num_images: Count
    num_top1: Count


class Bin(Record):
    """The images whose confidence, the probability of the predicted class, lies in one fifteenth of (0, 1]."""

    num_images: Count
    num_right: Count
    confidence_sum: float


class EvaluationResult(EvaluationInputs):
    """The file: integers, sums, and the quotients that people read."""

    top1: Share
    top5: Share
    loss: float
    ece: float
    """Expected calibration error (Guo et al. 2017)."""
    num_images: Count
    num_top1: Count
    num_top5: Count
    """Images whose class is among the five best, or among all where there are fewer."""
    loss_sum: float
    num_classes: Count
    classes: tuple[ClassCount, ...]
    bins: tuple[Bin, ...]
