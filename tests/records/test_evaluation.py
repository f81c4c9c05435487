"""Results of evaluations: which are of the same settings, whatever their keys were called when written."""

from typing import Any

import pytest

from kapdist.config.evaluation import MAY_DIFFER, OF_A_FACTORY, EvaluationConfig
from kapdist.config.file import load_config
from kapdist.config.training import flatten
from kapdist.records.evaluation import EvaluatedImages, EvaluatedWeights, EvaluationInputs


def inputs(settings: dict[str, Any]) -> EvaluationInputs:
    return EvaluationInputs(
        name="evaluation",
        settings=settings,
        resolution=64,
        crop_ratio=0.5,
        data=EvaluatedImages(path="x", fingerprint="f", num_images=1),
        weights=EvaluatedWeights(file="w", sha256="s"),
    )


OF_BEFORE = {"weights": "final", "flip": False, "noise": "off", "draws": 1, "seed": 0, "batch_size": 500}


@pytest.mark.parametrize(
    ("words", "same"),
    [
        (["data.resolution=64", "data.crop_ratio=0.5"], True),
        (["data=elsewhere.beton", "data.resolution=64", "data.crop_ratio=0.5"], True),
        (["data.resolution=64"], False),
        (["data.resolution=64", "data.crop_ratio=0.5", "data.interpolation=bicubic"], False),
        (["data.resolution=64", "data.crop_ratio=0.5", "flip=true"], False),
    ],
)
def test_a_result_of_before_is_one_of_the_same_settings(words: list[str], same: bool) -> None:
    config = load_config(EvaluationConfig, None, words)
    unsaid = {*MAY_DIFFER, *OF_A_FACTORY}  # of a run's own model
    now = inputs({key: value for key, value in flatten(config).items() if key not in unsaid})
    before = inputs(OF_BEFORE | {"data": "there.beton", "resolution": 64, "crop_ratio": 0.5})
    assert before.same_as(now) == now.same_as(before) == same
    assert now.same_as(now)
