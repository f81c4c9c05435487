"""The wheel: what is in it, and what it does in another folder, on a machine with no more than pip brings along."""

from __future__ import annotations

import email
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BUILD = "import sys, setuptools.build_meta as backend; backend.build_wheel(sys.argv[1])"
LIMIT_SECONDS = 300


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built without a network and without a trace in the checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("kapdist", "launch", "configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-c", BUILD, str(out)]
    subprocess.run(command, cwd=source, capture_output=True, timeout=LIMIT_SECONDS, check=True)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to import from, with the wheel and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    return folder


def test_all_of_the_code_and_all_configs_are_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        found = {name for name in file.namelist() if ".dist-info/" not in name}
    of = {"kapdist": "kapdist", "launch": "launch", "kapdist/configs": "configs"}
    assert found == {f"{there}/{path}" for there, here in of.items() for path in files_of(ROOT / here)}
    assert "kapdist/py.typed" in found


def test_its_metadata_name_the_groups(site: Path) -> None:
    (folder,) = site.glob("*.dist-info")
    metadata = email.message_from_string((folder / "METADATA").read_text())
    groups = set(metadata.get_all("Provides-Extra"))
    assert {"train", "ffcv", "cluster", "zoo", "all", "dev"} <= groups
    required = metadata.get_all("Requires-Dist")
    alone = {line.split("=")[0].rstrip("<>=~") for line in required if "extra ==" not in line}
    assert {"torch", "numpy"} < alone
    assert not {"ffcv", "deepspeed", "submitit", "tensorboard", "matplotlib", "scipy"} & alone
    versions = [name[-4:] for name in metadata.get_all("Classifier") if "Python :: 3." in name]
    assert (metadata["Requires-Python"], versions) == ("<3.14,>=3.10", ["3.10", "3.11", "3.12", "3.13"])
    (every,) = [line for line in required if line.endswith(("extra == 'all'", 'extra == "all"'))]
    assert set(every.partition("[")[2].partition("]")[0].split(",")) == groups - {"all", "dev", "docs"}


def run(site: Path, folder: Path, asked: str) -> str:
    """Run groups.py with the wheel's code, in another folder; return what it printed."""
    environment = os.environ | {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(Path(__file__).with_name("groups.py")), asked]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_kap_and_models_need_torch_alone(site: Path, tmp_path: Path) -> None:
    found = json.loads(run(site, tmp_path, "torch"))
    assert found["file"].startswith(str(site))
    assert found["fold"] < 1e-5
    assert found["noise"] > 1e-3
    assert not found["numpy"]


TRAIN, CLUSTER = "(pip install 'kapdist[train]'), found none", "(pip install 'kapdist[cluster]'), found none"
# Each command line, its exit code, and what its last line says.
COMMANDS = {
    "kapdist train kapdist:fashion_mnist/kap.yaml": (2, TRAIN),
    "kapdist report nowhere": (2, TRAIN),
    "kapdist study run kapdist:fashion_mnist/study.yaml": (2, TRAIN),
    "kapdist study report kapdist:fashion_mnist/study.yaml": (2, TRAIN),
    "kapdist topography nowhere": (2, TRAIN),
    "kapdist data write x.parquet y.beton": (2, TRAIN),
    "kapdist-launch train kapdist:fashion_mnist/kap.yaml --dry-run": (2, CLUSTER),
    "kapdist-launch study kapdist:fashion_mnist/study.yaml --dry-run": (2, CLUSTER),
    "kapdist train kapdist:fashion_mnist/kapp.yaml": (
        2,
        "(nearest: kapdist:fashion_mnist/kap.yaml), found nothing",
    ),
    "kapdist train configs/fashion_mnist/kap.yaml": (2, "(kapdist:fashion_mnist/kap.yaml comes with the package)"),
    "kapdist-launch nonsense": (
        2,
        "kapdist-launch: expected one of train, attack, study, status, found 'nonsense'",
    ),
    "kapdist-launch --help": (0, "status  say where a run, an attack or a study stands"),
    "kapdist-launch train --help": (0, ""),
    "kapdist --help": (0, ""),
    "kapdist study plan kapdist:fashion_mnist/study.yaml": (0, ""),
    "kapdist data check nowhere": (2, " on"),  # no file from this folder on
    "kapdist attack merge nowhere": (2, ""),
    "kapdist certify nowhere sigma=0.25": (2, ""),
    "kapdist-launch status nowhere": (2, ""),
}


@pytest.fixture(scope="module")
def told(site: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What all commands said, one after the other in one process without any extra."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "x.parquet").touch()
    (folder / "commands").write_text("\n".join(COMMANDS))
    run(site, folder, "commands")
    left = {path.name for path in folder.iterdir()}
    assert left == {"x.parquet", "commands", "commands.json"}  # what cannot be done has begun nothing
    return json.loads((folder / "commands.json").read_text())


def test_the_python_face_needs_no_group(told: dict[str, Any]) -> None:
    assert told["attack"]["broken"] == ["screen"] * 4


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_works_or_names_the_group_that_it_needs(told: dict[str, Any], command: str) -> None:
    code, said = told[command]
    expected, end = COMMANDS[command]
    assert code == expected, said
    assert said.endswith(end)
    assert "Traceback" not in said
    assert end in (TRAIN, CLUSTER) or "pip install" not in said
    if expected:
        assert len(said.splitlines()) == 1


def files_of(folder: Path) -> set[Path]:
    paths = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(folder) for path in paths}


SNAPSHOT = """
from pathlib import Path
from launch.snapshot import describe, snapshot
print(describe(Path("code/1")))
print(snapshot(Path("code"), Path("runs")))
"""


def test_jobs_of_the_wheel_run_a_snapshot_of_it(site: Path, tmp_path: Path) -> None:
    """In somebody else's checkout too, whose commit is not the code's."""
    subprocess.run(["git", "init", "-q"], cwd=site, check=True)
    words = ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "another project"]
    subprocess.run(["git", *words], cwd=site, check=True)
    environment = os.environ | {"PYTHONPATH": str(site)}
    made = subprocess.run(
        [sys.executable, "-c", SNAPSHOT], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    shutil.rmtree(site / ".git")
    described, code = made.stdout.splitlines()
    assert described.endswith("files at no commit")
    for name in ("kapdist", "launch"):
        assert files_of(tmp_path / code / name) == files_of(site / name)
    shown = subprocess.run(
        [sys.executable, str(tmp_path / code / "launch" / "module.py"), "-m", "kapdist.cli", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Usage:" in shown.stdout
