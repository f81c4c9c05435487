"""The files of docs/attacks.md, as they stand there, attack a small model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from attack.own.test_attack_own import finished_run
from attack_world import FACTORY
from safetensors.torch import save_file

from kapdist.attack.merge import merge
from kapdist.attack.plan import plan_attack
from kapdist.attack.shard import run_shard
from kapdist.config import AttackConfig
from kapdist.config.file import load_config
from kapdist.models.factory import call_factory
from kapdist.records.summary import Summary
from kapdist.run.paths import AttackDir

World = Any
PAGE = (Path(__file__).parents[3] / "docs" / "attacks.md").read_text()
SMALL = [
    "data=images.beton",
    "num_classes=5",
    "num_images=0",
    "chunk_size=4",
    "threads=1",
    "device=cpu",
    "screen=0",
]


@pytest.fixture
def page(world: World, short: None) -> World:
    """Its files, and what it takes to be there."""
    for name, text in re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE, flags=re.DOTALL):
        (world.folder / name).write_text(text)
    (world.folder / "networks.py").write_text(FACTORY)
    (world.folder / "runs").mkdir()
    finished_run(world.folder / "runs" / "plain")
    save_file(call_factory("networks.py:build").state_dict(), "other.safetensors")
    return world


def attacked(world: World, file: str, *words: str) -> Summary:
    config = load_config(AttackConfig, Path(file), [*SMALL, *words])
    plan_attack(world.run, config)
    attack = AttackDir(world.run / "attacks" / config.name)
    for shard in (1, 0):
        run_shard(attack.root, shard, 2)
    return merge(attack.root)


def test_the_attack_of_the_page(page: World) -> None:
    alone = attacked(page, "mine.yaml", "model.factory=networks.py:build", "attacks=['mine.py:momentum']", "name=a")
    (momentum,) = alone.attacks
    assert 0 < momentum.num_broken < momentum.num_attacked
    # Ten gradients and its own prediction, and the verdict's.
    assert (momentum.forwards, momentum.backwards) == (12 * momentum.num_attacked, 10 * momentum.num_attacked)
    both = attacked(page, "mine.yaml", "model.factory=networks.py:build")
    assert [stage.name for stage in both.attacks] == ["apgd-ce", "mine.py:momentum"]
    assert both.num_robust <= alone.num_robust


def test_the_defence_of_the_page_falls_with_its_gradient(page: World) -> None:
    hidden = attacked(page, "defended.yaml", "gradient_of=null", "name=hidden", "attacks=[apgd-ce]")
    found = attacked(page, "defended.yaml")
    assert hidden.attacks[0].num_broken < found.attacks[0].num_broken
    assert found.gradient_of == "defended.py:without_rounding"


def test_the_surrogates_of_the_page(page: World) -> None:
    found = attacked(page, "transfer.yaml", "model.factory=networks.py:build", "attacks=[transfer]")
    names = ["runs/plain", "networks.py:build", "networks.py:build+other.safetensors"]
    assert [stage.name for stage in found.attacks] == [f"transfer:{name}" for name in names]
    assert found.attacks[1].num_broken > 0
