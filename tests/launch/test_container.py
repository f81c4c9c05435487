"""What runs inside of a container, by the script that is printed and by what its tools are given."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from kapdist.config import Config
from kapdist.config.file import load_config
from kapdist.errors import InputError
from kapdist.run.paths import RunDir
from launch.cluster import KINDS, ClusterConfig, load_cluster
from launch.container import Container, folders_named
from launch.submission import Submission, submission
from launch.train import TrainCommand

APPTAINER = ("container_runtime=apptainer", "container_python=python3.11")


def words_of(what: Submission) -> list[str]:
    (line,) = [line for line in what.script().splitlines() if line.startswith("srun ")]
    return shlex.split(line)


def training(folder: Path, config: Path, *words: str) -> Submission:
    cluster = load_cluster(None, [*words, "python=/login/python"])
    command = TrainCommand(RunDir(folder / "runs" / "tiny"), load_config(Config, config), cluster)
    return command.submission(command.directory.code / "1")


def test_pyxis_gets_the_image_the_folders_and_the_place(
    tiny_config: Path, small_betons: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    what = training(
        tmp_path / "elsewhere", tiny_config, "container=nvcr.io#me/kap:1", "container_mounts=[/data:/d:ro]"
    )
    words = words_of(what)
    assert "--container-image=nvcr.io#me/kap:1" in words
    assert f"--container-workdir={tmp_path}" in words
    (mounts,) = [word.removeprefix("--container-mounts=") for word in words if "-mounts" in word]
    betons = small_betons[0].parent
    assert sorted(mounts.split(",")) == sorted([f"{tmp_path}:{tmp_path}", f"{betons}:{betons}", "/data:/d:ro"])
    inside = words[words.index("python3") :]
    assert inside[2] == str(tmp_path / "elsewhere/runs/tiny/code/1/launch/module.py")
    assert "\nexec /login/python -u " in what.script()  # the last word asks Slurm


def test_folders_are_mounted_where_links_lead_too_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("work", "run/code", "far"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "data").symlink_to(tmp_path / "far")
    monkeypatch.chdir(tmp_path / "work")
    folders = [tmp_path / "run" / "code", tmp_path / "run", tmp_path / "data"]
    found = Container(ClusterConfig(container="x"), folders).mounts
    assert found == [f"{tmp_path / name}:{tmp_path / name}" for name in ("data", "far", "run", "work")]
    monkeypatch.chdir("/")
    assert Container(ClusterConfig(container="x"), [tmp_path / "run"]).mounts == [f"{tmp_path}/run:{tmp_path}/run"]


def test_the_folders_of_a_config_are_those_of_its_files(
    tiny_config: Path, small_betons: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_config.parent)  # where there are no runs yet
    assert set(folders_named(load_config(Config, tiny_config))) == {path.parent for path in small_betons}


def test_a_job_s_ranks_run_in_apptainer_and_its_last_word_outside(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script itself is run; the tools in front of Slurm's say what they are given and go on."""
    monkeypatch.chdir(tmp_path)
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "srun").write_text(
        '#!/bin/bash\nwhile [[ $1 == -* ]]; do [ $1 = --output ] && shift; shift; done\nexec "$@"'
    )
    (tools / "apptainer").write_text(
        '#!/bin/bash\nprintf "%s\\n" "$@" > given\nwhile [[ $1 != *.sif ]]; do shift; done; shift; exec "$@"'
    )
    for name in ("python3.11", "login"):
        (tools / name).write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > {name}; exit 3')
    for path in tools.iterdir():
        path.chmod(0o755)
    (tmp_path / "image.sif").touch()
    what = training(tmp_path, tiny_config, *APPTAINER, "container=image.sif")
    script = what.script().replace("/login/python", str(tools / "login"))
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    subprocess.run(["bash", "-c", script], env=environment, cwd=tmp_path, timeout=240)
    given = (tmp_path / "given").read_text().splitlines()
    assert given[:2] == ["exec", "--nv"]
    assert f"{tmp_path}:{tmp_path}" in given[2].removeprefix("--bind=").split(",")
    assert given[3:5] == [f"--pwd={tmp_path}", str(tmp_path / "image.sif")]
    inside = (tmp_path / "python3.11").read_text().splitlines()
    assert inside[-4:] == ["-u", "-m", "submitit.core._submit", str(tmp_path / "runs/tiny/slurm")]
    last = (tmp_path / "login").read_text().splitlines()
    assert last[-5:] == ["-m", "launch.after", "train", str(tmp_path / "runs/tiny"), "3"]


def test_what_queues_jobs_runs_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # which is mounted
    cluster = ClusterConfig(container="x")
    inside = [kind for kind in KINDS if cluster.of(kind).container]
    assert inside == ["train", "plan", "shard", "model"]
    for kind in KINDS:
        what = submission("n", Path("/r/slurm"), cluster.of(kind), Path("/r/code"), "launch.after", kind=kind)
        assert ("--container-image=x" in words_of(what)) == (kind in inside)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("container='my image'", "container"),
        ("container=''", "container"),
        ("container=--privileged", "container"),
        ("container_runtime=docker", "'pyxis' or 'apptainer'"),
        ("container_mounts=[data:/data]", "/folder, /folder:/inside or /folder:/inside:ro"),
        ("container_mounts=['/a,/b']", "without commas and spaces"),
        ("mail=not an address", "mail.user"),
        ("mail={user: me@x.org, kinds: [SOMETIMES]}", "'BEGIN', 'END'"),
        ("mail={user: me@x.org, kinds: []}", "at least 1 item"),
        ("comment=''", "comment"),
        ('comment="two\\nlines"', "comment"),
        ("sbatch={comment: x}", "no comment, which kapdist sets itself (comment=)"),
    ],
)
def test_what_is_refused(word: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        load_cluster(None, [word])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("folder", "image", "said"), [
    ("runs", "./nowhere.sif", "cluster.container: expected an image, or a folder of one, found nothing at /"),
    ("a:b", "x", "a folder without colon, comma and space, as it is mounted"),
])  # fmt: skip
def test_what_cannot_be_mounted_is_refused(
    tmp_path: Path, folder: str, image: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(InputError, match=said):
        submission(
            "n", tmp_path / folder, ClusterConfig(container=image), Path("/code"), "x", kind="train"
        ).script()


def test_mail_is_sent_to_whom_it_is_about_what_it_is() -> None:
    def options(*words: str) -> set[str]:
        cluster = load_cluster(None, words).of("shard")
        script = submission("n", Path("/r"), cluster, Path("/c"), "launch.after", kind="shard").script()
        return {line for line in script.splitlines() if "mail" in line}

    assert options() == set()
    assert options("mail=me@x.org") == {"#SBATCH --mail-user=me@x.org", "#SBATCH --mail-type=END,FAIL"}
    assert options("mail={user: me, kinds: REQUEUE}") == {"#SBATCH --mail-user=me", "#SBATCH --mail-type=REQUEUE"}
