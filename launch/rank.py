"""One rank of a training, also as python -m launch.rank ROOT, and the plan of an attack, as jobs call them."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from kapdist.run.asked import ASK, heard, keep_for_all
from launch.call import Call


def train(root: Path) -> None:
    """Train the run whose directory this is, as its config.yaml says."""
    for number in heard(*ASK):
        signal.signal(number, keep_for_all)
    from kapdist.run.paths import RunDir
    from kapdist.train import loop

    loop.train(RunDir(root).load_config())


def plan_attack(run: Path, config: Path) -> None:
    """Plan an attack, which takes the model and hence a node, and remember with which config."""
    from kapdist.attack import plan
    from kapdist.config import AttackConfig
    from kapdist.config.file import load_config
    from kapdist.run.paths import RunDir
    from launch.planned import remember_plan

    asked = load_config(AttackConfig, config)
    plan.plan_attack(run, asked)
    remember_plan(RunDir(run).attack(asked.name), config)


if __name__ == "__main__":
    Call("launch.rank:train", (Path(sys.argv[1]),))()
