import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kapdist.config import Config, DataConfig, OptimConfig
from kapdist.errors import InputError
from kapdist.rundir import RunDir, fingerprint, locked, write_atomic, written_aside


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


def test_a_lock_names_its_holder(tmp_path: Path) -> None:
    with locked(tmp_path / "LOCK"), pytest.raises(InputError, match=f"process {os.getpid()} on"):
        with locked(tmp_path / "LOCK"):
            pass
    with locked(tmp_path / "LOCK"):
        pass
    assert os.listdir(tmp_path) == []


HOLD = "import sys, time; from pathlib import Path; from kapdist.rundir import locked\n"
HOLD += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    lock = tmp_path / "LOCK"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"process {process.pid}"), locked(lock):
            pass
        process.kill()
        process.wait(10)
    with locked(lock):
        assert json.loads(lock.read_text())["pid"] == os.getpid()


def test_a_lock_of_another_host_is_respected(tmp_path: Path) -> None:
    lock = tmp_path / "LOCK"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1", "job": None, "since": "noon"}))
    with pytest.raises(InputError, match="process 1 on elsewhere since noon"), locked(lock):
        pass


def test_a_requeued_job_takes_its_own_lock_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "LOCK"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1", "job": "7", "since": "noon"}))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with locked(lock):
        pass
