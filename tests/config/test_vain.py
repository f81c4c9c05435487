"""What is written and says nothing is named, and nothing else is."""

import pytest

from kapdist.config import Config, dotted_keys
from kapdist.config.file import dump_config, load_config
from kapdist.config.vain import SAY_NOTHING, in_vain

DATA = "data.train=a.beton", "data.validation=b.beton"


def lines(*words: str) -> list[str]:
    return list(in_vain(load_config(Config, None, ["name=run", *DATA, *words])))


def test_all_keys_are_there() -> None:
    keys = dotted_keys(Config)
    for switch, others in SAY_NOTHING.items():
        assert switch in keys
        assert {f"{switch.split('.')[0]}.{other}" for other in others} <= set(keys)


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("adversarial.eps=8/255", "adversarial.eps says nothing: adversarial.mode is off"),
        ("robust.steps=20", "robust.steps says nothing: robust.every_epochs is 0"),
        ("data.crop_ratio=0.9", "data.crop_ratio says nothing: data.crop is none"),
        ("data.end_ramp=3", "data.end_ramp says nothing: data.min_resolution is not given"),
        ("data.rand_augment_magnitude=15", "data.rand_augment_magnitude says nothing: data.rand_augment is 0"),
        ("kap.norm_first=true", "kap.norm_first says nothing: kap.pool_size is 1"),
        ("train.wandb_mode=offline", "train.wandb_mode says nothing: train.wandb_project is not given"),
    ],
)
def test_a_key_that_waits_for_another_is_named(word: str, line: str) -> None:
    assert lines(word) == [line]


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("adversarial.eps=8/255", "adversarial.mode=pgd"),
        ("adversarial.eps=8/255", "adversarial.mode=off"),  # said, so known
        ("robust.steps=20", "train.best=robust"),  # every_epochs follows
        ("adversarial.start_magnitude=2", "adversarial.mode=fast"),
        ("adversarial.eps=8/255", "adversarial.norm=L2", "robust.every_epochs=1"),  # whose size it is
        ("data.crop_ratio=0.9", "data.min_resolution=32", "data.max_resolution=64"),  # crop follows
        ("kap.noise_std=0.3", "kap.where=[layer1.*]"),
        ("optim.ema_decay=0.9",),
    ],
)
def test_what_counts_is_not(words: tuple[str, ...]) -> None:
    assert lines(*words) == []


def test_a_config_that_was_written_down_whole_says_nothing_in_vain(tmp_path) -> None:
    config = load_config(Config, None, ["name=run", *DATA, "adversarial.eps=8/255"])
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert list(in_vain(load_config(Config, path, []))) == []
