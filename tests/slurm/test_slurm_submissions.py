"""Trainings of two seeds in containers and the attacks behind them, by a command that was killed twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import warm_python
from unhurried import unhurried

from kapdist.run.paths import RunDir
from launch.jobs import remembered

ROOT = Path(__file__).parents[2]
ATTACK = """
{num_images: 20, chunk_size: 10, eps: 8/255, version: custom, attacks: [random-noise], random_draws: 2, threads: 1}
"""
KILLED_BEFORE = "#!/bin/bash\nkill -9 $PPID\n"
KILLED_AFTER = "#!/bin/bash\n/usr/bin/sbatch $@\nkill -9 $PPID\n"
APPTAINER = """#!/bin/bash
echo "$@" >> {log}
while [[ $1 != *.sif ]]; do shift; done
shift; exec "$@"
"""


def tool(folder: Path, text: str) -> str:
    """Write an executable; return PATH with its folder first."""
    folder.mkdir(exist_ok=True)
    name = "apptainer" if "exec" in text else "sbatch"
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.slow
@pytest.mark.skipif(" " in str(ROOT), reason="no container mounts this checkout, whose path has a space")
def test_two_seeds_are_trained_and_attacked_though_the_command_was_killed(
    slurm, tmp_path: Path, tiny_config: Path, small_betons: tuple[Path, Path]
) -> None:
    slurm.restore()
    tiny_config.write_text(unhurried(tiny_config.read_text(), tmp_path, 0.05))  # not done too soon
    (tmp_path / "quick.yaml").write_text(ATTACK)
    (tmp_path / "image.sif").touch()
    words = [
        "tiny.yaml",
        "--seeds",
        "2",
        "--then",
        "quick.yaml",
        "train.epochs=20",
        "train.evaluate_every_epochs=20",
        "train.checkpoint_every_steps=3",
    ]
    cluster = ["partition=low", "train.sbatch={hold: true}", f"python={warm_python()}", "container=./image.sif"]
    cluster += ["container_runtime=apptainer", f"container_python={warm_python()}", f"container_mounts=[{ROOT}]"]
    words += [f"cluster.{word}" for word in cluster]
    path = tool(tmp_path / "tools", APPTAINER.format(log=tmp_path / "apptainer.log"))
    runs = [RunDir(tmp_path / "runs" / f"tiny_seed{seed}") for seed in (0, 1)]

    def launch(path: str) -> subprocess.CompletedProcess[str]:
        command = ["/usr/bin/env", f"PATH={path}", sys.executable, ROOT / "launch" / "train.py", *words]
        return slurm.run(command, cwd=tmp_path, timeout=180, check=False)

    def queue() -> list[str]:
        return slurm.run(["squeue", "-h", "-o", "%F"]).stdout.split()

    assert launch(f"{tool(tmp_path / 'before', KILLED_BEFORE)}:{path}").returncode == -signal.SIGKILL
    assert queue() == []
    assert launch(f"{tool(tmp_path / 'after', KILLED_AFTER)}:{path}").returncode == -signal.SIGKILL
    (training,) = set(queue())
    assert remembered(runs[0].slurm) == []

    done = launch(path)
    assert done.returncode == 0, done.stderr
    assert f"tiny_seeds: job {training} was queued by a command that was cut off" in done.stdout
    assert [line["job"] for run in runs for line in remembered(run.slurm)] == [f"{training}_0", f"{training}_1"]
    for number, run in enumerate(runs):
        assert f"after job {training}_{number}, 1 shards" in done.stdout
        assert [line["kind"] for line in remembered(run.attack("quick").slurm)] == ["plan", "shards", "aggregate"]
    before = sorted(queue())
    assert len(before) == 1 + 2 * 3
    again = launch(path)
    assert again.stdout.count("waits or runs") == 4
    assert sorted(queue()) == before

    slurm.run(["scontrol", "release", training])
    slurm.wait_until(lambda: runs[0].newest_step() > 0, "a checkpoint", 240)
    high = slurm.submit("-p", "high", "-N2", "--exclusive", "--wrap", "sleep 1")
    slurm.wait_for_state(high, "COMPLETED", 120)
    reports = [run.attack("quick").root / "report" / "index.html" for run in runs]
    slurm.wait_until(lambda: all(report.exists() for report in reports), "both reports", 400)
    assert runs[0].last_attempt() > 1

    given = (tmp_path / "apptainer.log").read_text().splitlines()
    for line in given:
        folders = {mount.partition(":")[0] for mount in line.split()[2].removeprefix("--bind=").split(",")}
        assert folders == {str(tmp_path), str(small_betons[0].parent), str(ROOT)}
    assert {Path(line.split()[-1]).parent.name for line in given} == {"tiny_seeds", "quick"}
    status = [sys.executable, ROOT / "launch" / "status.py", tmp_path / "runs" / "tiny_seeds", "--json"]
    for found in json.loads(slurm.run(status, cwd=tmp_path).stdout):
        assert (found["verdict"]["state"], found["attacks"][0]["verdict"]["state"]) == ("DONE", "DONE")
        assert found["training"]["hours"]["unit"] == "rank-hours"
        assert 0 <= found["training"]["hours"]["lost"] < found["training"]["hours"]["used"] < 1
    assert launch(path).stdout.count(": done: ") == 4


def test_the_user_s_own_variables_change_no_job_and_hide_none(
    slurm, tmp_path: Path, tiny_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.restore()
    for name, value in (("SQUEUE_PARTITION", "high"), ("SQUEUE_STATES", "RUNNING"), ("SQUEUE_FORMAT", "%j")):
        monkeypatch.setitem(slurm.environment, name, value)
    for name, value in (("TIMELIMIT", "77"), ("NO_REQUEUE", "1"), ("PARTITION", "high"), ("ARRAY_INX", "0-3")):
        monkeypatch.setitem(slurm.environment, f"SBATCH_{name}", value)
    launch = [sys.executable, ROOT / "launch" / "train.py", tiny_config, "cluster.sbatch={hold: true}"]
    launch += ["cluster.partition=low", "cluster.time_minutes=7"]
    assert slurm.run(launch, cwd=tmp_path).returncode == 0
    (line,) = remembered(RunDir(tmp_path / "runs" / "tiny").slurm)
    facts = slurm.job(line["job"])
    assert [facts.get(key) for key in ("TimeLimit", "Requeue", "Partition", "ArrayJobId")] == [
        "00:07:00",
        "1",
        "low",
        None,
    ]
    assert f"job {line['job']} waits or runs" in slurm.run(launch, cwd=tmp_path).stdout
