"""`kapdist track` on the command line: its options; imported for every --help, so what is heavy waits."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Annotated

import typer

from kapdist.errors import InputError, TransientError
from kapdist.run.standard_output import say, work


def track(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="train.wandb_project=..., train.mlflow_uri=..., and the like.")
    ] = None,
    page: Annotated[list[Path] | None, typer.Option(help="A report that the run is part of.")] = None,
    minutes: Annotated[float, typer.Option(help="Longest wait for the trackers.")] = 10.0,
) -> None:
    """Tell Weights & Biases and MLflow what they lack of a run: offline before, or never told of it."""
    from kapdist.config import Config
    from kapdist.config.file import load_config
    from kapdist.records.tracked import read_tracked
    from kapdist.run.paths import RunDir
    from kapdist.tracking.sender import tell
    from kapdist.tracking.trackers import asked, begin, check_trackers, known

    place = RunDir(run)
    with work(run):
        place.load_config()
        words, longer = overrides or [], f"train.tracker_seconds={60 * minutes}"
        now, later = (load_config(Config, place.config, those).train for those in ([*words, longer], words))
        check_trackers(later)
        if absent := [path for path in page or () if not path.is_file()]:
            raise InputError(absent[0], "a report's page", "a folder" if absent[0].exists() else "nothing")
        for name in asked(now):
            begin(place, name, now, step=inf)
        if not known(place):
            raise InputError(run, "train.wandb_project=PROJECT, train.mlflow_experiment=NAME, or both", "neither")
        told = tell([run], page or ())
        for name in asked(later):  # other commands wait as long as before
            begin(place, name, later, step=inf)
        if not told:
            raise TransientError(f"{run}: not all was told")
    say({name: read_tracked(place.tracked(name)).describe() for name in known(place)})
