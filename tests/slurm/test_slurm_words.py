"""The README's words about Slurm, and Slurm's words about what it does not take."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from processes import warm_python

from kapdist.run.paths import RunDir

ROOT = Path(__file__).parents[2]
PATH = f"export PATH='{Path(sys.executable).parent}':$PATH"


def block_with(word: str) -> list[str]:
    """The lines of the README's bash block that holds a word."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    return next(block for block in blocks if word in block).splitlines()


@pytest.fixture
def checkout(tmp_path: Path, small_betons: tuple[Path, Path]) -> Path:
    """A folder as the README's reader has it, with fewer images."""
    for name in ("configs", "examples", "launch", "kapdist"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for config in (tmp_path / "configs" / "fashion_mnist").glob("*.yaml"):
        text = config.read_text().replace("epochs: 3", "epochs: 1").replace("batch_size: 250", "batch_size: 50")
        config.write_text(text.replace("version: standard", "version: custom\nattacks: [apgd-ce]"))
    data = tmp_path / "data" / "fashion_mnist"
    data.mkdir(parents=True)
    for source, name in zip(small_betons, ("train", "test"), strict=True):
        shutil.copy(source, data / f"{name}.beton")
        shutil.copy(f"{source}.json", data / f"{name}.beton.json")
    return tmp_path


def test_the_readme_s_way_from_a_config_to_a_report(slurm, checkout: Path) -> None:
    """All but `up` and `down`: the sandbox of the tests is up already."""
    slurm.restore()
    first, *lines, last = block_with("slurm_sandbox.py up")
    assert "slurm_sandbox.py up" in first
    assert "slurm_sandbox.py down" in last
    warm = f"export PATH='{warm_python().parent}':$PATH"  # test_the_batch_script_trains starts cold
    script = "\n".join(["set -e", PATH, warm, *lines]).replace("num_images=64", "num_images=6")
    done = slurm.run(["bash", "-c", script], timeout=480, cwd=checkout)
    run = RunDir(checkout / "runs" / "queued")
    assert run.done.exists(), done.stdout + done.stderr
    assert json.loads(run.attack("attack").summary.read_text())["num_images"] == 6
    assert (run.attack("attack").root / "report" / "index.html").exists() or "aggregat" in done.stdout


def test_the_batch_script_trains(slurm, checkout: Path) -> None:
    slurm.restore()
    (command,) = block_with("sbatch examples/train.sbatch")
    job = slurm.run(["bash", "-c", f"{PATH}; {command}"], cwd=checkout).stdout.split()[-1]
    state = slurm.wait_for_state(job, {"COMPLETED", "FAILED"}, 240)
    assert state == "COMPLETED", (checkout / f"slurm-{job}.out").read_text()
    run = RunDir(checkout / "runs" / "kap")
    assert run.done.exists()
    assert json.loads(run.plan.read_text())["world_size"] == 2
    assert not list(checkout.glob(".rendezvous*"))


def test_slurm_s_own_words_about_a_partition_that_is_not_there(slurm, tiny_config: Path) -> None:
    command = [sys.executable, ROOT / "launch" / "train.py", tiny_config, "cluster.partition=nowhere"]
    done = slurm.run(command, cwd=tiny_config.parent, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "kapdist: sbatch: expected a job that this cluster takes, found "
    )
    assert "invalid partition specified: nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_job_that_is_cancelled_stays_cancelled(slurm, checkout: Path) -> None:
    slurm.restore()
    launch = [sys.executable, "launch/train.py", "configs/fashion_mnist/kap.yaml", "train.epochs=500"]
    launch.append(f"cluster.python={warm_python()}")
    printed = slurm.run(launch, cwd=checkout).stdout
    job = re.findall(r"job (\d+)", printed)[0]
    run = RunDir(checkout / "runs" / "kap")
    slurm.wait_until(lambda: run.rank_log(1, 0).exists(), "the first attempt", 180)
    slurm.run(["scancel", job])
    assert slurm.wait_for_state(job, {"CANCELLED", "PENDING", "COMPLETED"}, 120) == "CANCELLED"
    assert slurm.job(job)["Restarts"] == "0"
    assert not run.done.exists()
    assert "waits or runs" not in slurm.run([*launch, "cluster.sbatch={hold: true}"], cwd=checkout).stdout
