"""What asks something of a trained model tells the model's trackers, once what it found lies there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from certify.linear import settings

from kapdist.attack.merge import merge
from kapdist.attack.run import run_attack
from kapdist.certify.run import merge_alone, run_certify
from kapdist.corruptions.run import run_corruptions
from kapdist.records.sealed import write_json
from kapdist.records.tracked import Tracked, write_tracked
from kapdist.run.paths import RunDir
from kapdist.sanity import run as sanity
from kapdist.tracking import sender
from kapdist.tracking.told import results_of

CORRUPTIONS = {"kinds": ["contrast"], "severities": [1]}


class Looks:
    """A tracker's process that looks at what there is to tell."""

    title, seconds = "MLflow", 0.0

    def __init__(self, run: RunDir, name: str, pages: object) -> None:
        self.run = run

    def end(self, how: str) -> None:
        self.found = {*results_of(self.run).files["run"]}

    def wait(self, deadline: float) -> bool:
        return True


def attacks(world: Any) -> None:
    run_attack(world.run, world.config(attacks=("random-noise",), random_draws=1, num_images=4), here=True)


def merges(world: Any) -> None:
    merge(RunDir(world.run).attack("aa").root)


def examines(world: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:  # its numbers take seconds
        patch.setattr(sanity, "examined", lambda run, *_: write_json(RunDir(run).attack("s").sanity, {}))
        sanity.run_sanity(world.run, world.config(name="s"))


def corrupts(world: Any) -> None:
    run_corruptions(world.run, world.config(name="c", version="standard", attacks=(), corruptions=CORRUPTIONS))


def certifies(world: Any) -> None:
    run_certify(world.run, settings(world, draws=20, num_images=5))


def adds_up(world: Any) -> None:
    merge_alone(world.run, settings(world, draws=20, num_images=5))


COMMANDS: list[tuple[str, tuple[Callable[[Any], None], ...]]] = [
    ("attacks/aa/summary.json", (attacks, merges)),
    ("attacks/s/sanity.json", (examines,)),
    ("corruptions/c/summary.json", (corrupts,)),
    ("certificates/c/summary.json", (certifies, adds_up)),
]


@pytest.mark.parametrize(("place", "asked"), COMMANDS, ids=[Path(place).parts[0] for place, _ in COMMANDS])
def test_trackers_are_told_of_what_was_found(
    world: Any,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    asked: tuple[Callable[[Any], None], ...],
) -> None:
    told: list[Looks] = []
    monkeypatch.setattr(sender, "Sender", lambda *words: told.append(Looks(*words)) or told[-1])
    tracked = Tracked(id="a", project="kap", store=None, seconds=1.0)
    write_tracked(RunDir(world.run).tracked("mlflow"), tracked)
    for number, command in enumerate(asked):
        command(world)
        assert [place in one.found for one in told[number:]] == [True]
        (world.run / place).unlink()
