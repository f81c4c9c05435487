"""The section `data` of attacks and evaluations: one value stands for its beton, in files and as a word."""

from pathlib import Path

import pytest

from kapdist.config import AttackConfig
from kapdist.config.evaluation import EvaluationConfig
from kapdist.config.file import dump_config, load_config
from kapdist.config.images import ImagesConfig
from kapdist.errors import InputError
from kapdist.forecast.gather import describes_training


def written(folder: Path, text: str, name: str = "aa.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_one_value_stands_for_the_beton(tmp_path: Path) -> None:
    whole = load_config(AttackConfig, None, ["name=aa", "data.beton=x.beton"])
    assert whole.data == ImagesConfig(beton=Path("x.beton"))
    assert load_config(AttackConfig, None, ["name=aa", "data=x.beton"]) == whole
    assert load_config(AttackConfig, None, ["name=aa", "data={beton: x.beton}"]) == whole
    assert load_config(AttackConfig, written(tmp_path, "data: x.beton")) == whole
    assert load_config(AttackConfig, written(tmp_path, "data:\n  beton: x.beton")) == whole
    assert AttackConfig(name="aa", data=Path("x.beton")) == whole
    assert load_config(AttackConfig, written(tmp_path, dump_config(whole), "dumped.yaml")) == whole
    assert load_config(EvaluationConfig, None, ["data=x.beton"]).data == whole.data
    nothing = load_config(AttackConfig, written(tmp_path, "data:"))
    assert nothing.data == ImagesConfig()


def test_it_leaves_the_rest_of_the_section(tmp_path: Path) -> None:
    """Whichever of a file, its base and the command line says it, and in whichever form."""
    expected = ImagesConfig(beton=Path("y.beton"), resolution=64)
    full = written(tmp_path, "data: {beton: x.beton, resolution: 64}")
    assert load_config(AttackConfig, full, ["data=y.beton"]).data == expected
    short = written(tmp_path, "data: y.beton", "short.yaml")
    assert load_config(AttackConfig, short, ["data.resolution=64"]).data == expected
    above = written(tmp_path, "base: aa.yaml\ndata: y.beton", "above.yaml")
    assert load_config(AttackConfig, above).data == expected
    with pytest.raises(InputError, match=r"data\.beton: expected one value, found 2 values"):
        load_config(AttackConfig, None, ["name=aa", "data=x.beton", "data.beton=y.beton"])


@pytest.mark.parametrize(
    ("model", "word", "nearest"),
    [
        (AttackConfig, "classes=by-name", "data.classes"),
        (EvaluationConfig, "classes=by-name", "data.classes"),
        (EvaluationConfig, "resolution=64", "data.resolution"),
        (EvaluationConfig, "crop_ratio=0.5", "data.crop_ratio"),
    ],
)
def test_the_keys_of_before_name_those_of_today(tmp_path: Path, model: type, word: str, nearest: str) -> None:
    with pytest.raises(InputError, match=rf"expected a known key \(nearest: {nearest}\)"):
        load_config(model, None, ["name=aa", word])
    with pytest.raises(InputError, match=rf"expected a known key \(nearest: {nearest}\)"):
        load_config(model, written(tmp_path, word.replace("=", ": ")))


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("data=3", r"data\.beton=3'?: expected "),
        ("data.resolution=7", "greater than or equal to 8"),
        ("data.crop=random-resized", "'none' or 'center'"),
        ("data.interpolation=lanczos", "'area', 'bilinear' or 'bicubic'"),
        ("data={crop: none, interpolation: bicubic}", "crop_ratio and interpolation with crop center only"),
        ("images=last", "random, first, list:FILE, robustbench or robustbench:FILE"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(word: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected) as caught:
        load_config(AttackConfig, None, ["name=aa", word])
    assert "\n" not in str(caught.value)


def test_a_forecast_tells_an_attack_from_a_training_by_what_data_says(tmp_path: Path) -> None:
    attack = written(tmp_path, "data: {beton: x.beton, resolution: 64, interpolation: bicubic}")
    training = written(tmp_path, "data: {train: x.beton, validation: y.beton}", "training.yaml")
    assert not describes_training(attack)
    assert describes_training(training)
