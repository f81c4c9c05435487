"""What jobs call: a rank of a training (also python -m launch.rank ROOT), the plan of an attack, a study's rest."""

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


def finish_study(config: Path) -> None:
    """Do what is left of a study but trainings and attacks, which have jobs of their own, and write the page."""
    from kapdist.run.paths import StudyDir
    from kapdist.study.design import make_design
    from kapdist.study.page import write_study_report
    from kapdist.study.run import run_study
    from kapdist.study.tasks import ATTACK, TRAINING

    design = make_design(config)
    try:
        run_study(design, without=(TRAINING, ATTACK))
    finally:
        write_study_report(design)
    StudyDir(design.root).finished.touch()


if __name__ == "__main__":
    Call("launch.rank:train", (Path(sys.argv[1]),))()
