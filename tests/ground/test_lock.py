"""Who holds a lock, who is gone, and who cannot be seen."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kapdist.errors import InputError
from kapdist.lock import locked


def test_a_lock_names_its_holder(tmp_path: Path) -> None:
    with locked(tmp_path / "LOCK"), pytest.raises(InputError, match=f"process {os.getpid()} on"):
        with locked(tmp_path / "LOCK"):
            pass
    with locked(tmp_path / "LOCK"):
        pass
    assert os.listdir(tmp_path) == []


HOLD = "import sys, time; from pathlib import Path; from kapdist.lock import locked\n"
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
