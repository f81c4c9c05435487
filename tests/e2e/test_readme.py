"""Every command of the README and of the docs is run, in order, as it stands there, on small data."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import Finished, warm_program, warm_python

ROOT = Path(__file__).parents[2]
# Run by what runs this test, or by a test of its own; setting up is what made `kapdist` come first in PATH.
ELSEWHERE = {
    "make test": "it is what runs this test",
    "make quickstart": "test_quickstart.py",
    "source .venv/bin/activate": "the environment of the tests",
}


def commands(text: str) -> list[str]:
    """The lines of all bash blocks, comments dropped."""
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [re.sub(r"\s+#.*", "", line).strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


README = commands((ROOT / "README.md").read_text())
# tests/slurm/test_slurm_words.py runs these
SANDBOX = README[
    next(i for i, line in enumerate(README) if "sandbox.py up" in line) : next(
        i for i, line in enumerate(README) if "sandbox.py down" in line
    )
    + 1
]
ON_SLURM = [*SANDBOX, *(line for line in README if line.startswith("sbatch"))]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, small_betons) -> Path:
    """A folder as the README's reader has it, but for fewer images: what it writes stays in it."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "examples", "launch", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "kapdist").symlink_to(ROOT / "kapdist")  # what is the same code starts warm
    for config in (folder / "configs" / "fashion_mnist").glob("*.yaml"):
        text = config.read_text()
        text = text.replace("epochs: 3", "epochs: 1").replace("num_images: 256", "num_images: 4")
        text = text.replace("num_shards: 2", "num_shards: 1")  # for one chunk; test_quickstart.py has two
        config.write_text(text.replace("batch_size: 250", "batch_size: 50"))
    stamps = Path("/usr/share/tuxpaint/stamps")
    if stamps.is_dir():
        for number, image in enumerate(sorted(stamps.rglob("*.png"))[:8]):
            target = folder / "photos" / f"class{number % 2}" / image.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, target)
    return folder


def smaller(command: str) -> str:
    """The same command on fewer images, where it says how many."""
    words = {
        # The standard list is that of the model from elsewhere; tests/attack compares it with the library.
        "eps=8/255 num_images=64": "eps=8/255 num_images=4 version=custom attacks=[apgd-ce,apgd-dlr]",
        "draws=10 flip": "draws=2 flip",
        "sanity.num_images=32": "sanity.num_images=24 sanity.iterations=5 sanity.restarts=2 "
        "sanity.draws=2 sanity.queries=50 sanity.remedies.iterations=5 sanity.remedies.restarts=2 "
        "sanity.remedies.draws=2 sanity.remedies.queries=50",
        "noise_on.yaml num_images=32": "noise_on.yaml num_images=2 eot=2 version=custom attacks=[apgd-ce]",
        "corruptions.yaml": "corruptions.yaml corruptions.kinds=[fog] corruptions.severities=[1,5]",
        "without_gradients.yaml": "without_gradients.yaml attacks=[random-noise,transfer,hard-label]",
        "runs/kap-line num_images=64": "runs/kap-line num_images=4 hard_label_queries=50 random_draws=5",
        "num_images=64": "num_images=4",
        "--images 64": "--images 8",
        "draws=200 num_images=8": "draws=60 num_images=2",
    }
    for word, fewer in words.items():
        command = command.replace(word, fewer)
    return command


def run(command: str, folder: Path, limit: int = 240) -> Finished:
    """Run a command as a shell does, with warm processes, which saves seconds each time."""
    path = f"{warm_python().parent}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=os.environ | {"PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=limit,
    )
    return Finished(done.returncode, done.stdout)


def small_fashion(command: str, folder: Path, small_betons: tuple[Path, Path]) -> None:
    """In place of 60,000 images: after the command ran as it stands, the rest of the README works on 130."""
    target = folder / command.split()[4]
    source = small_betons[0 if "train" in target.name else 1]
    for suffix in ("", ".json"):
        shutil.copy(f"{source}{suffix}", f"{target}{suffix}")


@pytest.mark.slow
def test_the_commands_of_the_readme_work(checkout: Path, small_betons: tuple[Path, Path]) -> None:
    for command in README:
        if command in ELSEWHERE or command in ON_SLURM:
            continue
        if "photos" in command and not (checkout / "photos").exists():
            continue  # its reason is given by test_photographs_are_there
        done = run(smaller(command), checkout)
        assert done.code == 0, f"{command}\n{done.output}"
        if command.startswith("kapdist data write fashion-mnist"):
            small_fashion(command, checkout, small_betons)
    for made in (
        "runs/kap/DONE",
        "runs/kap-line/DONE",
        "runs/kap/attacks/sharded/summary.json",
        "report/index.html",
    ):
        assert (checkout / made).exists(), made


def test_photographs_are_there() -> None:
    if not Path("/usr/share/tuxpaint/stamps").is_dir():
        assert not os.environ.get("CI"), "CI must have Debian's tuxpaint-stamps-default"
        pytest.skip("Debian's tuxpaint-stamps-default is not installed")


def test_files_that_the_readme_names_exist() -> None:
    text = (ROOT / "README.md").read_text()
    named = re.findall(r"\]\((?!http)([^)]+)\)", text) + re.findall(
        r"`((?:examples|kapdist|configs|launch|tools)/[\w/.]+)`", text
    )
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_make_targets_that_the_readme_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make (\w+)", (ROOT / "README.md").read_text())):
        assert f"\n{target}:" in makefile


def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    block = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)[0]
    words = warm_program(tmp_path, block)
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
