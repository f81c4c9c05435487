import os
from pathlib import Path

import pytest

from kapdist.config import Config, DataConfig, OptimConfig
from kapdist.errors import InputError
from kapdist.rundir import RunDir, fingerprint, write_atomic, written_aside


def config(workers: int = 0, **sections: object) -> Config:
    return Config(name="test", data=DataConfig(train=Path("a"), validation=Path("b"), workers=workers), **sections)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError), written_aside(path) as aside:
        aside.write_text("half" + "\udc80")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": [2.5]}) == fingerprint({"b": [2.5], "a": 1}) != fingerprint({"a": 1})


def test_a_directory_belongs_to_its_config(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.claim(config())
    run.claim(config())
    expected = r"expected optim.lr = 0.5 as this run began .*, found 0.25"
    with pytest.raises(InputError, match=expected):
        run.claim(config(optim=OptimConfig(lr=0.25)))
    assert run.load_config() == config()


def test_how_fast_it_goes_may_change(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.claim(config())
    run.claim(config(workers=3))
    assert run.load_config().data.workers == 3


def test_a_directory_without_config_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a run directory, found no config\.yaml"):
        RunDir(tmp_path).load_config()
    with pytest.raises(InputError, match="expected a run directory, found nothing"):
        RunDir(tmp_path / "absent").load_config()
