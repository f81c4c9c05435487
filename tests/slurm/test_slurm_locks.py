"""Who holds a lock as a real Slurm tells it; two submissions at once; and what a job runs."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import warm_python

from kapdist.run.paths import RunDir

ROOT = Path(__file__).parents[2]
HOLD = "import os, sys, time; from pathlib import Path; from kapdist.run.lock import locked\n"
HOLD += "with locked(Path(sys.argv[1])): time.sleep(300)\n"
TRY = "import sys; from pathlib import Path; from kapdist.run.lock import check_free; check_free(Path(sys.argv[1]))"


@pytest.fixture
def clean(slurm) -> Any:
    slurm.restore()
    return slurm


def test_a_lock_of_another_machine_is_held_as_long_as_slurm_says(clean, tmp_path: Path) -> None:
    """The nodes of a sandbox see each other's processes, so the lock says that it is from elsewhere."""
    lock, program = tmp_path / "LOCK", tmp_path / "hold.py"
    program.write_text(HOLD)
    script = f"srun -n1 {shlex.quote(sys.executable)} {program} {lock}; touch {tmp_path}/ended; sleep 300"
    job = clean.submit("-o", "/dev/null", "--wrap", script, cwd=ROOT)
    in_a_step = ["srun", "--overlap", f"--jobid={job}", "-n1", "-Q"]

    def tried() -> list[str]:
        """Try from a login node, and from another step of the same job while there is one."""
        places = [[], in_a_step] if clean.job(job)["JobState"] == "RUNNING" else [[]]
        words = [sys.executable, "-c", TRY, lock]
        done = [clean.run([*place, *words], cwd=ROOT, check=False) for place in places]
        return [f"found {one.stderr.rpartition('found ')[2].strip()}" if one.returncode else "free" for one in done]

    clean.wait_until(lock.exists, "it is held")
    found = json.loads(lock.read_text())
    lock.write_text(json.dumps(found | {"host": "far", "boot": "b"}))
    held = f"found process {found['pid']} on far since {found['since']} (Slurm job {job})"
    assert [text.partition("\n")[0] for text in tried()] == [held] * 2
    clean.run(["scancel", "--signal=KILL", f"{job}.0"])
    clean.wait_until((tmp_path / "ended").exists, "the step has ended")
    assert tried() == ["free"] * 2

    lock.write_text(json.dumps(found | {"host": "far", "boot": "b", "step": None}))
    assert [text.partition("\n")[0] for text in tried()[:1]] == [held]  # the job itself lives
    clean.run(["scancel", job])
    clean.wait_for_state(job, ["CANCELLED"])
    assert tried() == ["free"]


@pytest.fixture
def checkout(tmp_path: Path, tiny_config: Path) -> Path:
    """A copy of the code that may be edited, with a config of one epoch."""
    for name in ("launch", "kapdist"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_of_two_submissions_at_once_one_goes_and_runs_what_was_submitted(clean, checkout: Path) -> None:
    words = ["tiny.yaml", "train.epochs=1", "cluster.sbatch={hold: true}", "cluster.partition=low"]
    command = [*clean.prefix, sys.executable, "launch/train.py", *words, f"cluster.python={warm_python()}"]
    both = [
        subprocess.Popen(command, cwd=checkout, env=clean.environment, text=True, stdout=-1, stderr=-2)
        for _ in range(2)
    ]
    said = sorted(process.communicate(timeout=120)[0] for process in both)
    run = RunDir(checkout / "runs" / "tiny")
    (line,) = (run.slurm / "jobs.jsonl").read_text().splitlines()
    job = json.loads(line)["job"]
    assert [text.count(f"job {job}") for text in said] == [1, 1], said
    assert sum(f"job {job} waits or runs" in text for text in said) == 1, said

    # What is written into the checkout from now on is not what was submitted.
    for name in ("launch/rank.py", "launch/after.py", "kapdist/train/loop.py", "kapdist/__init__.py"):
        (checkout / name).write_text("raise SystemExit('this is not what was submitted')\n")
    clean.run(["scontrol", "release", job])
    assert clean.wait_for_state(job, {"COMPLETED", "FAILED"}, 240) == "COMPLETED"
    assert run.done.exists(), "\n".join(path.read_text() for path in run.slurm.glob("*.out"))
