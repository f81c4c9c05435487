"""What jobs call: a rank of a training (or python -m launch.rank ROOT), the plan of an attack, parts of a study."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
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


def ask_model(config: Path, run: str, without: Sequence[str]) -> None:
    """Do what is missing of all that a study asks of one trained model, but for some kinds of commands."""
    from kapdist.study.design import make_design
    from kapdist.study.run import ask_of

    design = make_design(config)
    ask_of(design, run, without)
    design.dir.run(run).asked.touch()


def finish_study(config: Path) -> None:
    """Write the page of a study when all its other jobs have ended, however that was."""
    from kapdist.study.design import make_design
    from kapdist.study.page import write_study_report

    design = make_design(config)
    write_study_report(design)
    design.dir.finished.touch()


if __name__ == "__main__":
    Call("launch.rank:train", (Path(sys.argv[1]),))()
