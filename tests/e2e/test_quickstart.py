"""`make quickstart`'s own script, from betons to the page, on fewer images."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from processes import warm_python

ROOT = Path(__file__).parents[2]
NAMES = ("plain", "noise", "kap")


@pytest.fixture
def checkout(tmp_path: Path, small_betons: tuple[Path, Path]) -> Path:
    """A checkout with the quickstart's configs on 130 images, one epoch, 6 attacked images and one short attack."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "quickstart.sh", tmp_path / "tools")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(warm_python().parent)
    folder = tmp_path / "configs" / "fashion_mnist"
    for name in NAMES:
        text = (folder / f"{name}.yaml").read_text()
        (folder / f"{name}.yaml").write_text(replaced(replaced(text, "epochs: ", "1"), "batch_size: ", "20"))
    text = replaced(replaced((folder / "attack.yaml").read_text(), "num_images: ", "6"), "chunk_size: ", "3")
    (folder / "attack.yaml").write_text(replaced(text, "version: ", "custom") + "attacks: [apgd-ce]\n")
    data = tmp_path / "data" / "fashion_mnist"
    data.mkdir(parents=True)
    for source, name in zip(small_betons, ("train", "test"), strict=True):
        shutil.copy(source, data / f"{name}.beton")
        shutil.copy(f"{source}.json", data / f"{name}.beton.json")
    return tmp_path


def replaced(text: str, key: str, value: str) -> str:
    """Give a key of a config another value; the key must be there."""
    lines = text.splitlines()
    found = [number for number, line in enumerate(lines) if line.lstrip().startswith(key)]
    assert len(found) == 1, key
    indent = lines[found[0]][: -len(lines[found[0]].lstrip())]
    lines[found[0]] = f"{indent}{key}{value}"
    return "\n".join(lines) + "\n"


@pytest.mark.slow
def test_from_betons_to_the_page(checkout: Path) -> None:
    script = ["bash", str(checkout / "tools" / "quickstart.sh")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"}
    done = subprocess.run(script, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    page = Path(done.stdout.splitlines()[-1])
    assert page == checkout / "runs" / "report" / "index.html"
    html = page.read_text()
    for name in NAMES:
        run = checkout / "runs" / name
        assert (run / "DONE").exists()
        summary = json.loads((run / "attacks" / "attack" / "summary.json").read_text())
        assert summary["num_images"] == 6
        assert summary["eps"] == 8 / 255
        assert len(list((run / "attacks" / "attack" / "chunks").glob("*.parquet"))) == 2
        assert name in html
    assert "noise was switched off" in html


def test_the_three_configs_differ_in_the_section_kap_alone() -> None:
    from kapdist.config import Config, flatten
    from kapdist.config.file import load_config

    folder = ROOT / "configs" / "fashion_mnist"
    plain, noise, kap = (flatten(load_config(Config, folder / f"{name}.yaml")) for name in NAMES)
    differing = {key for key in plain if not plain[key] == noise[key] == kap[key]}
    assert differing == {"name", "kap.pool_size", "kap.noise_std"}
    assert (plain["kap.pool_size"], plain["kap.noise_std"]) == (1, 0)
    assert noise["kap.noise_std"] == kap["kap.noise_std"] > 0
    assert noise["kap.pool_size"] == 1
    assert kap["kap.pool_size"] == 3
