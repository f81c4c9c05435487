"""The commands of docs/data.md on real images of many sizes, from the folder to the evaluated model."""

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAMPS = Path("/usr/share/tuxpaint/stamps")
BLOCK = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "data.md").read_text(), flags=re.DOTALL)[0]
RANKS = "torchrun --standalone --nproc-per-node 2 -m kapdist.cli"


@pytest.mark.slow
def test_stamps_go_all_the_way(run_ranks: Callable, tmp_path: Path) -> None:
    if not STAMPS.is_dir():
        pytest.skip("Debian's tuxpaint-stamps-default is not installed")
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    said = []
    for line in BLOCK.strip().splitlines():
        ranks = 2 if line.startswith(RANKS) else 1
        words = shlex.split(line.removeprefix(RANKS).removeprefix("kapdist"))
        done = run_ranks(["-m", "kapdist.cli", *words], ranks, timeout=200)
        assert [one.code for one in done] == [0] * ranks, (line, done[0].output)
        said.append(done[0].output)
    manifest = json.loads((tmp_path / "stamps.beton.json").read_text())
    assert len(manifest["class_names"]) == 16
    result = json.loads((tmp_path / "runs" / "photographs" / "evaluations" / "flipped.json").read_text())
    assert result["num_images"] == manifest["num_images"] == len(list(STAMPS.rglob("*.png")))
    assert result["top1"] > 0.4  # 31% of them are symbols
    resolutions = json.loads((tmp_path / "runs" / "photographs" / "plan.json").read_text())["ramp"]
    assert (resolutions["first"], resolutions["last"]) == (64, 96)


def test_the_stamps_are_there() -> None:
    if not STAMPS.is_dir():
        assert not os.environ.get("CI"), "CI must have Debian's tuxpaint-stamps-default"
        pytest.skip("Debian's tuxpaint-stamps-default is not installed")
