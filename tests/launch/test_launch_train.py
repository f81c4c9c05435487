"""Queueing a training: what is printed, what is written, what is refused. No Slurm is needed here."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from processes import end_ranks, start_ranks, warm_python

from kapdist.config import Config
from kapdist.config.file import dump_config, load_config
from kapdist.run.lock import locked
from kapdist.run.paths import RunDir
from launch import snapshot as snapshots
from launch.jobs import remembered

ROOT = Path(__file__).parents[2]


def launch(
    *words: object, cwd: Path, script: str = "train", path: str | None = None
) -> subprocess.CompletedProcess:
    """Run launch/SCRIPT.py; `path` takes the place of PATH."""
    command = [warm_python(), ROOT / "launch" / f"{script}.py", *map(str, words)]
    environment = os.environ | ({"PATH": path} if path is not None else {})
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)


def test_a_dry_run_prints_the_script_and_writes_nothing(tiny_config: Path) -> None:
    words = ["cluster.nodes=3", "cluster.ranks_per_node=2", "cluster.gpus_per_node=2", "cluster.time_minutes=90"]
    words += ["cluster.partition=a b", "cluster.sbatch={gres: 'gpu:x:2', exclusive: true}", "cluster.memory_gb=1.5"]
    words += ["cluster.environment={NCCL_IB_HCA: mlx5}", "cluster.setup=[module load cuda]", "seed=4"]
    words += ["robust.eps=8/255"]
    done = launch(tiny_config, *words, "--dry-run", cwd=tiny_config.parent)
    assert done.returncode == 0, done.stderr
    script, _, config = done.stdout.partition("# " + str(RunDir(tiny_config.parent / "runs" / "tiny").config))
    options = {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")}
    assert {"--nodes=3", "--ntasks-per-node=2", "--gpus-per-node=2", "--time=90", "--partition='a b'"} <= options
    assert {"--gres=gpu:x:2", "--exclusive", "--mem=1536M", "--requeue", "--signal=USR2@120"} <= options
    assert "--kill-on-bad-exit=1" in script
    assert "export NCCL_IB_HCA=mlx5" in script
    assert script.index("module load cuda") < script.index("srun ")
    resolved = [line.removeprefix("#   ") for line in config.splitlines() if line.startswith("#   ")]
    assert yaml.safe_load("\n".join(resolved))["seed"] == 4
    assert done.stderr == "kapdist: robust.eps says nothing: robust.every_epochs is 0\n"
    assert not (tiny_config.parent / "runs").exists()
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr


def test_the_same_words_are_printed_and_submitted(tiny_config: Path, tmp_path: Path) -> None:
    """The sbatch in front of Slurm's only keeps what it is given, a token of its own in the place of TOKEN."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "sbatch").write_text(f'#!/bin/bash\ncp "$1" {tmp_path}/given.sh; echo Submitted batch job 7\n')
    (tools / "srun").write_text("#!/bin/bash\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    words = [tiny_config, "cluster.nodes=2", "cluster.account=me", "runs_dir=my runs"]
    path = f"{tools}:/usr/bin:/bin"
    printed = launch(*words, "--dry-run", cwd=tmp_path).stdout.partition("\n# /")[0]
    done = launch(*words, cwd=tmp_path, path=path)
    assert done.stdout.endswith(f"job 7 (python launch/status.py '{tmp_path}/my runs/tiny')\n"), done.stderr
    (line,) = remembered(tmp_path / "my runs" / "tiny" / "slurm")
    assert (tmp_path / "given.sh").read_text() == printed.replace("TOKEN", line["token"])
    assert printed.count("TOKEN") == 2


def test_a_run_that_somebody_works_on_is_not_touched(tiny_config: Path) -> None:
    run = RunDir(tiny_config.parent / "runs" / "tiny")
    with locked(run.lock):
        done = launch(tiny_config, cwd=tiny_config.parent)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"kapdist: {run.lock}: expected nobody else at work here")
    assert f"found process {os.getpid()}" in line
    assert [path.name for path in run.root.rglob("*") if path.is_file()] == []


def test_a_percent_sign_in_the_run_directory_is_no_symbol_of_slurm_s(tiny_config: Path, tmp_path: Path) -> None:
    words = ["--dry-run", "runs_dir=it's #1 100%j"]
    script = launch(tiny_config, *words, cwd=tmp_path).stdout
    folder = f"{tmp_path}/it's #1 100%%j/tiny/slurm"
    options = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH --output")]
    assert shlex.split(*options) == [f"--output={folder}/%j_0_log.out"]
    (line,) = [line for line in script.splitlines() if line.startswith("srun ")]
    said = [word for word in shlex.split(line) if word.startswith("--output=")]
    assert said[-1] == f"--output={folder}/%j_%t_log.out"  # srun takes the last


def test_a_backslash_in_the_run_directory_is_refused(tiny_config: Path, tmp_path: Path) -> None:
    """Slurm reads it as: no symbols in this path, so all logs would have one name."""
    done = launch(tiny_config, "runs_dir='a\\b'", "--dry-run", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "expected a path without backslashes" in line


def test_the_ranks_get_the_script_s_variables_whatever_sbatch_exports(tiny_config: Path, tmp_path: Path) -> None:
    script = launch(tiny_config, "cluster.sbatch={export: NONE}", "--dry-run", cwd=tmp_path).stdout
    assert "#SBATCH --export=NONE" in script
    assert " --export=ALL " in next(line for line in script.splitlines() if line.startswith("srun "))


@pytest.mark.parametrize("script", ["train", "attack"])
def test_without_slurm_the_command_says_so(tiny_config: Path, tmp_path: Path, script: str) -> None:
    (tmp_path / "attack.yaml").write_text("{model: {factory: a:b}}")
    words = [tiny_config] if script == "train" else [tmp_path / "anywhere", tmp_path / "attack.yaml"]
    done = launch(*words, cwd=tmp_path, script=script, path=f"{tmp_path}/none:/usr/lib/git-core")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("kapdist: sbatch: expected Slurm on this machine")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("cluster.nodes=0", "override 'cluster.nodes=0': expected"),
        ("cluster.node=2", "nearest: nodes"),
        ("model.nmae=x", "nearest: model.name"),
        ("cluster.time_minutes=soon", "override 'cluster.time_minutes=soon'"),
        ("cluster.account='a' b", """kapdist: override "cluster.account='a' b": expected"""),
    ],
)
def test_wrong_words_are_one_line_and_exit_code_2(tiny_config: Path, word: str, expected: str) -> None:
    done = launch(tiny_config, word, "--dry-run", cwd=tiny_config.parent)
    assert done.returncode == 2
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_run_directory_of_another_config_is_refused(tiny_config: Path) -> None:
    run = RunDir(tiny_config.parent / "runs" / "tiny")
    run.root.mkdir(parents=True)
    run.config.write_text(dump_config(load_config(Config, tiny_config, ["seed=5"])))
    run.checkpoint(1).mkdir(parents=True)
    done = launch(tiny_config, cwd=tiny_config.parent)
    assert done.returncode == 2
    assert "seed = 5 as this run began" in done.stderr


@pytest.mark.parametrize(
    ("option", "found"), [("ro", "Read-only file system"), ("full", "No space left on device")]
)
def test_a_run_directory_that_takes_nothing(tiny_config: Path, option: str, found: str) -> None:
    runs = tiny_config.parent / "runs"
    runs.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(runs)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system takes root")
    try:
        if option == "full":
            with pytest.raises(OSError, match="No space left"):
                (runs / "filler").write_bytes(bytes(128 * 1024))
        else:
            subprocess.run(["mount", "-o", "remount,ro", str(runs)], check=True)
        done = launch(tiny_config, cwd=tiny_config.parent)
    finally:
        subprocess.run(["umount", str(runs)], check=True)
    assert done.returncode == 2
    assert found in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_snapshot_is_what_the_checkout_was(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    subprocess.run(["git", "clone", "-q", ROOT, checkout], check=True)
    (checkout / "kapdist" / "rng.py").write_text("changed = 1\n")
    (checkout / "new.py").write_text("new = 1\n")
    other = os.fsdecode(b"caf\xe9.txt")  # of a system whose names are not in UTF-8
    (checkout / other).write_bytes(b"caf\xe9\n")
    (checkout / "runs").mkdir()
    (checkout / "runs" / "huge").write_text("ignored")
    program = "import sys; from pathlib import Path; from launch.snapshot import snapshot; "
    program += f"print(snapshot(Path({str(tmp_path)!r}) / 'code', Path('runs')))"
    for number in ("1", "2"):
        done = subprocess.run([sys.executable, "-c", program], cwd=checkout, capture_output=True, text=True)
        assert done.stdout.strip() == str(tmp_path / "code" / number), done.stderr
    (checkout / "new.py").write_text("edited later\n")
    copy = tmp_path / "code" / "1"
    assert (copy / "new.py").read_text() == "new = 1\n"
    assert (copy / "kapdist" / "rng.py").read_text() == "changed = 1\n"
    assert (copy / "launch" / "rank.py").exists()
    assert (copy / other).read_bytes() == b"caf\xe9\n"
    assert not (copy / "runs").exists()
    assert "changed = 1" in (tmp_path / "code" / "1.diff").read_text()


def test_a_file_that_is_gone_before_it_is_copied_is_no_code(tmp_path: Path, monkeypatch) -> None:
    """As an editor's own are, which git lists and which live for a moment."""
    for name in ("code.py", "code.py~"):
        (tmp_path / name).write_text(name)
    copy = shutil.copy2

    def late(source: Path, target: Path) -> None:
        (tmp_path / "code.py~").unlink(missing_ok=True)
        copy(source, target)

    monkeypatch.setattr(snapshots, "ROOT", tmp_path)
    monkeypatch.setattr(snapshots, "code_files", lambda: ["code.py~", "code.py"])
    monkeypatch.setattr(shutil, "copy2", late)
    made = snapshots.snapshot(tmp_path / "code", tmp_path / "runs")
    assert sorted(path.name for path in made.iterdir()) == ["GIT.json", "code.py"]


TOLD_EARLY = """
import os, signal, sys
from pathlib import Path
from kapdist.train import loop
from launch import rank
from launch.call import Call

def join(config, meet=loop.join):
    if os.environ["RANK"] == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGTERM)
    return meet(config)

loop.join = join
Call("launch.rank:train", (Path(sys.argv[1]),))()
"""


@pytest.mark.parametrize("told", ["0", "1", "none"])
def test_a_rank_that_is_told_to_stop_before_it_met_the_others_takes_them_along(
    tiny_config: Path, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    """Slurm has been seen to end one rank of a job that it had just started again."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    run = RunDir(tiny_config.parent / "runs" / "tiny")
    run.claim(load_config(Config, tiny_config, [f"runs_dir={run.root.parent}", "train.epochs=1"]))
    program = tiny_config.parent / "told_early.py"
    program.write_text(TOLD_EARLY)
    ends = end_ranks(start_ranks([str(program), str(run.root), told], 2, tiny_config.parent), 240)
    assert [end.code for end in ends] == [0, 0], ends
    assert not run.failed.exists()
    assert run.done.exists() == (told == "none")
    if told != "none":
        assert "stopped by SIGTERM before it began; may be continued" in ends[int(told)].output
        assert "stopped by another rank before it began" in ends[1 - int(told)].output
